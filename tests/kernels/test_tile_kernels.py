"""The products of square blocks by AMX, against float64's; and training with them."""

import pytest
import torch
from kernel_cases import expected

from replication.kernels import library, tiles
from replication.kernels.tiles import BLOCKS, TileWeight, ask_for_tiles

needs_tiles = pytest.mark.skipif(not ask_for_tiles(), reason="no AMX, or the kernels were not built")


def blocks_of(n_in, n_out, block, density, out_first):
    """A random mask of whole blocks, stored as asked for."""
    grid = torch.rand(n_in // block, n_out // block) < density
    mask = grid.repeat_interleave(block, 0).repeat_interleave(block, 1)
    return mask.T.contiguous() if out_first else mask


@needs_tiles
@pytest.mark.parametrize("out_first", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("n", [1, 31, 64, 100, 513, 1100])  # tokens: within a tile, whole ones, more than a chunk
@pytest.mark.parametrize("density", [0, 0.4, 1])
def test_the_three_products_are_those_of_float64_up_to_rounding(n, block, out_first, density):
    torch.manual_seed(0)
    mask = blocks_of(64, 96, block, density, out_first)
    weight, x, d = torch.randn(mask.shape) * mask, torch.randn(n, 64), torch.randn(n, 96)
    weights = TileWeight(mask, out_first, block)
    weights.pack(weight)
    y, kept_x = weights.forward(x, torch.bfloat16)
    dx, kept_d = weights.backward(d, torch.float32)
    found = y, dx, weights.scatter(weights.gradient(kept_x, kept_d, n))
    for (value, size), ours, ulp in zip(expected(mask, weight, x, d, out_first, True), found, (2**-8, 2**-20, 2**-20)):
        assert ours.dtype == (torch.bfloat16 if ulp == 2**-8 else torch.float32)
        assert ((ours - value).abs() <= ulp * size).all()
    assert (found[2][~mask] == 0).all()


@needs_tiles
def test_a_product_by_hand():
    # One block of 16: every output is the sum of 16 inputs times their place; the others have no weight.
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[16:, :16] = True
    weight = torch.arange(32.0)[:, None] * mask
    weights = TileWeight(mask, False, 16)
    weights.pack(weight)
    y, _ = weights.forward(torch.ones(3, 32), torch.float32)
    assert y[:, :16].eq(sum(range(16, 32))).all() and y[:, 16:].eq(0).all()


@needs_tiles
@pytest.mark.parametrize("n", [0, 20, 100, 700])  # 3 threads: of few tokens they share the blocks, else the tokens
@pytest.mark.parametrize("block", BLOCKS)
def test_threads_change_products_by_no_bit_and_gradients_by_rounding(block, n):
    torch.manual_seed(0)
    mask = blocks_of(128, 128, block, 0.5, False)
    weight, x, d = torch.randn(128, 128) * mask, torch.randn(n, 128), torch.randn(n, 128)
    before, found = torch.get_num_threads(), []
    for number in (1, 3, 3):
        torch.set_num_threads(number)
        weights = TileWeight(mask, False, block)
        weights.pack(weight)
        y, kept_x = weights.forward(x, torch.float32)
        dx, kept_d = weights.backward(d, torch.float32)
        found.append((y, dx, weights.gradient(kept_x, kept_d, n)))
    torch.set_num_threads(before)
    one, three, again = found
    assert all(map(torch.equal, three, again)) and all(map(torch.equal, one[:2], three[:2]))
    torch.testing.assert_close(one[2], three[2], rtol=0, atol=1e-4)


@needs_tiles
def test_an_output_too_large_for_the_caches_is_that_of_its_parts():
    torch.manual_seed(0)
    weights = TileWeight(blocks_of(32, 2048, 32, 0.5, False), False, 32)
    weights.pack(torch.randn(32, 2048) * blocks_of(32, 2048, 32, 1, False))
    x, before = torch.randn(1100, 32), torch.get_num_threads()  # 4.3 MiB of bfloat16, which are written past the caches
    parts = torch.cat([weights.forward(part, torch.bfloat16)[0] for part in x.split(320)])
    torch.set_num_threads(3)
    whole, _ = weights.forward(x, torch.bfloat16)
    torch.set_num_threads(before)
    assert torch.equal(whole, parts) and whole.count_nonzero() > 0.4 * whole.numel()


@needs_tiles
def test_what_it_cannot_take_is_refused():
    weights = TileWeight(torch.ones(32, 64, dtype=torch.bool), False, 32)
    with pytest.raises(ValueError, match="allowed: float32 or bfloat16"):
        weights.forward(torch.ones(3, 32, dtype=torch.float64), torch.float32)
    with pytest.raises(ValueError, match="allowed: contiguous float32 of"):
        weights.pack(torch.ones(64, 32))


@pytest.mark.parametrize("has_tiles", [False, True])
def test_tiles_are_chosen_for_square_blocks_in_bf16_where_there_are_any(monkeypatch, has_tiles):
    monkeypatch.setattr(tiles, "ask_for_tiles", lambda: has_tiles)
    shape, blocks = torch.Size((96, 64)), ((1, 1), (2, 2), (16, 16), (32, 32))
    assert not any(tiles.tile_block(shape, False, False, block) for block in blocks)  # fp32
    found = [tiles.tile_block(shape, False, True, block) for block in blocks]
    assert found == ([None, None, (16, 16), (32, 32)] if has_tiles else [None] * 4)


@pytest.mark.skipif(library.library() is None, reason="the kernels were not built")
@pytest.mark.parametrize("side", [16, 32])
def test_a_run_in_blocks_loses_what_the_masked_one_loses(side, tiny, data_dir, tmp_path):
    from training_runs import set_up

    from replication.training import trainer

    losses = {}
    for kernels in ("masked", "sparse"):
        settings = ("model.n_embd=64", f"sparsity.block_shape=[{side},{side}]", "train.precision=bf16")
        state = set_up(tiny("mst", *settings, f"train.kernels={kernels}"), data_dir, tmp_path / kernels)
        losses[kernels] = [trainer.train_step(state, state.model.transformer)["loss"] for _ in range(12)]
        if kernels == "sparse" and ask_for_tiles():
            assert isinstance(state.model.transformer.h[0].mlp.c_fc.execution.sparse, TileWeight)
    assert losses["sparse"] == pytest.approx(losses["masked"], rel=2e-3)
