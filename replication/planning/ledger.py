"""The ledger driven by a configuration's schedules: what a run will cost, to the last FLOP."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

from replication.config import RunConfig
from replication.flops import Ledger
from replication.methods import build_algorithm
from replication.model.gpt2 import HEAD, masked_shapes, matrix_shapes
from replication.sparsity.algorithm import SparsityAlgorithm


def build_ledger(config: RunConfig) -> Ledger:
    """An empty ledger for a run; its × compares with dense training of the profile's shape."""
    reference = replace(config, model=config.reference or config.model)
    dense_step = Ledger(reference, matrix_shapes(reference), HEAD, set()).step({}, "dense", False)
    return Ledger(config, matrix_shapes(config), HEAD, set(masked_shapes(config)), dense_step)


def count(config: RunConfig) -> dict[str, Any]:
    """The `flops.json` that training this configuration will write, its phases fixed. Allocates no model."""
    algorithm = build_algorithm(config)
    schedules, shapes = algorithm.schedules, masked_shapes(config)
    ledger = build_ledger(config)
    sparsity = schedules.sparsity.sparsity(0)
    nnz = algorithm.distribution(shapes, sparsity)
    bounds = _bounds(algorithm, config.train.steps)
    for start, end in pairwise(bounds):
        update = algorithm.is_update(start)
        ledger.charge(
            schedules.phases.phase(start),
            nnz,
            schedules.attention.pattern_at(start),
            algorithm.reads_gradient(start),
            end - start,
        )
        if update and schedules.sparsity.sparsity(start) != sparsity:
            sparsity = schedules.sparsity.sparsity(start)
            nnz = algorithm.distribution(shapes, sparsity)
    return ledger.report(nnz)


def _bounds(algorithm: SparsityAlgorithm, steps: int) -> list[int]:
    """Steps at which the cost of a step may change; between two of them it does not."""
    schedules = algorithm.schedules
    bounds = {0, steps, schedules.attention.start, schedules.attention.end}
    bounds |= {start for start, _ in schedules.phases.starts}
    for step in filter(algorithm.is_update, range(steps)):
        bounds |= {step, step + 1, max(0, step + 1 - algorithm.growth_steps)}
    return sorted(bound for bound in bounds if bound <= steps)
