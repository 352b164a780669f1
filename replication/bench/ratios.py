"""Speed ratios with their spread, and the colour and label of each configuration that is measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from replication.analysis import drawing
from replication.analysis.palette import MARKERS, METHODS, OTHER_COLOURS, OTHER_MARKERS, TINTS

Rows = list[dict[str, Any]]
Ratio = dict[str, float]  # `ratio`, and its spread from `low` to `high`
STRETCH = 20  # steps between the topology updates of the runs that are compared
TINT = "#dd7f98"  # of MST's hue: the same in blocks of 2 × 2
# How a contender is drawn, by its name's beginning: dense in greys, MST and the kernels that it runs on in MST's hue
# and with its marker, others' kernels in hues of no method.
SIGNS: dict[str, tuple[str, str]] = {
    "plain loop": (TINTS["dense_narrow"], ">"),
    "transformers": (TINTS["dense_quarter"], "v"),
    "dense": (METHODS["dense"], MARKERS["dense"]),
    "MST": (METHODS["mst"], MARKERS["mst"]),
    "unstructured": (METHODS["mst"], MARKERS["mst"]),
    "block22": (TINT, MARKERS["mst"]),
    "block1616": (OTHER_COLOURS[2], "h"),
    "block3232": (OTHER_COLOURS[2], "D"),
    "block321": (OTHER_COLOURS[2], "P"),
    "torch.sparse": (OTHER_COLOURS[0], OTHER_MARKERS[0]),
    "sparselab": (OTHER_COLOURS[1], OTHER_MARKERS[1]),
}
VARIANTS = {"compiled": ":", "masked": "--", "bf16": "--", "sparse": "-."}  # of a contender -> its line


def compare(pairs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> Ratio:
    """How many times as long the slow take as the fast.

    The median over rounds, and their quartiles, of one number a round: the geometric mean over the pairs.
    """
    logs = np.log([np.divide(slow, fast) for slow, fast in pairs]).mean(0)
    return quartiles(np.exp(logs))


def compare_runs(slow: Sequence[float], fast: Sequence[float]) -> Ratio:
    """The same of whole runs, from the seconds of each step.

    Of sums. Half of the ratios of steps drawn with replacement lie within the spread; they are drawn within each
    stretch of `STRETCH` steps, so that a run keeps its schedule.
    """
    ratio, steps = sum(slow) / sum(fast), np.arange(len(slow))
    first = steps // STRETCH * STRETCH
    length = np.minimum(STRETCH, len(slow) - first)
    drawn = first + np.random.default_rng(0).integers(length, size=(1000, len(slow)))
    ratios = np.take(slow, drawn).sum(1) / np.take(fast, drawn).sum(1)
    factor = float(np.exp(np.median(np.abs(np.log(ratios / ratio)))))
    return {"ratio": ratio, "low": ratio / factor, "high": ratio * factor}


def quartiles(values: np.ndarray) -> Ratio:
    """The median as `ratio`, the quartiles as its spread."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"ratio": float(middle), "low": float(low), "high": float(high)}


def format_times(value: Ratio) -> str:
    """The ratio alone, as tables have it."""
    return f"{value['ratio']:.2f}×"


def times(value: Ratio) -> str:
    return f"{format_times(value)} ({value['low']:.2f}–{value['high']:.2f})"


def look(contender: str) -> dict[str, Any]:
    """Colour, marker and line of a contender, for matplotlib; hollow where it is a variant."""
    shade, shape = next(found for start, found in SIGNS.items() if contender.startswith(start))
    shade = TINT if "blocks" in contender else shade
    dash = next((dash for word, dash in VARIANTS.items() if word in contender.replace("torch.sparse", "")), "-")
    edge = {"mec": "white", "mew": 0.8} if dash == "-" else {"mfc": "white", "mew": 1.4}
    return {"color": shade, "marker": shape, "ls": dash, "ms": 10 if shape == "*" else 6, "lw": 1.5} | edge


def picture(figure: Figure, path: Path) -> str:
    """Write it, and return it as Markdown: its titles, which say what was found, are its alternative text."""
    drawing.save(figure, path)
    titles = [figure.get_suptitle(), *(axes.get_title(loc="left") for axes in figure.axes)]
    return f"![{'; '.join(title for title in titles if title)}]({path.name})".replace("\n", " ")
