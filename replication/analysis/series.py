"""What figures are drawn from, wherever they are drawn: notebooks, and the page of `report`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from replication.flops.ledger import CONVENTIONS
from replication.model.layout import layout
from replication.runs.folder import RunFolder
from replication.sparsity import metrics
from replication.system.files import Json

Row = Mapping[str, Any]  # of topology.jsonl
# What an update moved: title -> (of what it is a share, that part, the whole), each counted in weights.
MOVED: dict[str, tuple[str, Callable[[Row], float], Callable[[Row], float]]] = {
    "Dropped by one update": (
        "weights active before",
        lambda row: row["dropped"],
        lambda row: row["nnz"] + row["dropped"] - row["grown"],
    ),
    "Grown by one update": ("weights active after", lambda row: row["grown"], lambda row: row["nnz"]),
    "Ever active": ("all weights", lambda row: row["ever_active"] * row["size"], lambda row: row["size"]),
    "Still active of the first mask": (
        "the first mask",
        lambda row: row["overlap_first"] * row["size"],
        lambda row: row["size"],
    ),
}


def first_seed(seeds: Mapping[int, RunFolder]) -> RunFolder:
    """The run that stands for an arm where seeds make no difference, or one is enough to see."""
    return next(iter(seeds.values()))


def find_shared_conventions(counts: Iterable[Json]) -> list[str]:
    """The conventions that every one of these `flops.json` has; those of earlier versions lack the ones added since."""
    counts = list(counts)
    return [name for name in CONVENTIONS if all(name in count["conventions"] for count in counts)]


def select_counted(components: Mapping[str, int], convention: str) -> dict[str, int]:
    """The components that a convention counts."""
    return {name: components[name] for name in CONVENTIONS[convention] if name in components}


def cumulative_flops(run: RunFolder, convention: str) -> tuple[np.ndarray, np.ndarray]:
    """Logged steps, and the FLOPs up to each."""
    rows = run.metrics()
    return np.array([row["step"] for row in rows]), np.array(
        [float(sum(select_counted(row["flops"], convention).values())) for row in rows]
    )


def validation_curves(seeds: Iterable[RunFolder]) -> tuple[np.ndarray, np.ndarray]:
    """Steps, shape (evaluations,), and losses, shape (seeds, evaluations)."""
    curves = [
        {row["step"]: row["validation_loss"] for row in run.metrics() if "validation_loss" in row} for run in seeds
    ]
    steps = sorted(set.intersection(*map(set, curves)))
    return np.array(steps), np.array([[curve[step] for step in steps] for curve in curves])


def stretches(rows: Sequence[Mapping[str, Any]], key: str) -> Iterator[tuple[str, int, int]]:
    """Runs of one value of `key` over training, as (value, first step, last step)."""
    start = 0
    for row, after in zip(rows, [*rows[1:], None]):
        if after is None or after[key] != row[key]:
            yield row[key], start, row["step"]
            start = row["step"]


def updates_of(run: RunFolder) -> dict[int, list[Row]]:
    """Step of a topology update -> its rows of topology.jsonl, a layer each."""
    updates: dict[int, list[Row]] = {}
    for row in run.topology():
        updates.setdefault(row["step"], []).append(row)
    return updates


def share_moved(rows: Iterable[Row], what: str) -> float:
    """A share of `MOVED`, over the layers of one update."""
    rows, (_, part, whole) = list(rows), MOVED[what]
    return sum(map(part, rows)) / max(sum(map(whole, rows)), 1)


def densities(layer: str, mask: np.ndarray) -> dict[str, float]:
    """Part that a matrix fuses (Q, K, V) -> share of its weights that are active; empty where it is one."""
    shares = metrics.sparsity(metrics.final(layer, layout(layer), mask))
    return {part: 1 - share for part, share in shares.items() if part != "all"}


def parts_of(layers: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Q, K and V -> share of their weights that are active, over all layers."""
    fused = [densities(name, mask) for name, mask in layers.items() if layout(name).parts]
    return {part: float(np.mean([one[part] for one in fused])) for part in (fused[0] if fused else ())}


def group_by_kind(runs: Iterable[RunFolder]) -> dict[str, list[list[Row]]]:
    """Kind of matrix -> the updates of each of its layers and seeds, at the steps that all have.

    Empty: there is no such step.
    """
    logs: dict[str, list[dict[int, Row]]] = {}
    for run in runs:
        layers: dict[str, dict[int, Row]] = {}
        for row in run.topology():
            layers.setdefault(row["layer"], {})[row["step"]] = row
        for layer, rows in layers.items():
            logs.setdefault(kind(layer), []).append(rows)
    layers_of = [set(rows) for own in logs.values() for rows in own]
    steps = sorted(set.intersection(*layers_of)) if layers_of else []
    return {name: [[rows[step] for step in steps] for rows in own] for name, own in logs.items() if steps}


def shrink(mask: np.ndarray, limit: int = 256) -> np.ndarray:
    """Means over equal tiles, so that neither side exceeds `limit`."""
    for axis in (0, 1):
        starts = np.arange(0, mask.shape[axis], -(-mask.shape[axis] // limit))
        sizes = np.diff(starts, append=mask.shape[axis])
        mask = np.add.reduceat(mask.astype(float), starts, axis) / (sizes[:, None] if axis == 0 else sizes)
    return mask


def short(layer: str) -> str:
    """`h.0.attn.c_attn` of `transformer.h.0.attn.c_attn.weight`."""
    return layer.removeprefix("transformer.").removesuffix(".weight")


def kind(layer: str) -> str:
    """`attn.c_attn` of the same: what the matrix does, whichever block it is in."""
    parts = short(layer).split(".")
    return ".".join(parts[2:] if parts[0] == "h" else parts)
