"""The law of the loss: known constants found again, the error left out on a case worked by hand, what is refused."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from replication.forecast import loss_model
from replication.forecast.loss_model import BETA, Arm, Law, covers, fit, leave_out, rms
from replication.system.errors import UserError

TRUE = Law(400, 0.35, 400, 0.3, 1.7, {"mst": 0.02})
SIZES, LENGTHS = (1e5, 3e5, 1e6, 3e6), (1e6, 3e6, 1e7)


def fit_model(arms):
    return loss_model.fit_model(tuple(arms))


def arm(weights, tokens, losses, group="set"):
    return Arm(f"{group}-{weights:g}-{tokens:g}", weights, int(tokens), (group,), tuple(losses))


def of_law(weights, tokens, group="set", noise=0.0):
    loss = TRUE.loss(weights, tokens, (group,))
    return arm(weights, tokens, (loss - noise, loss, loss + noise), group)


def line(*losses):
    """Arms of 1, 2, 4 … hundred thousand weights and one length."""
    return [arm(1e5 * 2**place, 1e6, [loss]) for place, loss in enumerate(losses)]


# A hexagon: each lies beyond the others.
CORNERS = [
    arm(weights, tokens, [3.0])
    for weights, tokens in ((1e5, 1e6), (1e6, 1e6), (1e5, 1e8), (1e6, 1e8), (2e4, 1e7), (5e6, 1e7))
]


def test_constants_of_a_law_are_found_again():
    law = fit([of_law(*point) for point in product(SIZES, LENGTHS)])
    assert (law.alpha, law.beta, law.e) == pytest.approx((0.35, 0.3, 1.7), rel=0.02)
    assert (law.a, law.b) == pytest.approx((400, 400), rel=0.2)
    assert law.loss(5e5, 5e6) == pytest.approx(TRUE.loss(5e5, 5e6), abs=1e-3)


def test_one_outlier_hardly_moves_the_law():
    arms = [of_law(*point) for point in product(SIZES, LENGTHS)]
    arms[5] = arm(3e5, 1e7, [1.2 * arms[5].loss])
    assert fit(arms).loss(5e5, 5e6) == pytest.approx(TRUE.loss(5e5, 5e6), rel=0.005)  # of 20 % in one of 12 arms


def test_a_methods_offset_is_found_again_and_shrunk():
    arms = [of_law(*point, group) for *point, group in product(SIZES, LENGTHS, ("set", "mst"))]
    offsets = fit(arms, with_offsets=True).offsets
    assert 0.01 < offsets["mst"] - offsets["set"] <= 0.0201


@pytest.mark.slow
def test_offsets_are_there_only_where_the_error_left_out_falls_with_them():
    points = [*product(SIZES, LENGTHS)]
    noise = iter(np.random.default_rng(0).normal(1, 0.02, 2 * len(points)))
    alike = fit_model(
        [arm(*point, [next(noise) * TRUE.loss(*point)], group) for group in ("a", "b") for point in points]
    )
    assert alike.laws[0].offsets == {}
    shifted = fit_model([of_law(*point, group) for point in points for group in ("set", "mst")])
    assert shifted.laws[0].offsets and shifted.error < rms(shifted.without_offsets)


def test_beta_is_held_where_two_lengths_do_not_tell_it_and_intervals_are_wider_between_them():
    model = fit_model([of_law(*point, noise=0.001) for point in product(SIZES, (1e6, 1e7))])
    assert model.laws[0].beta == BETA and [law.beta for law in model.laws] == [BETA, 0.1, 1.0]
    doubts = [np.ptp([law.loss(1e6, tokens) for law in model.laws]) for tokens in (1e6, 3e6, 1e7)]
    assert doubts[1] > 0.05 > 0.01 > max(doubts[0], doubts[2])
    widths = [high - low for _, low, high in (model.predict(1e6, tokens, ("set",)) for tokens in (1e6, 3e6))]
    assert widths[1] - widths[0] == pytest.approx(doubts[1] - doubts[0])
    assert any("beta is held at 0.28" in remark for remark in model.remarks())


def test_of_one_length_nothing_is_said_of_others():
    model = fit_model([of_law(weights, 1e6) for weights in np.geomspace(1e5, 1e6, 8)])
    assert model.laws[0].b == 0
    assert model.covers(5e5, 1e6) and not model.covers(5e5, 1.2e6)


def test_what_lies_between_the_arms_is_covered_by_hand():
    corner = [arm(1e5, 1e6, [4]), arm(1e6, 1e6, [3]), arm(1e6, 1e5, [4])]
    assert covers(corner, 5e5, 5e5) and covers(corner, 1e6, 3e5)
    assert not covers(corner, 1e5, 1e5)  # few weights and few tokens: no arm is near
    assert covers(corner, 1.2e6, 1e6) and not covers(corner, 1.3e6, 1e6)  # 1.25 times beyond


def test_an_arm_left_out_is_missed_by_what_the_others_make_of_it():
    # The others all ended at 3.0, so they expect 3.0 of the third, which ended at 3.5; the ends lie beyond the others.
    errors = leave_out(line(3.0, 3.0, 3.5, 3.0, 3.0), with_offsets=False)
    assert errors.keys() == {"set-200000-1e+06", "set-400000-1e+06", "set-800000-1e+06"}
    assert errors["set-400000-1e+06"] == pytest.approx(-0.5, abs=1e-3)
    assert rms({"a": 3.0, "b": -4.0}) == pytest.approx(np.sqrt(12.5))


def test_all_seeds_of_an_arm_are_left_out_together():
    arms = line(3.0, 3.0, 3.5, 3.0, 3.0)
    arms[2] = Arm("third", 4e5, 10**6, ("set",), (3.4, 3.5, 3.6))
    assert leave_out(arms, with_offsets=False)["third"] == pytest.approx(-0.5, abs=1e-3)


def test_intervals_by_hand():
    arms = [of_law(*point, noise=0.01) for point in product(SIZES, LENGTHS)]
    model = fit_model(arms)
    assert model.noise == pytest.approx(0.01)  # of three seeds at -0.01, 0 and +0.01
    measured = model.measured((3.0, 3.1))
    margin = stats.t.ppf(0.975, 24) * 0.01 * np.sqrt(1.5)
    assert measured == pytest.approx((3.05, 3.05 - margin, 3.05 + margin))
    expected = model.predict(5e5, 5e6, ("set",))
    margin = stats.t.ppf(0.975, len(model.errors) - 1) * np.hypot(model.error, 0.01)
    assert expected.high - expected.loss == pytest.approx(margin)


@pytest.mark.parametrize(
    ("arms", "says"),
    [
        (line(3.0, 2.9, 2.8), "of 3 arms that differ in size or length; allowed: 6 or more"),
        (CORNERS, "0 of the 6 arms lie between the others, and can be left out to check the law; allowed: 3 or more"),
        (line(3.0, 4.0, 3.0, 4.0, 3.0, 4.0, 3.0, 4.0), "explained; allowed: 50% or more"),
    ],
)
def test_what_the_logs_do_not_tell_is_refused(arms, says):
    with pytest.raises(UserError, match=says) as refusal:
        fit_model(arms)
    assert "\n" not in str(refusal.value)
