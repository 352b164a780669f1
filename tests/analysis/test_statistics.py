"""Statistics against numbers worked by hand, scipy's own paired tests and statsmodels."""

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from replication.analysis.statistics import (
    holm,
    p_above,
    p_below,
    pair_differences,
    power,
    seeds_needed,
    summarise,
    t_interval,
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], (0, None, None)),
        ([2.5], (1, 2.5, None)),
        ([1.0, 3.0], (2, 2.0, np.sqrt(2))),
        ([1.0, 2.0, 3.0, 6.0], (4, 3.0, np.sqrt(14 / 3))),
    ],
)
def test_summary(values, expected):
    assert summarise(values) == pytest.approx(expected)


def test_differences_pair_by_seed_and_leave_out_the_rest():
    method, reference = {2: 5.0, 0: 1.0, 7: 9.0}, {0: 0.5, 1: 3.0, 2: 4.0}
    assert pair_differences(method, reference).tolist() == [0.5, 1.0]


def test_p_below_by_hand():
    # Differences 1, 2, 3: mean 2, standard error 1/√3, so t = (2 − 4)√3 = −3.4641 with 2 degrees of freedom,
    # where P(T < t) = (1 + t/√(2 + t²))/2.
    t = -2 * np.sqrt(3)
    assert p_below(np.array([1.0, 2.0, 3.0]), 4.0) == pytest.approx((1 + t / np.sqrt(2 + t**2)) / 2)


def test_the_two_sides_agree_with_scipys_paired_test_and_add_to_one():
    a, b = np.array([3.9, 4.1, 4.0, 4.2]), np.array([3.8, 4.15, 3.9, 4.05])
    assert p_below(a - b) == pytest.approx(stats.ttest_rel(a, b, alternative="less").pvalue)
    assert p_above(a - b) == pytest.approx(stats.ttest_rel(a, b, alternative="greater").pvalue)
    assert p_below(a - b, 0.03) + p_above(a - b, 0.03) == pytest.approx(1)


@pytest.mark.parametrize(("difference", "bound"), [(0.1, 0.2), (0.3, 0.2), (0.0, 0.0), (0.2, 0.2)])
def test_differences_without_spread_show_nothing(difference, bound):
    differences = np.full(3, difference)
    assert p_below(differences, bound) == p_above(differences, bound) == 1


def test_t_interval_by_hand():
    # Mean 2, standard error 1/√3, and t(0.975, 2) = 4.302653: 2 ± 2.484138.
    assert t_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx((2 - 2.484138, 2 + 2.484138), abs=1e-6)
    assert t_interval(np.array([2.0, 2.0, 2.0])) == (2, 2)


@pytest.mark.slow
def test_t_interval_of_three_covers_at_its_level():
    draws = np.random.default_rng(0).normal(1.0, 3.0, (4000, 3))
    assert np.mean([low < 1.0 < high for low, high in map(t_interval, draws)]) == pytest.approx(0.95, abs=0.015)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 · 0.01; 2 · 0.03; max(0.04, 0.06)
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([]) == []


@pytest.mark.parametrize("p_values", [[0.001, 0.2, 0.04, 0.04], [0.9, 0.8, 0.01], [1.0, 0.0]])
def test_holm_agrees_with_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


@pytest.mark.parametrize(("effect", "n", "alpha"), [(0.5, 3, 0.05), (1.2, 5, 0.0125), (3.0, 4, 0.05)])
def test_power_agrees_with_statsmodels(effect, n, alpha):
    assert power(effect, n, alpha) == pytest.approx(TTestPower().power(effect, n, alpha, alternative="larger"))


def test_seeds_needed():
    differences = np.array([1.0, 2.0, 3.0])  # mean 2, std 1
    n = seeds_needed(differences, 1.0, 0.05)
    assert n == np.ceil(TTestPower().solve_power(1.0, alpha=0.05, power=0.8, alternative="larger"))
    assert power(1.0, n, 0.05) >= 0.8 > power(1.0, n - 1, 0.05)
    assert seeds_needed(differences, 2.001, 0.05) is None
    assert seeds_needed(np.array([1.0, 1.0]), 0.5, 0.05) == 2
