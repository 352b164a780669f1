"""What a run will cost, without training it: the ledger driven by the schedules alone."""

from dataclasses import replace
from typing import Any

from replication.config import RunConfig, reference_model
from replication.flops import Ledger
from replication.methods import build_algorithm
from replication.model.gpt2 import HEAD, masked_shapes, matrix_shapes
from replication.sparsity.schedules import Schedules


def build_ledger(config: RunConfig) -> Ledger:
    """An empty ledger for a run; its × compares with dense training of the profile's shape."""
    reference = replace(config, model=reference_model(config))
    dense_step = Ledger(reference, matrix_shapes(reference), HEAD, set()).step({}, "dense", False)
    return Ledger(config, matrix_shapes(config), HEAD, set(masked_shapes(config)), dense_step)


def plan(config: RunConfig) -> dict[str, Any]:
    """The `flops.json` that training this configuration will write, to the last FLOP. Allocates no model."""
    algorithm = build_algorithm(config)
    schedules, shapes = algorithm.schedules, masked_shapes(config)
    ledger = build_ledger(config)
    sparsity = schedules.sparsity.sparsity(0)
    nnz = algorithm.distribution(shapes, sparsity)
    bounds = _bounds(schedules, algorithm.is_update, config.train.steps)
    for start, end in zip(bounds, bounds[1:]):
        update = algorithm.is_update(start)
        ledger.charge(schedules.phases.phase(start), nnz, schedules.attention.pattern_at(start), update and algorithm.needs_gradient, end - start)
        if update and schedules.sparsity.sparsity(start) != sparsity:
            sparsity = schedules.sparsity.sparsity(start)
            nnz = algorithm.distribution(shapes, sparsity)
    return ledger.report(nnz)


def _bounds(schedules: Schedules, is_update, steps: int) -> list[int]:
    """Steps at which the cost of a step may change; between two of them it does not."""
    bounds = {0, steps, schedules.attention.start, schedules.attention.end}
    bounds |= {start for start, _ in schedules.phases.starts}
    for step in filter(is_update, range(steps)):
        bounds |= {step, step + 1}
    return sorted(bound for bound in bounds if bound <= steps)
