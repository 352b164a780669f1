"""AMX's products of masks whose groups of 32 outputs share their inputs, against float64's; and training with them."""

import pytest
import torch
from kernel_cases import expected

from replication.kernels import choice, library, tiles
from replication.kernels.library import SparseWeight
from replication.kernels.row_tiles import GroupWeight
from replication.kernels.tiles import ask_for_tiles, pack

needs_tiles = pytest.mark.skipif(not ask_for_tiles(), reason="no AMX, or the kernels were not built")


def groups(n_in, n_out, density, out_first):
    """A random mask whose groups of 32 outputs share their inputs; of the first two, one has none and one has all."""
    grid = torch.rand(n_in, n_out // 32) < density
    grid[:, 0], grid[:, 1] = False, True
    mask = grid.repeat_interleave(32, 1)
    return mask.T.contiguous() if out_first else mask


def products(mask, weight, x, d, out_first, dtypes):
    weights = GroupWeight(mask, out_first)
    weights.pack(weight)
    y, strips = weights.forward(x, dtypes[0])
    dx, operands = weights.backward(d, dtypes[1])
    return y, dx, weights.scatter(weights.gradient(strips, operands, len(x)))


@needs_tiles
def test_the_products_by_hand():
    # Outputs 32 to 63 read inputs 3 and 40 alone, with weights 2 and 3; the others read none.
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[[3, 40], 32:] = True
    weight = torch.zeros(64, 64)
    weight[3, 32:], weight[40, 32:] = 2, 3
    x, d = torch.ones(5, 64), torch.ones(5, 64)
    x[4, 3] = 10
    y, dx, gradient = products(mask, weight, x, d, False, (torch.float32, torch.float32))
    assert y[:, :32].eq(0).all() and y[:4, 32:].eq(5).all() and y[4, 32:].eq(23).all()
    assert dx[:, 3].eq(64).all() and dx[:, 40].eq(96).all() and dx.sum() == 5 * 160
    assert gradient[3, 32:].eq(14).all() and gradient[40, 32:].eq(5).all() and gradient.sum() == 32 * 19


@needs_tiles
@pytest.mark.parametrize("out_first", [False, True])
@pytest.mark.parametrize("n", [1, 31, 64, 100, 1100])  # tokens: within a strip, whole ones, more than a span
@pytest.mark.parametrize("density", [0, 0.05, 0.4, 1])
@pytest.mark.parametrize("shape", [(64, 96), (544, 64)])
def test_the_three_products_are_those_of_float64_up_to_rounding(shape, density, n, out_first):
    torch.manual_seed(0)
    mask = groups(*shape, density, out_first)
    weight, x, d = torch.randn(mask.shape) * mask, torch.randn(n, shape[0]), torch.randn(n, shape[1])
    exact = expected(mask, weight, x, d, out_first, True)
    for y_type, dx_type in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        # activations in bfloat16 are what those in float32 are rounded to
        found = products(mask, weight, x.to(y_type), d.to(dx_type), out_first, (y_type, dx_type))
        assert (found[0].dtype, found[1].dtype, found[2].dtype) == (y_type, dx_type, torch.float32)
        for (value, size), ours in zip(exact, found):
            assert ((ours - value).abs() <= (2**-8 if ours.dtype == torch.bfloat16 else 2**-20) * size).all()
        assert (found[2][~mask] == 0).all()


@needs_tiles
def test_an_infinite_activation_reaches_only_the_outputs_that_read_it():
    mask = torch.zeros(32, 64, dtype=torch.bool)
    mask[1, :32] = mask[2, 32:] = True
    x = torch.ones(40, 32)
    x[:, 1] = torch.inf
    y, *_ = products(mask, mask.float(), x, torch.ones(40, 64), False, (torch.float32, torch.float32))
    assert y[:, :32].isinf().all() and y[:, 32:].eq(1).all()


@needs_tiles
def test_threads_change_no_bit():
    torch.manual_seed(0)
    mask, found, before = groups(128, 128, 0.3, False), [], torch.get_num_threads()
    weight, x, d = torch.randn(128, 128) * mask, torch.randn(2100, 128), torch.randn(2100, 128)
    for number in (1, 2):
        torch.set_num_threads(number)
        found.append(products(mask, weight, x, d, False, (torch.float32, torch.float32)))
    torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found))


@needs_tiles
@pytest.mark.parametrize("block", [(16, 16), (32, 32), (1, 32)])
def test_no_tokens_have_no_gradient(block):
    mask, none = torch.ones(64, 96, dtype=torch.bool), torch.ones(0, 96)
    weights = pack(mask, False, True, block)
    dirty = torch.full((64, 96), 7.0)
    del dirty  # its memory is the next one's
    y, x_tiles = weights.forward(none[:, :64], torch.float32)
    dx, d_tiles = weights.backward(none, torch.float32)
    assert (y.shape, dx.shape) == ((0, 96), (0, 64))
    assert weights.gradient(x_tiles, d_tiles, 0).eq(0).all()


@needs_tiles
def test_what_it_cannot_take_is_refused():
    weights = GroupWeight(torch.ones(32, 64, dtype=torch.bool), False)
    with pytest.raises(ValueError, match="allowed: float32 or bfloat16"):
        weights.forward(torch.ones(3, 64), torch.float32)
    with pytest.raises(ValueError, match="allowed: contiguous float32 of"):
        weights.pack(torch.ones(64, 32))


@pytest.mark.parametrize("has_tiles", [False, True])
def test_tiles_are_chosen_for_groups_of_outputs_whose_sides_are_multiples_of_32(monkeypatch, has_tiles):
    monkeypatch.setattr(tiles, "ask_for_tiles", lambda: has_tiles)
    found = {
        (shape, out_first, block): tiles.tile_block(torch.Size(shape), out_first, True, block)
        for shape in ((64, 96), (72, 96))
        for out_first in (False, True)
        for block in ((1, 32), (32, 1))
    }
    taken = {((64, 96), False, (1, 32)), ((64, 96), True, (32, 1))}
    assert {key for key, block in found.items() if block == (32, 1)} == (taken if has_tiles else set())
    assert {block for key, block in found.items() if key not in taken} == {None}
    assert tiles.tile_block(torch.Size((64, 96)), True, False, (32, 1)) is None  # fp32
    kind = choice.kind_of(torch.Size((64, 96)), False, True, (1, 32))
    assert kind == ("tiles of 32×1" if has_tiles else "bf16")


@pytest.mark.skipif(library.library() is None, reason="the kernels were not built")
def test_other_sides_and_machines_fall_back_to_the_other_kernels(monkeypatch):
    assert isinstance(pack(torch.ones(64, 40, dtype=torch.bool), True, True, (32, 1)), SparseWeight)
    monkeypatch.setattr(tiles, "ask_for_tiles", lambda: False)
    assert isinstance(pack(torch.ones(64, 64, dtype=torch.bool), True, True, (32, 1)), SparseWeight)


@pytest.mark.skipif(library.library() is None, reason="the kernels were not built")
def test_a_run_in_groups_loses_what_the_masked_one_loses(tiny, data_dir, tmp_path):
    from training_runs import set_up

    from replication.training import trainer

    losses = {}
    for kernels in ("masked", "sparse"):
        settings = ("model.n_embd=64", "sparsity.block_shape=[32,1]", "train.precision=bf16")
        state = set_up(tiny("mst", *settings, f"train.kernels={kernels}"), data_dir, tmp_path / kernels)
        losses[kernels] = [trainer.train_step(state, state.model.transformer)["loss"] for _ in range(12)]
        if kernels == "sparse" and ask_for_tiles():
            assert isinstance(state.model.transformer.h[0].mlp.c_fc.execution.sparse, GroupWeight)
            assert isinstance(state.engine.head.sparse, GroupWeight)
    assert losses["sparse"] == pytest.approx(losses["masked"], rel=2e-3)
