"""Execution of the attention patterns, through transformers' attention interface."""

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from replication.config import AttentionConfig
from replication.model.patterns import pattern_mask

IMPLEMENTATION = "hybrid_sparse"


def set_attention_pattern(model: nn.Module, pattern: str, config: AttentionConfig) -> None:
    """Switch every attention layer of a GPT-2 built with `IMPLEMENTATION` to a pattern, in place."""
    kept = None
    if pattern != "dense":
        n_positions = model.config.n_positions
        kept = torch.from_numpy(pattern_mask(pattern, n_positions, *config.spans(n_positions))).to(model.device)
    for block in model.transformer.h:
        block.attn.kept_pairs = kept


def _hybrid_sparse_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs):
    """SDPA over the pairs in `module.kept_pairs` ([T, T] boolean; None: all causal pairs)."""
    kept = getattr(module, "kept_pairs", None)
    if kept is not None:
        first = key.shape[-2] - query.shape[-2]
        kept = kept[first : key.shape[-2], : key.shape[-2]]
        attention_mask = kept[None, None] if attention_mask is None else attention_mask & kept
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _hybrid_sparse_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
