"""The page's figures: the same calls as in the notebooks, and so the same pictures, words and data."""

from collections.abc import Iterator
from urllib.parse import quote

import pandas as pd

from replication.analysis import charts, drawing, figures, inside
from replication.analysis.arms import Runs, head_of
from replication.analysis.drawing import Drawn, NotDrawn
from replication.analysis.readings import READINGS
from replication.analysis.series import first_seed
from replication.analysis.tables import ABSOLUTE
from replication.analysis.titles import Counts
from replication.runs.folder import RunFolder
from replication.system.errors import DamagedError

Shown = Drawn | NotDrawn


def draw_all_arms(runs: Runs, table: pd.DataFrame, plan: Counts | None, profile: str) -> Iterator[tuple[str, Shown]]:
    """Name -> figure, in the page's order.

    Args:
        runs: by arm and seed; `table` is Table 1's of the same.
        plan: every arm's counts at the paper's scale, where they are known.
    """
    scales = [("as_run", f"As run, profile {profile}", figures.counts_of(runs))]
    scales = ([("planned", "Planned, GPT-2 small", plan)] if plan else []) + scales
    own = {head_of(reading.arm("mst")): reading.convention for reading in READINGS}
    yield "against_dense", charts.against_dense(table, own)
    yield "conventions", figures.conventions({scale: counts for _, scale, counts in scales})
    yield "quality_against_cost", figures.quality_against_cost(runs)
    yield "loss_by_step", figures.loss_by_step(runs)
    yield "loss_by_flops", figures.loss_by_flops(runs, ABSOLUTE)
    for reading in READINGS:
        for name, scale, counts in scales:
            drawn = figures.flops_by_phase(counts, reading.convention, scale, reading.arm("mst"))
            yield f"flops_by_phase_{name}{reading.suffix}", drawn
    for name, scale, counts in scales:
        yield f"flops_by_component_{name}", figures.flops_by_component(counts, ABSOLUTE, scale)
    yield "flops_by_step", figures.flops_by_step(runs, ABSOLUTE)
    yield "schedules", inside.schedules(runs)
    yield "attention_patterns", inside.attention_patterns(first_seed(next(iter(runs.values()))).config())
    yield "topology_by_arm", inside.topology_by_arm(runs)


def draw_single_arms(runs: Runs) -> Iterator[tuple[str, Shown]]:
    """The layers of those arms that the notebooks show layer by layer."""
    for arm in inside.LAYERS_OF:
        if arm in runs:
            yield f"topology_by_layer_{arm}", inside.topology_by_layer(arm, runs[arm])
    for arm in inside.MASKS_OF:
        if arm in runs:
            yield f"masks_{arm}", _masks(first_seed(runs[arm]))


def to_uri(drawn: Drawn) -> str:
    """A figure as the data: URI of its SVG."""
    return "data:image/svg+xml," + quote(drawing.svg(drawn.figure), safe=" ,:;/()+=-._~*'@$&?!|")


def _masks(run: RunFolder) -> Shown:
    try:
        return inside.masks(run)
    except DamagedError as error:
        return NotDrawn(f"{run.name}: {error}")
