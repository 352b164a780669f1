"""Gradual magnitude pruning: its ramp by hand, and what an update leaves against the smallest weights by sorting."""

from dataclasses import replace

import pytest
import torch

from replication import GMP, MethodError, pruning
from replication.config.profiles import load_config
from replication.flops.solver import render, solve
from replication.methods import build_schedules
from replication.mst import mean_sparsity
from replication.sparsity.distributions import uniform
from replication.sparsity.schedules import CubicSparsity, DropFraction, Schedules, UpdateSteps
from replication.system.errors import UserError


@pytest.mark.parametrize(
    ("initial", "final", "step", "expected"),
    [(0.5, 0.9, 50, 0.85), (0.0, 0.8, 50, 0.7), (0.0, 0.8, 0, 0.0), (0.0, 0.8, 100, 0.8), (0.5, 0.9, 300, 0.9)],
)
def test_the_ramp_by_hand(initial, final, step, expected):
    assert CubicSparsity(0, 100, initial, final).sparsity(step) == pytest.approx(expected)


@pytest.mark.parametrize(("start", "end", "share"), [(0.25, 0.75, 0.625), (0, 0.25, 0.9375)])
def test_its_mean_is_that_of_the_integral(start, end, share):
    """S (¾ (b - a) + 1 - b): from ¼ to ¾ of training five eighths of the final sparsity, and no more."""
    steps = 20_000
    config = load_config(
        "smoke",
        "gmp",
        0,
        [
            f"train.num_steps={steps}",
            "sparsity.update_freq=1",
            "sparsity.sparsity=0.8",
            f"options.ramp_start={start}",
            f"options.ramp_end={end}",
        ],
    )
    schedules = build_schedules(config)
    mean = mean_sparsity(schedules.sparsity, schedules.updates, steps)
    assert mean == pytest.approx(0.8 * share, abs=1e-4)


def test_an_update_leaves_the_largest_weights_and_grows_nothing():
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 6, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    gmp = GMP(Schedules(CubicSparsity(1, 5, 0, 0.75), UpdateSteps(1, 1, 6), DropFraction(((0, 0.0),), 6)), uniform)
    gmp.apply(model, lambda name, parameter: True)
    counts = [48, 48, 48 - 20, 48 - 31, 48 - 35, 12]  # ¾ (1 - (1 - τ)³) of 48 at τ = 0, 0, ¼, ½, ¾, 1
    for step in range(6):
        before = gmp.masks["weight"].clone()
        model(torch.randn(4, 8)).square().sum().backward()
        gmp.step(step, optimizer)
        optimizer.zero_grad()
        mask = gmp.masks["weight"]
        assert abs(int(mask.sum()) - counts[step]) <= 1 and not (mask & ~before).any()
        assert (model.weight[~mask] == 0).all()


def test_its_schedules_in_a_loop_of_ones_own():
    schedules = pruning(100, 0.8, start=0.25, end=0.75, update_freq=10)
    assert [schedules.sparsity.sparsity(step) for step in (0, 25, 50, 75, 99)] == pytest.approx([0, 0, 0.7, 0.8, 0.8])
    assert [step for step in range(100) if schedules.updates.is_update(step)] == list(range(10, 100, 10))
    with pytest.raises(MethodError, match="pruning has the start 0.8 and the end 0.2; allowed: rising shares"):
        pruning(100, 0.8, start=0.8, end=0.2)


def test_what_goes_are_the_smallest():
    model = torch.nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    model.weight.data = torch.tensor([[0.1, -0.6, 0.3], [-0.2, 0.5, 0.4]])
    gmp = GMP(Schedules(CubicSparsity(0, 1, 0, 0.5), UpdateSteps(1, 1, 2), DropFraction(((0, 0.0),), 2)), uniform)
    gmp.apply(model, lambda name, parameter: True)
    for step in range(2):
        model(torch.ones(1, 3)).sum().backward()
        gmp.step(step, optimizer)
    assert gmp.masks["weight"].int().tolist() == [[0, 1, 0], [0, 1, 1]]


def test_in_its_best_window_it_does_not_reach_what_mst_saves():
    """And the solver says so; from the start of training on it can."""
    config = replace(load_config("small", "static_4x"), method="gmp")
    with pytest.raises(UserError, match="which no setting reaches under head_counted_full; allowed: the free knobs"):
        render(solve(config, 4.0, "head_counted_full"))
    early = replace(config, options={"ramp_start": 0.0, "ramp_end": 0.1})
    assert solve(early, 3.0, "head_counted_full").solutions


@pytest.mark.parametrize("ramp", [("0.8", "0.2"), ("0.5", "0.5"), ("-0.1", "0.5"), ("0.5", "1.5")])
def test_a_ramp_outside_of_training_is_refused(ramp):
    given = [f"options.ramp_start={ramp[0]}", f"options.ramp_end={ramp[1]}"]
    with pytest.raises(UserError, match=f"options.ramp_start is {ramp[0]} and options.ramp_end {ramp[1]}; allowed: "):
        build_schedules(load_config("smoke", "gmp", 0, given))
