"""Attention patterns: every pair at a small context, the paper's count at 1024, and their execution in GPT-2."""

import numpy as np
import pytest
import torch

from replication.config.fields import AttentionConfig
from replication.model import gpt2
from replication.model.attention import set_attention_pattern
from replication.model.patterns import PATTERNS, num_pairs, pattern_mask

# T = 8, window 3, stride 4; a row is a query, a column a key.
LITERAL = {
    "dense": ["10000000", "11000000", "11100000", "11110000", "11111000", "11111100", "11111110", "11111111"],
    "local": ["10000000", "11000000", "11100000", "01110000", "00111000", "00011100", "00001110", "00000111"],
    "strided": ["10000000", "01000000", "00100000", "00010000", "10001000", "01000100", "00100010", "00010001"],
    "sparse": ["10000000", "11000000", "11100000", "01110000", "10111000", "01011100", "00101110", "00010111"],
    "fixed": ["10000000", "11000000", "11100000", "11110000", "00011000", "00011100", "00011110", "00011111"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_pair(pattern):
    expected = np.array([[pair == "1" for pair in row] for row in LITERAL[pattern]])
    assert np.array_equal(pattern_mask(pattern, 8, window=3, stride=4), expected)


def test_the_papers_count():
    assert num_pairs("dense", 1024, 128, 128) == 524_800
    assert num_pairs("sparse", 1024, 128, 128) == 126_528


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("window", "stride"), [(1, 1), (1, 16), (5, 3), (16, 16), (40, 40)])
def test_every_query_keeps_itself_and_no_future(pattern, window, stride):
    for length in (1, 16, 19):
        mask = pattern_mask(pattern, length, window, stride)
        assert mask.diagonal().all() and not np.triu(mask, 1).any()
        assert num_pairs(pattern, length, window, stride) == mask.sum()


def test_pairs_of_a_long_context_are_counted_at_once():
    length = 10**6  # a mask of 10^12 pairs
    assert num_pairs("dense", length, 1, 1) == length * (length + 1) // 2
    assert num_pairs("fixed", length, 1, length) == length * (length + 1) // 2
    assert num_pairs("local", length, 10, 1) == 10 * length - 45


def test_default_spans_are_an_eighth_of_the_context():
    assert AttentionConfig().spans(1024) == (128, 128)
    assert AttentionConfig(window=5).spans(128) == (5, 16)


@pytest.fixture
def model(tiny):
    return gpt2.build_model(tiny("dense"), end_of_text=0).eval()


def logits(model, ids, **kwargs):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **kwargs).logits


@pytest.mark.parametrize("pattern", PATTERNS)
def test_execution_is_softmax_over_the_kept_pairs(pattern, model):
    config = AttentionConfig(pattern=pattern, window=3, stride=4)
    set_attention_pattern(model, pattern, config)
    attention = model.transformer.h[0].attn
    hidden = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = attention(hidden)[0]
        query, key, value = (
            part.view(2, 8, 2, 16).transpose(1, 2) for part in attention.c_attn(hidden).split(32, dim=2)
        )
        kept = torch.from_numpy(pattern_mask(pattern, 8, 3, 4))
        weights = (query @ key.mT / 4).masked_fill(~kept, float("-inf")).softmax(-1)
        expected = attention.c_proj((weights @ value).transpose(1, 2).reshape(2, 8, 32))
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-6)


def test_switching_back_to_dense_restores_the_output(model):
    ids = torch.arange(64)[None] % 50
    before = logits(model, ids)
    set_attention_pattern(model, "local", AttentionConfig(window=2))
    assert not torch.equal(logits(model, ids), before)
    set_attention_pattern(model, "dense", AttentionConfig())
    assert torch.equal(logits(model, ids), before)


def test_nothing_is_seen_outside_the_pattern(model):
    """With one layer's window of 2 in two layers, a token reaches two positions on and no further."""
    set_attention_pattern(model, "local", AttentionConfig(window=2))
    ids = torch.arange(32)[None]
    changed = ids.clone()
    changed[0, 10] = 77
    same = (logits(model, ids) == logits(model, changed)).all(-1)[0]
    assert [position for position in range(32) if not same[position]] == [10, 11, 12]


def test_padding_is_not_attended_to(model):
    set_attention_pattern(model, "sparse", AttentionConfig(window=4, stride=4))
    ids = torch.arange(16)[None]
    padded = torch.cat([torch.full((1, 3), 99), ids], dim=1)
    mask = torch.tensor([[0] * 3 + [1] * 16])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    torch.testing.assert_close(
        logits(model, padded, attention_mask=mask, position_ids=positions)[:, 3:],
        logits(model, ids),
        rtol=1e-4,
        atol=1e-5,
    )


def test_the_model_is_the_papers(model):
    assert model.config.activation_function == "gelu_pytorch_tanh" and model.config.vocab_size == 320
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not any(
        param.requires_grad or param.any() for name, param in model.named_parameters() if name.endswith("bias")
    )
