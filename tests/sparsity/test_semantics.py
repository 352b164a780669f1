"""Our topology update and training step against the authors' code as PAPER has it, and what each switch changes."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.config.profiles import load_config
from replication.data import prepare
from replication.methods import build_algorithm
from replication.runs.folder import RunFolder
from replication.sparsity.topology import grow_gradient, grow_mixed, grow_random, update_topology
from replication.training import steps, trainer
from replication.training.world import World, join

# ---- the update, written from PAPER's table alone, literally and slowly; no rounding of ours


def authors_counts(size, nnz, drop_fraction, rise):
    """PAPER `code`: n_drop = max(⌊drop fraction · nnz⌋, rise · n); n_grow = n_drop − rise · n.

    Args:
        rise: in sparsity, as a fraction of the layer's `size` weights, of which it makes a whole number; a fall is
            negative.
    """
    weights_of_rise = rise * size
    assert weights_of_rise.denominator == 1
    floor = 0
    while floor + 1 <= drop_fraction * nnz:
        floor += 1
    num_drop = floor
    if weights_of_rise > floor:
        num_drop = int(weights_of_rise)
    return num_drop, num_drop - int(weights_of_rise)


def authors_dropped(weight, mask, num_drop):
    """PAPER `code`: the smallest |w| among the active."""
    dropped = set()
    for _ in range(num_drop):
        candidates = [place for place in range(len(mask)) if mask[place] and place not in dropped]
        dropped.add(min(candidates, key=lambda place: abs(weight[place])))
    return dropped


def authors_grown_by_gradient(gradient, active, num):
    """PAPER `code`: the largest |gradient| among the inactive, those just dropped too."""
    grown = set()
    for _ in range(num):
        candidates = [place for place in range(len(gradient)) if place not in active and place not in grown]
        grown.add(max(candidates, key=lambda place: abs(gradient[place])))
    return grown


def three_quarters(num):
    """PAPER `code`: ⌊¾ n⌋ of the n new connections are grown by gradient."""
    return 3 * num // 4


@pytest.mark.parametrize(
    ("new", "by_gradient", "at_random"),
    [(0, 0, 0), (1, 0, 1), (2, 1, 1), (3, 2, 1), (4, 3, 1), (5, 3, 2), (6, 4, 2), (7, 5, 2), (8, 6, 2), (100, 75, 25)],
)
def test_mixed_growing_by_hand(new, by_gradient, at_random):
    """⌊¾ n⌋ by gradient, from the highest on; the others anywhere else, and not always in the same place."""
    assert three_quarters(new) == by_gradient and new - by_gradient == at_random
    gradient = torch.arange(400, 0, -1).float()  # the first places have the largest
    drawn = [
        set(grow_mixed(gradient, torch.ones(400, dtype=torch.bool), new, torch.Generator().manual_seed(seed)).tolist())
        for seed in range(4)
    ]
    assert all(len(places) == new and set(range(by_gradient)) <= places for places in drawn)
    assert at_random == 0 or len(set(map(frozenset, drawn))) > 1


def ours(weight, mask, gradient, drop_fraction, target_nnz, grow, seed=0):
    weight, mask = torch.tensor(weight), torch.tensor(mask)
    generator = torch.Generator().manual_seed(seed)
    update = update_topology(
        weight * mask,
        mask,
        torch.tensor(gradient),
        target_nnz=target_nnz,
        drop_fraction=drop_fraction,
        grow=grow,
        generator=generator,
    )
    return set(update.mask.nonzero().flatten().tolist())


WEIGHT = [5.0, -1.0, 4.0, 0.5, 0.0, 0.0, 0.0, 0.0]
MASK = [True] * 4 + [False] * 4
GRADIENT = [0.1, 9.0, 0.1, 0.2, 3.0, -4.0, 0.3, 0.4]


@pytest.mark.parametrize(
    ("drop_fraction", "target_nnz", "active"),
    [
        (
            0.5,
            4,
            {0, 2, 1, 5},
        ),  # ⌊0.5 · 4⌋ = 2 dropped, 1 and 3; 2 grown: 1 has the largest gradient and comes back, then 5
        (0.25, 6, {0, 1, 2, 5, 4, 7}),  # a fall by 2 of 8: ⌊0.25 · 4⌋ = 1 dropped (3), 1 + 2 grown: 5, 4, 7
        (0.25, 2, {0, 2}),  # a rise by 2: max(1, 2) = 2 dropped (3, 1), none grown
        (0.75, 3, {0, 1, 5}),  # a rise by 1: max(3, 1) = 3 dropped (3, 1, 2), 2 grown: 1, 5
        (0.7, 4, {0, 2, 1, 5}),  # ⌊0.7 · 4⌋ = 2
        (1.0, 4, {1, 5, 4, 7}),  # all dropped; the four largest gradients
        (0.0, 4, {0, 1, 2, 3}),
        (0.0, 8, {0, 1, 2, 3, 4, 5, 6, 7}),
    ],
)
def test_update_by_hand(drop_fraction, target_nnz, active):
    assert ours(WEIGHT, MASK, GRADIENT, drop_fraction, target_nnz, grow_gradient) == active


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    size=st.integers(4, 40),
    drop_percent=st.sampled_from([0, 10, 30, 50, 100]),
    growth=st.sampled_from(["gradient", "mixed", "random"]),
)
def test_update_is_the_authors(data, size, drop_percent, growth):
    order = data.draw(st.permutations(range(1, size + 1)))  # no ties
    gradient = [float(value) * (-1) ** value for value in data.draw(st.permutations(range(1, size + 1)))]
    nnz, target = data.draw(st.integers(1, size)), data.draw(st.integers(1, size))
    mask = [place < nnz for place in range(size)]
    weight = [float(value) * active for value, active in zip(order, mask)]
    num_drop, num_grow = authors_counts(size, nnz, Fraction(drop_percent, 100), Fraction(nnz - target, size))
    kept = {place for place in range(size) if mask[place]} - authors_dropped(weight, mask, num_drop)
    num_by_gradient = {"gradient": num_grow, "mixed": three_quarters(num_grow), "random": 0}[growth]
    grown = authors_grown_by_gradient(gradient, kept, num_by_gradient)
    grow = {"gradient": grow_gradient, "mixed": grow_mixed, "random": grow_random}[growth]
    active = ours(weight, mask, gradient, drop_percent / 100, target, grow)
    assert kept | grown <= active and len(active) == target
    assert len(active - kept - grown) == num_grow - num_by_gradient


def test_a_regrown_connection_keeps_its_weight(tiny, data_dir, tmp_path):
    # PAPER `code`: one dropped and regrown in the same update keeps its weight
    state = set_up(tiny("rigl"), data_dir, tmp_path)
    name, param = next(iter(state.algorithm.parameters.items()))
    before, mask = param.detach().clone(), state.algorithm.masks[name].clone()
    for other in state.algorithm.parameters.values():
        # the gradient is largest where the weight is, so what is dropped comes back
        other.grad = other.detach().clone()
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
    pairs = [
        (state.optimizer.state[param]["exp_avg_sq"], state.algorithm.masks[name])
        for name, param in state.algorithm.parameters.items()
    ]
    return torch.cat([moment[~mask] for moment, mask in pairs]), torch.cat([moment[mask] for moment, mask in pairs])


@pytest.mark.parametrize("reset", [True, False])
def test_reset_moments(reset, tiny, data_dir, tmp_path):
    state = trained(tiny("set", f"sparsity.reset_moments={reset}"), data_dir, tmp_path, 6)  # an update at step 3
    masked, active = moments(state)
    assert active.any() and bool(masked.any()) is not reset
    for name, param in state.algorithm.parameters.items():
        assert not param[~state.algorithm.masks[name]].any()  # masked weights are 0 either way


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
    _, magnitudes = steps.accumulate_gradient(state, state.model.transformer, "magnitudes")
    (name, param) = next(iter(state.algorithm.parameters.items()))
    halves, whole = [], param.grad.clone()
    for part in torch.from_numpy(state.train_batches.train_batch(0)).split(4):
        state.model.zero_grad()
        (steps.loss_of(state, state.model.transformer, part) / 2).backward()
        halves.append(param.grad.clone())
    torch.testing.assert_close(whole, halves[0] + halves[1])
    torch.testing.assert_close(magnitudes[name], halves[0].abs() + halves[1].abs(), rtol=1e-4, atol=1e-7)
    assert (magnitudes[name] > whole.abs() + 1e-7).any()


def test_the_authors_take_the_magnitude_on_each_process_and_then_the_mean(tiny, data_dir, tmp_path):
    """PAPER `code`: averaged with its sign over the micro-steps, then |·| on each process, then the mean over those."""
    config = tiny("rigl", "train.micro_batch_size=2", "sparsity.growth_gradient=process_magnitudes")
    halves = []
    for rank in (0, 1):
        state = set_up(config, data_dir, tmp_path)
        state.world = TwoProcesses(rank, 2, torch.device("cpu"))
        _, own = steps.accumulate_gradient(state, state.model.transformer, "process_magnitudes")
        halves.append(own)
    state = set_up(config, data_dir, tmp_path)
    name, param = next(iter(state.algorithm.parameters.items()))
    batch = torch.from_numpy(state.train_batches.train_batch(0))
    by_process = []
    for rank in (0, 1):
        state.model.zero_grad()
        steps.loss_of(state, state.model.transformer, batch[rank::2]).backward()
        by_process.append(param.grad.abs())
        torch.testing.assert_close(halves[rank][name], by_process[rank], rtol=1e-4, atol=1e-7)
    state.model.zero_grad()
    steps.loss_of(state, state.model.transformer, batch).backward()
    assert ((by_process[0] + by_process[1]) / 2 > param.grad.abs() + 1e-7).any()  # which is what `mean` reads


class TwoProcesses(World):
    """One of two, that does not wait for the other: what it would hand in is what it keeps."""

    def average_(self, tensors):
        pass


@pytest.mark.parametrize("choice", ["magnitudes", "process_magnitudes"])
def test_one_micro_batch_on_one_process_makes_no_difference_to_growth(choice, tiny, data_dir, tmp_path):
    states = [
        trained(tiny("rigl", f"sparsity.growth_gradient={name}"), data_dir, tmp_path / name, 4)
        for name in ("mean", choice)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*(state.algorithm.masks.values() for state in states)))


def test_only_the_blocks_linear_weights_decay(tiny, data_dir, tmp_path):
    """PAPER `code`: neither the token embedding (= LM head) nor the position embedding."""
    for decayed, others in (("blocks", set()), ("matrices", {"transformer.wte.weight", "transformer.wpe.weight"})):
        state = set_up(tiny("dense", f"train.decayed={decayed}"), data_dir, tmp_path)
        names = {id(param): name for name, param in state.model.named_parameters()}
        (group,) = [group for group in state.optimizer.param_groups if group["weight_decay"]]
        found = {names[id(param)] for param in group["params"]}
        linear = {
            f"transformer.h.{layer}.{name}.weight"
            for layer in (0, 1)
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        }
        assert found == linear | others and group["weight_decay"] == 0.1
        rest = [group for group in state.optimizer.param_groups if not group["weight_decay"]]
        assert (
            sum(len(group["params"]) for group in state.optimizer.param_groups)
            == sum(param.requires_grad for param in state.model.parameters())
            and rest
        )


def test_clip_norm(tiny, data_dir, tmp_path):
    norms = {}
    for choice in ("active", "dense"):
        state = set_up(tiny("static", f"sparsity.clip_norm={choice}"), data_dir, tmp_path / choice)
        steps.accumulate_gradient(state, state.model.transformer)
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
