"""Topology in blocks: literal grids, whole blocks and exact counts in training, and selection from large layers."""

import json

import pytest
import torch

from replication.config.profiles import load_config
from replication.flops.plan import plan
from replication.methods import build_algorithm
from replication.model.gpt2 import HEAD, build_model, mask_grids, select_masked_shapes
from replication.sparsity import topology
from replication.sparsity.distributions import round_to_blocks, uniform
from replication.sparsity.grid import from_blocks, to_blocks
from replication.sparsity.topology import select_largest, select_random
from replication.system.errors import UserError
from replication.training.trainer import train


def test_grid_by_hand():
    scores = torch.tensor([[1.0, 3.0, 0.0, 0.0], [5.0, 7.0, 0.0, 8.0]])
    assert to_blocks(scores, (2, 2)).tolist() == [[4, 2]]
    assert to_blocks(scores, (1, 2)).tolist() == [[2, 0], [6, 4]]
    assert to_blocks(scores, (1, 1)) is scores
    assert from_blocks(torch.tensor([[True, False]]), (2, 1)).tolist() == [[True, False], [True, False]]


def test_counts_are_whole_blocks_and_never_none():
    shapes = {"a": (4, 4), "b": (8, 8)}
    assert uniform(shapes, 0.9) == {"a": 2, "b": 6}
    assert round_to_blocks(uniform, 4)(shapes, 0.9) == {"a": 4, "b": 4}
    assert round_to_blocks(uniform, 1) is uniform


def test_block_is_outputs_by_inputs_whatever_the_storage():
    grids = mask_grids(load_config("smoke", "mst", 0, ["sparsity.block_shape=[1, 4]"]))
    assert grids[HEAD].block == (1, 4)  # stored [out, in]
    assert grids["transformer.h.0.mlp.c_fc.weight"].block == (4, 1)  # stored [in, out]


@pytest.mark.parametrize("value, message", [("[2, 3]", "each 1, 2, 4, 8, 16 or 32"), ("[2]", "block_shape")])
def test_bad_blocks_are_one_line(value, message):
    with pytest.raises(UserError, match=message):
        load_config("smoke", "mst", 0, [f"sparsity.block_shape={value}"])


def test_blocks_that_do_not_divide_a_matrix_are_one_line():
    config = load_config("smoke", "mst", 0, ["sparsity.block_shape=[1, 16]", "model.n_embd=24"])
    matrix = r"transformer.h.0.attn.c_attn.weight \(24, 72\)"
    with pytest.raises(UserError, match=rf"sparsity.block_shape is \[1, 16\]; allowed: one that divides {matrix}"):
        build_algorithm(config)


@pytest.mark.parametrize("initial", ["random", "magnitude"])
def test_first_masks(initial):
    config = load_config("smoke", "static", 0, ["sparsity.block_shape=[2, 4]", f"sparsity.initial_mask={initial}"])
    algorithm, names = build_algorithm(config), select_masked_shapes(config)
    algorithm.apply(build_model(config, 0), lambda name, _: name in names)
    check_masks(algorithm.masks, algorithm.nnz, algorithm.grids)


def check_masks(masks, nnz, grids):
    for name, mask in masks.items():
        rows, columns = grids[name].block
        assert torch.equal(from_blocks(mask[::rows, ::columns], (rows, columns)), mask)
        assert int(mask.sum()) == nnz[name]


@pytest.mark.parametrize("method", ["set", "rigl", "mst"])
def test_training_keeps_whole_blocks_and_costs_what_is_planned(method, tiny, data_dir, tmp_path):
    config = tiny(method, "sparsity.block_shape=[2, 2]")
    run = train(config, tmp_path / "run", data_dir, progress=False)
    masks = {name: torch.from_numpy(mask) for name, mask in run.masks().items()}
    rows = [json.loads(line) for line in (run.path / "topology.jsonl").read_text().splitlines()]
    check_masks(masks, {row["layer"]: row["nnz"] for row in rows}, mask_grids(config))
    assert all(row["dropped"] % 4 == 0 and row["grown"] % 4 == 0 for row in rows)
    assert sum(row["grown"] for row in rows) > 0
    assert plan(config)["conventions"] == run.flops()["conventions"]


@pytest.mark.parametrize("num", [1, 700, 40_000, 90_000])
def test_largest_of_many_are_those_of_a_sort(num):
    generator = torch.Generator().manual_seed(0)
    scores, eligible = torch.randn(300, 400, generator=generator), torch.rand(300, 400, generator=generator) < 0.8
    found = select_largest(scores, eligible, num, generator)
    wanted = scores.flatten().masked_fill(~eligible.flatten(), -torch.inf).argsort(descending=True)[:num]
    assert torch.equal(found.sort().values, wanted.sort().values)


def test_ties_among_many_fall_evenly():
    generator, hits = torch.Generator().manual_seed(0), torch.zeros(4)
    scores = torch.zeros(100_000)
    scores[:10] = 1
    for _ in range(20):
        found = select_largest(scores, torch.ones(100_000, dtype=torch.bool), 4010, generator)
        assert len(found.unique()) == 4010 and (found < 10).sum() == 10
        hits += torch.histc(found.float(), 4, 0, 100_000)
    assert (hits / hits.sum() - 0.25).abs().max() < 0.01  # 20,000 a quarter: four standard deviations are 0.006


def test_a_misleading_sample_costs_time_only(monkeypatch):
    monkeypatch.setattr(topology, "_pivot", lambda *_: 10.0)
    scores = torch.arange(8.0)
    assert sorted(select_largest(scores, scores < 6, 2, torch.Generator()).tolist()) == [4, 5]


def test_a_few_of_many_at_random_are_distinct_eligible_and_even():
    generator, hits = torch.Generator().manual_seed(0), torch.zeros(4)
    eligible = torch.arange(100_000) % 2 == 0
    for _ in range(40):
        found = select_random(eligible, 2000, generator)
        assert len(found.unique()) == 2000 and eligible[found].all()
        hits += torch.histc(found.float(), 4, 0, 100_000)
    assert (hits / hits.sum() - 0.25).abs().max() < 0.01
