"""The frontier of smaller dense models, by hand: its points, what lies between them, and which arms it takes."""

import pytest
from synthetic_runs import write_runs

from replication.analysis import figures, titles
from replication.analysis.arms import group_by_arm, table1_runs
from replication.analysis.frontier import above_frontier, frontier, frontier_of

COUNT = "head_counted_full"
LOSSES = {
    "dense": [3.0, 3.2],
    "dense_nine_tenths": [2.0, 2.2],  # below the line, and still no part of it
    "dense_one_layer": [3.5, 3.7],
    "dense_narrow": [4.0, 4.2],
    "dense_shallow": [4.4, 4.6],  # dearer than narrow, and higher
    "mst": [4.1, 4.3],
    "mst_dense_head": [3.0, 3.2],
}


@pytest.fixture
def runs(tmp_path):
    write_runs(tmp_path, LOSSES)
    return group_by_arm(table1_runs(tmp_path, "small"))


@pytest.mark.parametrize(
    ("points", "kept"),
    [
        ([], []),
        ([(100, 3.0)], [(100, 3.0)]),
        ([(100, 3.0), (10, 4.0)], [(10, 4.0), (100, 3.0)]),
        ([(100, 3.0), (10, 4.0), (50, 4.0)], [(10, 4.0), (100, 3.0)]),  # dearer and no lower
        ([(100, 3.0), (10, 4.0), (10, 3.5)], [(10, 3.5), (100, 3.0)]),  # as dear and higher
        ([(100, 3.0), (10, 2.5)], [(10, 2.5)]),
        ([(10, 4.0), (10, 4.0), (100, 3.0)], [(10, 4.0), (100, 3.0)]),  # twice the same
        ([(1, 5.0), (10, 4.9), (100, 3.0)], [(1, 5.0), (10, 4.9), (100, 3.0)]),  # unbeaten, if above the chord
    ],
)
def test_the_frontier_is_what_no_other_beats(points, kept):
    assert frontier(points) == kept


@pytest.mark.parametrize(
    ("flops", "loss", "above"),
    [
        (10, 4.0, 0.0),
        (1000, 1.5, -0.5),  # at its dearest model
        (100, 3.0, 0.0),  # half way from 10 to 1000 by the logarithm: 3.0
        (100, 3.25, 0.25),
        (9.99, 3.0, None),
        (1001, 3.0, None),
    ],
)
def test_between_two_points_it_is_straight_over_the_logarithm_of_flops(flops, loss, above):
    found = above_frontier([(10, 4.0), (1000, 2.0)], flops, loss)
    assert found is None if above is None else found == pytest.approx(above)


def test_one_model_is_no_frontier():
    assert above_frontier([(10, 4.0)], 10, 5.0) is None and above_frontier([], 10, 5.0) is None


def test_it_goes_through_dense_and_dense_models_of_another_shape_trained_as_long(runs):
    found = frontier_of(runs, COUNT)
    assert found.smaller == ["dense_one_layer", "dense_narrow", "dense_shallow"]
    assert found.shorter == ["dense_nine_tenths"]
    assert found.nodes == [found.points[arm] for arm in ("dense_narrow", "dense_one_layer", "dense")]
    assert found.above("dense") == pytest.approx(0)
    assert found.above("dense_nine_tenths") < -1


def test_an_arm_of_fewer_seeds_than_dense_is_placed_by_its_difference_to_it(tmp_path):
    """Seed 0 of dense ends 0.3 below its mean, and so would every arm of seed 0 alone."""
    write_runs(tmp_path, {"dense": [3.6, 3.9, 4.2], "dense_one_layer": [3.8], "mst": [4.0, 4.1, 4.2]})
    runs = group_by_arm(table1_runs(tmp_path, "small"))
    points = frontier_of(runs, COUNT).points
    assert points["dense_one_layer"][1] == pytest.approx(3.9 + 0.2)
    assert points["mst"][1] == pytest.approx(4.1) and points["dense"][1] == pytest.approx(3.9)


def test_the_title_and_the_words_say_how_far_from_it_mst_ends(runs):
    above = [
        frontier_of(runs, count).above(arm)
        for arm, count in (("mst", COUNT), ("mst_dense_head", "head_excluded_causal"), ("mst_dense_head", COUNT))
    ]
    assert above[0] > 0.09 and above[1] < -0.09 and above[2] < -0.09
    title = titles.quality(runs)
    assert title == (
        f"MST lies {above[0]:.2f} nats above (head masked), {-above[1]:.2f} nats below (head dense) and "
        f"{-above[2]:.2f} nats below (head dense, {COUNT}) the frontier of smaller dense models"
    )
    drawn = figures.quality_against_cost(runs)
    assert drawn.title == title and f"MST 4.200 (n = 2), {above[0]:+.3f} from the frontier" in drawn.alt
    assert "below the line" in drawn.caption and "smaller dense models" in drawn.caption


def test_the_drawn_line_has_its_points_and_dense_of_fewer_steps_is_hollow(runs):
    for axes, count in zip(
        figures.quality_against_cost(runs).figure.axes, (COUNT, "head_excluded_causal", COUNT), strict=True
    ):
        nodes = frontier_of(runs, count).nodes
        line = axes.lines[0]
        assert line.get_xdata() == pytest.approx([flops / nodes[-1][0] for flops, _ in nodes])
        assert line.get_ydata() == pytest.approx([loss for _, loss in nodes])
        assert axes.get_xscale() == "log" and count in axes.get_xlabel()
        hollow = [mark.get_ydata()[0] for mark in axes.lines if mark.get_markerfacecolor() == "white"]
        assert hollow[0] == pytest.approx(2.1)


def test_without_smaller_dense_models_or_outside_of_theirs_the_title_says_another_thing(tmp_path):
    for name, losses, said in (
        ("none", {"dense": [3.9], "mst": [4.0]}, "MST's loss minus dense's, nats: +0.10 at "),
        ("outside", {"dense": [3.9], "dense_one_layer": [4.0], "mst": [4.0]}, "MST's FLOPs lie outside the frontier"),
        ("alone", {"mst": [4.0]}, "Lowest final loss: MST"),
    ):
        write_runs(tmp_path / name, losses)
        runs = group_by_arm(table1_runs(tmp_path / name, "small"))
        assert figures.quality_against_cost(runs).title.startswith(said)
