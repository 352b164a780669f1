"""Figures of cost and loss: each function takes runs, or their FLOP counts, and returns what a notebook shows.

Arguments they share: `runs` is `arms.group_by_arm(...)`'s arm -> seed -> run folder; `counts` maps an arm to the object
of its flops.json (or plan.json's); `scale` names in words what was counted; `convention` names how FLOPs are counted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from replication.analysis import titles
from replication.analysis.arms import Runs, count_of, final_losses, head_of, label
from replication.analysis.claims import LEAST_REDUCTION
from replication.analysis.drawing import (
    HEAT,
    PHASES_SAID,
    WIDTH,
    Drawn,
    NotDrawn,
    column,
    finish_figure,
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
from replication.analysis.readings import READINGS, each_count
from replication.analysis.series import (
    cumulative_flops,
    find_shared_conventions,
    first_seed,
    select_counted,
    validation_curves,
)
from replication.analysis.statistics import t_interval
from replication.analysis.titles import Counts
from replication.runs.folder import RunFolder

PANEL, FRONTIER_PANEL = 2.5, 3.6  # inches high
COUNTED = {  # a convention -> what it counts, below an axis
    "head_counted_full": "LM head counted, attention in full",
    "head_excluded_causal": "no LM head, attention causal",
}


def counts_of(runs: Runs) -> Counts:
    """Each arm's FLOP count."""
    return {arm: count_of(seeds.values()) for arm, seeds in runs.items()}


def conventions(scales: Mapping[str, Counts]) -> Drawn | NotDrawn:
    """FLOP reduction (dense ÷ method) as a table of heat: a row per arm, a column per convention, a table per scale."""
    tables = {scale: table for scale, counts in scales.items() if len(table := reductions(counts))}
    if not tables:
        return NotDrawn("No arm beside dense was counted.")
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
    data = pd.concat(tables, names=["scale", "arm"]).reset_index()
    return finish_figure(
        figure, titles.conventions(scales), caption, f"Tables of × by arm and convention. {best}.", data
    )


def reductions(counts: Counts) -> pd.DataFrame:
    """× by arm, under its label, and convention that all have; dense itself is 1 and left out."""
    names = find_shared_conventions(counts.values())
    rows = {
        label(arm): {name: count["conventions"][name]["reduction"] for name in names}
        for arm, count in counts.items()
        if arm != "dense"
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def flops_by_phase(counts: Counts, convention: str, scale: str, arm: str = "mst") -> Drawn | NotDrawn:
    """MST's phases and its whole, of the reading whose arm is given, against the whole of dense training, each split
    by component."""
    if not {"dense", arm} <= counts.keys():
        return NotDrawn(f"{label(arm)}: its phases against dense training need finished runs of both.")
    dense, mst = counts["dense"], counts[arm]
    bars = {f"MST, {phase}": components for phase, components in mst["phases"].items()}
    bars = {"dense, all training": dense["components"], **bars, "MST, all training": mst["components"]}
    reference = mst["conventions"][convention]["dense_flops"]
    references = [reference] * len(bars)
    figure, said, data = _draw_stacked(bars, convention, references, lambda flops, dense: f"{flops / dense:.1%}")
    caption = f"{scale}, counted as {convention}; behind each bar its share of dense training's FLOPs."
    title = f"{titles.title_phases(counts, convention, scale, arm)} ({convention})"
    return finish_figure(figure, title, caption, f"Stacked bars. {said}.", data)


def flops_by_component(counts: Counts, convention: str, scale: str) -> Drawn:
    """Every arm's training FLOPs, split by component; × is dense ÷ method."""
    references = [count["conventions"][convention]["dense_flops"] for count in counts.values()]
    bars = {label(arm): count["components"] for arm, count in counts.items()}
    figure, said, data = _draw_stacked(bars, convention, references, lambda flops, dense: f"{dense / flops:.2f}×")
    caption = f"{scale}, counted as {convention}; behind each bar dense ÷ method."
    title = f"{titles.title_components(counts, convention, scale)} ({convention})"
    return finish_figure(figure, title, caption, f"Stacked bars. {said}.", data)


def flops_by_step(runs: Runs, convention: str) -> Drawn:
    """FLOPs of each step (logged stretches' means) and their sum over training, by arm and reading of the head."""
    data = _costs(runs, convention)
    full = data["step"].max()
    groups = list(readings(list(runs)))
    figure, grid = column(2 * len(groups), PANEL, sharex=True)
    for place, (head, arms) in enumerate(groups):
        rate, total = grid[place], grid[len(groups) + place]
        ends: tuple[list, list] = ([], [])
        for arm in arms:
            own = data[data["arm"] == arm]
            for axes, what, kept in ((rate, "of_one_step", ends[0]), (total, "so_far", ends[1])):
                axes.plot(own["step"], own[what], drawstyle="steps-pre" if axes is rate else None, **line(arm))
                kept.append((own["step"].iloc[-1], own[what].iloc[-1], sign(arm), short_label(arm)))
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
    return finish_figure(figure, f"{titles.title_steps(runs, convention)} ({convention})", caption, alt, data)


def _costs(runs: Runs, convention: str) -> pd.DataFrame:
    """First seeds' FLOPs of one step and so far, from step 0 on, as shares of dense's."""
    full = max(first_seed(seeds).metrics()[-1]["step"] for seeds in runs.values())
    parts = []
    for arm, seeds in runs.items():
        steps, flops = _spent(seeds, convention)
        per_step = np.diff(flops, prepend=0) / np.diff(steps, prepend=0) * full
        columns = {"step": [0, *steps], "of_one_step": [per_step[0], *per_step], "so_far": [0, *flops]}
        parts.append(pd.DataFrame({"arm": arm, **columns}))
    return pd.concat(parts, ignore_index=True)


def _spent(seeds: Mapping[int, RunFolder], convention: str) -> tuple[np.ndarray, np.ndarray]:
    """Logged steps of the first seed, and the FLOPs up to each ÷ those of all dense training."""
    steps, flops = cumulative_flops(first_seed(seeds), convention)
    return steps, flops / count_of(seeds.values())["conventions"][convention]["dense_flops"]


def loss_by_step(runs: Runs) -> Drawn:
    """Loss over training from the first logged step on, a panel per reading of the head."""
    groups = list(readings(list(runs)))
    figure, grid = column(len(groups), 3.0, sharex=True, sharey=True)
    validation, training = _validation(runs), _training(runs)
    named = []
    for axes, (head, arms) in zip(grid, groups):
        ends = []
        for arm in arms:
            own = training[training["arm"] == arm]
            axes.plot(own["step"], own["training_loss"], color=colour(arm), lw=0.8, alpha=0.35, zorder=2)
            ends.append(_seeds(axes, arm, validation, "step"))
        last = training.loc[training["arm"].isin(arms), "step"].max()
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
    return finish_figure(figure, titles.loss_by_step(runs), caption, alt, pd.concat([validation, training]))


def loss_by_flops(runs: Runs, convention: str) -> Drawn:
    """Validation loss against training FLOPs so far, a panel per reading of the head."""
    groups = list(readings(list(runs)))
    figure, grid = column(len(groups), 3.0, sharex=True, sharey=True)
    finals = [loss for seeds in runs.values() for loss in final_losses(seeds).values()]
    data = _validation(runs)
    for arm, seeds in runs.items():
        own = data["arm"] == arm
        data.loc[own, "flops"] = np.interp(data.loc[own, "step"], *_spent(seeds, convention))
    for axes, (head, arms) in zip(grid, groups):
        ends = [_seeds(axes, arm, data, "flops") for arm in arms]
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
    return finish_figure(figure, f"{titles.loss_by_flops(runs, convention)} ({convention})", caption, alt, data)


def quality_against_cost(runs: Runs) -> Drawn:
    """Final loss against training FLOPs beside the frontier of smaller dense models.

    A panel per reading of the head and count under which its MST is held against smaller dense models.
    """
    heads = {head_of(reading.arm("mst")): reading for reading in READINGS}
    heads = {head: heads[head] for head in heads if any(head_of(arm) == head for arm in runs)}
    shown = [(head, *each) for head in heads for each in each_count([heads[head]])] or [("", *each_count(READINGS)[0])]
    figure, grid = column(len(shown), FRONTIER_PANEL, sharey=True)
    named, said, parts = [], [], []
    for axes, (head, reading, convention) in zip(grid, shown):
        found = frontier_of(runs, convention)
        arms = [arm for arm in runs if head_of(arm) in ("", head)]
        title = f"LM {reading.name}" if head else "dense training"
        axes.set_title(title)
        axes.set_xlabel(f"training FLOPs ÷ dense's\n({convention}:\n{COUNTED[convention]})")
        parts.append(_tabulate_losses(found, arms, runs).assign(convention=convention))
        dense = count_of(runs[arms[0]].values())["conventions"][convention]["dense_flops"]
        named.append(_beside_frontier(axes, found, parts[-1], dense))
        said.append(f"{title}, {convention}: {_places(found, arms, runs)}")
    for axes, ends in zip(grid, named):  # now that the limits, which are shared, are final
        label_ends(axes, ends, FRONTIER_PANEL - 0.9, lead=True)
    alt = f"Final loss against FLOPs. {'. '.join(said)}."
    return finish_figure(figure, titles.quality(runs), FRONTIER_SAID, alt, pd.concat(parts))


def _tabulate_losses(found: Frontier, arms: Sequence[str], runs: Runs) -> pd.DataFrame:
    """A row per arm and seed: its loss; the arm's FLOPs, its mean as it is placed, and its 95 % t interval."""
    parts = []
    for arm in arms:
        losses = final_losses(runs[arm])
        low, high = t_interval(np.array([*losses.values()])) if len(losses) > 1 else (np.nan, np.nan)
        ends = {"flops": found.points[arm][0], "mean": found.points[arm][1], "low": low, "high": high}
        own = pd.DataFrame({"arm": arm, "seed": list(losses), "loss": list(losses.values()), **ends})
        parts.append(own.assign(fewer_steps=arm in found.shorter))
    return pd.concat(parts, ignore_index=True)


def _beside_frontier(
    axes: Axes, found: Frontier, data: pd.DataFrame, dense: float
) -> list[tuple[float, float, dict, str]]:
    """The frontier; seeds, means and intervals of `_tabulate_losses`, FLOPs as shares of dense's; returns the ends
    that `label_ends` names."""
    flops, losses = np.array(found.nodes).reshape(-1, 2).T
    axes.plot(flops / dense, losses, color=QUIET, lw=1.6, zorder=2)
    ends = []
    for arm, own in data.groupby("arm", sort=False):
        cost, mean, low, high, is_short = own[["flops", "mean", "low", "high", "fewer_steps"]].iloc[0]
        share = cost / dense
        axes.plot([share] * len(own), own["loss"], ".", ms=3, color=colour(arm), alpha=0.5, zorder=3)
        if len(own) > 1:
            axes.plot([share, share], [low, high], "_-", color=colour(arm), lw=1.2, ms=6, zorder=4)
        style = sign(arm, hollow=is_short)  # how the head was read, the panel says
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


def _seeds(axes: Axes, arm: str, data: pd.DataFrame, x: str) -> tuple[float, float, dict, str]:
    """The mean as a line with markers, and every seed as a dot; returns the end, which `label_ends` names."""
    losses = data[data["arm"] == arm].pivot(index=x, columns="seed", values="validation_loss")
    means, style = losses.mean(axis=1), sign(arm)
    axes.plot(means, **line(arm) | style | {"ms": 0.75 * style["ms"]})
    for seed in losses:
        axes.plot(losses[seed], ".", ms=2.5, color=colour(arm), alpha=0.6, zorder=3)
    return means.index[-1], means.iloc[-1], style, f"{short_label(arm)} {means.iloc[-1]:.2f}"


def _validation(runs: Runs) -> pd.DataFrame:
    """A row per arm, seed and evaluation, at the steps that all seeds of the arm have."""
    parts = []
    for arm, seeds in runs.items():
        steps, losses = validation_curves(seeds.values())
        for seed, own in zip(seeds, losses):
            parts.append(pd.DataFrame({"arm": arm, "seed": seed, "step": steps, "validation_loss": own}))
    return pd.concat(parts, ignore_index=True)


def _training(runs: Runs) -> pd.DataFrame:
    """A row per arm and logged step that all of its seeds have: the mean of their training losses."""
    parts = []
    for arm, seeds in runs.items():
        curves = [pd.Series({row["step"]: row["loss"] for row in run.metrics()}) for run in seeds.values()]
        means = pd.concat(curves, axis=1, join="inner").sort_index().mean(axis=1)
        parts.append(pd.DataFrame({"arm": arm, "step": means.index, "training_loss": means.to_numpy()}))
    return pd.concat(parts, ignore_index=True)


def _draw_stacked(
    bars: Mapping[str, Mapping[str, int]],
    convention: str,
    references: Sequence[float],
    note: Callable[[float, float], str],
) -> tuple[Figure, str, pd.DataFrame]:
    """Bars from the top down, split by component, with a note behind each, of its FLOPs and dense's; the notes in
    words; and the parts of the bars."""
    figure, axes = panels(1, 1, (WIDTH, 0.27 * len(bars) + 1.9))
    left = np.zeros(len(bars))
    split = [select_counted(components, convention) for components in bars.values()]
    data = pd.DataFrame({"bar": list(bars)})
    for group, (names, shade) in GROUPS.items():
        widths = np.array([float(sum(part.get(name, 0) for name in names)) for part in split])
        if widths.any():
            axes.barh(data["bar"], widths, left=left, color=shade, label=group, lw=0, height=0.72, zorder=3)
            data[group] = widths
        left += widths
    notes = list(map(note, left, references))
    for place, flops in enumerate(left):
        axes.text(flops, place, f" {notes[place]}", va="center", fontsize=9, fontweight="bold", color=INK)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlim(0, 1.2 * left.max())
    axes.set_xlabel("training FLOPs")
    figure.legend(loc="outside lower center", ncols=2)
    return figure, "; ".join(f"{name} {said}" for name, said in zip(bars, notes)), data
