"""The bench's pictures of steps, densities, whole runs and a step's parts, in the palette of all figures."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replication.analysis.drawing import column, label_ends
from replication.analysis.palette import GROUPS, INK, RULE
from replication.bench.ratios import compare, look

PARTS = {  # of a step, by torch's profiler; those that the FLOPs' ledger has too look as there
    "linear layers": GROUPS["blocks, forward"][1],
    "attention": GROUPS["attention"][1],
    "head and loss": GROUPS["LM head"][1],
    "optimizer": GROUPS["dense gradient for growth"][1],
    "GELU": GROUPS["blocks, input gradient"][1],
    "layer norm": GROUPS["blocks, weight gradient"][1],
    "rest": "#eef1f4",
}


def steps(seconds: Mapping[tuple[int, str, str], Sequence[float]]) -> Figure:
    """How many steps of each contender one of our dense ones takes, by width; of (width, precision, contender)."""
    precisions = list(dict.fromkeys(precision for _, precision, _ in seconds))
    figure, grid = column(len(precisions), 2.9)
    for axes, precision in zip(grid, precisions):
        widths, ends = sorted({width for width, _, _ in seconds}), []
        for contender in dict.fromkeys(name for _, of, name in seconds if of == precision):
            own = [width for width in widths if (width, precision, contender) in seconds]
            times = [
                compare([(seconds[width, precision, "dense"], seconds[width, precision, contender])])["ratio"]
                for width in own
            ]
            axes.plot(own, times, **look(contender))
            ends.append((own[-1], times[-1], look(contender), contender))
        best = max(ends, key=lambda end: end[1])
        axes.set_title(f"{precision}: at width {best[0]} the fastest is {best[1]:.1f}× dense:\n{best[3]}")
        axes.set(
            ylabel="× our dense step", xlabel="width", xscale="log", xticks=widths, xticklabels=widths, ylim=(0, None)
        )
        axes.minorticks_off()
        axes.axhline(1, color=INK, linewidth=1)
        label_ends(axes, ends, 2.1)
    return figure


def densities(lines: Sequence[tuple[str, str, np.ndarray, np.ndarray, float, float]]) -> Figure:
    """Step times ÷ dense against density; of (precision, block, densities, times, and its line: slope, intercept)."""
    precisions = list(dict.fromkeys(line[0] for line in lines))
    figure, grid = column(len(precisions), 2.8)
    for axes, precision in zip(grid, precisions):
        for of, block, found, relative, slope, intercept in lines:
            if of == precision:
                style = look("unstructured" if block == "[1,1]" else "block22")
                name = f"{block}: {intercept:.2f} + {slope:.2f} density"
                axes.plot(found, relative, **style | {"ls": "none", "label": name})
                axes.plot([0, 1], [intercept, intercept + slope], color=style["color"], linewidth=1)
        axes.plot([0, 1], [0, 1], color=RULE, linestyle=":", label="in proportion")
        axes.axhline(1, color=INK, linewidth=1)
        least = min(intercept for of, *_, intercept in lines if of == precision)
        axes.set(title=f"{precision}: {least:.0%} of a dense step does not shrink", ylabel="÷ dense step")
        axes.set(xlabel="density of every masked matrix", xlim=(0, 1), ylim=(0, None))
        axes.legend(loc="lower right")
    return figure


def runs(seconds: Mapping[str, Sequence[float]]) -> Figure:
    """Seconds so far, and of a step, over whole runs."""
    figure, (whole, rate) = column(2, 2.8, sharex=True)
    spent = {name: sum(own) for name, own in seconds.items()}
    _over_steps(whole, {name: np.cumsum(own) for name, own in seconds.items()})
    medians = {name: pd.Series(own).rolling(5, center=True).median().dropna() for name, own in seconds.items()}
    _over_steps(rate, {name: own.to_numpy() for name, own in medians.items()})
    first = min(spent, key=spent.__getitem__)
    dense = f"dense {first.rsplit(' ', 1)[1]}"
    whole.set(title=f"{first} takes {spent[first] / spent[dense]:.0%} of the time of {dense}", ylabel="seconds so far")
    rate.set(title="Seconds of a step (median of 5)", xlabel="step", ylabel="seconds")
    return figure


def _over_steps(axes: Axes, courses: Mapping[str, np.ndarray]) -> None:
    ends = []
    for name, course in courses.items():
        axes.plot(course, **look(name) | {"marker": None})
        ends.append((len(course) - 1, float(course[-1]), look(name), name))
    axes.set(ylim=(0, None), xlim=(0, None))
    label_ends(axes, ends, 2.1)


def profile(table: pd.DataFrame) -> Figure:
    """A panel per width, a bar per run, of the milliseconds of its parts: the table's rows and columns."""
    widths = list(dict.fromkeys(table.index.get_level_values("width")))
    figure, grid = column(len(widths), 2.2)
    colours = [PARTS.get(part, "#eef1f4") for part in table.columns]
    for axes, width in zip(grid, widths):
        part = table.xs(width, level="width")
        part.index = [f"{contender}, {precision}" for precision, contender in part.index]
        part.plot.barh(stacked=True, ax=axes, width=0.7, color=colours, legend=False, lw=0)
        axes.invert_yaxis()
        last = part.iloc[-1] / part.iloc[-1].sum()
        axes.set(xlabel="milliseconds", ylabel="")
        axes.set_title(f"Width {width}: {last.idxmax()}, {last.max():.0%} of {part.index[-1]}", loc="left", fontsize=9)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
