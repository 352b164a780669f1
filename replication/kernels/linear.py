"""Products of a masked matrix in training, dense or at its active weights alone, and the loss on such logits."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from replication.kernels.library import SparseWeight, cross_entropy_, takes
from replication.kernels.tiles import GroupWeight, TileWeight

LOGITS, PROBABILITIES = 2**23, 2**20  # computed at a time on a CPU: those of a whole batch would not fit the caches
ELSEWHERE = 2**28  # of both: nor the memory of a GPU


class Execution:
    """How the products of one matrix are computed.

    Attributes:
        sparse: its active weights, packed; None: as torch multiplies the masked matrix.
        dense_gradient: masked weights' gradients are wanted too, on the steps that grow by them.
    """

    def __init__(self) -> None:
        self.sparse: SparseWeight | TileWeight | GroupWeight | None = None
        self.dense_gradient = False


class MaskedLinear(Conv1D):
    """transformers' Conv1D, a matrix [n_in, n_out], without its bias (fixed at 0) and with a choice of execution."""

    execution = Execution()

    def forward(self, x: Tensor) -> Tensor:
        if self.execution.sparse is None:
            return x @ self.weight
        return sparse_linear(x, self.weight, self.execution)


@torch.compiler.disable
def sparse_linear(x: Tensor, weight: Tensor, execution: Execution) -> Tensor:
    """Y [..., n_out] = X [..., n_in] W, for W [n_in, n_out] whose packed form `execution.sparse` is."""
    return _SparseLinear.apply(x, weight, execution)


class _SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, execution: Execution) -> Tensor:
        ctx.sparse, ctx.dense_gradient, ctx.dtype = execution.sparse, execution.dense_gradient, x.dtype
        flat = x.reshape(-1, x.shape[-1])
        y, tiles = ctx.sparse.forward(flat, _precision(x))
        ctx.save_for_backward(flat if ctx.dense_gradient else tiles)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx, d: Tensor) -> tuple[Tensor, Tensor, None]:
        (saved,) = ctx.saved_tensors
        flat = d.reshape(-1, d.shape[-1])
        dx, tiles = ctx.sparse.backward(flat, ctx.dtype)
        if ctx.dense_gradient:
            gradient = (saved.to(d.dtype).T @ flat).to(torch.promote_types(d.dtype, torch.float32))
        else:
            gradient = ctx.sparse.scatter(ctx.sparse.gradient(saved, tiles, len(flat)))
        return dx.view(*d.shape[:-1], dx.shape[-1]), gradient, None


@torch.compiler.disable
def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, execution: Execution) -> Tensor:
    """Mean cross-entropy, in nats, of the logits H Wᵀ, whose gradient is taken at once, a part of the tokens at a time.

    Args:
        hidden: H, [..., n_in].
        weight: W, [vocabulary, n_in].
        targets: [...], indices into the vocabulary.
        execution: of W.
    """
    return _LinearCrossEntropy.apply(
        hidden.flatten(0, -2), weight, targets.flatten(), execution, torch.is_grad_enabled()
    )


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, targets: Tensor, execution: Execution, wants_gradient: bool
    ) -> Tensor:
        head = (_SparseHead if execution.sparse else _DenseHead)(weight, _precision(hidden), execution)
        tokens = max(512, (LOGITS if weight.device.type == "cpu" else ELSEWHERE) // len(weight))
        sum_, dx = hidden.new_zeros(()), []
        for x, labels in zip(hidden.split(tokens), targets.split(tokens)):
            loss, d = _softmax_loss(head.logits(x), labels)
            sum_ += loss
            if wants_gradient:
                dx.append(head.backward(d))
        if wants_gradient:
            ctx.save_for_backward(torch.cat(dx), head.gradient())
        ctx.tokens = len(hidden)
        return sum_ / len(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        dx, gradient = ctx.saved_tensors
        return dx * (scale / ctx.tokens), gradient * (scale / ctx.tokens), None, None, None


def _softmax_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross-entropies of logits [n, vocabulary], and its gradient to them.

    The gradient comes in their precision, perhaps in their place.
    """
    if takes(logits):
        return cross_entropy_(logits, targets.contiguous()).sum(), logits
    d, losses = torch.empty_like(logits), []
    rows = max(16, (PROBABILITIES if logits.device.type == "cpu" else ELSEWHERE) // logits.shape[1])
    for part, labels, to in zip(logits.split(rows), targets.split(rows), d.split(rows)):
        p = torch.softmax(part, 1, dtype=torch.promote_types(logits.dtype, torch.float32))
        # the log of the sum of exponentials, which cannot underflow
        normaliser = part.amax(1).to(p.dtype) - p.amax(1).log()
        labels = labels[:, None]
        losses.append(normaliser - part.gather(1, labels).squeeze(1))
        to.copy_(p.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=p.dtype)))
    return torch.cat(losses).sum(), d


class _DenseHead:
    """H Wᵀ and its gradients by torch, which are added up over the parts of a batch."""

    def __init__(self, weight: Tensor, dtype: torch.dtype, execution: Execution) -> None:
        self.weight, self.dtype, self.sum = weight.to(dtype), dtype, torch.zeros_like(weight)

    def logits(self, x: Tensor) -> Tensor:
        self.x = x.to(self.dtype)
        return self.x @ self.weight.T

    def backward(self, d: Tensor) -> Tensor:
        self.sum += d.T @ self.x
        return (d @ self.weight).to(self.sum.dtype)

    def gradient(self) -> Tensor:
        return self.sum


class _SparseHead:
    """The same at the active weights; with `dense_gradient` the weight's gradient at all of them."""

    def __init__(self, weight: Tensor, dtype: torch.dtype, execution: Execution) -> None:
        self.sparse: Any = execution.sparse  # it has one, or the head would be a dense one
        self.dtype, self.tiles = dtype, None
        self.sum: Any = torch.zeros_like(weight) if execution.dense_gradient else 0
        self.dense_gradient = execution.dense_gradient

    def logits(self, x: Tensor) -> Tensor:
        self.x = x.to(self.dtype) if self.dense_gradient else x
        logits, self.tiles = self.sparse.forward(x, self.dtype)
        return logits

    def backward(self, d: Tensor) -> Tensor:
        dx, tiles = self.sparse.backward(d, torch.promote_types(self.dtype, torch.float32))
        self.sum += d.T @ self.x if self.dense_gradient else self.sparse.gradient(self.tiles, tiles, len(d))
        return dx

    def gradient(self) -> Tensor:
        return self.sum if self.dense_gradient else self.sparse.scatter(self.sum)


def _precision(x: Tensor) -> torch.dtype:
    """What products of x come in: autocast's choice where it is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
