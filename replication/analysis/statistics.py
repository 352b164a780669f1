"""Means over seeds, tests between two arms or between two sets of runs: intervals, correction, power."""

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


def pair_differences(method: Mapping[int, float], reference: Mapping[int, float]) -> np.ndarray:
    """Method minus reference, shape (seeds in common,), by ascending seed."""
    return np.array([method[seed] - reference[seed] for seed in sorted(method.keys() & reference.keys())])


def p_below(differences: np.ndarray, bound: float = 0.0) -> float:
    """One-sided paired t-test that the mean difference is below `bound`.

    With `bound` 0 and lower-is-better values this is superiority; with `bound` a positive margin, non-inferiority.

    Args:
        differences: method minus reference, shape (n,), n >= 2.

    Returns:
        p under "the mean difference is at or above `bound`". Differences without spread leave no t, and 1 is returned:
        seeds that change nothing are one seed (ours).
    """
    if not has_spread(differences, bound):
        return 1.0
    return float(stats.ttest_1samp(differences, bound, alternative="less").pvalue)


def has_spread(differences: np.ndarray, bound: float = 0.0) -> bool:
    """Do they differ by more than rounding?"""
    return bool(np.ptp(differences) > 1e-12 * max(np.max(np.abs(differences)), abs(bound)))


def p_above(differences: np.ndarray, bound: float = 0.0) -> float:
    """`p_below`'s mirror: that the mean difference is above `bound`."""
    return p_below(-differences, -bound)


def t_interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Two-sided Student interval of the mean difference; shape (n,), n >= 2.

    It covers at its level for any n, if differences are normal.
    """
    if np.ptp(differences) == 0:
        return float(differences[0]), float(differences[0])
    low, high = stats.t.interval(level, len(differences) - 1, np.mean(differences), stats.sem(differences))
    return float(low), float(high)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given: all that stay below α may be rejected together at level α."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def power(effect: float, n: int, alpha: float) -> float:
    """Power of the one-sided paired t-test with n pairs; the mean lies `effect` standard deviations from the bound."""
    return float(stats.nct.sf(stats.t.isf(alpha, n - 1), n - 1, effect * np.sqrt(n)))


def power_interval(
    distance: float, spread: float, n: int, alpha: float, level: float = 0.95
) -> tuple[float, float, float]:
    """Power where the bound lies `distance` away and n pairs spread by `spread`; and the least and the most that it may
    be, as n pairs leave their own spread uncertain (χ² interval of a normal's variance).
    """
    tails = stats.chi2.ppf([(1 + level) / 2, (1 - level) / 2], n - 1)
    narrow, wide = spread * np.sqrt((n - 1) / tails)
    return tuple(power(distance / std, n, alpha) if std else 1.0 for std in (spread, wide, narrow))  # type: ignore


def seeds_needed(
    differences: np.ndarray, bound: float, alpha: float, wanted: float = 0.8, most: int = 1000
) -> int | None:
    """Fewest pairs with the wanted power, if mean and spread stay as they are in `differences` (n >= 2).

    None: more than `most`.
    """
    spread = np.std(differences, ddof=1)
    effect = abs(np.mean(differences) - bound) / spread if spread else np.inf
    return next((n for n in range(2, most + 1) if np.isinf(effect) or power(effect, n, alpha) >= wanted), None)


class Noise(NamedTuple):
    """How much one value of a group spreads; the degrees of freedom of that estimate, and of all groups together."""

    variance: float
    freedom: float
    most: int


PRIOR_FREEDOM = 3.0  # ours: arms of the committed tables spread that differently; a test holds the rate that it gives


def pool_noise(samples: Mapping[str, Sequence[float]]) -> dict[str, Noise]:
    """Of each group, from its own few values and from all groups'.

    The groups' pooled variance weighs as `PRIOR_FREEDOM` values beside a group's own (the moderated t-test of Smyth,
    2004, with a fixed prior): pooled alone, a group that spreads more than others would raise false alarms; by its own
    two or three values alone none would be found.

    Returns:
        `{}` where no group has two values.
    """
    own = {name: np.var(values, ddof=1) if len(values) > 1 else 0.0 for name, values in samples.items()}
    freedom = {name: max(0, len(values) - 1) for name, values in samples.items()}
    total = sum(freedom.values())
    if not total:
        return {}
    pooled = sum(own[name] * freedom[name] for name in samples) / total
    return {
        name: Noise(
            float((PRIOR_FREEDOM * pooled + freedom[name] * own[name]) / (PRIOR_FREEDOM + freedom[name])),
            min(PRIOR_FREEDOM + freedom[name], total),
            total,
        )
        for name in samples
    }


def p_beyond(effect: float, noise: Sequence[Noise], weights: Sequence[float], margin: float = 0.0) -> float:
    """One-sided test that a mean of groups' effects lies above `margin`.

    Args:
        effect: that mean.
        noise: of each group, as `pool_noise` gives it.
        weights: by which a group's variance counts: for a mean of n values less one of m it is 1/n + 1/m.

    Returns:
        p under normal values (Satterthwaite's degrees of freedom); 0 or 1 where nothing spreads.
    """
    shares = np.array([one.variance * weight for one, weight in zip(noise, weights)]) / len(noise) ** 2
    variance = float(shares.sum())
    if variance <= (1e-9 * abs(effect)) ** 2:
        return 0.0 if effect > margin * (1 + 1e-9) else 1.0
    freedom = variance**2 / float(np.sum(shares**2 / [one.freedom for one in noise]))
    return float(stats.t.sf((effect - margin) / np.sqrt(variance), min(freedom, noise[0].most)))
