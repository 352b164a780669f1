"""Products of a matrix that is masked in square blocks, at its active blocks alone, on a GPU. Source: ours.

The weight stays where it is, whole and zero outside its active blocks: nothing is packed. Imported where Triton is.
Measured, not used in training.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from replication.sparsity.grid import from_blocks

BLOCKS = (32, 64)  # outputs, and inputs, of a block
# block -> tokens of a tile, warps, stages; of the gradient likewise, tokens being what it sums over
PRODUCT_TILES = {32: (128, 4, 2), 64: (128, 4, 2)}
GRADIENT_TILES = {32: (128, 4, 2), 64: (128, 8, 3)}  # the fastest of a sweep on an H200, at 90 %
PROGRAMS = 1024  # of the weight's gradient: by fewer most of a GPU would stand idle
LEAST_TOKENS = 1024  # of each of them: more parts would take longer to be summed


@dataclass(frozen=True)
class Lists:
    """Which blocks of a grid are active: those of column j, or of row j, are others[starts[j] : starts[j + 1]]."""

    starts: Tensor
    others: Tensor


class BlockLayout:
    """Where the active blocks of a mask are. A new mask is a new object.

    Args:
        mask: boolean, [n_in, n_out] (of a head [n_out, n_in]), on the GPU.
        block: the side of its blocks, one of `BLOCKS`.

    Raises:
        ValueError: another block, or a mask that does not consist of such blocks.
    """

    def __init__(self, mask: Tensor, block: int) -> None:
        grid = mask[::block, ::block]
        if block not in BLOCKS or not torch.equal(from_blocks(grid, (block, block)), mask):
            raise ValueError(f"mask of {tuple(mask.shape)}; allowed: whole square blocks of side {BLOCKS}, not {block}")
        self.block, self.shape = block, tuple(mask.shape)
        self.columns, self.rows = _lists(grid.T), _lists(grid)
        self.active = grid.nonzero().int().contiguous()  # [blocks, 2]
        place = grid.flatten().cumsum(0).view_as(grid) - 1
        self.slots = torch.where(grid, place, -1).int().contiguous()  # a block's place among the active ones

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """Y = X W: [n, n_in] and [n_in, n_out] -> [n, n_out], summed in float32."""
        return self._product(x, weight, self.columns, weight.stride(), self.shape[1])

    def backward(self, d: Tensor, weight: Tensor) -> Tensor:
        """dX = dY Wᵀ: [n, n_out] and [n_in, n_out] -> [n, n_in], summed in float32."""
        return self._product(d, weight, self.rows, weight.stride()[::-1], self.shape[0])

    def gradient(self, x: Tensor, d: Tensor) -> Tensor:
        """dW = Xᵀ dY at the active blocks, 0 elsewhere: [n, n_in] and [n, n_out] -> [n_in, n_out], float32.

        Its parts are summed in the same order every time.
        """
        x, d = x.contiguous(), d.contiguous()
        (n_in, n_out), num, block = self.shape, len(self.active), self.block
        rows, warps, stages = GRADIENT_TILES[block]
        each = max(LEAST_TOKENS, triton.cdiv(len(x), triton.cdiv(PROGRAMS, max(1, num))))
        each = triton.cdiv(each, rows) * rows
        parts = triton.cdiv(len(x), each)
        sums = torch.empty(parts, num, block, block, dtype=torch.float32, device=x.device)
        how = {"BLOCK": block, "num_warps": warps}
        if num:
            arguments = (x, d, sums, self.active, len(x), n_in, n_out, each, num)
            _gradient_kernel[(num, parts)](*arguments, ROWS=rows, num_stages=stages, **how)
        whole = torch.empty(n_in, n_out, dtype=torch.float32, device=x.device)
        _spread_kernel[self.slots.shape[::-1]](sums, whole, self.slots, parts, num, n_out, **how)
        return whole

    def _product(self, a: Tensor, weight: Tensor, lists: Lists, strides: tuple[int, ...], width: int) -> Tensor:
        a = a.contiguous()
        rows, warps, stages = PRODUCT_TILES[self.block]
        out = torch.empty(len(a), width, dtype=a.dtype, device=a.device)
        grid = (width // self.block, triton.cdiv(len(a), rows))
        arguments = (a, weight, out, lists.starts, lists.others, len(a), a.shape[1], width, *strides)
        _product_kernel[grid](*arguments, BLOCK=self.block, ROWS=rows, num_warps=warps, num_stages=stages)
        return out


def block_linear(x: Tensor, weight: Tensor, layout: BlockLayout) -> Tensor:
    """Y [..., n_out] = X [..., n_in] W, for W [n_in, n_out] of x's precision that is zero outside the active blocks.

    Its gradient is zero there too.
    """
    return _BlockLinear.apply(x, weight, layout)


class _BlockLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, layout):
        flat = x.reshape(-1, x.shape[-1])
        ctx.save_for_backward(flat, weight)
        ctx.layout = layout
        return layout.forward(flat, weight).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, d):
        flat, weight = ctx.saved_tensors
        of_flat = d.reshape(-1, d.shape[-1])
        dx = ctx.layout.backward(of_flat, weight).view(*d.shape[:-1], -1)
        return dx, ctx.layout.gradient(flat, of_flat).to(weight.dtype), None


def _lists(grid: Tensor) -> Lists:
    """Of each row of a boolean grid its true columns."""
    starts = torch.zeros(len(grid) + 1, dtype=torch.int32, device=grid.device)
    starts[1:] = grid.sum(1).cumsum(0)
    return Lists(starts, grid.nonzero()[:, 1].int().contiguous())


@triton.jit
def _product_kernel(
    a,
    weight,
    out,
    starts,
    others,
    num_rows,
    a_width,
    out_width,
    stride_k,
    stride_n,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    """One tile of tokens × one block column of the output: the sum over that column's active blocks."""
    column = tl.program_id(0)  # neighbours share their tokens, which so stay in the cache
    inner = tl.arange(0, BLOCK)
    rows = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    a_tile = a + rows * a_width + inner[None, :]
    w_tile = weight + inner[:, None] * stride_k + (column * BLOCK + inner[None, :]) * stride_n
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for place in range(tl.load(starts + column), tl.load(starts + column + 1)):
        first = tl.load(others + place) * BLOCK
        tokens = tl.load(a_tile + first, mask=rows < num_rows, other=0.0)
        total = tl.dot(tokens, tl.load(w_tile + first * stride_k), total, input_precision="ieee")
    tile = out + rows * out_width + column * BLOCK + inner[None, :]
    tl.store(tile, total.to(out.dtype.element_ty), mask=rows < num_rows)


@triton.jit
def _gradient_kernel(x, d, sums, active, num_rows, n_in, n_out, each, num, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """One active block of the weight's gradient, over `each` of the tokens."""
    place, part = tl.program_id(0), tl.program_id(1)
    inner, step = tl.arange(0, BLOCK), tl.arange(0, ROWS)
    x_tile = x + tl.load(active + 2 * place) * BLOCK + inner[:, None]
    d_tile = d + tl.load(active + 2 * place + 1) * BLOCK + inner[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(part * each, tl.minimum(part * each + each, num_rows), ROWS):
        rows = (start + step).to(tl.int64)
        of_x = tl.load(x_tile + rows[None, :] * n_in, mask=rows[None, :] < num_rows, other=0.0)
        of_d = tl.load(d_tile + rows[:, None] * n_out, mask=rows[:, None] < num_rows, other=0.0)
        total = tl.dot(of_x, of_d, total, input_precision="ieee")
    tile = sums + (part * num + place) * BLOCK * BLOCK
    tl.store(tile + inner[:, None] * BLOCK + inner[None, :], total)


@triton.jit
def _spread_kernel(sums, whole, slots, parts, num, n_out, BLOCK: tl.constexpr):
    """One block of the whole gradient: the sum of its parts, or zeros."""
    column, row = tl.program_id(0), tl.program_id(1)
    inner = tl.arange(0, BLOCK)
    slot = tl.load(slots + row * tl.num_programs(0) + column)
    at = inner[:, None] * BLOCK + inner[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for part in range(tl.where(slot >= 0, parts, 0)):
        total += tl.load(sums + (part * num + slot) * BLOCK * BLOCK + at)
    tile = whole + (row * BLOCK + inner[:, None]) * n_out + column * BLOCK + inner[None, :]
    tl.store(tile, total)
