"""Topology updates, from literal masks worked out by hand up to the stateful algorithms."""

import itertools

import pytest
import torch
from torch import nn

from replication.baselines.dense import Dense
from replication.baselines.rigl import RigL
from replication.baselines.set import SET
from replication.baselines.static import Static
from replication.mst import MST
from replication.sparsity.distributions import uniform
from replication.sparsity.schedules import ConstantSparsity, DropFraction, Schedules, StepSparsity, UpdateSteps
from replication.sparsity.topology import (
    grow_gradient,
    grow_mixed,
    grow_random,
    select_largest,
    select_random,
    update_counts,
    update_topology,
)

# Active in the first row, smallest weights first; gradients rise along the second row.
WEIGHT = torch.tensor([[1.0, -2.0, 3.0, -4.0], [0.0, 0.0, 0.0, 0.0]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.bool)
GRADIENT = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.1, -0.2, 0.3, -0.4]])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def updated(target, drop_fraction, grow=grow_gradient, gradient=GRADIENT, seed=0):
    update = update_topology(
        WEIGHT, MASK, gradient, target_nnz=target, drop_fraction=drop_fraction, grow=grow, generator=generator(seed)
    )
    return update.mask.int().tolist(), update.num_dropped, update.num_grown


@pytest.mark.parametrize(
    ("drop_fraction", "expected"),
    [
        (0, [[1, 1, 1, 1], [0, 0, 0, 0]]),
        (0.25, [[0, 1, 1, 1], [0, 0, 0, 1]]),
        (0.5, [[0, 0, 1, 1], [0, 0, 1, 1]]),
        (0.75, [[0, 0, 0, 1], [0, 1, 1, 1]]),
        (1, [[0, 0, 0, 0], [1, 1, 1, 1]]),
    ],
)
def test_drop_by_magnitude_and_grow_by_gradient(drop_fraction, expected):
    assert updated(4, drop_fraction) == (expected, int(4 * drop_fraction), int(4 * drop_fraction))


@pytest.mark.parametrize(
    ("target", "drop_fraction", "expected"),
    [
        (2, 0, [[0, 0, 1, 1], [0, 0, 0, 0]]),  # sparsity rises: drop 2, grow none
        (2, 0.25, [[0, 0, 1, 1], [0, 0, 0, 0]]),  # the rise asks for more than the drop fraction
        (3, 0.5, [[0, 0, 1, 1], [0, 0, 0, 1]]),  # drop 2, of which the rise is 1: grow 1
        (6, 0, [[1, 1, 1, 1], [0, 0, 1, 1]]),  # sparsity falls: grow only
        (6, 0.25, [[0, 1, 1, 1], [0, 1, 1, 1]]),  # a fall, and one exchanged
        (8, 0.5, [[1, 1, 1, 1], [1, 1, 1, 1]]),  # to dense: the dropped grow back
        (0, 0.25, [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ],
)
def test_rising_and_falling_sparsity(target, drop_fraction, expected):
    assert updated(target, drop_fraction)[0] == expected


@pytest.mark.parametrize(
    ("nnz", "target", "drop_fraction", "counts"),
    [
        (100, 100, 0.3, (30, 30)),
        (100, 80, 0.3, (30, 10)),
        (100, 60, 0.3, (40, 0)),
        (100, 120, 0.3, (30, 50)),
        (7, 7, 0.3, (2, 2)),
        (100, 100, 0, (0, 0)),
        (0, 5, 0.3, (0, 5)),
    ],
)
def test_count_rule(nnz, target, drop_fraction, counts):
    assert update_counts(nnz, target, drop_fraction) == counts


def test_a_dropped_connection_with_the_largest_gradient_grows_back():
    gradient = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert updated(4, 0.25, gradient=gradient)[0] == MASK.int().tolist()


def test_mixed_growing_is_three_quarters_by_gradient_and_one_at_random():
    seen = set()
    for seed in range(40):
        grown = (
            torch.tensor(updated(4, 1, grow=grow_mixed, gradient=GRADIENT, seed=seed)[0])
            .flatten()
            .nonzero()
            .flatten()
            .tolist()
        )
        assert len(grown) == 4 and {5, 6, 7} <= set(grown)
        seen |= set(grown)
    assert seen == set(range(8))  # the fourth is any of the others, also one that was just dropped


@pytest.mark.parametrize(("num", "at_random"), [(0, 0), (1, 1), (3, 1), (4, 1), (7, 2), (8, 2), (100, 25)])
def test_mixed_growing_rounds_the_share_by_gradient_down(num, at_random):
    gradient, eligible = torch.arange(200.0), torch.ones(200, dtype=torch.bool)
    chosen = grow_mixed(gradient, eligible, num, generator()).tolist()
    by_gradient = set(range(200 - (num - at_random), 200))
    assert len(set(chosen)) == num and by_gradient <= set(chosen)
    assert len(set(chosen) - by_gradient) == at_random


def test_random_growth_needs_no_gradient_and_reaches_every_inactive_position():
    grown = [tuple(map(tuple, updated(4, 0.5, grow=grow_random, gradient=None, seed=seed)[0])) for seed in range(60)]
    inactive = [0, 1, 4, 5, 6, 7]
    assert {tuple(i for i in inactive if sum(mask, ())[i]) for mask in grown} <= set(
        itertools.combinations(inactive, 2)
    )
    assert {i for mask in grown for i in inactive if sum(mask, ())[i]} == set(inactive)


def test_ties_fall_to_the_generator():
    scores, every = torch.tensor([5.0, 1.0, 1.0, 1.0, 0.0]), torch.ones(5, dtype=torch.bool)
    picks = [tuple(sorted(select_largest(scores, every, 2, generator(seed)).tolist())) for seed in range(40)]
    assert set(picks) == {(0, 1), (0, 2), (0, 3)}
    assert picks == [tuple(sorted(select_largest(scores, every, 2, generator(seed)).tolist())) for seed in range(40)]


def test_only_eligible_positions_are_selected():
    eligible = torch.tensor([[True, False], [True, False]])
    assert select_largest(torch.tensor([[1.0, 9.0], [2.0, 9.0]]), eligible, 1, generator()).tolist() == [2]
    assert sorted(select_random(eligible, 2, generator()).tolist()) == [0, 2]
    assert (
        select_random(eligible, 0, generator()).tolist()
        == []
        == select_largest(torch.zeros(2, 2), eligible, 0, generator()).tolist()
    )


class Net(nn.Module):
    """Two 4 × 8 matrices, of which the second stays dense."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False)


def schedules(sparsity, drop_fraction=0.5):
    return Schedules(sparsity, UpdateSteps(freq=2, start=0, end=100), DropFraction(((0, drop_fraction),), 10**9))


def applied(algorithm):
    net = Net()
    algorithm.apply(net, lambda name, param: name == "first.weight")
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    return net, optimizer


def step(net, optimizer, algorithm, index):
    torch.manual_seed(index)
    for param in net.parameters():
        param.grad = torch.randn_like(param)
    rows = algorithm.update(index, optimizer) if algorithm.is_update(index) else []
    algorithm.mask_gradients()
    if not rows:
        optimizer.step()
    return rows


@pytest.mark.parametrize("make", [SET, RigL, MST])
def test_dropped_and_grown_weights_and_their_moments_are_zero(make):
    algorithm = make(schedules(ConstantSparsity(0.5)), uniform)
    net, optimizer = applied(algorithm)
    for index in (0, 1):
        step(net, optimizer, algorithm, index)
    weight, before = net.first.weight, algorithm.masks["first.weight"].clone()
    kept_weight = weight.detach().clone()
    (row,) = step(net, optimizer, algorithm, 2)
    after = algorithm.masks["first.weight"]
    assert (row["nnz"], row["dropped"], row["grown"], row["size"]) == (16, 8, 8, 32) and int(after.sum()) == 16
    grown, stayed = after & ~before, after & before
    assert grown.any() and not weight[~after].any() and not weight[grown].any()
    assert torch.equal(weight[stayed], kept_weight[stayed]) and weight[stayed].all()
    for key in ("exp_avg", "exp_avg_sq"):
        moment = optimizer.state[weight][key]
        assert not moment[~stayed].any() and moment[stayed].all()
    assert row["overlap_first"] == pytest.approx(stayed.sum().item() / 16)
    assert row["ever_active"] == pytest.approx((before | after).float().mean().item())


def test_a_rising_target_is_met_exactly():
    algorithm = RigL(schedules(StepSparsity(((0, 0.0), (2, 0.75), (4, 0.25)))), uniform)
    net, optimizer = applied(algorithm)
    counts = []
    for index in range(6):
        step(net, optimizer, algorithm, index)
        counts.append(int(algorithm.masks["first.weight"].sum()))
    assert counts == [32, 32, 8, 8, 24, 24]


def test_static_never_updates_and_dense_masks_nothing():
    static, dense = Static(schedules(ConstantSparsity(0.5)), uniform), Dense(schedules(ConstantSparsity(0.0)), uniform)
    net, _ = applied(static)
    assert not any(map(static.is_update, range(100))) and int((net.first.weight != 0).sum()) == 16
    assert static.sparsity() == 0.5
    net, optimizer = applied(dense)
    step(net, optimizer, dense, 2)
    assert dense.masks == {} and dense.sparsity() == 0.0 and net.first.weight.all()


def test_the_first_mask_by_magnitude_keeps_the_largest():
    algorithm = Static(schedules(ConstantSparsity(0.75)), uniform, initial_mask="magnitude")
    net, _ = applied(algorithm)
    whole = Net().first.weight.detach().abs().flatten()
    assert set(net.first.weight.flatten().nonzero().flatten().tolist()) == set(whole.topk(8).indices.tolist())


def test_seeds_decide_the_first_mask():
    masks = [applied_mask(seed) for seed in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def applied_mask(seed):
    algorithm = SET(schedules(ConstantSparsity(0.5)), uniform, seed=seed)
    applied(algorithm)
    return algorithm.masks["first.weight"]


def test_state_dict_goes_on_where_it_was():
    runs = []
    for interrupted in (False, True):
        algorithm = MST(schedules(ConstantSparsity(0.5)), uniform, seed=3)
        net, optimizer = applied(algorithm)
        for index in range(9):
            if interrupted and index == 5:
                state, weights, moments = algorithm.state_dict(), net.state_dict(), optimizer.state_dict()
                algorithm = MST(schedules(ConstantSparsity(0.5)), uniform, seed=99)
                fresh, fresh_optimizer = applied(algorithm)
                fresh.load_state_dict(weights)
                fresh_optimizer.load_state_dict(moments)
                net, optimizer = fresh, fresh_optimizer
                algorithm.load_state_dict(state)
            rows = step(net, optimizer, algorithm, index)
        runs.append((algorithm.masks["first.weight"], net.first.weight.detach(), rows))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1]) and runs[0][2] == runs[1][2]
