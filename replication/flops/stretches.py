"""The ledger driven by a configuration's schedules: what a run will cost, to the last FLOP."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from replication.config.run_config import RunConfig
from replication.flops.ledger import Ledger
from replication.methods import build_algorithm
from replication.model.gpt2 import HEAD, matrix_shapes, select_masked_shapes
from replication.sparsity.algorithm import SparsityAlgorithm
from replication.sparsity.distributions import Counts


def build_ledger(config: RunConfig) -> Ledger:
    """An empty ledger for a run; its × compares with dense training of the profile's shape."""
    reference = replace(config, model=config.reference or config.model)
    dense_step = Ledger(reference, matrix_shapes(reference), HEAD, set(select_masked_shapes(reference))).dense_step
    return Ledger(config, matrix_shapes(config), HEAD, set(select_masked_shapes(config)), dense_step)


@dataclass(frozen=True)
class Stretch:
    """Steps that cost the same.

    Attributes:
        start: the first of them.
        nnz, nnz_after: masked matrix -> active weights, in these steps and after them.
        pattern: of attention.
        dense_gradient: is the gradient at masked weights read?
        update: does the (one) step change the topology?
    """

    start: int
    phase: str
    num_steps: int
    nnz: Counts
    nnz_after: Counts
    pattern: str
    dense_gradient: bool
    update: bool


def stretches(config: RunConfig) -> Iterator[Stretch]:
    """A run with fixed phases, whole, in order. Allocates no model."""
    algorithm = build_algorithm(config)
    schedules, shapes = algorithm.schedules, select_masked_shapes(config)
    sparsity = schedules.sparsity_at(0)
    nnz = algorithm.distribution(shapes, sparsity)
    for start, end in pairwise(_bounds(algorithm, config.train.steps)):
        phase, pattern = schedules.phases.phase(start), schedules.attention.pattern_at(start)
        update, after = algorithm.is_update(start), nnz
        if update and schedules.sparsity_at(start) != sparsity:
            sparsity = schedules.sparsity_at(start)
            after = algorithm.distribution(shapes, sparsity)
        yield Stretch(start, phase, end - start, nnz, after, pattern, algorithm.reads_gradient(start), update)
        nnz = after


def count(config: RunConfig) -> dict[str, Any]:
    """The `flops.json` that training this configuration will write, its phases fixed."""
    ledger = build_ledger(config)
    for stretch in stretches(config):
        ledger.charge(stretch.phase, stretch.nnz, stretch.pattern, stretch.dense_gradient, stretch.num_steps)
    return ledger.report(stretch.nnz_after)


def _bounds(algorithm: SparsityAlgorithm, steps: int) -> list[int]:
    """Steps at which the cost of a step may change; between two of them it does not."""
    schedules = algorithm.schedules
    bounds = {0, steps, schedules.attention.start, schedules.attention.end}
    bounds |= {start for start, _ in schedules.phases.starts}
    for step in filter(algorithm.is_update, range(steps)):
        bounds |= {step, step + 1}
    return sorted(bound for bound in bounds if bound <= steps)
