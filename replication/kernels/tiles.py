"""A mask in square blocks as AMX reads it: its products by tiles of bfloat16. Source: ours."""

import ctypes
import functools

import torch
from torch import Tensor

from replication.kernels.library import TILES, SparseWeight, check_weight, library, round_activations
from replication.kernels.row_tiles import GROUP, GroupWeight
from replication.system.instructions import read_level

BLOCKS = (16, 32)  # sides of a block


class _Blocks(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("n_in", "n_out", "block")] + [
        (name, ctypes.c_void_p) for name in ("start", "other", "place", "value")
    ]


@functools.cache
def ask_for_tiles() -> bool:
    """Has this processor such tiles, and may this process use them?"""
    return library() is not None and read_level() >= TILES and bool(library().sparse_tiles_allowed())


def tile_block(shape: torch.Size, out_first: bool, bf16: bool, block: tuple[int, int]) -> tuple[int, int] | None:
    """Outputs and inputs of the blocks of a mask that the processor's tiles take whole.

    None: there are no such tiles, or no such blocks.

    Args: those of `pack`; `shape` is the mask's.
    """
    outputs, inputs = block if out_first else block[::-1]
    is_square = outputs == inputs and outputs in BLOCKS
    are_groups = (outputs, inputs) == (GROUP, 1) and not (shape[0] % GROUP or shape[1] % GROUP)
    return (outputs, inputs) if bf16 and (is_square or are_groups) and ask_for_tiles() else None


def pack(
    mask: Tensor, out_first: bool, bf16: bool, block: tuple[int, int]
) -> "SparseWeight | TileWeight | GroupWeight":
    """A masked matrix as the best of the kernels for its blocks reads it.

    Args:
        mask: as `TileWeight`'s, or `SparseWeight`'s.
        block: rows and columns of the mask's blocks, as it is stored.
    """
    if not tile_block(mask.shape, out_first, bf16, block):
        return SparseWeight(mask, out_first, bf16, block if out_first else block[::-1])
    return TileWeight(mask, out_first, block[0]) if block[0] == block[1] else GroupWeight(mask, out_first)


class _Rows:
    """The blocks by the outputs of a product, and their packed values.

    Args:
        row, other: the places of each block among those of the outputs and of the inputs.
        shape: (n_in, n_out) of the product.
    """

    def __init__(self, row: Tensor, other: Tensor, shape: tuple[int, int], block: int) -> None:
        place = torch.argsort(row, stable=True)
        counts = torch.bincount(row, minlength=shape[1] // block)
        self.start = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int()
        self.other, self.place = other[place].int(), place.int()
        self.value = torch.zeros(len(row) * block * block, dtype=torch.bfloat16)
        self.c = _Blocks(*shape, block, *(one.data_ptr() for one in (self.start, self.other, self.place, self.value)))


class TileWeight:
    """A masked matrix as AMX reads it, with the methods of `library.SparseWeight`; always in bfloat16.

    Args:
        mask: boolean, [n_in, n_out], or [n_out, n_in] if `out_first`, in whole blocks of block × block.
        out_first: the matrix is stored as torch.nn.Linear stores it.
    """

    def __init__(self, mask: Tensor, out_first: bool, block: int) -> None:
        self.shape, self.block, self.out_first = tuple(mask.shape), block, out_first
        rows, columns = mask[::block, ::block].nonzero().unbind(1)
        self.corner = block * (rows * mask.shape[1] + columns)
        n_rows, n_columns = self.shape
        n_in, n_out = (n_columns, n_rows) if out_first else (n_rows, n_columns)
        outputs, inputs = (rows, columns) if out_first else (columns, rows)
        self.forward_rows = _Rows(outputs, inputs, (n_in, n_out), block)
        self.backward_rows = _Rows(inputs, outputs, (n_out, n_in), block)
        self.stored_rows = ctypes.byref((self.forward_rows if out_first else self.backward_rows).c)
        self.across = (self.forward_rows, out_first), (self.backward_rows, not out_first)

    def pack(self, weight: Tensor) -> None:
        """Take over the active weights of a contiguous float32 matrix of the mask's shape."""
        weight = check_weight(weight, self.shape)
        for rows, across in self.across:
            where = (weight, weight.shape[1], self.corner, len(self.corner), self.block, across)
            library().sparse_tile_pack(torch.get_num_threads(), *where, rows.value)

    def forward(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Y = X W: [n, n_in] -> [n, n_out] of `dtype`; and X in bfloat16, for `gradient`."""
        return _product(self.forward_rows, x, dtype)

    def backward(self, d: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """dX = dY Wᵀ: [n, n_out] -> [n, n_in] of `dtype`; and dY in bfloat16, for `gradient`."""
        return _product(self.backward_rows, d, dtype)

    def gradient(self, x: Tensor, d: Tensor, n: int) -> Tensor:
        """dW = Xᵀ dY at the active blocks, float32, each as it is stored: to be added up, then `scatter`ed."""
        gradient = (torch.empty if n else torch.zeros)(len(self.corner), self.block, self.block)
        rows, columns = (d, x) if self.out_first else (x, d)
        library().sparse_tile_gradient(torch.get_num_threads(), self.stored_rows, rows, columns, n, gradient)
        return gradient

    def scatter(self, gradient: Tensor) -> Tensor:
        """`gradient` as a float32 matrix of the mask's shape, exactly 0 at all masked weights."""
        dense = torch.empty(self.shape)
        library().sparse_tile_scatter(torch.get_num_threads(), self.stored_rows, gradient, dense)
        return dense


def _product(rows: _Rows, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = round_activations(x, rows.c.n_in)
    y = torch.empty(len(x), rows.c.n_out, dtype=dtype)
    library().sparse_tile_product(torch.get_num_threads(), ctypes.byref(rows.c), x, y, dtype == torch.bfloat16, len(x))
    return y, x
