"""The figures of the notebooks: each function takes runs, or their FLOP counts, and returns a matplotlib Figure.

Arguments they share: `runs` is `arms.by_arm(...)`'s arm -> seed -> run folder; `counts` maps an arm to the object of
its flops.json (or plan.json's); `convention` names how FLOPs are counted.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from replication.analysis.arms import DENSE_HEAD, Runs, colour, count_of, final_losses, label, marker
from replication.analysis.series import (
    GROUPS,
    MOVED,
    PATTERN_COLOURS,
    PHASE_COLOURS,
    counted,
    cumulative_flops,
    first_seed,
    kind,
    moved,
    short,
    shrink,
    stretches,
    updates_of,
    validation_curves,
)
from replication.model.patterns import pattern_mask
from replication.runs import RunFolder

Counts = Mapping[str, Mapping[str, Any]]

# Lines that lie on each other stay visible: those drawn first are wider.
WIDTHS = {"dense": 3.4, "static": 4.6, "set": 3.0, "mst": 2.2}

sns.set_theme(
    style="whitegrid",
    rc={
        "figure.dpi": 110,
        "axes.titlesize": 12,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.formatter.use_mathtext": True,
        "grid.color": "#e6e9ed",
        "axes.edgecolor": "#b8c0c8",
        "legend.frameon": False,
    },
)


def counts_of(runs: Runs) -> Counts:
    """Each arm's FLOP count."""
    return {arm: count_of(seeds.values()) for arm, seeds in runs.items()}


def flops_by_step(runs: Runs, convention: str) -> Figure:
    """FLOPs of each step (logged stretches' means) and their sum over training, by arm."""
    figure, (rate, total) = panels(1, 2, (13, 4.4))
    for arm, seeds in runs.items():
        steps, flops = cumulative_flops(first_seed(seeds), convention)
        per_step = np.diff(flops, prepend=0) / np.diff(steps, prepend=0)
        rate.plot(steps, per_step, drawstyle="steps-pre", **_line(arm))
        total.plot(steps, flops, label=label(arm), **_line(arm))
    for axes, title, unit in (
        (rate, "Training FLOPs of one step", "FLOPs per step"),
        (total, "Training FLOPs so far", "FLOPs, cumulative"),
    ):
        _shade_phases(axes, runs)
        axes.set(title=title, xlabel="step", ylabel=f"{unit}\n({convention})", ylim=(0, None))
    _legend_below(figure, total)
    return figure


def flops_by_phase(counts: Counts, convention: str) -> Figure:
    """MST's phases and its whole against the whole of dense training, each split by component."""
    dense, mst = counts["dense"], counts["mst"]
    bars = {f"MST, {phase}": components for phase, components in mst["phases"].items()}
    bars = {"dense, all training": dense["components"], **bars, "MST, all training": mst["components"]}
    reference = mst["conventions"][convention]["dense_flops"]
    figure, axes = panels(1, 1, (11, 3.9))
    _stacked_bars(axes, bars, convention, lambda flops: f"{flops / reference:.1%} of dense")
    axes.set_title(f"Where the FLOPs go, by phase ({convention})")
    return figure


def flops_by_component(counts: Counts, convention: str) -> Figure:
    """Every arm's training FLOPs, split by component; × is dense ÷ method."""
    figure, axes = panels(1, 1, (11, 0.5 * len(counts) + 1.6))
    reference = next(iter(counts.values()))["conventions"][convention]["dense_flops"]
    _stacked_bars(
        axes,
        {label(arm): count["components"] for arm, count in counts.items()},
        convention,
        lambda flops: f"{reference / flops:.2f}×",
    )
    axes.set_title(f"What is paid for, by arm ({convention})")
    return figure


def conventions(scales: Mapping[str, Counts]) -> Figure:
    """FLOP reduction (dense ÷ method) under every convention, a panel per scale, with the claimed 4× (abstract) marked.

    Hatched: the head is dense.
    """
    figure, grid = panels(len(scales), 1, (12, 3.6 * len(scales)), sharex=True)
    for axes, (scale, counts) in zip(np.atleast_1d(grid), scales.items()):
        arms = [arm for arm in counts if arm != "dense"]
        names = list(counts[arms[0]]["conventions"])
        width = 0.84 / len(arms)
        for place, arm in enumerate(arms):
            reductions = [counts[arm]["conventions"][name]["reduction"] for name in names]
            hatch = "////" if arm.endswith(DENSE_HEAD) else None
            middles = np.arange(len(names)) + (place - (len(arms) - 1) / 2) * width
            style = {"color": colour(arm), "hatch": hatch, "ec": "white", "lw": 0, "label": label(arm), "zorder": 3}
            bars = axes.bar(middles, reductions, width * 0.92, **style)
            if arm.startswith("mst") or len(arms) < 8:  # the others' numbers would lie on each other
                box = {"fc": "white", "ec": "none", "pad": 0.6}
                axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=2, fontweight="bold", zorder=5, bbox=box)
        axes.axhline(4, color="#1f2933", lw=1.2, ls="--", label="4× (abstract)", zorder=4)
        axes.set(title=f"FLOP reduction by counting convention: {scale}", ylabel="dense ÷ method, ×")
        axes.set_xticks(range(len(names)), names)
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.12)
    _legend_below(figure, axes)
    return figure


def loss_curves(runs: Runs, convention: str) -> Figure:
    """Validation loss against steps and against training FLOPs: mean over seeds, with a band from lowest to highest."""
    figure, (by_step, by_flops) = panels(1, 2, (13, 4.8), sharey=True)
    finals = []
    for arm, seeds in runs.items():
        steps, losses = validation_curves(seeds.values())
        logged, flops = cumulative_flops(first_seed(seeds), convention)
        for axes, xs in ((by_step, steps), (by_flops, np.interp(steps, logged, flops))):
            axes.plot(xs, losses.mean(0), label=label(arm), **_line(arm) | {"lw": 1.8})
            axes.fill_between(xs, losses.min(0), losses.max(0), alpha=0.18, lw=0, color=colour(arm), zorder=3)
            axes.plot(xs[-1], losses.mean(0)[-1], marker(arm), ms=7, mec="white", color=colour(arm), zorder=5)
        finals += list(losses[:, -1])
    _shade_phases(by_step, runs)
    by_step.set(title="Validation loss against steps", xlabel="step", ylabel="validation loss, nats per token")
    by_flops.set(title="… and against what it cost", xlabel=f"training FLOPs ({convention})", xlim=(0, None))
    by_step.set_ylim(min(finals) - 0.1, max(finals) + 1.0)
    _legend_below(figure, by_step)
    return figure


def quality_against_cost(runs: Runs, convention: str) -> Figure:
    """Final validation loss against training FLOPs.

    A small marker per seed, a large one for the mean; hollow where the head is dense.
    """
    figure, axes = panels(1, 1, (9.5, 5.2))
    for arm, seeds in runs.items():
        losses = list(final_losses(seeds).values())
        flops = count_of(seeds.values())["conventions"][convention]["flops"]
        edge = {"mfc": "none", "mew": 2} if arm.endswith(DENSE_HEAD) else {"mec": "white", "mew": 1.2}
        style = {"marker": marker(arm), "color": colour(arm), "ls": "none"} | edge
        axes.plot([flops] * len(losses), losses, **style | {"ms": 4, "alpha": 0.45, "mew": 1, "zorder": 3})
        name = f"{label(arm)} (n = {len(losses)})"
        axes.plot(flops, np.mean(losses), **style | {"ms": 11, "label": name, "zorder": 4})
    axes.set(
        title="What each arm's FLOPs bought",
        xlabel=f"training FLOPs ({convention})",
        ylabel="final validation loss, nats per token",
        xlim=(0, None),
    )
    axes.margins(y=0.12)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def schedules(runs: Runs) -> Figure:
    """What each method decided over training: sparsity, drop fraction, attention pattern."""
    bars = 0.28 * len(runs) + 0.3
    figure, (sparsity, drop, attention) = panels(3, 1, (11, 7 + bars), sharex=True, height_ratios=(3.4, 2.4, bars))
    for place, (arm, seeds) in enumerate(runs.items()):
        rows = first_seed(seeds).metrics()
        steps = [row["step"] for row in rows]
        sparsity.plot(steps, [row["sparsity"] for row in rows], label=label(arm), **_line(arm))
        sparsity.plot(steps, [row["sparsity_target"] for row in rows], color="#1f2933", lw=1, ls=":", zorder=6)
        if first_seed(seeds).topology():
            drop.plot(steps, [row["drop_fraction"] for row in rows], **_line(arm))
        for pattern, start, end in stretches(rows, "attention_pattern"):
            attention.barh(place, end - start, left=start, height=0.7, color=PATTERN_COLOURS[pattern], lw=0)
            attention.text(
                (start + end) / 2,
                place,
                pattern,
                ha="center",
                va="center",
                fontsize=8,
                color="white" if pattern == "sparse" else "#1f2933",
                clip_on=True,
            )
    for axes in (sparsity, drop):
        _shade_phases(axes, runs)
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    attention.set_yticks(range(len(runs)), [label(arm) for arm in runs])
    attention.invert_yaxis()
    attention.grid(visible=False)
    sparsity.set(
        title="Sparsity of the maskable weights (dotted: its target)", ylabel="fraction of zeros", ylim=(-0.03, 1)
    )
    drop.set(title="Drop fraction of a topology update", ylabel="share of active weights", ylim=(0, None))
    attention.set(title="Attention pattern", xlabel="step")
    sparsity.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def attention_patterns(context: int, window: int, stride: int) -> Figure:
    """Every pattern as a picture of query-key pairs, with the share of causal pairs that it keeps."""
    figure, grid = panels(1, 5, (14, 4.0), sharey=True)
    for axes, name in zip(grid, PATTERN_COLOURS):
        pairs = pattern_mask(name, context, window, stride)
        _picture(axes, pairs)
        axes.set_title(f"{name}\n{pairs.sum() / (context * (context + 1) / 2):.1%} of causal pairs", fontsize=10)
        axes.set_xlabel("key, token")
    grid[0].set_ylabel("query, token")
    figure.suptitle(
        f"Attention patterns: context {context}, window {window}, stride {stride} tokens",
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    return figure


def topology_by_arm(runs: Runs) -> Figure:
    """How far each method's connections move, over all layers of its first seed."""
    lines = []
    for arm, seeds in runs.items():
        if updates := updates_of(first_seed(seeds)):
            lines.append((updates, {"label": label(arm), **_line(arm)}))
    return _topology(lines, runs)


def topology_by_layer(run: RunFolder) -> Figure:
    """One run's updates, a line per layer, coloured by what the matrix does."""
    layers: dict[str, dict[int, list[dict]]] = {}
    for row in run.topology():
        layers.setdefault(row["layer"], {})[row["step"]] = [row]
    kinds = list(dict.fromkeys(map(kind, layers)))
    colours = dict(zip(kinds, sns.color_palette("Dark2", len(kinds))))
    lines = [
        (updates, {"label": kind(layer), "color": colours[kind(layer)], "lw": 1.4, "alpha": 0.85})
        for layer, updates in layers.items()
    ]
    figure = _topology(lines, {run.path.parent.name: {0: run}})
    figure.suptitle(_named(run, "topology by layer"), x=0.01, ha="left", fontweight="bold")
    return figure


def masks(run: RunFolder, columns: int = 4) -> Figure:
    """The final masks, a picture per layer: dark is active. Matrices over 256 wide show their local density."""
    layers = run.masks()
    rows = -(-len(layers) // columns)
    figure, grid = panels(rows, columns, (14, 2.3 * rows + 0.5))
    for axes in np.ravel(grid)[len(layers) :]:
        axes.remove()
    for axes, (name, mask) in zip(np.ravel(grid), layers.items()):
        _picture(axes, shrink(mask), aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.set_title(
            f"{short(name)}  {mask.shape[0]} × {mask.shape[1]}, {mask.mean():.1%} active",
            fontsize=8.5,
            fontweight="normal",
        )
    figure.suptitle(_named(run, "which weights are active at the end"), x=0.01, ha="left", fontweight="bold")
    return figure


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes, as an array where there are several."""
    # Bare: pyplot would keep it, and a notebook would then show it twice.
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def _line(arm: str) -> dict[str, Any]:
    style = "--" if arm.endswith(DENSE_HEAD) else "-"
    return {"color": colour(arm), "lw": WIDTHS.get(arm, 1.5), "ls": style, "zorder": 4 if arm == "mst" else 3}


def _legend_below(figure: Figure, axes: Axes) -> None:
    entries = dict(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=7)


def _shade_phases(axes: Axes, runs: Runs) -> None:
    """MST's phases behind the lines."""
    if "mst" not in runs:
        return
    for phase, start, end in stretches(first_seed(runs["mst"]).metrics(), "phase"):
        axes.axvspan(start, end, color=PHASE_COLOURS.get(phase, "#eef1f4"), alpha=0.5, lw=0, zorder=0, label=phase)


def _stacked_bars(axes: Axes, bars: Mapping[str, Mapping[str, int]], convention: str, note: Any) -> None:
    left = np.zeros(len(bars))
    split = [counted(components, convention) for components in bars.values()]
    for group, (names, shade) in GROUPS.items():
        widths = np.array([float(sum(part.get(name, 0) for name in names)) for part in split])
        if widths.any():
            axes.barh(list(bars), widths, left=left, color=shade, label=group, lw=0, height=0.72, zorder=3)
        left += widths
    for place, flops in enumerate(left):
        axes.text(flops, place, f"  {note(flops)}", va="center", fontsize=9, fontweight="bold")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    axes.set_xlabel(f"training FLOPs ({convention})")
    axes.legend(loc="lower right", fontsize=9)


def _topology(lines: Iterable[tuple[Mapping[int, list[dict]], dict[str, Any]]], runs: Runs) -> Figure:
    """Four panels over (step -> rows of topology.jsonl, line style); `runs` gives the phases behind."""
    figure, grid = panels(1, 4, (16, 4.2))
    lines = list(lines)
    for axes, (title, (name, _, _)) in zip(grid, MOVED.items()):
        for updates, style in lines:
            axes.plot(list(updates), [moved(rows, title) for rows in updates.values()], **style)
        _shade_phases(axes, runs)
        axes.set(title=title, xlabel="step", ylabel=f"share of {name}", ylim=(0, None))
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    _legend_below(figure, grid[0])
    return figure


def _named(run: RunFolder, what: str) -> str:
    return f"{label(run.path.parent.name)}, {run.path.name}: {what}"


def _picture(axes: Axes, values: np.ndarray, aspect: str = "equal") -> None:
    axes.imshow(
        values, cmap=sns.light_palette("#17486b", as_cmap=True), vmin=0, vmax=1, interpolation="nearest", aspect=aspect
    )
    axes.grid(visible=False)
