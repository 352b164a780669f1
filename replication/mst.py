"""Mixed Sparsity Training: three phases, Mixed-Growing, Hybrid Sparse Attention.

Warm-up turns the dense model sparse; ultra-sparsification trains it at very high sparsity while Mixed-Growing evolves
the topology and attention is sparse; restoration gives some connections back (PAPER `abstract`). The form of each part
is PAPER `code`; where the phases begin and how sparse they are is in no source (ours).
"""

import dataclasses

from replication.config import RunConfig
from replication.sparsity.algorithm import DynamicSparsityAlgorithm
from replication.sparsity.schedules import (
    AttentionSwitch,
    ConstantSparsity,
    DropFraction,
    Phases,
    Schedules,
    SparsitySchedule,
    StepSparsity,
    ThreePhaseSparsity,
    UpdateSteps,
)
from replication.sparsity.topology import grow_mixed


class MST(DynamicSparsityAlgorithm):
    """Mixed-Growing: ¾ of the new connections by |gradient|, ¼ at random (PAPER `code`). The phases are schedules.

    Args:
        random_fraction: 0.25; 0 and 1 are its ablations, growth by gradient only and at random only.
    """

    def __init__(self, *args, random_fraction: float = 0.25, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.random_fraction = random_fraction
        self.needs_gradient = random_fraction < 1

    def grow(self, gradient, eligible, num, generator):
        if not self.needs_gradient:
            return super().grow(gradient, eligible, num, generator)
        return grow_mixed(gradient, eligible, num, generator, self.random_fraction)


def random_fraction(config: RunConfig) -> float:
    """Share of new connections grown at random, after the growth ablation."""
    return {"mixed": config.mst.random_fraction, "gradient": 0.0, "random": 1.0}[config.mst.growth]


def mst_schedules(config: RunConfig, constant: Schedules) -> Schedules:
    """MST's phases over the updates of a constant-sparsity method.

    With `mst.phases` auto those of before anything was decided: dense, with nothing to update.
    """
    steps, mst = config.train.steps, config.mst
    if mst.phases == "auto":
        never, phases = dataclasses.replace(constant.updates, start=steps, end=steps), _phases((0, "warm-up"))
        return dataclasses.replace(constant, sparsity=ConstantSparsity(0.0), updates=never, phases=phases)
    warmup_start, warmup_end, restoration_start, restoration_end = (
        round(fraction * steps)
        for fraction in (mst.warmup_start, mst.warmup_end, mst.restoration_start, mst.restoration_end)
    )
    if warmup_start:  # a full mask has nothing to drop that could grow elsewhere
        first = max(constant.updates.start, warmup_start + 1)
        constant = dataclasses.replace(constant, updates=dataclasses.replace(constant.updates, start=first))
    if config.mst.sparsity_steps:
        sparsity: SparsitySchedule = StepSparsity(config.mst.sparsity_steps)
    else:
        sparsity = ThreePhaseSparsity(
            warmup_end, restoration_start, restoration_end, mst.ultra_sparsity, mst.final_sparsity, warmup_start
        )
    if not config.mst.sparsity_variation:
        sparsity = ConstantSparsity(mean_sparsity(sparsity, constant.updates, steps))
    return dataclasses.replace(
        constant,
        sparsity=sparsity,
        drop_fraction=_drop_fraction(config, constant.drop_fraction, (0, warmup_end, restoration_start)),
        attention=_attention(config, warmup_end, restoration_start),
        phases=_phases((0, "warm-up"), (warmup_end, "ultra-sparsification"), (restoration_start, "restoration")),
    )


def mean_sparsity(schedule: SparsitySchedule, updates: UpdateSteps, steps: int) -> float:
    """Mean over steps of the sparsity trained at: what constant sparsity costs the same FLOPs (ours).

    A step trains under the mask that the last update before it left.
    """
    total, current = 0.0, schedule.sparsity(0)
    for step in range(steps):
        total += current
        if updates.is_update(step):
            current = schedule.sparsity(step)
    return total / steps


def _drop_fraction(config: RunConfig, constant: DropFraction, phase_starts: tuple[int, ...]) -> DropFraction:
    if config.mst.drop_fractions is None:
        return constant
    starts = dict(zip(phase_starts, config.mst.drop_fractions))  # an empty phase gives way to the next
    return dataclasses.replace(constant, starts=tuple(starts.items()))


def _attention(config: RunConfig, ultra_start: int, ultra_end: int) -> AttentionSwitch:
    if not config.mst.hybrid_attention:
        return AttentionSwitch()
    chosen = config.attention
    start = ultra_start if chosen.start_step is None else chosen.start_step
    end = ultra_end if chosen.end_step is None else chosen.end_step
    return AttentionSwitch(chosen.pattern, start, end)


def _phases(*starts: tuple[int, str]) -> Phases:
    return Phases(tuple(dict(starts).items()))  # of phases that start together only the last lasts
