"""Causal attention over the pairs that a pattern keeps, dense among them, by the C kernels. Source: ours."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from replication.kernels.library import TILES, attention, attention_gradient, processor_kind, takes
from replication.kernels.tiles import ask_for_tiles

# A query's keys: next to it, more scores would not fit the caches; at fixed distances, with more torch's is faster.
NEAREST, DIAGONALS = 2048, 256
TILES_FROM = 128  # tokens from which AMX's tiles are faster than vectors


def has_kernels(query: Tensor, pattern: str, window: int, stride: int) -> bool:
    """Is this attention computed by the kernels? Where it is they are faster than torch's.

    Source: ours. Measured forward and backward at heads of 64, 64 to 1024 tokens on Zen 4, and on an Intel Xeon with
    AMX, where torch's takes so many times as long (dense, sparse with window and stride an eighth of the tokens):

        tokens      128         256         512         1024        2048
        fp32        1.6, 1.7    1.8, 2.2    2.0, 3.5    1.7, 4.9    1.3, 5.8
        bf16        6.1, 5.4    4.3, 4.5    4.3, 5.7    3.6, 7.7    2.5, 10.6

    Strided in bf16 at 1024 tokens, diagonals and times: 128, 3.5; 256, 2.0; 512, 1.05; 1024, 0.6.
    """
    length, size = query.shape[2:]
    nearest = {"dense": length, "local": window, "sparse": window}.get(pattern, 0)
    diagonals = length / stride if pattern in ("strided", "sparse") else 0
    return takes(query) and size % 32 == 0 and nearest <= NEAREST and diagonals <= DIAGONALS


@torch.compiler.disable
def pattern_attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: str, window: int, stride: int, scale: float
) -> Tensor:
    """Softmax attention over the pairs of `pattern_mask`, or all causal ones, summed in float32.

    What is multiplied is float32 too; bfloat16 where AMX's tiles are.

    Args:
        query, key, value: [batch, heads, T, size of a head], float32 or bfloat16, on the CPU, the size a multiple
            of 32.
        pattern: `dense`, `local`, `strided`, `sparse` or `fixed`.
        window, stride: in tokens.
        scale: of the scores.

    Returns:
        [batch, heads, T, size of a head], in the precision of the query.
    """
    kept = _select_keys(pattern, query.shape[2], window, stride)
    return _PatternAttention.apply(query, key, value, kept, scale, kernel_for(query, scale))


def _select_keys(pattern: str, length: int, window: int, stride: int) -> tuple[int, int, int, int]:
    """Which keys a query sees, as the kernels have it: window, block, stride, far."""
    return {
        "dense": (length, 0, 0, 0),
        "local": (window, 0, 0, 0),
        "strided": (0, 0, stride, 0),
        "sparse": (window, 0, stride, -(-window // max(1, stride))),
        "fixed": (0, stride, 0, 0),
    }[pattern]


def kernel_for(query: Tensor, scale: float) -> int:
    """Which kernels: AMX's tiles in bfloat16 where they are faster, else those of the processor's kind.

    Tiles hide a pair by a score of -1e30, so their scale is positive.
    """
    suits = query.dtype == torch.bfloat16 and scale > 0 and query.shape[2] >= TILES_FROM
    return TILES if suits and ask_for_tiles() else processor_kind()


class _PatternAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, kept, scale, kind):
        if not query.stride() == key.stride() == value.stride() or query.stride(3) != 1:
            query, key, value = (tensor.contiguous() for tensor in (query, key, value))
        output, *softmax = attention(query, key, value, kept, scale, kind)
        ctx.save_for_backward(query, key, value, *softmax)
        ctx.kept, ctx.scale, ctx.kind = kept, scale, kind
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return *attention_gradient(*ctx.saved_tensors, gradient, ctx.kept, ctx.scale, ctx.kind), None, None, None
