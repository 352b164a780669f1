"""What each figure of the page is drawn from: a data frame, which is the figure's CSV too. Arms go by their keys."""

import string
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from replication.analysis.arms import Runs, count_of, final_losses, head_of
from replication.analysis.claims import READINGS, each_count
from replication.analysis.frontier import frontier_of
from replication.analysis.series import (
    MOVED,
    cumulative_flops,
    densities,
    first_seed,
    moved,
    shared_conventions,
    short,
    shrink,
    updates_of,
    validation_curves,
)
from replication.analysis.statistics import t_interval
from replication.errors import DamagedError
from replication.files import Json
from replication.flops import is_counted
from replication.frames import numeric
from replication.keys import flattened
from replication.model.patterns import PATTERNS, pattern_mask
from replication.runs import RunFolder

TILES = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"  # a tile's density, none to all
TILE_LIMIT = 64  # tiles a side at most
CONTEXT_LIMIT = 128  # tokens; of a longer context the patterns are drawn smaller, in proportion
SCHEDULE = ("phase", "attention_pattern", "sparsity", "sparsity_target", "drop_fraction", "loss", "validation_loss")

Counts = Mapping[str, Json]  # arm -> the object of its flops.json


def conventions_of(runs: Runs, plan: Counts | None) -> list[str]:
    """The conventions that every run's `flops.json` and logged steps have, and the plan, where there is one."""
    counts = [run.flops() for seeds in runs.values() for run in seeds.values()]
    logged = [first_seed(seeds).metrics()[0]["flops"] for seeds in runs.values()]
    shared = shared_conventions([*counts, *(plan or {}).values()])
    return [name for name in shared if all(is_counted(components, name) for components in logged)]


def frames(runs: Runs, table: pd.DataFrame, plan: Counts | None, conventions: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Figure -> its data; empty where no run has any.

    Args:
        runs: by arm and seed.
        table: `tables.table1` of the same runs.
        plan: every arm's counts at the paper's scale, where they are known.
        conventions: `conventions_of` these.
    """
    scales = {"as run": {arm: count_of(seeds.values()) for arm, seeds in runs.items()}}
    scales |= {"GPT-2 small, planned": plan} if plan else {}
    made: dict[str, Callable[[], Iterator[Json]]] = {
        "against_dense": lambda: _against_dense(table, conventions),
        "conventions": lambda: _conventions(scales, conventions),
        "quality_against_cost": lambda: _quality(runs, conventions),
        "loss_curves": lambda: _loss_curves(runs, conventions),
        "flops_by_phase": lambda: _by_phase(scales, conventions),
        "flops_by_component": lambda: _by_component(scales, conventions),
        "flops_by_step": lambda: _by_step(runs, conventions),
        "schedules": lambda: _schedules(runs),
        "attention_patterns": lambda: _patterns(runs),
        "topology_by_arm": lambda: _topology_by_arm(runs),
        "topology_by_layer": lambda: _topology_by_layer(runs),
        "masks": lambda: _masks(runs),
        "resources": lambda: _resources(runs),
    }
    return {name: numeric(pd.DataFrame(list(rows()))) for name, rows in made.items()}


def provenance(runs: Runs) -> pd.DataFrame:
    """A row per run: arm, seed, and all that its `environment.json` says, `resumed` as it stands there."""
    return pd.DataFrame(
        [
            {"arm": arm, "seed": seed, **flattened(run.environment())}
            for arm, seeds in runs.items()
            for seed, run in seeds.items()
        ]
    )


def unreadable_masks(runs: Runs) -> list[str]:
    """A line for each first seed whose masks are damaged."""
    return [problem for seeds in runs.values() if (problem := masks_of(first_seed(seeds))[1])]


def _against_dense(table: pd.DataFrame, conventions: Sequence[str]) -> Iterator[Json]:
    for _, row in table[table["minus_dense"].notna() & (table["arm"] != "dense")].iterrows():
        times = {name: row[f"reduction ({name})"] for name in conventions}
        difference = {"difference": row["minus_dense"], "low": row["minus_dense_low"], "high": row["minus_dense_high"]}
        yield {"arm": row["arm"], **difference, "n": row["minus_dense_n"], **times}


def _conventions(scales: Mapping[str, Counts], conventions: Sequence[str]) -> Iterator[Json]:
    for scale, counts in scales.items():
        for arm, count in counts.items():
            if arm != "dense":
                times = {name: count["conventions"][name]["reduction"] for name in conventions}
                yield {"scale": scale, "arm": arm, **times}


def _quality(runs: Runs, conventions: Sequence[str]) -> Iterator[Json]:
    shorter = frontier_of(runs, READINGS[0].convention).shorter
    for arm, seeds in runs.items():
        losses = final_losses(seeds)
        low, high = t_interval(np.array([*losses.values()])) if len(losses) > 1 else (None, None)
        ends = {"low": low, "high": high, "fewer_steps": arm in shorter}
        for seed, loss in losses.items():
            counts = seeds[seed].flops()["conventions"]
            costs = {name: counts[name]["flops"] for name in conventions}
            yield {"arm": arm, "seed": seed, "loss": loss, **ends, **costs}


def frontiers(runs: Runs) -> list[Json]:
    """The panels of `quality_against_cost`: a reading of the head, a convention under which its MST is held against
    smaller dense models, and the frontier under it."""
    return [
        {
            "head": head_of(reading.arm("mst")),
            "convention": convention,
            "nodes": frontier_of(runs, convention).nodes,
        }
        for reading, convention in each_count(READINGS)
    ]


def _loss_curves(runs: Runs, conventions: Sequence[str]) -> Iterator[Json]:
    for arm, seeds in runs.items():
        steps, losses = validation_curves(seeds.values())
        costs = {name: np.interp(steps, *cumulative_flops(first_seed(seeds), name)) for name in conventions}
        for place, step in enumerate(steps):
            at = losses[:, place]
            spread = {"mean": at.mean(), "lowest": at.min(), "highest": at.max(), "n": len(at)}
            yield {"arm": arm, "step": step, **spread, **{name: int(cost[place]) for name, cost in costs.items()}}


def _by_phase(scales: Mapping[str, Counts], conventions: Sequence[str]) -> Iterator[Json]:
    """The whole of dense, and MST's phases, for each reading of the head that was trained."""
    for scale, counts in scales.items():
        for arm in ("dense", *(reading.arm("mst") for reading in READINGS)):
            if arm in counts:
                phases = {} if arm == "dense" else counts[arm]["phases"]
                for phase, components in (phases | {"all training": counts[arm]["components"]}).items():
                    yield {
                        "scale": scale,
                        "arm": arm,
                        "phase": phase,
                        **components,
                        **_dense_flops(counts[arm], conventions),
                    }


def _by_component(scales: Mapping[str, Counts], conventions: Sequence[str]) -> Iterator[Json]:
    for scale, counts in scales.items():
        for arm, count in counts.items():
            yield {"scale": scale, "arm": arm, **count["components"], **_dense_flops(count, conventions)}


def _dense_flops(count: Json, conventions: Sequence[str]) -> Json:
    return {f"dense ({name})": count["conventions"][name]["dense_flops"] for name in conventions}


def _by_step(runs: Runs, conventions: Sequence[str]) -> Iterator[Json]:
    for arm, seeds in runs.items():
        costs = {name: cumulative_flops(first_seed(seeds), name) for name in conventions}
        for place, row in enumerate(first_seed(seeds).metrics()):
            yield {"arm": arm, "step": row["step"], **{name: int(cost[1][place]) for name, cost in costs.items()}}


def _schedules(runs: Runs) -> Iterator[Json]:
    for arm, seeds in runs.items():
        for row in first_seed(seeds).metrics():
            yield {"arm": arm, "step": row["step"], **{key: row.get(key) for key in SCHEDULE}}


def _patterns(runs: Runs) -> Iterator[Json]:
    """A row per query and unbroken stretch of keys."""
    config = first_seed(next(iter(runs.values()))).config()
    context = config["model"]["n_positions"]
    spans = [config["attention"][key] or max(1, context // 8) for key in ("window", "stride")]
    scale = min(1, CONTEXT_LIMIT / context)
    size, window, stride = (max(1, round(value * scale)) for value in (context, *spans))
    for pattern in PATTERNS:
        for query, kept in enumerate(pattern_mask(pattern, size, window, stride)):
            edges = np.flatnonzero(np.diff(np.concatenate(([0], kept.astype(int), [0]))))
            for first, after in zip(edges[::2], edges[1::2]):
                yield {"pattern": pattern, "query": query, "first_key": first, "last_key": after - 1}


def _topology_by_arm(runs: Runs) -> Iterator[Json]:
    for arm, seeds in runs.items():
        for seed, run in seeds.items():
            for step, rows in updates_of(run).items():
                yield {"arm": arm, "seed": seed, "step": step, **{what: moved(rows, what) for what in MOVED}}


def _topology_by_layer(runs: Runs) -> Iterator[Json]:
    for arm, seeds in runs.items():
        for step, rows in updates_of(first_seed(seeds)).items():
            for row in rows:
                place = {"arm": arm, "step": step, "layer": short(row["layer"])}
                yield place | {"density": row["nnz"] / row["size"], **{what: moved([row], what) for what in MOVED}}


def _masks(runs: Runs) -> Iterator[Json]:
    """`tiles`: the density of each of at most 64 x 64 equal tiles as a letter of `TILES`, row by row."""
    for arm, seeds in runs.items():
        for layer, mask in masks_of(first_seed(seeds))[0].items():
            tiles = shrink(mask, TILE_LIMIT)
            letters = "".join(TILES[round(density * (len(TILES) - 1))] for density in tiles.ravel())
            parts = ", ".join(f"{part.upper()} {share:.0%}" for part, share in densities(layer, mask).items())
            size = {"rows": mask.shape[0], "columns": mask.shape[1], "density": mask.mean(), "parts": parts}
            yield {"arm": arm, "layer": short(layer), **size, "tiles_across": tiles.shape[1], "tiles": letters}


def masks_of(run: RunFolder) -> tuple[Mapping[str, np.ndarray], str]:
    """The final masks, and what is wrong with them."""
    try:
        return run.masks(), ""
    except DamagedError as error:
        return {}, f"{run.name}: {error}"


def _resources(runs: Runs) -> Iterator[Json]:
    for arm, seeds in runs.items():
        used = first_seed(seeds).resources() or {}
        for phase, account in used.get("phases", {}).items():
            yield {"arm": arm, "phase": phase, **flattened(account), "energy": used.get("energy")}
