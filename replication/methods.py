"""The registry of methods: name -> algorithm. The one place that knows the baselines."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from baselines.dense import Dense
from baselines.rigl import RigL
from baselines.set import SET
from baselines.static import Static
from replication.config import RunConfig
from replication.keys import check_known
from replication.model.gpt2 import mask_blocks, mask_parts
from replication.mst import MST, mst_schedules, random_fraction
from replication.sparsity.algorithm import SparsityAlgorithm
from replication.sparsity.distributions import DISTRIBUTIONS, in_whole_blocks
from replication.sparsity.schedules import ConstantSparsity, DropFraction, Schedules, UpdateSteps


@dataclass(frozen=True)
class Method:
    """An algorithm, how it changes the constant-sparsity schedules, and its own options.

    Attributes:
        algorithm: the class.
        schedules: (config, schedules of constant sparsity) -> the method's own.
        options: config -> keyword arguments that only this algorithm takes.
    """

    algorithm: type[SparsityAlgorithm]
    schedules: Callable[[RunConfig, Schedules], Schedules] = lambda config, constant: constant
    options: Callable[[RunConfig], dict[str, Any]] = lambda config: {}


METHODS: dict[str, Method] = {
    "dense": Method(Dense),
    "static": Method(Static),
    "set": Method(SET),
    "rigl": Method(RigL),
    "mst": Method(MST, mst_schedules, lambda config: {"random_fraction": random_fraction(config)}),
}


def build_algorithm(config: RunConfig) -> SparsityAlgorithm:
    """The configured method, not yet applied to a model.

    Raises:
        UserError: no such method; blocks that do not divide a matrix.
    """
    check_known("method", config.method, list(METHODS))
    method = METHODS[config.method]
    return method.algorithm(
        method.schedules(config, _constant(config)),
        in_whole_blocks(DISTRIBUTIONS[config.sparsity.distribution], math.prod(config.sparsity.block_shape)),
        initial_mask=config.sparsity.initial_mask,
        update_replaces_step=config.sparsity.update_replaces_step,
        reset_moments=config.sparsity.reset_moments,
        seed=config.seed,
        blocks=mask_blocks(config),
        parts=mask_parts(config),
        growth_score=config.sparsity.growth_score,
        growth_steps=config.sparsity.growth_steps,
        **method.options(config),
    )


def _constant(config: RunConfig) -> Schedules:
    sparsity = 0.0 if METHODS[config.method].algorithm is Dense else config.sparsity.sparsity
    end = config.train.steps if config.sparsity.update_end_step is None else config.sparsity.update_end_step
    return Schedules(
        sparsity=ConstantSparsity(sparsity),
        updates=UpdateSteps(config.sparsity.update_freq, config.sparsity.update_start_step, end),
        drop_fraction=DropFraction(((0, config.sparsity.drop_fraction),), end),
    )
