"""Up to which density sparse products are faster than dense ones here: `plan machine`, and the table of kinds.

`python -m replication.bench.limits LEVEL` measures as a processor with no more than that level's instructions would:
torch and our kernels are held to them.
"""

import itertools
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext

import torch

from replication.bench.measure import alternate, clock
from replication.kernels import choice, library
from replication.kernels.linear import Execution, MaskedLinear
from replication.kernels.tiles import pack
from replication.sparsity.grid import from_blocks
from replication.system.instructions import hold_environment

SIDES = (32, 64, 128, 256, 768)  # the smaller ones of the matrices; the other is four times as large
TOKENS = 1024
BLOCKS = ((1, 1), (16, 16), (32, 32), (1, 32))  # of matrices stored [inputs, outputs]
DENSITIES = (0.1, 0.5)  # between which a line tells the time of others
GAIN = 1.05  # that sparse products must be faster by, at
SHARE = 0.8  # of whose density they are trusted to be faster at all (both ours)
ROUNDS, ENOUGH = 3, 0.08  # at least so many, and for so many seconds; the least counts, as other work disturbs it least


def keep_limits() -> None:
    """Measure them and keep them for this machine; nothing where no kernels are chosen. Raises as `choice.keep`."""
    if library.gains():
        choice.keep(measure_limits())


def measure_limits(sides: tuple[int, ...] = SIDES) -> choice.Limits:
    """By kind of products that this processor has: from each side of a matrix on, the density."""
    torch.manual_seed(0)
    kinds: dict[str, list[tuple[int, float]]] = {}
    for block, bf16 in itertools.product(BLOCKS, (False, True)):
        kind = choice.kind_of(torch.Size((sides[-1], 4 * sides[-1])), False, bf16, block)
        if kind not in kinds:
            kinds[kind] = [(side, round(_limit(side, block, bf16), 3)) for side in sides]
    return kinds


def _limit(side: int, block: tuple[int, int], bf16: bool) -> float:
    """The density up to which all three products of a matrix with such a side are faster, by autograd."""
    works = {
        name: _work(side, block, bf16, density) for name, density in (("dense", 1.0), *((str(d), d) for d in DENSITIES))
    }
    turns = {name: clock(work) for name, work in works.items()}
    once = alternate(turns, 1)
    rounds = max(ROUNDS, int(ENOUGH / sum(map(min, once.values()))))
    dense, few, half = (min(seconds) for seconds in alternate(turns, rounds, warmup=0).values())
    slope = max(half - few, 1e-9) / (DENSITIES[1] - DENSITIES[0])
    gaining = DENSITIES[0] + (dense / GAIN - few) / slope
    return SHARE * min(max(gaining, 0.0), 1.0)


def _work(side: int, block: tuple[int, int], bf16: bool, density: float) -> Callable[[], None]:
    """A layer forward and backward, as training has it, from float32 weights to their float32 gradients."""
    layer = MaskedLinear(4 * side, side)
    mask = from_blocks(torch.rand(side // block[0], 4 * side // block[1]) < density, block)
    dtype = torch.bfloat16 if bf16 else torch.float32
    x = torch.randn(TOKENS, side, dtype=dtype, requires_grad=True)
    d = torch.randn(TOKENS, 4 * side, dtype=dtype)
    layer.weight.data *= mask
    layer.execution = Execution()
    if density < 1:
        layer.execution.sparse = pack(mask, False, bf16, block)

    def work() -> None:
        layer.weight.grad = x.grad = None
        if layer.execution.sparse:
            layer.execution.sparse.pack(layer.weight.detach())
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            y = layer(x)
        y.backward(d)

    return work


def _go_on_at(level: str) -> None:
    """Go on as a process that finds such a processor."""
    given = hold_environment(level)
    if any(os.environ.get(name, "") != value for name, value in given.items()):
        os.execve(sys.executable, [sys.executable, "-m", "replication.bench.limits", level], {**os.environ, **given})


if __name__ == "__main__":
    _go_on_at(sys.argv[1])
    for kind, rows in measure_limits().items():
        print(f'        "{kind}": {rows},')
