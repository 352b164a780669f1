"""Causal attention over the pairs that a pattern keeps, dense among them, by the C kernels. Source: ours."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from replication.kernels.library import attention, attention_gradient, takes

LONGEST = 2048  # keys of a query: the scores of more would not fit the caches


def has_kernels(query: Tensor, pattern: str, window: int) -> bool:
    """Is this attention computed by the kernels?

    Where it is they are faster than torch's, measured at 64 to 1024 tokens.
    """
    nearest = {"dense": query.shape[2], "local": window, "sparse": window}.get(pattern, 0)
    return takes(query) and query.shape[3] % 32 == 0 and nearest <= LONGEST


@torch.compiler.disable
def pattern_attention(
    query: Tensor, key: Tensor, value: Tensor, pattern: str, window: int, stride: int, scale: float
) -> Tensor:
    """Softmax attention over the pairs of `pattern_mask`, or all causal ones, computed in float32.

    Args:
        query, key, value: [batch, heads, T, size of a head], float32 or bfloat16, on the CPU, the size a multiple
            of 32.
        pattern: `dense`, `local`, `strided`, `sparse` or `fixed`.
        window, stride: in tokens.
        scale: of the scores.

    Returns:
        [batch, heads, T, size of a head], in the precision of the query.
    """
    return _PatternAttention.apply(query, key, value, _kept(pattern, query.shape[2], window, stride), scale)


def _kept(pattern: str, length: int, window: int, stride: int) -> tuple[int, int, int, int]:
    """Which keys a query sees, as the kernels have it: window, block, stride, far."""
    return {
        "dense": (length, 0, 0, 0),
        "local": (window, 0, 0, 0),
        "strided": (0, 0, stride, 0),
        "sparse": (window, 0, stride, -(-window // max(1, stride))),
        "fixed": (0, stride, 0, 0),
    }[pattern]


class _PatternAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, kept, scale):
        if not query.stride() == key.stride() == value.stride() or query.stride(3) != 1:
            query, key, value = (tensor.contiguous() for tensor in (query, key, value))
        output, *softmax = attention(query, key, value, kept, scale)
        ctx.save_for_backward(query, key, value, *softmax)
        ctx.kept, ctx.scale = kept, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return *attention_gradient(*ctx.saved_tensors, gradient, ctx.kept, ctx.scale), None, None
