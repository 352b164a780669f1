"""On what a mask is decided: single weights, blocks of them, or equal groups of columns each for itself."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """How one parameter is masked (ours, but for single weights in one part).

    Attributes:
        block: (rows, columns) that are masked together, in the order in which the parameter is stored.
        parts: equal groups of columns that are masked each for itself.
    """

    block: tuple[int, int] = (1, 1)
    parts: int = 1

    def scores(self, values: Tensor) -> tuple[Tensor, ...]:
        """Of each part the mean over each block: [rows, columns] -> [rows / block[0], columns / block[1]] in all."""
        return to_blocks(values, self.block).chunk(self.parts, 1)

    def cells(self, mask: Tensor) -> tuple[Tensor, ...]:
        """Of each part the mask of its blocks, of which each is whole."""
        return mask[:: self.block[0], :: self.block[1]].chunk(self.parts, 1)

    def mask(self, cells: list[Tensor]) -> Tensor:
        """`cells` back to the mask of the weights."""
        return from_blocks(torch.cat(cells, 1), self.block)

    def share_out(self, nnz: int) -> list[int]:
        """A layer's active weights, in blocks, evenly over its parts, the first ones taking what is over."""
        blocks = nnz // self.size
        return [blocks // self.parts + (place < blocks % self.parts) for place in range(self.parts)]

    @property
    def size(self) -> int:
        """Weights of a block."""
        return math.prod(self.block)


WEIGHTS = Grid()


def to_blocks(scores: Tensor, block: tuple[int, int]) -> Tensor:
    """The mean over each block."""
    if block == (1, 1):
        return scores
    rows, columns = scores.shape
    return scores.view(rows // block[0], block[0], columns // block[1], block[1]).mean((1, 3))


def from_blocks(mask: Tensor, block: tuple[int, int]) -> Tensor:
    """The mask of whole blocks whose grid is `mask`."""
    return mask if block == (1, 1) else mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
