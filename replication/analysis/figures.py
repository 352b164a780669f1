"""Figures of cost and loss: each function takes runs, or their FLOP counts, and returns what a notebook shows.

Arguments they share: `runs` is `arms.by_arm(...)`'s arm -> seed -> run folder; `counts` maps an arm to the object of
its flops.json (or plan.json's); `scale` names in words what was counted; `convention` names how FLOPs are counted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from replication.analysis import titles
from replication.analysis.arms import Runs, count_of, final_losses, head_of, label
from replication.analysis.claims import LEAST_REDUCTION, READINGS, each_count
from replication.analysis.drawing import (
    HEAT,
    PHASES_SAID,
    WIDTH,
    Drawn,
    NotDrawn,
    column,
    finished,
    label_ends,
    line,
    panels,
    readings,
    shade_phases,
    short_label,
    sign,
)
from replication.analysis.frontier import FRONTIER_SAID, Frontier, frontier_of
from replication.analysis.palette import GROUPS, INK, QUIET, colour
from replication.analysis.series import counted, cumulative_flops, first_seed, shared_conventions, validation_curves
from replication.analysis.statistics import t_interval
from replication.analysis.titles import Counts

PANEL, FRONTIER_PANEL = 2.5, 3.6  # inches high
COUNTED = {  # a convention -> what it counts, below an axis
    "head_counted_full": "LM head counted, attention in full",
    "head_excluded_causal": "no LM head, attention causal",
}


def counts_of(runs: Runs) -> Counts:
    """Each arm's FLOP count."""
    return {arm: count_of(seeds.values()) for arm, seeds in runs.items()}


def conventions(scales: Mapping[str, Counts]) -> Drawn:
    """FLOP reduction (dense ÷ method) as a table of heat: a row per arm, a column per convention, a table per scale."""
    tables = {scale: table for scale, counts in scales.items() if len(table := reductions(counts))}
    heights = [0.24 * len(table) + 0.75 for table in tables.values()]
    figure, grid = panels(len(tables), 1, (WIDTH, sum(heights) + 0.4), squeeze=False, height_ratios=heights)
    for axes, (scale, table) in zip(grid[:, 0], tables.items()):
        shown = {"annot": table.map("{:.2f}×".format), "fmt": "", "annot_kws": {"fontsize": 9, "color": INK}}
        sns.heatmap(table, ax=axes, vmin=1, vmax=8, cmap=HEAT, cbar=False, linewidths=1, **shown)
        for text, value in zip(axes.texts, table.to_numpy().ravel()):
            text.set_fontweight("bold" if value >= LEAST_REDUCTION else "normal")
        axes.set_xticks(axes.get_xticks(), [name.replace("_", "\n") for name in table], rotation=0, fontsize=9)
        axes.tick_params(axis="y", rotation=0)
        axes.grid(visible=False)
        axes.set_title(scale)
    caption = (
        "Dense ÷ method in training FLOPs, a column for each way to count; the darker, the more is saved. "
        "Bold: at least the abstract's 4× (3.95 and more)."
    )
    best = "; ".join(
        f"{scale}: {label(arm)} {row.min():.2f}× to {row.max():.2f}×"
        for scale, counts in scales.items()
        for (arm, row) in ((arm, reductions({arm: counts[arm]}).iloc[0]) for arm in counts if arm.startswith("mst"))
    )
    return finished(figure, titles.conventions(scales), caption, f"Tables of × by arm and convention. {best}.")


def reductions(counts: Counts) -> pd.DataFrame:
    """× by arm, under its label, and convention that all have; dense itself is 1 and left out."""
    names = shared_conventions(counts.values())
    rows = {
        label(arm): {name: count["conventions"][name]["reduction"] for name in names}
        for arm, count in counts.items()
        if arm != "dense"
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def flops_by_phase(counts: Counts, convention: str, scale: str) -> Drawn | NotDrawn:
    """MST's phases and its whole against the whole of dense training, each split by component."""
    if not {"dense", "mst"} <= counts.keys():
        return NotDrawn("MST's phases against dense training are not drawn: that needs finished runs of both.")
    dense, mst = counts["dense"], counts["mst"]
    bars = {f"MST, {phase}": components for phase, components in mst["phases"].items()}
    bars = {"dense, all training": dense["components"], **bars, "MST, all training": mst["components"]}
    reference = mst["conventions"][convention]["dense_flops"]
    references = [reference] * len(bars)
    figure, said = _stacked(bars, convention, references, lambda flops, dense: f"{flops / dense:.1%}")
    caption = f"{scale}, counted as {convention}; behind each bar its share of dense training's FLOPs."
    return finished(
        figure, f"{titles.by_phase(counts, convention, scale)} ({convention})", caption, f"Stacked bars. {said}."
    )


def flops_by_component(counts: Counts, convention: str, scale: str) -> Drawn:
    """Every arm's training FLOPs, split by component; × is dense ÷ method."""
    references = [count["conventions"][convention]["dense_flops"] for count in counts.values()]
    bars = {label(arm): count["components"] for arm, count in counts.items()}
    figure, said = _stacked(bars, convention, references, lambda flops, dense: f"{dense / flops:.2f}×")
    caption = f"{scale}, counted as {convention}; behind each bar dense ÷ method."
    return finished(
        figure, f"{titles.by_component(counts, convention, scale)} ({convention})", caption, f"Stacked bars. {said}."
    )


def flops_by_step(runs: Runs, convention: str) -> Drawn:
    """FLOPs of each step (logged stretches' means) and their sum over training, by arm and reading of the head."""
    full = max(first_seed(seeds).metrics()[-1]["step"] for seeds in runs.values())
    groups = list(readings(list(runs)))
    figure, grid = column(2 * len(groups), PANEL, sharex=True)
    for place, (head, arms) in enumerate(groups):
        rate, total = grid[place], grid[len(groups) + place]
        ends: tuple[list, list] = ([], [])
        for arm in arms:
            steps, flops = cumulative_flops(first_seed(runs[arm]), convention)
            flops = flops / count_of(runs[arm].values())["conventions"][convention]["dense_flops"]
            per_step = np.diff(flops, prepend=0) / np.diff(steps, prepend=0) * full
            for axes, xs, ys, kept in (
                (rate, [0, *steps], [per_step[0], *per_step], ends[0]),
                (total, [0, *steps], [0, *flops], ends[1]),
            ):
                axes.plot(xs, ys, drawstyle="steps-pre" if axes is rate else None, **line(arm))
                kept.append((steps[-1], ys[-1], sign(arm), short_label(arm)))
        for axes, named, what in ((rate, ends[0], "of one step"), (total, ends[1], "so far")):
            axes.set(title=f"FLOPs {what}, {head}", ylim=(0, 1.15), xlim=(0, full))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            shade_phases(axes, {arm: runs[arm] for arm in arms})
            label_ends(axes, named, 0.72 * PANEL)
    grid[-1].set_xlabel("step")
    caption = f"As a share of dense training's ({convention}), first seed: FLOPs hardly differ by seed. {PHASES_SAID}"
    spent = "; ".join(
        f"{label(arm)} {1 / count_of(seeds.values())['conventions'][convention]['reduction']:.0%}"
        for arm, seeds in runs.items()
    )
    alt = f"Lines over training. Of dense training's FLOPs each arm spends in all: {spent}."
    return finished(figure, f"{titles.by_step(runs, convention)} ({convention})", caption, alt)


def loss_by_step(runs: Runs) -> Drawn:
    """Loss over training from the first logged step on, a panel per reading of the head."""
    groups = list(readings(list(runs)))
    figure, grid = column(len(groups), 3.0, sharex=True, sharey=True)
    named = []
    for axes, (head, arms) in zip(grid, groups):
        ends = []
        for arm in arms:
            training = _training_curve(runs[arm].values())
            axes.plot(*training, color=colour(arm), lw=0.8, alpha=0.35, zorder=2)
            steps, losses = validation_curves(runs[arm].values())
            _seeds(axes, arm, steps, losses)
            ends.append((steps[-1], losses.mean(0)[-1], sign(arm), f"{short_label(arm)} {losses.mean(0)[-1]:.2f}"))
        last = max(first_seed(runs[arm]).metrics()[-1]["step"] for arm in arms)
        axes.set(title=head, ylabel="loss, nats per token", xlim=(0, last))
        shade_phases(axes, {arm: runs[arm] for arm in arms})
        named.append(ends)
    for axes, ends in zip(grid, named):  # now that the limits, which are shared, are final
        label_ends(axes, ends, 2.3)
    grid[-1].set_xlabel("step")
    caption = (
        "Validation loss: markers are means over seeds, dots the seeds; on the way a part of the split, under the "
        "attention of that step, which is sparse in MST's phase 2, at the end the whole split under dense attention. "
        f"Pale: training loss, from the first logged step. {PHASES_SAID}"
    )
    alt = f"Loss falls over training in all arms. At the end: {_finals(runs)}."
    return finished(figure, titles.loss_by_step(runs), caption, alt)


def loss_by_flops(runs: Runs, convention: str) -> Drawn:
    """Validation loss against training FLOPs so far, a panel per reading of the head."""
    groups = list(readings(list(runs)))
    figure, grid = column(len(groups), 3.0, sharex=True, sharey=True)
    finals = [loss for seeds in runs.values() for loss in final_losses(seeds).values()]
    for axes, (head, arms) in zip(grid, groups):
        ends = []
        for arm in arms:
            steps, losses = validation_curves(runs[arm].values())
            logged, flops = cumulative_flops(first_seed(runs[arm]), convention)
            flops = flops / count_of(runs[arm].values())["conventions"][convention]["dense_flops"]
            spent = np.interp(steps, logged, flops)
            _seeds(axes, arm, spent, losses)
            ends.append((spent[-1], losses.mean(0)[-1], sign(arm), f"{short_label(arm)} {losses.mean(0)[-1]:.2f}"))
        axes.set(title=head, ylabel="validation loss, nats", xlim=(0, 1.03))
        axes.set_ylim(min(finals) - 0.1, max(finals) + 0.7)
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        label_ends(axes, ends, 2.3, lead=True)
    grid[-1].set_xlabel("training FLOPs ÷ dense's")
    caption = (
        f"FLOPs are counted as {convention}. Markers are means over seeds, dots the seeds; left and low is better. On "
        "the way a part of the split, under the attention of that step, which is sparse in MST's phase 2; at the end "
        "the whole split under dense attention."
    )
    alt = f"Loss falls with the FLOPs spent. At the end: {_finals(runs)}."
    return finished(figure, f"{titles.loss_by_flops(runs, convention)} ({convention})", caption, alt)


def quality_against_cost(runs: Runs) -> Drawn:
    """Final loss against training FLOPs beside the frontier of smaller dense models.

    A panel per reading of the head and count under which its MST is held against smaller dense models.
    """
    heads = {head_of(reading.arm("mst")): reading for reading in READINGS}
    heads = {head: heads[head] for head in heads if any(head_of(arm) == head for arm in runs)}
    shown = [(head, *each) for head in heads for each in each_count([heads[head]])] or [("", *each_count(READINGS)[0])]
    figure, grid = column(len(shown), FRONTIER_PANEL, sharey=True)
    named, said = [], []
    for axes, (head, reading, convention) in zip(grid, shown):
        found = frontier_of(runs, convention)
        arms = [arm for arm in runs if head_of(arm) in ("", head)]
        title = f"LM {reading.name}" if head else "dense training"
        axes.set_title(title)
        axes.set_xlabel(f"training FLOPs ÷ dense's\n({convention}:\n{COUNTED[convention]})")
        named.append(_beside_frontier(axes, found, arms, runs, convention))
        said.append(f"{title}, {convention}: {_places(found, arms, runs)}")
    for axes, ends in zip(grid, named):  # now that the limits, which are shared, are final
        label_ends(axes, ends, FRONTIER_PANEL - 0.9, lead=True)
    return finished(figure, titles.quality(runs), FRONTIER_SAID, f"Final loss against FLOPs. {'. '.join(said)}.")


def _beside_frontier(
    axes: Axes, found: Frontier, arms: Sequence[str], runs: Runs, convention: str
) -> list[tuple[float, float, dict, str]]:
    """The frontier and each arm's seeds, mean and 95 % t interval; returns the ends that `label_ends` names."""
    dense = count_of(runs[arms[0]].values())["conventions"][convention]["dense_flops"]
    flops, losses = np.array(found.nodes).reshape(-1, 2).T
    axes.plot(flops / dense, losses, color=QUIET, lw=1.6, zorder=2)
    ends = []
    for arm in arms:
        share, mean = found.points[arm][0] / dense, found.points[arm][1]
        seeds = np.array(list(final_losses(runs[arm]).values()))
        axes.plot([share] * len(seeds), seeds, ".", ms=3, color=colour(arm), alpha=0.5, zorder=3)
        if len(seeds) > 1:
            axes.plot([share, share], t_interval(seeds), "_-", color=colour(arm), lw=1.2, ms=6, zorder=4)
        style = sign(arm, hollow=arm in found.shorter)  # how the head was read, the panel says
        axes.plot(share, mean, ls="none", **style, zorder=5)
        ends.append((share, mean, style, short_label(arm)))
    axes.set(ylabel="final loss, nats per token")
    axes.margins(y=0.1)
    _shares(axes, [share for share, *_ in ends])
    return ends


def _places(found: Frontier, arms: Iterable[str], runs: Runs) -> str:
    """Each arm's loss, and where it lies: in words."""
    parts = []
    for arm in arms:
        above = found.above(arm)
        beside = "" if above is None or not head_of(arm) else f", {above:+.3f} from the frontier"
        parts.append(f"{label(arm)} {found.points[arm][1]:.3f} (n = {len(runs[arm])}){beside}")
    return "; ".join(parts)


def _shares(axes: Axes, shares: Sequence[float]) -> None:
    """A logarithmic axis of shares of dense's FLOPs, whose ticks are fractions."""
    ticks = {"⅛": 1 / 8, "⅙": 1 / 6, "¼": 1 / 4, "⅓": 1 / 3, "½": 1 / 2, "1": 1}
    low, high = 0.85 * min(*shares, 0.5), 1.15 * max(*shares, 1)
    axes.set(xscale="log", xlim=(low, high))
    within = {name: share for name, share in ticks.items() if low <= share <= high}
    axes.set_xticks(list(within.values()), list(within))
    axes.set_xticks([], minor=True)


def _finals(runs: Runs) -> str:
    return "; ".join(
        f"{label(arm)} {np.mean(list(final_losses(seeds).values())):.3f} (n = {len(seeds)})"
        for arm, seeds in runs.items()
    )


def _seeds(axes: Axes, arm: str, xs: Sequence[float], losses: np.ndarray) -> None:
    """The mean as a line with markers, and every seed as a dot; losses have shape (seeds, evaluations)."""
    style = sign(arm)
    axes.plot(xs, losses.mean(0), **line(arm) | style | {"ms": 0.75 * style["ms"]})
    for own in losses:
        axes.plot(xs, own, ".", ms=2.5, color=colour(arm), alpha=0.6, zorder=3)


def _training_curve(runs: Any) -> tuple[list[int], np.ndarray]:
    """Logged steps that all seeds have, and the mean of their training losses."""
    curves = [{row["step"]: row["loss"] for row in run.metrics()} for run in runs]
    steps = sorted(set.intersection(*map(set, curves)))
    return steps, np.array([[curve[step] for step in steps] for curve in curves]).mean(0)


def _stacked(
    bars: Mapping[str, Mapping[str, int]],
    convention: str,
    references: Sequence[float],
    note: Callable[[float, float], str],
) -> tuple[Figure, str]:
    """Bars from the top down, split by component, with a note behind each, of its FLOPs and dense's; and the notes in
    words."""
    figure, axes = panels(1, 1, (WIDTH, 0.27 * len(bars) + 1.9))
    left = np.zeros(len(bars))
    split = [counted(components, convention) for components in bars.values()]
    for group, (names, shade) in GROUPS.items():
        widths = np.array([float(sum(part.get(name, 0) for name in names)) for part in split])
        if widths.any():
            axes.barh(list(bars), widths, left=left, color=shade, label=group, lw=0, height=0.72, zorder=3)
        left += widths
    notes = list(map(note, left, references))
    for place, flops in enumerate(left):
        axes.text(flops, place, f" {notes[place]}", va="center", fontsize=9, fontweight="bold", color=INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.2 * left.max())
    axes.set_xlabel("training FLOPs")
    figure.legend(loc="outside lower center", ncols=2)
    return figure, "; ".join(f"{name} {said}" for name, said in zip(bars, notes))
