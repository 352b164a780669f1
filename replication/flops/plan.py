"""What a run will cost, without training it: the ledger driven by the schedules alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from replication.config.fields import PHASES
from replication.config.run_config import RunConfig
from replication.flops.automatic_phases import FEWEST_UPDATES, PhaseTrigger, build_trigger, fix_phases
from replication.flops.ledger import total
from replication.flops.stretches import count, stretches
from replication.methods import build_algorithm, build_schedules
from replication.model.gpt2 import HEAD, matrix_shapes, select_masked_shapes
from replication.sparsity.algorithm import DynamicSparsityAlgorithm, SparsityAlgorithm
from replication.sparsity.schedules import Schedules, StepSparsity
from replication.sparsity.topology import update_counts
from replication.system.errors import UserError


def plan(config: RunConfig) -> dict[str, Any]:
    """The `flops.json` that training this configuration will write, to the last FLOP.

    Where its phases start themselves: as if they did at once; the FLOPs are the same within 0.5 % whenever they do.
    """
    return count(fix_phases(config))


@dataclass(frozen=True)
class PhasePlan:
    """What the topology does in one phase of a run.

    Attributes:
        name: the phase's.
        start, end: its first step, and the next phase's.
        num_updates: topology updates in it.
        largest_cut: the largest share of a layer's active weights that one of them drops.
        flops_share: of the run's training FLOPs, under `head_counted_full`.
        is_ramp: is the sparsity to change in it?
    """

    name: str
    start: int
    end: int
    num_updates: int
    largest_cut: float
    flops_share: float
    is_ramp: bool


def plan_phases(config: RunConfig) -> list[PhasePlan]:
    """The phases of a run, in order; those without a step are left out."""
    config = fix_phases(config)
    schedules, steps = build_schedules(config), config.train.steps
    flops = count(config)["phases"]
    spent = {name: total(components, "head_counted_full") for name, components in flops.items()}
    cuts = dict(_cuts(config))
    planned = []
    for start, end, name in _spans(schedules.phases.starts, steps):
        within = [cut for step, cut in cuts.items() if start <= step < end]
        is_ramp = schedules.sparsity_at(start) != schedules.sparsity_at(end - 1)
        planned.append(
            PhasePlan(
                name, start, end, len(within), max(within, default=0.0), spent[name] / sum(spent.values()), is_ramp
            )
        )
    return planned


def _cuts(config: RunConfig) -> Iterator[tuple[int, float]]:
    """(step, the largest share of a layer's active weights that it drops) of every topology update."""
    drop_fraction = build_schedules(config).drop_fraction_at
    for stretch in stretches(config):
        if stretch.update:
            drop, after = drop_fraction(stretch.start), stretch.nnz_after
            cuts = (update_counts(nnz, after[name], drop)[0] / nnz for name, nnz in stretch.nnz.items() if nnz)
            yield stretch.start, max(cuts)


def _spans(starts: Sequence[tuple[int, str]], steps: int) -> list[tuple[int, int, str]]:
    """(first step, end, name) of what begins at each of `starts` and ends where the next begins."""
    ends = [*(start for start, _ in starts[1:]), steps]
    return [(start, end, name) for (start, name), end in zip(starts, ends) if start < min(end, steps)]


def snapshot_steps(config: RunConfig, schedules: Schedules | None = None) -> list[int]:
    """Steps after which the model is judged (`eval.at`), in order; the last one, where it is among them, is the end.

    Args:
        schedules: as they are by now; None: as they are before anything is decided. The ends of phases that start
            themselves are known when they are decided, and not among the steps before.
    """
    steps, moments = config.train.steps, config.eval.at
    starts = (schedules or build_schedules(config)).phases.starts if PHASES in moments else ()
    ends = {end for _, end, _ in _spans(starts, steps)}
    return sorted(ends | {max(1, round(moment * steps)) for moment in moments if isinstance(moment, float)})


def remarks(config: RunConfig) -> list[str]:
    """What a run will not do as one may think; the errors of `check_schedule`."""
    from replication.data.corpus import remarks as of_text  # imports `datasets`, a second

    return [*check_schedule(config), *(of_text(config.data) if config.data.source == "files" else ())]


def check_schedule(config: RunConfig) -> list[str]:
    """A run must train what its method's name says (ours).

    Returns:
        Lines on what it will not do although its schedule says so: a restoration without a topology update, or a ramp
        of the sparsity that has few.

    Raises:
        UserError: no topology update falls within training, or within a phase before the last that is to change the
            sparsity; or no weight of the blocks is left active.
    """
    config = fix_phases(config)
    algorithm = build_algorithm(config)
    updates = list(filter(algorithm.is_update, range(config.train.steps)))
    highest = max(map(algorithm.schedules.sparsity_at, [0, *updates]))
    nnz = algorithm.distribution(
        matrix_shapes(config) if config.method == "dense" else select_masked_shapes(config), highest
    )
    if not sum(count for name, count in nnz.items() if name != HEAD):
        key = "mst.ultra_sparsity" if config.method == "mst" else "sparsity.sparsity"
        raise UserError(
            f"{key} is {highest:g}, which leaves no weight of the blocks active; "
            "allowed: a lower one, or a larger model"
        )
    if not isinstance(algorithm, DynamicSparsityAlgorithm):
        return []
    return _check_updates(config, algorithm, updates) + _coarse_ramps(algorithm, updates, config.train.steps)


def _coarse_ramps(algorithm: SparsityAlgorithm, updates: list[int], steps: int) -> list[str]:
    """A line for each ramp of the sparsity that is a few jumps instead: what is then measured is the jumps (PAPER)."""
    sparsity, lines = algorithm.schedules.sparsity_at, []
    for start, end, name in _spans(algorithm.schedules.phases.starts, steps):
        num = sum(start <= step < end for step in updates)
        is_said = start > 0 and num == 0  # by `_check_updates`
        if sparsity(start) != sparsity(end - 1) and num < FEWEST_UPDATES and not is_said:
            lines.append(
                f"{name} (steps {start} to {end}) has {num} topology updates, fewer than {FEWEST_UPDATES}: "
                "its ramp of the sparsity is a few jumps"
            )
    return lines


def _check_updates(config: RunConfig, algorithm: SparsityAlgorithm, updates: list[int]) -> list[str]:
    sparsity, span = algorithm.schedules.sparsity_at, algorithm.schedules.updates
    within = (
        ""
        if (span.start, span.end) == (0, config.train.steps)
        else f", from sparsity.update_start_step {span.start} to sparsity.update_end_step {span.end}"
    )
    key = f"sparsity.update_freq is {span.freq}{within}"
    if not updates:
        raise UserError(
            f"{key}: no topology update falls within the {config.train.steps} steps, "
            f"and {config.method} would not evolve; allowed: an interval and a span of steps of which one does"
        )
    remarks, ramps = [], _ramps(config, algorithm.schedules)
    for start, end, name in ramps:
        before = sparsity(max((step for step in updates if step < start), default=0))
        if sparsity(end - 1) == before or any(start <= step < end for step in updates):
            continue
        stays = f"(steps {start} to {end}), which stays at sparsity {before:g}"
        problem = f"{key}: no topology update falls within {name} {stays}"
        if end < config.train.steps:
            shortest = min(end - start for start, end, _ in ramps)
            raise UserError(f"{problem}; allowed: an interval of which one does, such as {shortest}")
        remarks.append(problem)
    return remarks


def _ramps(config: RunConfig, schedules: Schedules) -> list[tuple[int, int, str]]:
    """(first step, end, name) of the ramps in which the sparsity is to change."""
    steps, sparsity = config.train.steps, schedules.sparsity
    starts = schedules.phases.starts
    if isinstance(sparsity, StepSparsity):
        starts = tuple((step, f"the stretch of mst.sparsity_steps from {step}") for step, _ in sparsity.pairs)
    ramps = _spans(starts, steps)
    if len(ramps) > 1 and sparsity.sparsity(ramps[1][0]) == sparsity.sparsity(ramps[1][1] - 1):
        return ramps[1:]  # a ramp may end in the first update of the plateau after it
    return ramps


def render(config: RunConfig, name: str) -> str:
    """For the terminal: the ledger under every convention, and what each phase does."""
    lines = []
    if trigger := build_trigger(config):
        config, last = (trigger.phases_from(step) for step in (trigger.earliest, trigger.latest))
        lines = [_within(trigger, config, last)]
    ledger = plan(config)
    lines += [
        f"{name}: {ledger['steps']} steps, {ledger['tokens']:,} tokens, mean sparsity {ledger['mean_sparsity']:.4f}",
        f"{'convention':<22}{'dense FLOPs':>14}{'FLOPs':>14}{'dense ÷ method':>16}",
    ]
    for convention, flops in ledger["conventions"].items():
        counts = f"{flops['dense_flops']:>14.4g}{flops['flops']:>14.4g}{flops['reduction']:>15.2f}×"
        lines.append(f"{convention:<22}{counts}")
    lines.append(f"{'phase':<22}{'steps':>18}{'updates':>9}{'largest cut':>13}{'of FLOPs':>10}")
    for phase in plan_phases(config):
        steps = f"{phase.start} to {phase.end}"
        cells = f"{phase.num_updates:>9}{phase.largest_cut:>13.1%}{phase.flops_share:>10.1%}"
        lines.append(f"{phase.name:<22}{steps:>18}{cells}")
    return "\n".join(lines)


def _within(trigger: PhaseTrigger, *decided: RunConfig) -> str:
    """The bounds of phases that start themselves, at the earliest and at the latest."""
    first, last = (round(config.mst.restoration_start * trigger.steps) for config in decided)
    return (
        f"mst.phases is auto: warm-up's ramp begins after {trigger.earliest} to {trigger.latest} steps, restoration "
        f"after {first} to {last}; what follows is of the first"
    )
