"""What parts of the bench say their results in: ratios with their spread, one look a contender."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from replication.analysis import drawing
from replication.analysis.palette import MARKERS, METHODS, OTHER_COLOURS, OTHER_MARKERS, TINTS

Rows = list[dict[str, Any]]
Ratio = dict[str, float]  # `ratio`, and its spread from `low` to `high`
TINT = "#dd7f98"  # of MST's hue: the same in blocks of 2 × 2
# How a contender is drawn, by its name's beginning: dense in greys, MST and the kernels that it runs on in MST's hue
# and with its marker, others' kernels in hues of no method.
SIGNS: dict[str, tuple[str, str]] = {
    "plain loop": (TINTS["dense_4x"], ">"),
    "transformers": (TINTS["dense_quarter"], "v"),
    "dense": (METHODS["dense"], MARKERS["dense"]),
    "MST": (METHODS["mst"], MARKERS["mst"]),
    "unstructured": (METHODS["mst"], MARKERS["mst"]),
    "block22": (TINT, MARKERS["mst"]),
    "block1616": (OTHER_COLOURS[2], "h"),
    "block3232": (OTHER_COLOURS[2], "D"),
    "torch.sparse": (OTHER_COLOURS[0], OTHER_MARKERS[0]),
    "sparselab": (OTHER_COLOURS[1], OTHER_MARKERS[1]),
}
VARIANTS = {"compiled": ":", "masked": "--", "bf16": "--", "sparse": "-."}  # of a contender -> its line


def compare(pairs: Sequence[tuple[list[float], list[float]]]) -> Ratio:
    """How many times as long the slow take as the fast.

    The geometric mean over the pairs of the ratio of medians, and the quartiles of the rounds' own.
    """
    logs = np.log([np.divide(slow, fast) for slow, fast in pairs]).mean(0)
    low, high = np.exp(np.quantile(logs, [0.25, 0.75]))
    middle = math.exp(sum(math.log(median(slow) / median(fast)) for slow, fast in pairs) / len(pairs))
    return {"ratio": middle, "low": float(low), "high": float(high)}


def compare_runs(slow: list[float], fast: list[float]) -> Ratio:
    """The same of whole runs, from the seconds of each step.

    Of sums; the quartiles are of steps drawn with replacement.
    """
    drawn = np.random.default_rng(0).integers(len(slow), size=(1000, len(slow)))
    low, high = np.quantile(np.take(slow, drawn).sum(1) / np.take(fast, drawn).sum(1), [0.25, 0.75])
    return {"ratio": sum(slow) / sum(fast), "low": float(low), "high": float(high)}


def times(value: Ratio) -> str:
    return f"{value['ratio']:.2f}× ({value['low']:.2f}–{value['high']:.2f})"


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
