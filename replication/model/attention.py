"""Execution of the attention patterns, through transformers' attention interface."""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from replication.config.fields import AttentionConfig
from replication.kernels.attention import has_kernels, pattern_attention
from replication.model.gpt2 import GPT2
from replication.model.patterns import pattern_mask

IMPLEMENTATION = "hybrid_sparse"


def set_attention_pattern(model: GPT2, pattern: str, config: AttentionConfig) -> None:
    """Switch every attention layer of a GPT-2 built with `IMPLEMENTATION` to a pattern, in place."""
    kept, spans = None, config.spans(model.config.n_positions)
    if pattern != "dense":
        kept = torch.from_numpy(pattern_mask(pattern, model.config.n_positions, *spans)).to(model.device)
    for block in model.transformer.h:
        block.attn.kept_pairs, block.attn.pattern = kept, (pattern, *spans)


def _hybrid_sparse_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs
):
    """Attention over the pairs in `module.kept_pairs` ([T, T] boolean; None: all causal pairs).

    By the kernels, or SDPA under a mask.
    """
    kept, pattern = getattr(module, "kept_pairs", None), getattr(module, "pattern", ("dense", 0, 0))
    if attention_mask is None and query.shape == key.shape and has_kernels(query, *pattern):
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        return pattern_attention(query, key, value, *pattern, scale).transpose(1, 2), None
    if kept is not None:
        first = key.shape[-2] - query.shape[-2]
        kept = kept[first : key.shape[-2], : key.shape[-2]]
        attention_mask = kept[None, None] if attention_mask is None else attention_mask & kept
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _mask(*, q_length: int, kv_length: int, attention_mask: Tensor | None, device: torch.device, **kwargs):
    """Of the padding; None where there is none, so that flash attention, which takes no mask, can be had on a GPU.

    sdpa_mask knows that too, but not within a graph that torch before 2.14 compiles.
    """
    if attention_mask is None and q_length == kv_length and torch.device(device).type != "cpu":
        return None
    return sdpa_mask(q_length=q_length, kv_length=kv_length, attention_mask=attention_mask, device=device, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _hybrid_sparse_attention)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)
