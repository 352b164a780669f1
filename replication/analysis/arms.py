"""The arms of Table 1 and of the ablations: their order, names and colours, and runs grouped by them."""

from collections.abc import Iterable
from pathlib import Path

from replication.analysis.comparable import check_one_table, differences, facts_of
from replication.config import load_profile
from replication.runs import RunFolder, find_runs

ARMS = {
    "dense": "dense",
    "dense_bf16": "dense, bf16",
    "dense_quarter": "dense, ¼ steps",
    "static": "static",
    "set": "SET",
    "rigl": "RigL",
    "mst": "MST",
    "static_90": "static, 90 %",
    "rigl_4x_er": "RigL at 4×, ER",
    "rigl_4x_uniform": "RigL at 4×, uniform",
    "dense_small": "dense, small",
    "mst_no_variation": "MST, constant sparsity",
    "mst_gradient_growth": "MST, gradient growth",
    "mst_random_growth": "MST, random growth",
    "mst_dense_attention": "MST, dense attention",
    "mst_sparse_attention": "MST, sparse attention throughout",
    "mst_block_2x2": "MST, 2×2 blocks (ours)",
    "mst_dense_head": "MST, dense head",
}

COLOURS = {
    "dense": "#1f2933",
    "dense_bf16": "#52606d",
    "dense_quarter": "#9aa5b1",
    "static": "#e0a030",
    "set": "#4f9d69",
    "rigl": "#3a7ca5",
    "mst": "#c8324a",
}

Runs = dict[str, dict[int, RunFolder]]


def table1_runs(results: Path | str, profile: str) -> list[RunFolder]:
    """The finished runs of a profile but for those of its ablation arms."""
    return without_ablations(find_runs(results, profile), profile)


def without_ablations(runs: Iterable[RunFolder], profile: str) -> list[RunFolder]:
    ablations = load_profile(profile).get("ablations", {})
    return [run for run in runs if run.path.parent.name not in ablations]


def by_arm(runs: Iterable[RunFolder]) -> Runs:
    """Arm -> seed -> run; arms in Table 1's order, then any others by name, and seeds ascending.

    Raises:
        UserError: the runs do not belong in one table: different texts, or seeds of an arm with different settings.
    """
    runs, grouped = list(runs), {}
    check_one_table([facts_of(run) for run in runs])
    for run in sorted(runs, key=lambda run: (_rank(run.path.parent.name), _seed(run))):
        grouped.setdefault(run.path.parent.name, {})[_seed(run)] = run
    return grouped


def incomparable(arms: Runs, *names: str) -> str | None:
    """Why the first of these arms is not to be compared with one of the others, in a sentence; None: it is."""
    first, *others = names
    for other in others:
        keys = differences(*(facts_of(next(iter(arms[arm].values()))) for arm in (first, other)))
        if keys:
            return f"{label(first)} and {label(other)} differ in {', '.join(keys)}, beyond what makes them these arms."
    return None


def label(arm: str) -> str:
    return ARMS.get(arm, arm.replace("_", " "))


def colour(arm: str) -> str:
    return COLOURS.get(arm, "#8e6bbf")


def final_losses(seeds: dict[int, RunFolder]) -> dict[int, float]:
    """Seed -> validation loss after the last step, in nats per token."""
    return {seed: run.metrics()[-1]["validation_loss"] for seed, run in seeds.items()}


def _rank(arm: str) -> tuple[int, str]:
    order = list(ARMS)
    return (order.index(arm) if arm in order else len(order), arm)


def _seed(run: RunFolder) -> int:
    return int(run.path.name.removeprefix("seed-"))
