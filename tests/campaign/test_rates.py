"""Rates of points that were not tuned, by hand."""

import pytest

from replication.campaign.rates import derive_rates, find_exponents
from replication.system.errors import UserError

POINTS = {"s5": (100, 5), "s20": (100, 20), "s80": (100, 80), "m5": (400, 5), "m20": (400, 20), "l5": (1600, 5)}
TUNED = {
    "s5": {"dense": 0.01, "mst": 0.02},
    "s20": {"dense": 0.005, "mst": 0.02},  # a half and the same: a quarter less by log4, on average
    "m5": {"dense": 0.005, "mst": 0.01},  # a half each
}


def test_exponents_are_means_over_the_arms():
    assert find_exponents(TUNED, POINTS) == (pytest.approx(-0.25), pytest.approx(-0.5))


def test_they_are_held_between_a_half_and_none():
    steep = TUNED | {"s20": {"dense": 0.001, "mst": 0.001}, "m5": {"dense": 0.02, "mst": 0.04}}
    assert find_exponents(steep, POINTS) == (-0.5, 0.0)


@pytest.mark.parametrize(
    ("point", "dense", "mst"),
    [
        ("s80", 0.005 * 4**-0.25, 0.02 * 4**-0.25),  # from s20
        ("m20", 0.005 * 4**-0.25, 0.01 * 4**-0.25),  # from m5
        ("l5", 0.005 * 4**-0.5, 0.01 * 4**-0.5),  # from m5
        ("s20", 0.005, 0.02),
    ],
)
def test_rates_by_hand(point, dense, mst):
    assert derive_rates(TUNED, POINTS, point) == pytest.approx({"dense": dense, "mst": mst}, rel=5e-3)


def test_of_too_few_points_none():
    with pytest.raises(UserError, match="tuned are s5, s20; allowed: a point, a longer one of its size"):
        derive_rates({name: TUNED[name] for name in ("s5", "s20")}, POINTS, "s80")
    with pytest.raises(UserError, match="the point is 'x'; allowed: s5"):
        derive_rates(TUNED, POINTS, "x")
