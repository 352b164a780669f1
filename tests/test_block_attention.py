"""Attention by blocks against softmax over the kept pairs: every pattern, odd spans and lengths, both precisions."""

import pytest
import torch
import torch.nn.functional as F

from replication.config import AttentionConfig
from replication.model import attention
from replication.model.attention import set_attention_pattern
from replication.model.block_attention import block_attention, parts, pays
from replication.model.gpt2 import build_model
from replication.model.patterns import pattern_mask

SPANS = [(96, 32, 32), (96, 48, 24), (96, 24, 48), (100, 40, 20), (64, 64, 16), (64, 80, 32), (35, 7, 5), (90, 17, 20)]


def inputs(length, dtype, heads=3, size=16):
    torch.manual_seed(0)
    whole = torch.randn(2, length, 3, heads, size).to(dtype)  # as c_attn gives them
    return [whole[:, :, i].transpose(1, 2).detach().requires_grad_() for i in range(3)]


@pytest.mark.parametrize("pattern", ["local", "strided", "sparse", "fixed"])
@pytest.mark.parametrize("length, window, stride", SPANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_and_gradients(pattern, length, window, stride, dtype):
    if pattern in ("strided", "sparse") and length % stride:
        pytest.skip("strided parts need whole strides; `pays` sees to it")
    given = inputs(length, dtype)
    ours = block_attention(*given, pattern, window, stride, 0.25)
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    theirs = F.scaled_dot_product_attention(*exact, attn_mask=torch.from_numpy(pattern_mask(pattern, length, window, stride)), scale=0.25)
    d = torch.randn(ours.shape).to(dtype)
    found, wanted = (ours, *torch.autograd.grad(ours, given, d)), (theirs, *torch.autograd.grad(theirs, exact, d.double()))
    for a, b in zip(found, wanted):
        assert a.dtype == dtype and (a.double() - b).norm() < (2e-2 if dtype == torch.bfloat16 else 1e-5) * b.norm()


@pytest.mark.parametrize("pattern", ["local", "strided", "sparse", "fixed"])
def test_gradcheck(pattern):
    assert torch.autograd.gradcheck(lambda *given: block_attention(*given, pattern, 3, 4, 0.5), inputs(8, torch.float64, heads=1, size=2))


def test_by_hand():
    """Equal scores: a query's output is the mean of the values that it sees."""
    value = torch.arange(8.0).view(1, 1, 8, 1)
    zero = torch.zeros_like(value)
    means = {pattern: block_attention(zero, zero, value, pattern, 2, 4, 1.0).flatten().tolist() for pattern in ("local", "strided", "sparse", "fixed")}
    assert means["local"] == pytest.approx([0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5])
    assert means["strided"] == pytest.approx([0, 1, 2, 3, 2, 3, 4, 5])
    assert means["sparse"] == pytest.approx([0, 0.5, 1.5, 2.5, (3 + 4 + 0) / 3, (4 + 5 + 1) / 3, (5 + 6 + 2) / 3, (6 + 7 + 3) / 3])
    assert means["fixed"] == pytest.approx([0, 0.5, 1, 1.5, (3 + 4) / 2, (3 + 4 + 5) / 3, (3 + 4 + 5 + 6) / 4, (3 + 4 + 5 + 6 + 7) / 5])


@pytest.mark.parametrize("pattern, length, window, stride, expected", [
    ("sparse", 1024, 128, 128, True), ("sparse", 256, 32, 32, False), ("sparse", 1024, 512, 128, False), ("strided", 1000, 1, 128, False),
    ("local", 1000, 128, 128, True), ("fixed", 1000, 900, 128, True), ("sparse", 1024, 128, 2, False),
])  # fmt: skip
def test_where_it_pays(pattern, length, window, stride, expected):
    assert pays(length, pattern, window, stride) is expected


def test_no_pair_is_in_two_parts():
    assert [type(part).__name__ for part in parts("sparse", 1024, 128, 128)] == ["Windows", "Windows", "Phases"]
    assert [type(part).__name__ for part in parts("sparse", 128, 64, 128)] == ["Windows", "Windows"]  # no stride reaches back


def test_the_model_takes_it_in_long_contexts_and_agrees_with_the_mask(tiny, monkeypatch):
    model = build_model(tiny("dense", "model.n_positions=512"), end_of_text=0)
    set_attention_pattern(model, "sparse", AttentionConfig())
    ids, calls = torch.randint(300, (1, 512), generator=torch.Generator().manual_seed(0)), []
    monkeypatch.setattr(attention, "block_attention", lambda *given: calls.append(1) or block_attention(*given))
    ours = model(input_ids=ids, use_cache=False).logits
    assert len(calls) == model.config.n_layer
    monkeypatch.setattr(attention, "pays", lambda *_: False)
    torch.testing.assert_close(ours, model(input_ids=ids, use_cache=False).logits, rtol=1e-4, atol=1e-5)
