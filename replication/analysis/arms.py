"""The arms of Table 1: their order, names and colours, and runs grouped by them."""

from collections.abc import Iterable

from replication.runs import RunFolder

ARMS = {
    "dense": "dense",
    "dense_quarter": "dense, ¼ steps",
    "static": "static",
    "set": "SET",
    "rigl": "RigL",
    "mst": "MST",
}

COLOURS = {
    "dense": "#1f2933",
    "dense_quarter": "#9aa5b1",
    "static": "#e0a030",
    "set": "#4f9d69",
    "rigl": "#3a7ca5",
    "mst": "#c8324a",
}

Runs = dict[str, dict[int, RunFolder]]


def by_arm(runs: Iterable[RunFolder]) -> Runs:
    """Arm -> seed -> run; arms in Table 1's order, then any others by name, and seeds ascending."""
    grouped: Runs = {}
    for run in sorted(runs, key=lambda run: (_rank(run.path.parent.name), _seed(run))):
        grouped.setdefault(run.path.parent.name, {})[_seed(run)] = run
    return grouped


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
