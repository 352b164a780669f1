"""What holds at a training step: sparsity, drop fraction, topology update, attention pattern. Steps count from 0."""

import bisect
import math
from dataclasses import dataclass
from numbers import Real
from typing import Protocol

from replication.system.errors import MethodError


class SparsitySchedule(Protocol):
    """The sparsity that a topology update at `step` aims for."""

    def sparsity(self, step: int) -> float: ...


@dataclass(frozen=True)
class ConstantSparsity:
    """The same sparsity throughout."""

    value: float

    def sparsity(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class CubicSparsity:
    """From `initial` at `start` to `final` at `end`, fast at first: s_f + (s_i - s_f)(1 - τ)³, where τ is the share of
    the way. Source: Zhu and Gupta (arXiv 1710.01878)."""

    start: int
    end: int
    initial: float
    final: float

    def sparsity(self, step: int) -> float:
        left = 1 - min(max((step - self.start) / (self.end - self.start), 0), 1)
        return self.final + (self.initial - self.final) * left**3


@dataclass(frozen=True)
class ThreePhaseSparsity:
    """From dense to `ultra`, and from there to `final`.

    Dense until `warmup_start`, cubic until `warmup_end`, constant until `restoration_start`, then linear until
    `restoration_end`.

    Source: the three phases, PAPER `abstract`; the ramps' forms, `ours` (the cubic is Zhu and Gupta's, arXiv
    1710.01878).
    """

    warmup_end: int
    restoration_start: int
    restoration_end: int
    ultra: float
    final: float
    warmup_start: int = 0

    def sparsity(self, step: int) -> float:
        if step < self.warmup_start:
            return 0.0
        if step < self.warmup_end:
            progress = (step - self.warmup_start) / (self.warmup_end - self.warmup_start)
            return self.ultra * (1 - (1 - progress) ** 3)
        if step < self.restoration_start:
            return self.ultra
        if step >= self.restoration_end:
            return self.final
        progress = (step - self.restoration_start) / (self.restoration_end - self.restoration_start)
        return self.ultra + (self.final - self.ultra) * progress


@dataclass(frozen=True)
class StepSparsity:
    """The authors' form: each (step, sparsity) pair holds from its step on. Source: PAPER `code`, whose table is looked
    up every 1000 steps; its values are in no source."""

    pairs: tuple[tuple[int, float], ...]

    def sparsity(self, step: int) -> float:
        return self.pairs[bisect.bisect_right(self.pairs, step, key=lambda pair: pair[0]) - 1][1]


@dataclass(frozen=True)
class DropFraction:
    """Cosine from each start value at its step to 0 at the next start, or at `end_step`. Source: PAPER `code`."""

    starts: tuple[tuple[int, float], ...]
    end_step: int

    def drop_fraction(self, step: int) -> float:
        if step >= self.end_step:
            return 0.0
        index = bisect.bisect_right(self.starts, step, key=lambda start: start[0]) - 1
        start, value = self.starts[index]
        end = self.starts[index + 1][0] if index + 1 < len(self.starts) else self.end_step
        return value / 2 * (1 + math.cos(math.pi * (step - start) / (end - start)))


@dataclass(frozen=True)
class UpdateSteps:
    """Every `freq`-th step from `start` on and before `end`; never step 0, whose mask was just made."""

    freq: int
    start: int
    end: int

    def is_update(self, step: int) -> bool:
        return step > 0 and self.start <= step < self.end and step % self.freq == 0


@dataclass(frozen=True)
class AttentionSwitch:
    """A sparse attention pattern from `start` on and before `end`, dense attention otherwise. Source: PAPER `code`."""

    pattern: str = "dense"
    start: int = 0
    end: int = 0

    def pattern_at(self, step: int) -> str:
        return self.pattern if self.start <= step < self.end else "dense"


@dataclass(frozen=True)
class Phases:
    """Named stretches of training, each from its step to the next one's."""

    starts: tuple[tuple[int, str], ...] = ((0, "training"),)

    def phase(self, step: int) -> str:
        return self.starts[bisect.bisect_right(self.starts, step, key=lambda start: start[0]) - 1][1]


@dataclass(frozen=True)
class Schedules:
    """All that a method decides by the step alone; the trainer and the FLOP plan both read it."""

    sparsity: SparsitySchedule
    updates: UpdateSteps
    drop_fraction: DropFraction
    attention: AttentionSwitch = AttentionSwitch()
    phases: Phases = Phases()

    def sparsity_at(self, step: int) -> float:
        """What an update at `step` aims for. Raises MethodError: the schedule says no sparsity."""
        value = self.sparsity.sparsity(step)
        _check(isinstance(value, Real) and 0 <= value < 1, self.sparsity, "sparsity", step, value, "0 or more, below 1")
        return value

    def drop_fraction_at(self, step: int) -> float:
        """Share of the active weights that an update at `step` drops. Raises MethodError: the schedule says none."""
        value = self.drop_fraction.drop_fraction(step)
        _check(isinstance(value, Real) and 0 <= value <= 1, self.drop_fraction, "drop fraction", step, value, "0 to 1")
        return value


def constant(steps: int, sparsity: float, *, update_freq: int = 100, drop_fraction: float = 0.3) -> Schedules:
    """The same sparsity throughout: of static masks, SET and RigL.

    Source: an update every 100 steps, and a cosine from a drop fraction of 0.3, PAPER `code`.

    Args:
        steps: of training; at the last one the drop fraction is 0.
        sparsity: fraction of zeros.
        update_freq: steps between topology updates, of a method that has them.
        drop_fraction: share of the active weights that the first update drops.
    """
    return Schedules(
        sparsity=ConstantSparsity(sparsity),
        updates=UpdateSteps(update_freq, 0, steps),
        drop_fraction=DropFraction(((0, drop_fraction),), steps),
    )


def pruning(steps: int, final: float, *, start: float = 0.25, end: float = 0.75, update_freq: int = 100) -> Schedules:
    """Dense, a cubic ramp to `final`, and that sparsity: of gradual magnitude pruning.

    Source: the ramp, Zhu and Gupta (arXiv 1710.01878); its bounds, Jin et al. (arXiv 2501.12486).

    Args:
        steps: of training.
        final: fraction of zeros at the end.
        start, end: shares of training between which it prunes.
        update_freq: steps between topology updates.

    Raises:
        MethodError: a ramp that does not lie within training.
    """
    first, last = round(start * steps), round(end * steps)
    if not 0 <= first < last <= steps:
        raise MethodError(
            f"pruning has the start {start} and the end {end}; allowed: rising shares of training, 0 to 1, {steps} "
            "steps apart at least by one"
        )
    return Schedules(
        sparsity=CubicSparsity(first, last, 0.0, final),
        updates=UpdateSteps(update_freq, 0, steps),
        drop_fraction=DropFraction(((0, 0.0),), steps),
        phases=Phases(tuple({0: "dense", first: "pruning", last: "sparse"}.items())),
    )


def _check(condition: bool, schedule: object, what: str, step: int, value: float, allowed: str) -> None:
    if not condition:
        raise MethodError(f"{type(schedule).__name__} gives the {what} {value} at step {step}; allowed: {allowed}")
