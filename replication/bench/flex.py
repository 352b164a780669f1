"""The attention patterns for FlexAttention, which leaves out whole tiles of pairs. Measured, not used in training."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from replication.model.patterns import keeps


def mask_mod(pattern: str, window: int, stride: int) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The pairs of `pattern_mask`, as FlexAttention asks for them: (batch, head, query, key) -> is it kept?"""
    return lambda batch, head, query, key: keeps(pattern, query, key, window, stride) & (key <= query)


def block_mask(pattern: str, length: int, window: int, stride: int, device: torch.device) -> BlockMask:
    """Which tiles of 128 × 128 pairs FlexAttention computes, of `length` queries and keys."""
    return create_block_mask(mask_mod(pattern, window, stride), None, None, length, length, device=device)


def tiles_kept(mask: BlockMask) -> int:
    """Tiles that are computed, whole or in part."""
    whole = 0 if mask.full_kv_num_blocks is None else int(mask.full_kv_num_blocks.sum())
    return int(mask.kv_num_blocks.sum()) + whole
