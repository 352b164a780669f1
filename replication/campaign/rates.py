"""Learning rates of points that were not tuned, from those that were: the rule of docs/study/protocol.md (ours)."""

import math
from collections.abc import Mapping
from statistics import fmean

from replication.system.errors import UserError

Points = Mapping[str, tuple[float, float]]  # point -> parameters, tokens a parameter
Rates = Mapping[str, Mapping[str, float]]  # point -> arm -> learning rate
STEEPEST, FLATTEST = -0.5, 0.0  # within which an exponent is held


def find_exponents(tuned: Rates, points: Points) -> tuple[float, float]:
    """a, by which rates fall with tokens a parameter, and b, with parameters: each a mean over the arms.

    Args:
        tuned: a point, one of its size at another length, and one of its length at another size; with the same arms.

    Raises:
        UserError: there are no such points.
    """
    base, longer, larger = _find_corners(tuned, points)
    (size, length), (_, far), (wide, _) = points[base], points[longer], points[larger]

    def slope(other: str, ratio: float) -> float:
        shifts = [math.log(tuned[other][arm] / tuned[base][arm]) for arm in tuned[base] if arm in tuned[other]]
        return min(max(fmean(shifts) / math.log(ratio), STEEPEST), FLATTEST)

    return slope(longer, far / length), slope(larger, wide / size)


def derive_rates(tuned: Rates, points: Points, point: str) -> dict[str, float]:
    """Arm -> learning rate of a point, from the nearest tuned one of its size, or of the largest size that was tuned.

    Raises:
        UserError: an unknown point, or too few tuned ones.
    """
    if point not in points:
        raise UserError(f"the point is {point!r}; allowed: {', '.join(points)}")
    a, b = find_exponents(tuned, points)
    size, length = points[point]
    sizes = {points[name][0] for name in tuned}
    own = size if size in sizes else max(sizes)
    near = min((name for name in tuned if points[name][0] == own), key=lambda name: _apart(points[name][1], length))
    factor = (length / points[near][1]) ** a * (size / points[near][0]) ** b
    return {arm: float(f"{rate * factor:.3g}") for arm, rate in tuned[near].items()}


def _apart(one: float, other: float) -> float:
    return abs(math.log(one / other))


def _find_corners(tuned: Rates, points: Points) -> tuple[str, str, str]:
    for base in sorted(tuned, key=lambda name: points[name]):
        longer = [name for name in tuned if points[name][0] == points[base][0] and points[name][1] > points[base][1]]
        larger = [name for name in tuned if points[name][1] == points[base][1] and points[name][0] > points[base][0]]
        if longer and larger:
            return base, longer[0], larger[0]
    raise UserError(
        f"tuned are {', '.join(tuned) or 'no points'}; allowed: a point, a longer one of its size, and a larger one of "
        "its length"
    )
