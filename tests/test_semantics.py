"""Our topology update and training step against the authors' code as PAPER describes it, and what each switch changes."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies as st

from replication import trainer
from replication.config import load_config
from replication.data import prepare
from replication.methods import build_algorithm
from replication.runs import RunFolder
from replication.sparsity.topology import grow_gradient, grow_mixed, grow_random, update_topology
from replication.world import join


def authors_update(weight, mask, gradient, drop_fraction, sparsity_before, sparsity_after, random_fraction):
    """PAPER `code`, a list at a time: smallest |w| of the active dropped; ¾ grown by largest |gradient|, ¼ at random among the inactive.

    n_drop = max(⌊drop fraction · nnz⌋, rise in sparsity · n); n_grow = n_drop - rise in sparsity · n (a fall is negative).
    Returns the kept, the grown by gradient and the number grown at random (whose places the generator decides).
    """
    n, nnz = len(weight), sum(mask)
    rise = round((sparsity_after - sparsity_before) * n)
    num_drop = max(math.floor(drop_fraction * nnz), rise)
    num_grow = num_drop - rise
    active = sorted((index for index in range(n) if mask[index]), key=lambda index: abs(weight[index]))
    kept = set(active[num_drop:])
    inactive = sorted((index for index in range(n) if index not in kept), key=lambda index: -abs(gradient[index]))
    num_random = int(random_fraction * num_grow)
    return kept, set(inactive[: num_grow - num_random]), num_random


def ours(weight, mask, gradient, drop_fraction, sparsity_after, grow, seed=0):
    weight, mask = torch.tensor(weight), torch.tensor(mask)
    target = round((1 - sparsity_after) * len(mask))
    return update_topology(weight * mask, mask, torch.tensor(gradient), target_nnz=target, drop_fraction=drop_fraction, grow=grow, generator=torch.Generator().manual_seed(seed))


WEIGHT = [5.0, -1.0, 4.0, 0.5, 0.0, 0.0, 0.0, 0.0]
MASK = [True] * 4 + [False] * 4
GRADIENT = [0.1, 9.0, 0.1, 0.2, 3.0, -4.0, 0.3, 0.4]


@pytest.mark.parametrize(
    ("drop_fraction", "after", "active"),
    [
        (0.5, 0.5, {0, 2, 1, 5}),  # 1 and 3 dropped; 1 has the largest gradient and comes back, then 5
        (0.25, 0.25, {0, 1, 2, 5, 4, 7}),  # a fall by 2: one dropped (3), three grown
        (0.25, 0.75, {0, 2}),  # a rise by 2: two dropped, none grown
        (0.0, 0.5, {0, 1, 2, 3}),
    ],
)
def test_update_by_hand(drop_fraction, after, active):
    update = ours(WEIGHT, MASK, GRADIENT, drop_fraction, after, grow_gradient)
    assert set(update.mask.nonzero().flatten().tolist()) == active
    kept, grown, num_random = authors_update(WEIGHT, MASK, GRADIENT, drop_fraction, 0.5, after, 0.0)
    assert kept | grown == active and num_random == 0


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(4, 40), drop_fraction=st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]), random_fraction=st.sampled_from([0.0, 0.25, 1.0]))
def test_update_is_the_authors(data, size, drop_fraction, random_fraction):
    order = data.draw(st.permutations(range(1, size + 1)))  # no ties
    gradient = [float(value) * (-1) ** value for value in data.draw(st.permutations(range(1, size + 1)))]
    nnz, target = data.draw(st.integers(1, size)), data.draw(st.integers(1, size))
    mask = [index < nnz for index in range(size)]
    weight = [float(value) * active for value, active in zip(order, mask)]
    grow = {0.0: grow_gradient, 0.25: grow_mixed, 1.0: grow_random}[random_fraction]
    update = ours(weight, mask, gradient, drop_fraction, 1 - target / size, grow)
    kept, grown, num_random = authors_update(weight, mask, gradient, drop_fraction, 1 - nnz / size, 1 - target / size, random_fraction)
    active = set(update.mask.nonzero().flatten().tolist())
    assert kept | grown <= active
    assert len(active - kept - grown) == num_random and len(active) == target


def test_a_regrown_connection_keeps_its_weight(tiny, data_dir, tmp_path):
    # PAPER `code`: one dropped and regrown in the same update keeps its weight
    state = set_up(tiny("rigl"), data_dir, tmp_path)
    name, param = next(iter(state.algorithm.parameters.items()))
    before, mask = param.detach().clone(), state.algorithm.masks[name].clone()
    for other in state.algorithm.parameters.values():
        other.grad = other.detach().clone()  # the gradient is largest where the weight is, so what is dropped comes back
    rows = state.algorithm.update(3, state.optimizer)
    assert rows[0]["dropped"] > 0 and torch.equal(state.algorithm.masks[name], mask)
    assert torch.equal(param, before)


# --- what we chose differently, each with its switch ---


def set_up(config, data_dir, out):
    return trainer.setup(config, RunFolder(out), join(), prepare(config.data, data_dir))


def trained(config, data_dir, out, steps):
    state = set_up(config, data_dir, out)
    for _ in range(steps):
        trainer.train_step(state, state.model.transformer)
    return state


def moments(state):
    """(masked, active) second moments of all masked layers."""
    pairs = [(state.optimizer.state[param]["exp_avg_sq"], state.algorithm.masks[name]) for name, param in state.algorithm.parameters.items()]
    return torch.cat([moment[~mask] for moment, mask in pairs]), torch.cat([moment[mask] for moment, mask in pairs])


@pytest.mark.parametrize("reset", [True, False])
def test_reset_moments(reset, tiny, data_dir, tmp_path):
    state = trained(tiny("set", f"sparsity.reset_moments={reset}"), data_dir, tmp_path, 6)  # an update at step 3
    masked, active = moments(state)
    assert active.any() and bool(masked.any()) is not reset
    assert all(not param[~state.algorithm.masks[name]].any() for name, param in state.algorithm.parameters.items())  # masked weights are 0 either way


def test_growth_by_mean_gradient_or_by_mean_of_magnitudes(tiny, data_dir, tmp_path):
    grown = {}
    for choice in ("mean", "magnitudes"):
        config = tiny("rigl", f"sparsity.growth_gradient={choice}", "train.micro_batch_size=1")
        state = trained(config, data_dir, tmp_path / choice, 4)
        grown[choice] = torch.cat([mask.flatten() for mask in state.algorithm.masks.values()])
    assert grown["mean"].sum() == grown["magnitudes"].sum() and not torch.equal(grown["mean"], grown["magnitudes"])


def test_magnitudes_by_hand(tiny, data_dir, tmp_path):
    # two micro-batches of equal size: the mean has its sign, the magnitudes do not cancel
    state = set_up(tiny("rigl", "train.micro_batch_size=4"), data_dir, tmp_path)
    _, magnitudes = trainer.accumulate_gradient(state, state.model.transformer, by_magnitudes=True)
    (name, param) = next(iter(state.algorithm.parameters.items()))
    halves, whole = [], param.grad.clone()
    for part in torch.from_numpy(state.train_batches.train_batch(0)).split(4):
        state.model.zero_grad()
        (trainer._loss(state, state.model.transformer, part) / 2).backward()
        halves.append(param.grad.clone())
    torch.testing.assert_close(whole, halves[0] + halves[1])
    torch.testing.assert_close(magnitudes[name], halves[0].abs() + halves[1].abs(), rtol=1e-4, atol=1e-7)
    assert (magnitudes[name] > whole.abs() + 1e-7).any()


def test_one_micro_batch_makes_no_difference_to_growth(tiny, data_dir, tmp_path):
    states = [trained(tiny("rigl", f"sparsity.growth_gradient={choice}"), data_dir, tmp_path / choice, 4) for choice in ("mean", "magnitudes")]
    assert all(torch.equal(a, b) for a, b in zip(*(state.algorithm.masks.values() for state in states)))


def test_clip_norm(tiny, data_dir, tmp_path):
    norms = {}
    for choice in ("active", "dense"):
        state = set_up(tiny("static", f"sparsity.clip_norm={choice}"), data_dir, tmp_path / choice)
        trainer.accumulate_gradient(state, state.model.transformer)
        squares = [param.grad.square() for param in state.model.parameters() if param.grad is not None]
        dense = math.sqrt(sum(square.sum() for square in squares))
        state.model.zero_grad()
        norms[choice] = trainer.train_step(state, state.model.transformer)["grad_norm"]
    assert norms["dense"] == pytest.approx(dense, rel=1e-5) and norms["active"] < 0.99 * dense


def test_every_rank_draws_the_same_topology():
    # no switch: ranks that disagree on masks train different models
    configs = [load_config("smoke", "set", seed) for seed in (3, 3, 4)]
    draws = [torch.rand(4, generator=build_algorithm(config).generator) for config in configs]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
