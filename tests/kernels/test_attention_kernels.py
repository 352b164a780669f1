"""Attention by the kernels against softmax over the kept pairs.

Every pattern and kind of processor, odd spans and lengths, both precisions.
"""

import pytest
import torch
from kernel_cases import PATTERNS, SPANS, check, inputs

from replication.config.fields import AttentionConfig
from replication.kernels import library
from replication.kernels.attention import has_kernels, pattern_attention
from replication.model import attention
from replication.model.attention import set_attention_pattern
from replication.model.gpt2 import build_model

pytestmark = pytest.mark.skipif(library.library() is None, reason="the kernels were not built")


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("length, window, stride", SPANS)
@pytest.mark.parametrize("dtype, relative", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_output_and_gradients(pattern, length, window, stride, dtype, relative):
    check(inputs(length, dtype), pattern, length, window, stride, relative)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", range(4))
def test_every_kind_of_processor(pattern, kind, monkeypatch):
    if kind > library.processor_kind():
        pytest.skip("not on this processor")
    monkeypatch.setattr(library, "processor_kind", lambda: kind)
    check(inputs(75, heads=1, size=96), pattern, 75, 20, 10, 1e-6)


def test_by_hand():
    """Equal scores: a query's output is the mean of the values that it sees."""
    value = torch.arange(8.0).view(1, 1, 8, 1).expand(1, 1, 8, 32).contiguous()
    zero = torch.zeros_like(value)
    means = {
        pattern: pattern_attention(zero, zero, value, pattern, 2, 4, 1.0)[0, 0, :, 5].tolist() for pattern in PATTERNS
    }
    assert means["dense"] == pytest.approx([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5])
    assert means["local"] == pytest.approx([0, 0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5])
    assert means["strided"] == pytest.approx([0, 1, 2, 3, 2, 3, 4, 5])
    assert means["sparse"] == pytest.approx(
        [0, 0.5, 1.5, 2.5, (3 + 4 + 0) / 3, (4 + 5 + 1) / 3, (5 + 6 + 2) / 3, (6 + 7 + 3) / 3]
    )
    assert means["fixed"] == pytest.approx(
        [0, 0.5, 1, 1.5, (3 + 4) / 2, (3 + 4 + 5) / 3, (3 + 4 + 5 + 6) / 4, (3 + 4 + 5 + 6 + 7) / 5]
    )


def test_great_and_distant_scores():
    """Of scores hundreds apart the greatest takes all, and nothing overflows."""
    query, key, value = torch.full((1, 1, 40, 32), 10.0), torch.zeros(1, 1, 40, 32), torch.randn(1, 1, 40, 32)
    key[:, :, 3] = 10.0
    torch.testing.assert_close(
        pattern_attention(query, key, value, "dense", 0, 0, 1.0)[0, 0, 3:], value[0, 0, 3].expand(37, 32)
    )


@pytest.mark.parametrize("pattern", PATTERNS)
def test_bit_identical_at_any_number_of_threads(pattern):
    results, threads = [], torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            given = inputs(65)
            out = pattern_attention(*given, pattern, 20, 10, 0.2)
            results.append((out, *torch.autograd.grad(out.sum(), given)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("pattern", ["dense", "sparse"])
def test_what_is_no_number_shows(which, pattern):
    given = inputs(70)
    given[which].data[0, 0, 5, 0] = float("nan")
    output = pattern_attention(*given, pattern, 20, 10, 0.25)
    assert output[0, 0, 5].isnan().any() and output[1].isfinite().all()


@pytest.mark.parametrize(
    "shape, dtype, pattern, window, stride, expected",
    [
        ((1, 1, 64, 32), torch.float32, "dense", 0, 0, True),
        ((1, 1, 64, 64), torch.bfloat16, "sparse", 16, 16, True),
        ((1, 1, 64, 16), torch.float32, "dense", 0, 0, False),
        ((1, 1, 64, 32), torch.float64, "dense", 0, 0, False),
        ((1, 1, 4096, 32), torch.float32, "dense", 0, 0, False),
        ((1, 1, 4096, 32), torch.float32, "local", 128, 128, True),
        ((1, 1, 1024, 32), torch.bfloat16, "strided", 4, 4, True),
        ((1, 1, 1024, 32), torch.bfloat16, "strided", 2, 2, False),  # 512 diagonals
        ((1, 1, 1024, 32), torch.bfloat16, "fixed", 2, 2, True),
    ],
)
def test_where_there_are_kernels(shape, dtype, pattern, window, stride, expected):
    expected = expected and library.gains()  # none is taken where it is slower
    assert has_kernels(torch.empty(shape, dtype=dtype), pattern, window, stride) is expected


@pytest.mark.parametrize("pattern", ["dense", "sparse"])
def test_the_model_takes_them_and_agrees_with_torch(tiny, monkeypatch, pattern):
    model = build_model(tiny("dense", "model.n_embd=64", "model.n_head=2", "model.n_positions=128"), end_of_text=0)
    set_attention_pattern(model, pattern, AttentionConfig())
    ids, calls = torch.randint(300, (2, 128), generator=torch.Generator().manual_seed(0)), []
    monkeypatch.setattr(attention, "pattern_attention", lambda *given: calls.append(1) or pattern_attention(*given))
    ours = model(input_ids=ids, use_cache=False).logits
    assert len(calls) == (model.config.n_layer if library.gains() else 0)
    monkeypatch.setattr(attention, "has_kernels", lambda *_: False)
    torch.testing.assert_close(ours, model(input_ids=ids, use_cache=False).logits, rtol=1e-4, atol=1e-5)
