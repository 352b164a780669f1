"""Hybrid sparse attention that computes little more than the pairs a pattern keeps: dense blocks and strided columns. Source: ours.

A pattern is the disjoint union of parts, each an attention of its own. Their outputs are merged by the logarithms of the sums
of their exponentials; and as a part's gradient needs of the softmax only the whole's output and normaliser, the parts'
gradients add up. Inputs in bfloat16 are widened, a sequence at a time: for blocks this small float32 is the faster.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
QUERIES = 32  # of a block in the local part: few, as a block's window holds that many keys more than a query needs; measured


def pays(length: int, pattern: str, window: int, stride: int) -> bool:
    """Are the parts fewer pairs than a mask computes, and worth their overhead? Strided ones need whole strides. Measured (ours)."""
    few = max(window if pattern in ("local", "sparse") else 0, stride if pattern != "local" else 0) <= length // 4
    return length >= 512 and few and (pattern in ("local", "fixed") or (stride >= 16 and length % stride == 0))


@torch.compiler.disable
def block_attention(query: Tensor, key: Tensor, value: Tensor, pattern: str, window: int, stride: int, scale: float) -> Tensor:
    """Softmax attention over the pairs of `pattern_mask`, on the CPU.

    Args:
        query, key, value: [batch, heads, T, size of a head].
        pattern: `local`, `strided`, `sparse` or `fixed`.
        window, stride: in tokens; of `strided` and `sparse` the stride divides T.
        scale: of the scores.

    Returns:
        [batch, heads, T, size of a head].
    """
    return _BlockAttention.apply(query, key, value, parts(pattern, query.shape[2], window, stride), scale)


def parts(pattern: str, length: int, window: int, stride: int) -> list["Windows | Columns | Phases"]:
    """The disjoint parts of a pattern; the first of them has every query."""
    if pattern == "fixed":
        return [*_windows(length, stride, stride, overlap=0), Columns(length, stride)]
    if pattern == "strided":
        return [Phases(length, stride, 0)]
    local = _windows(length, window, QUERIES, overlap=window)
    far = -(-window // stride)  # strides to the nearest key beyond the window
    return local if pattern == "local" or far * stride >= length else [*local, Phases(length, stride, far)]


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, parts, scale):
        batch, heads, length, size = query.shape
        precision = torch.promote_types(query.dtype, torch.float32)
        output = query.new_empty(batch, length, heads, size).transpose(1, 2)
        normaliser = torch.empty(batch, heads, length, dtype=precision)
        for index in range(batch):
            q, k, v = (tensor[index].to(precision) for tensor in (query, key, value))
            whole, log = torch.zeros_like(q), normaliser[index].fill_(-torch.inf)
            for part in parts:
                part.merge(q, k, v, whole, log, scale)
            output[index] = whole
        ctx.save_for_backward(query, key, value, output, normaliser)
        ctx.parts, ctx.scale = parts, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        *inputs, output, normaliser = ctx.saved_tensors
        gradients = [torch.empty_like(tensor) for tensor in inputs]
        for index, log in enumerate(normaliser):
            d, q, k, v, out = (tensor[index].to(log.dtype) for tensor in (gradient, *inputs, output))
            sums = [torch.zeros_like(tensor) for tensor in (q, k, v)]
            for part in ctx.parts:
                part.add_gradients(d, q, k, v, out, log, *sums, ctx.scale)
            for to, sum_ in zip(gradients, sums):
                to[index] = sum_
        return *gradients, None, None


class _Part:
    """An attention of some queries to some keys, of one sequence [heads, T, size of a head]."""

    def merge(self, q, k, v, whole, log, scale):
        """Merge this part's output into `whole` and its normaliser into `log` [heads, T]."""
        out, own = self.attend(self.queries(q), self.keys(k), self.keys(v), scale)
        whole, log = self.queries(whole), self.queries(log[..., None])[..., 0]
        merged = torch.logaddexp(log, own)
        whole.mul_((log - merged).exp()[..., None]).add_(out * (own - merged).exp()[..., None])
        log.copy_(merged)

    def add_gradients(self, d, q, k, v, out, log, dq, dk, dv, scale):
        """Add this part's gradients to those of queries, keys and values; `out` and `log` are the merged ones."""
        d, q, out, log = self.queries(d), self.queries(q), self.queries(out), self.queries(log[..., None])[..., 0]
        own = self.gradients(d, q, self.keys(k), self.keys(v), out, log, scale)
        self.queries(dq).add_(own[0])
        self.add_keys(dk, own[1])
        self.add_keys(dv, own[2])


class _Flash(_Part):
    """Parts that torch's flash attention computes, with a mask or causal."""

    mask: Tensor | None = None

    def attend(self, q, k, v, scale):
        return _flash(q, k, v, is_causal=self.mask is None, attn_mask=_additive(self.mask, q.dtype), scale=scale)

    def gradients(self, d, q, k, v, out, log, scale):
        return _flash_backward(d, q, k, v, out, log, 0.0, self.mask is None, attn_mask=_additive(self.mask, q.dtype), scale=scale)


class Windows(_Flash):
    """`num` blocks of `size` queries from `first` on, each with itself and the `overlap` keys before it, of which a query sees its last `window`."""

    def __init__(self, first: int, num: int, size: int, overlap: int, window: int) -> None:
        self.first, self.num, self.size, self.overlap = first, num, size, overlap
        if overlap:
            distance = torch.arange(overlap, overlap + size)[:, None] - torch.arange(overlap + size)
            self.mask = (distance >= 0) & (distance < window)

    def queries(self, x: Tensor) -> Tensor:
        return x[:, self.first : self.first + self.num * self.size].unflatten(1, (self.num, self.size))

    def keys(self, x: Tensor) -> Tensor:
        return x[:, self.first - self.overlap : self.first + self.num * self.size].unfold(1, self.overlap + self.size, self.size).mT

    def add_keys(self, to: Tensor, own: Tensor) -> None:
        for start in range(0, self.overlap + self.size, self.size):  # pieces of a block's length: those of the windows do not overlap
            piece = own[:, :, start : start + self.size]
            first = self.first - self.overlap + start
            length = piece.shape[2]
            to[:, first : first + self.num * self.size - self.size + length].unfold(1, length, self.size).mT.add_(piece)


class Columns(_Flash):
    """`fixed`: the last key of each block of `stride`, for the queries of later blocks."""

    def __init__(self, length: int, stride: int) -> None:
        self.stride = stride
        self.last = (length - 1) // stride * stride  # blocks that a later one follows end here
        query, key = torch.arange(stride, length), torch.arange(stride - 1, self.last, stride)
        self.mask = query[:, None] // stride > key // stride

    def queries(self, x: Tensor) -> Tensor:
        return x[:, None, self.stride :]

    def keys(self, x: Tensor) -> Tensor:
        return x[:, None, self.stride - 1 : self.last : self.stride]

    def add_keys(self, to: Tensor, own: Tensor) -> None:
        self.keys(to).add_(own)


class Phases(_Part):
    """`strided`: each query with the keys `far` or more strides before it, which is a small attention for every position modulo `stride`."""

    def __init__(self, length: int, stride: int, far: int) -> None:
        self.length, self.stride = length, stride
        strides = torch.arange(-(-length // stride))
        self.hidden = strides[:, None] - strides < far

    def queries(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.stride)).transpose(1, 2)  # [heads, stride, T / stride, size]

    keys = queries

    def add_keys(self, to: Tensor, own: Tensor) -> None:
        self.keys(to).add_(own)

    def attend(self, q, k, v, scale):
        scores = self._scores(q, k, scale)
        log = scores.logsumexp(-1)
        return (scores - log.clamp(min=torch.finfo(log.dtype).min)[..., None]).exp() @ v, log  # a query without a key: 0, at -inf

    def gradients(self, d, q, k, v, out, log, scale):
        p = (self._scores(q, k, scale) - log[..., None]).exp()
        ds = p * (d @ v.mT - (d * out).sum(-1, keepdim=True)) * scale
        return ds @ k, ds.mT @ q, p.mT @ d

    def _scores(self, q, k, scale):
        return (q @ k.mT * scale).masked_fill_(self.hidden, -torch.inf)


def _windows(length: int, window: int, size: int, overlap: int) -> list[Windows]:
    """The keys of the last `window` before each query: a causal beginning, then blocks of `size`, and what is left of them."""
    if not overlap:  # blocks that see nothing before themselves
        num, rest = divmod(length, size)
        return [Windows(0, num, size, 0, window)] * (num > 0) + [Windows(num * size, 1, rest, 0, window)] * (rest > 0)
    start = min(window, length)
    num, rest = divmod(length - start, size)
    blocks = [Windows(start, num, size, overlap, window)] * (num > 0) + [Windows(length - rest, 1, rest, overlap, window)] * (rest > 0)
    return [Windows(0, 1, start, 0, window), *blocks]


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if mask is None else torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
