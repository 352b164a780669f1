"""The arms of Table 1 and of the ablations: their order and names, and runs grouped by them."""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any

from replication.analysis.comparable import check_one_table, differences, facts_of
from replication.config.profiles import load_profile
from replication.runs.finding import REFERENCE, find_runs
from replication.runs.folder import RunFolder
from replication.system.errors import DamagedError
from replication.system.files import Json, read_json

ARMS = {
    "dense": "dense",
    "dense_bf16": "dense, bf16",
    "dense_quarter": "dense, ¼ steps",
    "dense_nine_tenths": "dense, 9/10 of the steps",
    "dense_one_layer": "dense, one layer",
    "dense_narrow": "dense, narrow, at 4×",
    "dense_shallow": "dense, one layer, at 4×",
    "dense_narrow_dense_head": "dense, narrow, 4×, no head",
    "dense_shallow_dense_head": "dense, one layer, 4×, no head",
    "dense_shallow_counted": "dense, one layer, head counted",
    "static": "static",
    "set": "SET",
    "rigl": "RigL",
    "gmp": "GMP",
    "mst": "MST",
    "mst_density": "MST, 4× by density",
    "static_4x": "static at 4×",
    "set_4x": "SET at 4×",
    "rigl_4x": "RigL at 4×",
    "static_dense_head": "static, dense head",
    "set_dense_head": "SET, dense head",
    "rigl_dense_head": "RigL, dense head",
    "mst_dense_head": "MST, dense head",
    "mst_density_dense_head": "MST, 4× by density, dense head",
    "static_4x_dense_head": "static at 4×, dense head",
    "set_4x_dense_head": "SET at 4×, dense head",
    "rigl_4x_dense_head": "RigL at 4×, dense head",
    "gmp_4x": "GMP at 4×",
    "gmp_4x_dense_head": "GMP at 4×, dense head",
    "dense_short": "dense, 4 tokens a parameter",
    "dense_shallow_short": "dense, one layer, 4 tokens a parameter",
    "mst_short_dense_head": "MST, dense head, 4 tokens a parameter",
    "mst_derived_schedule": "MST, the derived schedule",
    "mst_no_variation": "MST, constant sparsity",
    "mst_gradient_growth": "MST, gradient growth",
    "mst_random_growth": "MST, random growth",
    "mst_plain_growth": "MST, growth by plain gradient",
    "mst_drop_per_update": "MST, 30 % dropped per update",
    "mst_update_replaces_step": "MST, updates replace steps",
    "mst_dense_attention": "MST, dense attention",
    "mst_sparse_attention": "MST, sparse attention throughout",
    "mst_auto_phases": "MST, phases that start themselves (ours)",
    "mst_block_2x2": "MST, 2×2 blocks (ours)",
    "mst_block_16x16": "MST, 16×16 blocks (ours)",
    "mst_block_32x32": "MST, 32×32 blocks (ours)",
    "mst_block_32x1": "MST, 32×1 blocks (ours)",
    "mst_block_2x2_dense_head": "MST, dense head, 2×2 blocks (ours)",
    "mst_block_16x16_dense_head": "MST, dense head, 16×16 blocks (ours)",
    "mst_block_32x32_dense_head": "MST, dense head, 32×32 blocks (ours)",
    "mst_block_32x1_dense_head": "MST, dense head, 32×1 blocks (ours)",
    "rigl_plain_growth": "RigL, growth by plain gradient",
    "rigl_masked_plain_growth": "RigL, head masked, growth by plain gradient",
    "rigl_split_qkv": "RigL, plain gradient, Q, K, V apart",
    "rigl_growth_steps": "RigL, plain gradient of 4 steps",
    "rigl_drop_per_update": "RigL, 30 % dropped per update",
    "set_drop_per_update": "SET, 30 % dropped per update",
}

OURS = ("dense", "static", "set", "rigl", "gmp", "mst")  # methods; any other is a user's own
DENSE_HEAD = "_dense_head"  # how the names of arms end whose LM head is not masked

Runs = dict[str, dict[int, RunFolder]]


def count_of(runs: Iterable[RunFolder]) -> Json:
    """An arm's `flops.json`. Seeds do not change it (C1 checks that) but where phases start themselves; then each
    number is their mean."""
    counts = [run.flops() for run in runs]
    return counts[0] if all(count == counts[0] for count in counts) else _mean(counts)


def count_planned(results: Path) -> dict[str, Json] | None:
    """Each arm's count at the paper's scale: as `replicate` wrote it beside these runs, or as we committed it.

    None: neither can be read.
    """
    for folder in (results, REFERENCE):
        with suppress(DamagedError):  # or not there
            return read_json(folder / "paper" / "plan.json")
    return None


def _mean(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {key: _mean([value[key] for value in values]) for key in values[0] if all(key in own for own in values)}
    return fmean(values) if isinstance(values[0], int | float) else values[0]


def table1_runs(results: Path | str, profile: str) -> list[RunFolder]:
    """The finished runs of a profile but for those of its ablation arms."""
    return without_ablations(find_runs(results, profile), profile)


def without_ablations(runs: Iterable[RunFolder], profile: str) -> list[RunFolder]:
    ablations = load_profile(profile).get("ablations", {})
    return [run for run in runs if run.path.parent.name not in ablations]


def group_by_arm(runs: Iterable[RunFolder]) -> Runs:
    """Arm -> seed -> run; arms in Table 1's order, then any others by name, and seeds ascending.

    Raises:
        UserError: the runs do not belong in one table: different texts, or seeds of an arm with different settings.
    """
    runs, grouped = list(runs), {}
    check_one_table([facts_of(run) for run in runs])
    for run in sorted(runs, key=lambda run: (_rank(run.path.parent.name), _parse_seed(run))):
        grouped.setdefault(run.path.parent.name, {})[_parse_seed(run)] = run
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
    return ARMS.get(arm, re.sub(r"(?<=\d)p(?=\d)", ".", arm.replace("_", " ")))


def head_of(arm: str) -> str:
    """`masked` or `dense`, by an arm's name; of a dense model, which has nothing to mask, nothing."""
    return "" if arm.startswith("dense") else "dense" if arm.endswith(DENSE_HEAD) else "masked"


def family(arm: str) -> str:
    """The arm of ours that one of a sweep varies, as `static_sparsity_0p9` does `static`; else the arm itself."""
    names = [name for name in ARMS if arm.startswith(f"{name}_") and re.search(r"_\d+(p\d+)?$", arm)]
    return max(names, key=len, default=arm)


def final_losses(seeds: dict[int, RunFolder]) -> dict[int, float]:
    """Seed -> validation loss after the last step, in nats per token."""
    return {seed: run.metrics()[-1]["validation_loss"] for seed, run in seeds.items()}


def _rank(arm: str) -> tuple[int, str]:
    order = list(ARMS)
    return (order.index(arm) if arm in order else len(order), arm)


def _parse_seed(run: RunFolder) -> int:
    return int(run.path.name.removeprefix("seed-"))
