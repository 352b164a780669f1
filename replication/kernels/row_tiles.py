"""A mask whose groups of 32 outputs share their inputs, as AMX reads it: its products in bfloat16. Source: ours."""

import ctypes

import torch
from torch import Tensor

from replication.kernels.library import check_weight, library, round_activations

GROUP = 32  # outputs that share their inputs; tokens of a strip; features and entries come in multiples of it


class _Groups(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("n_in", "n_out")] + [
        (name, ctypes.c_void_p) for name in ("start", "input", "by_input", "by_output")
    ]


class GroupWeight:
    """A masked matrix as AMX reads it, with the methods of `library.SparseWeight`; always in bfloat16.

    Args:
        mask: boolean, [n_in, n_out], or [n_out, n_in] if `out_first`, both multiples of 32; each of 32 neighbouring
            outputs has the same active inputs.
        out_first: the matrix is stored as torch.nn.Linear stores it.
    """

    def __init__(self, mask: Tensor, out_first: bool) -> None:
        self.shape, self.out_first = tuple(mask.shape), out_first
        self.n_out, self.n_in = mask.shape if out_first else mask.shape[::-1]
        active = (mask if out_first else mask.T)[::GROUP]
        counts, (group, place) = active.sum(1), active.nonzero().unbind(1)
        start = torch.cat([torch.zeros(1, dtype=torch.int64), (-(-counts // GROUP) * GROUP).cumsum(0)])
        self.start, self.input = start.int(), torch.full((int(start[-1]),), self.n_in, dtype=torch.int32)
        rank = torch.arange(len(group)) - (counts.cumsum(0) - counts)[group]
        self.input[start[group] + rank] = place.int()
        self.by_input, self.by_output = torch.zeros(2, len(self.input), GROUP, dtype=torch.bfloat16)
        data = (one.data_ptr() for one in (self.start, self.input, self.by_input, self.by_output))
        self.structure = _Groups(self.n_in, self.n_out, *data)
        self.c = ctypes.byref(self.structure)

    def pack(self, weight: Tensor) -> None:
        """Take over the active weights of a contiguous float32 matrix of the mask's shape."""
        weight = check_weight(weight, self.shape)
        library().sparse_group_pack(torch.get_num_threads(), self.c, weight, self.out_first)

    def forward(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Y = X W: [n, n_in] -> [n, n_out] of `dtype`; and X in strips of tokens, for `gradient`."""
        x, y = round_activations(x, self.n_in), torch.empty(len(x), self.n_out, dtype=dtype)
        strips = torch.empty(-(-len(x) // GROUP), self.n_in + 1, GROUP, dtype=torch.bfloat16)
        is_bf16 = dtype == torch.bfloat16
        library().sparse_group_product(torch.get_num_threads(), self.c, x, strips, y, is_bf16, len(x))
        return y, strips

    def backward(self, d: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """dX = dY Wᵀ: [n, n_out] -> [n, n_in] of `dtype`; and dY as the operand of `gradient`."""
        d, dx = round_activations(d, self.n_out), torch.empty(len(d), self.n_in, dtype=dtype)
        operands = torch.empty(-(-len(d) // GROUP), self.n_out, GROUP, dtype=torch.bfloat16)
        is_bf16 = dtype == torch.bfloat16
        library().sparse_group_product_back(torch.get_num_threads(), self.c, d, operands, dx, is_bf16, len(d))
        return dx, operands

    def gradient(self, strips: Tensor, operands: Tensor, n: int) -> Tensor:
        """dW = Xᵀ dY at the active weights, float32, [entries, 32]: to be added up, then `scatter`ed."""
        gradient = (torch.empty if n else torch.zeros)(len(self.input), GROUP)
        library().sparse_group_gradient(torch.get_num_threads(), self.c, strips, operands, n, gradient)
        return gradient

    def scatter(self, gradient: Tensor) -> Tensor:
        """`gradient` as a float32 matrix of the mask's shape, exactly 0 at all masked weights."""
        dense = torch.empty(self.shape)
        library().sparse_group_scatter(torch.get_num_threads(), self.c, gradient, self.out_first, dense)
        return dense
