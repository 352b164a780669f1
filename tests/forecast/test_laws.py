"""Laws of the field: their published numbers, and that a fit finds the law that made its points, and no other does."""

import pytest

from replication.forecast.laws import FITS, PUBLISHED, Chinchilla, Point, Sparse, judge
from replication.system.errors import UserError

HOFFMANN = Chinchilla(406.4, 0.34, 410.7, 0.28, 1.69)  # their third approach
DENSITIES = (1.0, 0.5, 0.25, 0.125)
GRID = [(weights, weights * ratio) for weights in (1e6, 2e6, 4e6, 8e6, 16e6) for ratio in (5, 20, 80)]


def points(law, densities=DENSITIES):
    return [Point(n, d, density, law.loss(n, d, density)) for n, d in GRID for density in densities]


@pytest.mark.parametrize(
    ("density", "loss"), [(1, 3.1811), (1 / 2, 3.2143), (1 / 4, 3.2994), (1 / 8, 3.4253), (1 / 16, 3.5951)]
)
def test_the_sparse_laws_published_constants_give_its_losses(density, loss):
    assert PUBLISHED.loss(1e8, 2.6e9, density) == pytest.approx(loss, abs=5e-5)


def test_by_it_sparse_ends_above_dense_of_its_width():
    for n, d in GRID:
        losses = [PUBLISHED.loss(n, d, density) for density in DENSITIES]
        assert losses == sorted(losses)


def test_chinchillas_own_model_is_near_the_loss_that_they_report():
    assert HOFFMANN.loss(70e9, 1.4e12) == pytest.approx(1.937, abs=0.002)  # 1.69 + 0.0834 + 0.1634 by hand


def test_sparsity_costs_nothing_by_dense_width_and_all_by_the_average_count():
    average = Chinchilla(406.4, 0.34, 410.7, 0.28, 1.69, active=True)
    assert HOFFMANN.loss(1e6, 1e8, 0.25) == HOFFMANN.loss(1e6, 1e8)
    assert average.loss(1e6, 1e8, 0.25) == HOFFMANN.loss(0.25e6, 1e8)


@pytest.mark.parametrize(
    ("name", "law"),
    [
        ("dense width", HOFFMANN),
        ("average parameter count", Chinchilla(406.4, 0.34, 410.7, 0.28, 1.69, active=True)),
        ("sparse", Sparse(PUBLISHED.a, PUBLISHED.alpha, PUBLISHED.b, PUBLISHED.e)),
    ],
)
def test_a_fit_finds_the_law_that_made_its_points_and_only_it_tells_the_unseen(name, law):
    seen = [point for point in points(law) if point.weights < 16e6]
    unseen = {str(place): point for place, point in enumerate(points(law)) if point.weights == 16e6}
    worst = {one: max(map(abs, errors.values())) for one, errors in judge(seen, unseen).items()}
    assert worst[name] < 2e-3 and worst.keys() == FITS.keys()
    assert all(error > 0.02 for one, error in worst.items() if one != name)


def test_of_few_runs_no_law():
    with pytest.raises(UserError, match="4 runs are too few to fit a law to; allowed: 5 or more"):
        judge(points(HOFFMANN)[:4], {})
