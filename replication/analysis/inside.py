"""Figures of what happened inside the runs: schedules, attention patterns, topology and masks."""

import textwrap
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from replication.analysis import titles
from replication.analysis.arms import DENSE_HEAD, Runs, head_of, label
from replication.analysis.drawing import (
    PHASES_SAID,
    WIDTH,
    Drawn,
    NotDrawn,
    column,
    finish_figure,
    label_ends,
    line,
    panels,
    shade_phases,
    short_label,
    sign,
)
from replication.analysis.palette import INK, PATTERNS, QUIET, colour, method
from replication.analysis.series import (
    MOVED,
    densities,
    first_seed,
    group_by_kind,
    parts_of,
    share_moved,
    short,
    shrink,
    stretches,
    updates_of,
)
from replication.model.layout import layout
from replication.model.patterns import pattern_mask
from replication.runs.folder import RunFolder
from replication.system.files import Json

PANEL = 2.1  # inches high
LAYERS_OF = ("rigl", "mst", "mst_dense_head")  # the arms that notebooks and the page show layer by layer,
MASKS_OF = ("static", *LAYERS_OF)  # and as masks; the functions draw any other
LOGGED = ("phase", "attention_pattern", "sparsity", "sparsity_target")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 4)))


def schedules(runs: Runs) -> Drawn:
    """What each method decided over training: sparsity, drop fraction, attention pattern. Arms that agree share a line.

    They are of the first seeds: seeds decide alike, but where phases start themselves.
    """
    logs = {arm: first_seed(seeds).metrics() for arm, seeds in runs.items()}
    attends = _alike({arm: tuple(stretches(rows, "attention_pattern")) for arm, rows in logs.items()})
    bars = 0.45 * len(attends) + 0.15
    figure, (sparsity, drop, attention) = panels(3, 1, (WIDTH, 5.7 + bars), sharex=True, height_ratios=(2.6, 2.1, bars))
    moving = {arm: rows for arm, rows in logs.items() if first_seed(runs[arm]).topology()}
    last = max(rows[-1]["step"] for rows in logs.values())
    for axes, key, shown, height in ((sparsity, "sparsity", logs, 2.2), (drop, "drop_fraction", moving, 1.7)):
        axes.set_xlim(0, last)
        axes.set_ylim(0, 1.1 * max((row[key] for rows in shown.values() for row in rows), default=1) or 1)
        _draw_shared_lines(axes, key, shown, height)
        shade_phases(axes, runs)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    for place, (found, arms) in enumerate(attends.items()):
        _bar(attention, place, found)
        rest = len(arms) == max(map(len, attends.values())) and len(arms) > 4
        attention.text(
            0.01 * last, place - 0.14, "all others" if rest else _together(arms), va="bottom", fontsize=9, color=INK
        )
    attention.set(yticks=[], ylim=(len(attends) - 0.6, -0.7), xlabel="step", title="Attention pattern")
    attention.grid(visible=False)
    sparsity.set(title="Sparsity of the maskable weights (dotted: its target)")
    drop.set(title="Drop fraction of a topology update")
    held = {arm: rows[-1]["sparsity"] for arm, rows in logs.items()}
    said = "; ".join(f"{label(arm)} {share:.0%}" for arm, share in held.items())
    caption = f"First seeds; arms that decided alike share a line. {PHASES_SAID}"
    alt = f"Lines over training. Sparsity at the end: {said}."
    return finish_figure(figure, titles.schedules(runs), caption, alt, _tabulate_decisions(logs, moving))


def _tabulate_decisions(logs: Mapping[str, Sequence[Json]], moving: Container[str]) -> pd.DataFrame:
    """A row per arm and step at which something is not as it was at the one before; drop fractions of moving arms."""
    parts = []
    for arm, rows in logs.items():
        keys = [*LOGGED, *(["drop_fraction"] if arm in moving else [])]
        own = pd.DataFrame([{"arm": arm, "step": row["step"], **{key: row.get(key) for key in keys}} for row in rows])
        parts.append(own[(own[keys] != own[keys].shift()).any(axis=1)])
    return pd.concat(parts)


def attention_patterns(config: Json) -> Drawn:
    """Every pattern, at a run's context, as a picture of query-key pairs, with the share of causal pairs it keeps."""
    context = config["model"]["n_positions"]
    window, stride = (config["attention"][key] or max(1, context // 8) for key in ("window", "stride"))
    figure, grid = panels(2, 3, (WIDTH, 4.4), sharex=True, sharey=True)
    kept = {}
    for axes, name in zip(grid.ravel(), PATTERNS):
        pairs = pattern_mask(name, context, window, stride)
        kept[name] = float(pairs.sum() / (context * (context + 1) / 2))
        _picture(axes, pairs, PATTERNS["sparse"])
        axes.set_title(f"{name}: {kept[name]:.0%}")
        axes.tick_params(labelbottom=True)
    for axes in grid.ravel()[len(PATTERNS) :]:
        axes.remove()
    grid[0, 0].set_ylabel("query, token")
    grid[1, 0].set(ylabel="query, token", xlabel="key, token")
    caption = (
        f"Coloured pairs are computed, of a context of {context} tokens with window {window} and stride {stride}; "
        "the share is of all causal pairs."
    )
    said = ", ".join(f"{name} {share:.0%}" for name, share in kept.items())
    data = pd.DataFrame({"pattern": list(kept), "kept": list(kept.values())})
    alt = f"Pictures of query-key pairs kept: {said}."
    return finish_figure(figure, titles.attention_patterns(kept), caption, alt, data)


def topology_by_arm(runs: Runs) -> Drawn | NotDrawn:
    """How far each method's connections move, over all layers: a thin line per seed, markers on their mean."""
    data = pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "step": step, **{what: share_moved(rows, what) for what in MOVED}}
            for arm, seeds in runs.items()
            for seed, run in seeds.items()
            for step, rows in updates_of(run).items()
        ]
    )
    if data.empty:
        return NotDrawn("No finished run here has a topology log with an update.")
    figure, grid = column(4, PANEL, sharex=True)
    for axes, (what, (whole, _, _)) in zip(grid, MOVED.items()):
        ends, highest = [], 0.0
        for arm, own in data.groupby("arm", sort=False):
            shares = own.pivot(index="step", columns="seed", values=what).dropna()  # the steps that all seeds have
            for seed in shares:
                axes.plot(shares[seed], **line(arm) | {"lw": 0.7, "alpha": 0.5})
            every, means, style = max(1, len(shares) // 8), shares.mean(axis=1), sign(arm)
            axes.plot(means, markevery=every, **line(arm) | style | {"ms": 0.7 * style["ms"]})
            ends.append((means.index[-1], means.iloc[-1], style, label(arm)))
            highest = max(highest, float(shares.max(axis=None)))
        axes.set(title=f"{what}, share of {whole}", ylim=(0, 1.12 * highest or 1))
        axes.set_xlim(0, max(end[0] for end in ends))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        shade_phases(axes, runs)
        label_ends(axes, ends, 0.75 * PANEL)
    grid[-1].set_xlabel("step")
    caption = f"Means over seeds with markers, every seed as a thin line, over all layers. {PHASES_SAID}"
    alt = "Four panels over training: " + ", ".join(what.lower() for what in MOVED) + "."
    return finish_figure(figure, titles.topology_by_arm(runs), caption, alt, data)


def topology_by_layer(arm: str, seeds: Mapping[int, RunFolder]) -> Drawn | NotDrawn:
    """An arm's updates by what a matrix does: the mean over blocks and seeds, and a band from lowest to highest."""
    kinds = group_by_kind(seeds.values())
    if not kinds:
        return NotDrawn(f"{label(arm)}: no update is logged.")
    data = pd.concat([_over_layers(name, layers) for name, layers in kinds.items()])
    figure, grid = column(4, 1.9, sharex=True)
    for axes, (what, (whole, _, _)) in zip(grid, MOVED.items()):
        for (name, own), dash in zip(data.groupby("kind", sort=False), DASHES * len(kinds)):
            axes.plot(own["step"], own[what], color=colour(arm), lw=1.5, ls=dash, label=name)
            ends = own[f"{what}, lowest"], own[f"{what}, highest"]
            axes.fill_between(own["step"], *ends, color=colour(arm), alpha=0.12, lw=0)
        axes.set_title(f"{what}, share of {whole}")
        axes.set_xlim(0, axes.dataLim.xmax)
        axes.set_ylim(0, 1.2 * axes.dataLim.ymax)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        shade_phases(axes, {arm: seeds})
    grid[-1].set_xlabel("step")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, handlelength=4)
    caption = (
        f"A line for each kind of matrix: mean over blocks and {len(seeds)} seeds; its band goes from the lowest to "
        "the highest."
    )
    alt = f"Four panels over training, a line per kind of matrix: {', '.join(kinds)}."
    return finish_figure(figure, titles.topology_by_layer(arm, kinds), caption, alt, data)


def _over_layers(kind: str, layers: Sequence[Sequence[Json]]) -> pd.DataFrame:
    """What each update moved in the layers of a kind: a row per step, the mean and ends of each share of `MOVED`."""
    columns = {"kind": kind, "step": [row["step"] for row in layers[0]]}
    for what in MOVED:
        shares = np.array([[share_moved([row], what) for row in rows] for rows in layers])
        columns |= {what: shares.mean(0), f"{what}, lowest": shares.min(0), f"{what}, highest": shares.max(0)}
    return pd.DataFrame(columns)


def masks(run: RunFolder, columns: int = 3) -> Drawn | NotDrawn:
    """The final masks, a picture per layer, in c_attn with Q, K and V apart. Over 256 wide: the local density."""
    layers, arm = run.masks(), run.path.parent.name
    if not layers:
        return NotDrawn(f"{label(arm)} has no masks: all of its weights are active.")
    rows = -(-len(layers) // columns)
    figure, grid = panels(rows, columns, (WIDTH, 1.3 * rows + 0.5), squeeze=False)
    for axes in np.ravel(grid)[len(layers) :]:
        axes.remove()
    for axes, (name, mask) in zip(np.ravel(grid), layers.items()):
        _picture(axes, shrink(mask), colour(arm), aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.set_title(f"{short(name)}: {mask.mean():.0%}", fontsize=9, fontweight="normal")
        _mark_parts(axes, name, mask)
    parts = parts_of(layers)
    caption = (
        f"{run.path.name.replace('-', ' ').capitalize()}. Filled: an active weight; rows are inputs (of the head "
        "tokens), columns outputs. Of attn.c_attn, which holds Q, K and V, each part's own density stands below it."
    )
    said = ", ".join(f"{short(name)} {mask.mean():.0%}" for name, mask in layers.items())
    data = pd.DataFrame(
        [
            {"layer": short(name), "rows": len(mask), "columns": mask.shape[1], "active": mask.mean()}
            | densities(name, mask)
            for name, mask in layers.items()
        ]
    )
    return finish_figure(figure, titles.masks(arm, parts), caption, f"Pictures of masks; active are {said}.", data)


def _mark_parts(axes: Axes, name: str, mask: np.ndarray) -> None:
    """Lines between the parts that a matrix fuses, and the name and density of each below."""
    if not layout(name).parts:
        return
    shares = densities(name, mask)
    left, right = axes.get_xlim()
    width = (right - left) / len(shares)
    for place in range(1, len(shares)):
        axes.axvline(left + place * width, color=INK, lw=1.2)
    middles = [left + (place + 0.5) * width for place in range(len(shares))]
    axes.set_xticks(middles, [f"{part.upper()} {share:.0%}" for part, share in shares.items()], fontsize=9)
    axes.tick_params(axis="x", pad=0)


def _draw_shared_lines(axes: Axes, key: str, logs: Mapping[str, Sequence[Json]], height: float) -> None:
    """A line for each different course of `key`, named after all arms that took it: at its end, or on its way down."""
    ends = []
    courses = {arm: tuple((row["step"], round(row[key], 4)) for row in rows) for arm, rows in logs.items()}
    for found, arms in _alike(courses).items():
        steps, values = zip(*found)
        is_one = len(set(map(method, arms))) == 1
        axes.plot(steps, values, **line(arms[0]) | ({} if is_one else {"color": QUIET}))
        if key == "sparsity":
            targets = [row["sparsity_target"] for row in logs[arms[0]]]
            axes.plot(steps, targets, color=INK, lw=1, ls=":", zorder=6)
        names, at = _together(arms), len(steps) // 4
        if key == "drop_fraction" and values[at] > values[-1]:
            words = textwrap.fill(names, 24, break_on_hyphens=False)
            place = {"xytext": (6, 3), "textcoords": "offset points", "fontsize": 9, "color": INK}
            axes.annotate(words, (steps[at], values[at]), **place, zorder=7)
        else:
            ends.append((steps[-1], values[-1], sign(arms[0]) if is_one else {}, names))
    label_ends(axes, ends, height)


def _bar(axes: Axes, place: int, found: Sequence[tuple[str, int, int]]) -> None:
    for pattern, start, end in found:
        axes.barh(place + 0.1, end - start, left=start, height=0.42, color=PATTERNS[pattern], lw=0)
        shade = "white" if pattern in ("sparse", "fixed") else INK
        if end - start > 0.15 * found[-1][2]:
            axes.text((start + end) / 2, place + 0.1, pattern, ha="center", va="center", fontsize=9, color=shade)


def _alike(courses: Mapping[str, Any]) -> dict[Any, list[str]]:
    """Each different course -> the arms that took it."""
    groups: dict[Any, list[str]] = {}
    for arm, course in courses.items():
        groups.setdefault(course, []).append(arm)
    return groups


def _together(arms: Sequence[str]) -> str:
    """Names of arms that agree; where both readings of a head do, one name; and one for several dense models."""
    several = sum(not head_of(arm) for arm in arms) > 1
    names = list(dict.fromkeys("dense models" if several and not head_of(arm) else short_label(arm) for arm in arms))
    named = "; ".join(names)
    return f"{named}, dense head" if all(arm.endswith(DENSE_HEAD) for arm in arms) else named


def _picture(axes: Axes, values: np.ndarray, shade: str, aspect: str = "equal") -> None:
    import seaborn as sns

    cmap = sns.light_palette(shade, as_cmap=True)
    axes.imshow(values, cmap=cmap, vmin=0, vmax=1, interpolation="nearest", aspect=aspect)
    axes.grid(visible=False)
