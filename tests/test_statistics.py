"""Statistics against numbers worked by hand and scipy's own paired tests."""

import numpy as np
import pytest
from scipy import stats

from replication.analysis.statistics import confidence_interval, p_above, p_below, paired_differences, summarise


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
    assert paired_differences(method, reference).tolist() == [0.5, 1.0]


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


@pytest.mark.parametrize(("difference", "bound", "below", "above"), [(0.1, 0.2, 0, 1), (0.3, 0.2, 1, 0), (0.0, 0.0, 1, 1), (0.2, 0.2, 1, 1)])
def test_differences_without_spread(difference, bound, below, above):
    differences = np.full(3, difference)
    assert (p_below(differences, bound), p_above(differences, bound)) == (below, above)


def test_confidence_interval_by_hand():
    # t(0.975, 2) = 4.302653, standard error 1/√3.
    low, high = confidence_interval(np.array([1.0, 2.0, 3.0]))
    assert (low, high) == pytest.approx((2 - 4.302653 / np.sqrt(3), 2 + 4.302653 / np.sqrt(3)), abs=1e-6)
