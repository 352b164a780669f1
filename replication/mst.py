"""Mixed Sparsity Training: three phases, Mixed-Growing, Hybrid Sparse Attention.

Warm-up turns the dense model sparse; ultra-sparsification trains it at very high sparsity while Mixed-Growing evolves
the topology and attention is sparse; restoration gives some connections back (PAPER `abstract`). The form of each part
is PAPER `code`; where the phases begin and how sparse they are is in no source (ours).
"""

import dataclasses
from collections.abc import Sequence

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
from replication.system.errors import MethodError

NAMES = ("warm-up", "ultra-sparsification", "restoration")


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


def phases(
    steps: int,
    ultra: float = 0.9,
    final: float = 0.5,
    *,
    warmup_start: float = 0.0,
    warmup_end: float = 0.1,
    restoration_start: float = 0.7,
    restoration_end: float = 0.9,
    update_freq: int = 100,
    drop_fraction: float = 0.3,
    attention: str = "dense",
    updates: UpdateSteps | None = None,
    drop_fractions: Sequence[float] | None = None,
    sparsity_steps: Sequence[tuple[int, float]] | None = None,
    vary: bool = True,
) -> Schedules:
    """MST's schedules: what holds at each step of its three phases.

    Source: the phases, PAPER `abstract`; an update every 100 steps and a cosine from a drop fraction of 0.3, PAPER
    `code`; the bounds and the sparsity, ours.

    Args:
        steps: of training.
        ultra, final: fraction of zeros in the middle phase, and at the end.
        warmup_start, warmup_end, restoration_start, restoration_end: fractions of training: dense until the first, a
            cubic ramp to `ultra` until the second, a linear one from there to `final` between the last two.
        update_freq: steps between topology updates.
        drop_fraction: share of the active weights that the first update drops; by a cosine it falls to 0.
        attention: pattern of the middle phase, of a model that reads `schedules.attention`.
        updates: at which steps the topology is updated; None: every `update_freq`-th.
        drop_fractions: instead of `drop_fraction` one of each phase, each with a cosine of its own.
        sparsity_steps: instead of the ramps (step, sparsity) pairs, the authors' step function.
        vary: False: constant sparsity that costs the same FLOPs (an ablation).

    Raises:
        MethodError: a fraction that is none, bounds out of order.
    """
    bounds = (warmup_start, warmup_end, restoration_start, restoration_end)
    if not 0 <= final <= ultra < 1:
        raise MethodError(f"phases has ultra {ultra} and final {final}; allowed: 0 or more, below 1, ultra the larger")
    if not all(0 <= value <= 1 for value in drop_fractions or (drop_fraction,)):
        raise MethodError(f"phases has drop fractions of {drop_fractions or drop_fraction}; allowed: 0 to 1")
    if [0, *bounds, 1] != sorted([0, *bounds, 1]):
        raise MethodError(f"phases has the bounds {bounds}; allowed: rising fractions of training, 0 to 1")
    start, ultra_start, ultra_end, end = (round(bound * steps) for bound in bounds)
    is_own = updates is None
    updates = updates or UpdateSteps(update_freq, 0, steps)
    if start:  # a full mask has nothing to drop that could grow elsewhere
        updates = dataclasses.replace(updates, start=max(updates.start, start + 1))
    if is_own and ultra and not any(map(updates.is_update, range(start, ultra_end))):
        raise MethodError(
            f"phases has no topology update between the steps {start} and {ultra_end}, so that nothing would become "
            f"sparse; allowed: an update_freq smaller than {update_freq}, or more steps"
        )
    sparsity: SparsitySchedule = ThreePhaseSparsity(ultra_start, ultra_end, end, ultra, final, start)
    if sparsity_steps:
        sparsity = StepSparsity(tuple(sparsity_steps))
    if not vary:
        sparsity = ConstantSparsity(mean_sparsity(sparsity, updates, steps))
    starts = (0, ultra_start, ultra_end)
    drops = {0: drop_fraction} if drop_fractions is None else dict(zip(starts, drop_fractions))
    return Schedules(
        sparsity=sparsity,
        updates=updates,
        drop_fraction=DropFraction(tuple(drops.items()), updates.end),
        attention=AttentionSwitch(attention, ultra_start, ultra_end),
        phases=Phases(tuple(dict(zip(starts, NAMES)).items())),  # of phases that start together only the last lasts
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
