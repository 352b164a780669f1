"""Attention by AMX's tiles in bfloat16: against float64's, and training with it; and where it is chosen."""

import pytest
import torch
from kernel_cases import PATTERNS, SPANS, check, inputs

from replication.kernels import attention, library
from replication.kernels.attention import kernel_for, pattern_attention
from replication.kernels.tiles import ask_for_tiles

LENGTHS = [*SPANS[2:5], *SPANS[6:], (128, 16, 16), (257, 32, 32)]


@pytest.fixture
def tiles(monkeypatch):
    """Short sequences too are attended to by tiles."""
    if not ask_for_tiles():
        pytest.skip("no AMX, or the kernels were not built")
    monkeypatch.setattr(attention, "TILES_FROM", 1)


def both_layouts(size, length, in_heads):
    """Queries, keys and values as c_attn gives them, or each in a tensor of its own."""
    given = inputs(length, torch.bfloat16, heads=2, size=size)
    return [one.detach().contiguous().requires_grad_() for one in given] if in_heads else given


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("length, window, stride", LENGTHS)
@pytest.mark.parametrize("size, in_heads", [(32, True), (64, False), (96, True)])
def test_output_and_gradients_are_those_of_float64_up_to_rounding(pattern, length, window, stride, size, in_heads):
    check(both_layouts(size, length, in_heads), pattern, length, window, stride, 1e-2)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_they_are_no_less_exact_than_torch_in_bfloat16(pattern):
    from kernel_cases import kept_pairs

    given = inputs(200, torch.bfloat16, size=64)
    mask, d = kept_pairs(pattern, 200, 25, 25), torch.randn(2, 3, 200, 64).bfloat16()

    def results(of, dtype):
        tensors = [one.detach().to(dtype).requires_grad_() for one in given]
        out = of(*tensors)
        return [one.double() for one in (out, *torch.autograd.grad(out, tensors, d.to(dtype)))]

    def torchs(*tensors):
        return torch.nn.functional.scaled_dot_product_attention(*tensors, attn_mask=mask, scale=0.125)

    exact, theirs = results(torchs, torch.float64), results(torchs, torch.bfloat16)
    ours = results(lambda *tensors: pattern_attention(*tensors, pattern, 25, 25, 0.125), torch.bfloat16)
    for a, b, c in zip(exact, ours, theirs):
        assert (b - a).norm() <= 1.5 * (c - a).norm()


@pytest.mark.usefixtures("tiles")
def test_by_hand():
    """Equal scores: a query's output is the mean of the values that it sees."""
    value = torch.arange(64.0).view(1, 1, 64, 1).expand(1, 1, 64, 32).bfloat16()
    zero = torch.zeros_like(value)
    seen = {
        pattern: pattern_attention(zero, zero, value, pattern, 2, 4, 1.0)[0, 0, :, 5].tolist() for pattern in PATTERNS
    }
    assert seen["dense"][63] == 31.5 and seen["local"][40] == 39.5
    assert seen["strided"][63] == 33 and seen["fixed"][5] == pytest.approx((3 + 4 + 5) / 3)
    assert seen["sparse"][9] == pytest.approx((8 + 9 + 5 + 1) / 4)


@pytest.mark.usefixtures("tiles")
def test_of_scores_hundreds_apart_the_greatest_takes_all():
    query, key = (torch.zeros(1, 1, 40, 32).bfloat16() for _ in range(2))
    query[:], key[:, :, 3] = 10.0, 10.0
    value = torch.randn(1, 1, 40, 32).bfloat16()
    output = pattern_attention(query, key, value, "dense", 0, 0, 1.0)
    assert output[0, 0, 3:].equal(value[0, 0, 3].expand(37, 32))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_threads_change_no_bit(pattern):
    results, before = [], torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            given = inputs(130, torch.bfloat16, size=64)
            out = pattern_attention(*given, pattern, 20, 10, 0.2)
            results.append((out, *torch.autograd.grad(out.square().sum(), given)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("pattern", ["dense", "sparse", "fixed"])
def test_what_is_no_number_shows(which, pattern):
    given = inputs(70, torch.bfloat16)
    given[which].data[0, 0, 5, 0] = float("nan")
    output = pattern_attention(*given, pattern, 20, 10, 0.25)
    assert output[0, 0, 5].isnan().any() and output[1].isfinite().all()


@pytest.mark.skipif(library.library() is None, reason="the kernels were not built")
@pytest.mark.parametrize("has_tiles", [False, True])
@pytest.mark.parametrize(
    "length, dtype, scale, suits",
    [
        (128, torch.bfloat16, 0.1, True),
        (127, torch.bfloat16, 0.1, False),
        (128, torch.float32, 0.1, False),
        (128, torch.bfloat16, -0.1, False),
    ],
)
def test_tiles_are_chosen_in_bf16_where_there_are_any(monkeypatch, has_tiles, length, dtype, scale, suits):
    monkeypatch.setattr(attention, "ask_for_tiles", lambda: has_tiles)
    kind = kernel_for(torch.empty(1, 1, length, 32, dtype=dtype), scale)
    assert kind == (library.TILES if suits and has_tiles else library.processor_kind())


@pytest.mark.skipif(not library.gains(), reason="not on this processor, or the kernels were not built")
@pytest.mark.parametrize("pattern", ["local", "sparse", "fixed"])
def test_a_run_in_bf16_loses_what_one_under_a_mask_loses(pattern, tiny, data_dir, tmp_path, monkeypatch):
    from training_runs import set_up

    from replication.model import attention as execution
    from replication.training import trainer

    losses, kinds = {}, []
    monkeypatch.setattr(attention, "TILES_FROM", 1)
    monkeypatch.setattr(attention, "kernel_for", lambda *given: kinds.append(kernel_for(*given)) or kinds[-1])
    for masked in (False, True):
        settings = ("model.n_embd=64", "train.precision=bf16", f"attention.pattern={pattern}", "attention.start_step=0")
        if masked:
            monkeypatch.setattr(execution, "has_kernels", lambda *_: False)
        state = set_up(tiny("mst", *settings, "attention.end_step=12"), data_dir, tmp_path / str(masked))
        losses[masked] = [trainer.train_step(state, state.model.transformer)["loss"] for _ in range(12)]
    assert set(kinds) == {library.TILES if ask_for_tiles() else library.processor_kind()}
    assert losses[False] == pytest.approx(losses[True], rel=5e-3) and losses[False] != losses[True]
