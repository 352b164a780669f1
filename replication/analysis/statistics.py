"""Means over seeds, and paired one-sided tests between two arms that share seeds."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


class Summary(NamedTuple):
    """`std` is the sample's (ddof 1), None where n < 2; `mean` is None where n = 0."""

    n: int
    mean: float | None
    std: float | None


def summarise(values: Sequence[float]) -> Summary:
    n = len(values)
    return Summary(n, float(np.mean(values)) if n else None, float(np.std(values, ddof=1)) if n > 1 else None)


def paired_differences(method: Mapping[int, float], reference: Mapping[int, float]) -> np.ndarray:
    """Method minus reference, shape (seeds in common,), by ascending seed."""
    return np.array([method[seed] - reference[seed] for seed in sorted(method.keys() & reference.keys())])


def p_below(differences: np.ndarray, bound: float = 0.0) -> float:
    """One-sided paired t-test that the mean difference is below `bound`.

    With `bound` 0 and lower-is-better values this is superiority; with `bound` a positive margin, non-inferiority.

    Args:
        differences: method minus reference, shape (n,), n >= 2.

    Returns:
        p under "the mean difference is at or above `bound`". Differences without spread leave no t: 0, or 1 where they do not lie below.
    """
    rounding = 1e-12 * max(np.max(np.abs(differences)), abs(bound))
    if np.ptp(differences) <= rounding:
        return 0.0 if np.mean(differences) < bound - rounding else 1.0
    return float(stats.ttest_1samp(differences, bound, alternative="less").pvalue)


def p_above(differences: np.ndarray, bound: float = 0.0) -> float:
    """`p_below`'s mirror: that the mean difference is above `bound`."""
    return p_below(-differences, -bound)


def confidence_interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Two-sided t interval of the mean difference; shape (n,), n >= 2."""
    half = stats.t.ppf((1 + level) / 2, len(differences) - 1) * stats.sem(differences)
    mean = float(np.mean(differences))
    return mean - float(half), mean + float(half)
