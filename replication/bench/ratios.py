"""What parts of the bench say their results in: ratios with their spread, one colour a contender."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
Ratio = dict[str, float]  # `ratio`, and its spread from `low` to `high`
COLOURS = {
    "dense": "#9aa5b1",
    "plain loop": "#6b7785",
    "transformers": "#c4ccd4",
    "MST": "#c8324a",
    "unstructured": "#c8324a",
    "block22": "#8e6bbf",
    "torch.sparse": "#e0a030",
    "sparselab": "#4f9d69",
}


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


def colour(contender: str) -> str:
    return next(colour for start, colour in COLOURS.items() if contender.startswith(start))


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight")
