"""What of a metric is worse, better or the same, between the arms of two sets of runs, at one false-alarm rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from replication.analysis.sides import LOSS, MEMORY, SPEED, Measured
from replication.analysis.statistics import Noise, holm, p_beyond, pool_noise
from replication.analysis.tables import BITS
from replication.flops.ledger import CONVENTIONS

ALPHA = 0.01  # false alarms of a whole comparison, for "worse" and for "better" each (ours)
MARGIN = math.log(1.1)  # by which speed and memory must differ: what a machine's other work may change (ours)
WORSE, BETTER, SAME, NOT_JUDGED = "worse", "better", "same", "not judged"
FLOPS, ALL = "FLOPs", "all arms"
MACHINE = ("processor", "threads", "device", "processes")  # that speed and memory depend on

Seeds = Mapping[int, Measured]
Arms = Mapping[str, tuple[Seeds, Seeds]]  # the reference's and the new runs of each arm


@dataclass(frozen=True)
class Row:
    """A metric of an arm, or of all arms together.

    Attributes:
        reference, new: means over the arm's runs (geometric, of what is compared as a ratio).
        change: new minus reference; as a share of it for FLOPs, perplexities, speed and memory.
        p: that chance alone does this or more in this direction, Holm-corrected over all tests; None: no test.
        why: what differs exactly, or why it is not judged.
    """

    metric: str
    arm: str
    verdict: str = ""
    reference: float | None = None
    new: float | None = None
    change: float | None = None
    p: float | None = None
    why: str = ""


@dataclass(frozen=True)
class _Effect:
    """An arm's change in a metric on the scale on which it is tested, above 0 where it is worse; and by what a value's
    variance counts in it."""

    row: Row
    worse_by: float
    weight: float


def judge(arms: Arms, unmatched: Mapping[str, Seeds]) -> tuple[list[Row], int]:
    """Every metric of every arm, and of all arms together, but for FLOPs.

    Args:
        unmatched: arms of the reference that the new side lacks: their seeds' spread counts.

    Returns:
        Rows; and the number of tests, over which the rate holds.
    """
    rows: list[Row] = []
    tests: list[tuple[int, float, float]] = []  # place in rows, p of worse, p of better
    for metric in _metrics(arms):
        noise, tested = _noise(metric, arms, unmatched), {}
        for arm, sides in arms.items():
            effect = _effect(metric, arm, *sides)
            if isinstance(effect, _Effect) and arm in noise:
                tested[arm] = effect
                tests.append((len(rows), *_p_values([effect], [noise[arm]])))
            if isinstance(effect, _Effect):
                effect = effect.row if arm in noise else _without_noise(effect.row)
            rows += [effect] if effect else []
        if len(tested) > 1:
            tests.append((len(rows), *_p_values(list(tested.values()), [noise[arm] for arm in tested])))
            rows.append(_together([effect.row for effect in tested.values()]))
    worse, better = (holm([test[column] for test in tests]) for column in (1, 2))
    for (place, *_), p_worse, p_better in zip(tests, worse, better):
        verdict = WORSE if p_worse < ALPHA else BETTER if p_better < ALPHA else SAME
        rows[place] = replace(rows[place], verdict=verdict, p=min(p_worse, p_better))
    return rows, len(tests)


def flops_row(arm: str, ours: Seeds, theirs: Seeds) -> Row | None:
    """Every count of every run, exactly; None where a side has none.

    Conventions decide; a component alone where they all agree.
    """
    if not all(run.flops for run in (*ours.values(), *theirs.values())):
        return None
    changes = [
        (b.name, name, change)
        for a, b in _pair(ours, theirs)
        for name in a.flops.keys() & b.flops.keys()
        if (change := b.flops[name] - a.flops[name])
    ]
    changes.sort(key=lambda item: (item[1] not in CONVENTIONS, -abs(item[2]), item[:2]))
    decide = [change for _, name, change in changes if name in CONVENTIONS] or [change for *_, change in changes]
    verdict = WORSE if any(change > 0 for change in decide) else BETTER if decide else SAME
    means = [float(np.mean([run.flops["head_counted_full"] for run in side.values()])) for side in (ours, theirs)]
    why = "".join(f"{run}: {name} {change:+,}" for run, name, change in changes[:1])
    why += f", and {len(changes) - 1} more" if len(changes) > 1 else ""
    return Row(FLOPS, arm, verdict, *means, means[1] / means[0] - 1, why=why)


def is_ratio(metric: str) -> bool:
    """Is it compared as a share of the reference, that is by its logarithm?"""
    return metric in (SPEED, MEMORY) or metric.endswith("perplexity")


def _metrics(arms: Arms) -> list[str]:
    """Loss first, then scores, speed and memory at the end.

    Perplexities are left out where bits per byte say the same of their task: one number in several units is one test.
    """
    runs = [run for sides in arms.values() for side in sides for run in side.values()]
    repeated = {
        name
        for name in {name for run in runs for name in run.values if name.endswith("perplexity")}
        if all(f"{name.partition('/')[0]}/{BITS}" in run.values for run in runs if name in run.values)
    }
    ends = {LOSS: -1, SPEED: 1, MEMORY: 2}
    names = {name for run in runs for name in run.values} - repeated
    return sorted(names, key=lambda name: (ends.get(name, 0), name))


def _effect(metric: str, arm: str, ours: Seeds, theirs: Seeds) -> _Effect | Row | None:
    """What is to be tested; or what needs no test; or nothing, where no run has the metric."""
    ours, theirs = ({seed: run for seed, run in side.items() if metric in run.values} for side in (ours, theirs))
    if not ours and not theirs:
        return None
    if reason := _not_comparable(metric, [*ours.values()], [*theirs.values()]):
        return Row(metric, arm, NOT_JUDGED, why=reason)
    if not all(math.isfinite(_scale(metric, run)) for run in ours.values()):
        return Row(metric, arm, NOT_JUDGED, why="a value of the reference is not finite")
    if not all(math.isfinite(_scale(metric, run)) for run in theirs.values()):
        return Row(metric, arm, WORSE, why="a value is not finite")
    return _change(Row(metric, arm), ours, theirs)


def _change(row: Row, ours: Seeds, theirs: Seeds) -> _Effect | Row:
    """The same of runs whose values are there and compare."""
    metric, again = row.metric, theirs.keys() <= ours.keys()
    identical = again and all(run.values[metric] == ours[seed].values[metric] for seed, run in theirs.items())
    repeated = again and metric not in (SPEED, MEMORY)
    repeated = repeated and all(_is_repetition(ours[seed], run) for seed, run in theirs.items())
    if repeated or identical:
        ours = {seed: ours[seed] for seed in theirs}
    before, after = ([_scale(metric, run) for run in side.values()] for side in (ours, theirs))
    change, weight = float(np.mean(after) - np.mean(before)), 1 / len(before) + 1 / len(after)
    if metric in (SPEED, MEMORY):
        ratios = _log_ratios(metric, ours, theirs)
        change, weight = float(np.mean(ratios)), 1 / len(ratios)
    means = [float(np.exp(np.mean(side)) if is_ratio(metric) else np.mean(side)) for side in (before, after)]
    row = replace(row, reference=means[0], new=means[1], change=math.expm1(change) if is_ratio(metric) else change)
    if identical:
        return replace(row, verdict=SAME, why="identical")
    sign = -1.0 if any(metric in run.higher for run in theirs.values()) else 1.0
    return _judge_repetition(row, sign, ours, theirs) if repeated else _Effect(row, sign * change, weight)


def _judge_repetition(row: Row, sign: float, ours: Seeds, theirs: Seeds) -> Row:
    """Of runs that differ in nothing from the reference's of their seeds, and so must have its very values."""
    changes = {run.name: run.values[row.metric] - ours[seed].values[row.metric] for seed, run in theirs.items()}
    name, change = max(changes.items(), key=lambda item: abs(item[1]))
    verdict = WORSE if any(sign * change > 0 for change in changes.values()) else BETTER
    return replace(row, verdict=verdict, why=f"no repetition: {name} {change:+.3g}, where nothing else differs")


def _without_noise(row: Row) -> Row:
    if row.change == 0:
        return replace(row, verdict=SAME)
    return replace(row, verdict=NOT_JUDGED, why="too few seeds, or values, to know their spread")


def _together(rows: Sequence[Row]) -> Row:
    metric, changes = rows[0].metric, [row.change or 0.0 for row in rows]
    mean = math.expm1(np.mean(np.log1p(changes))) if is_ratio(metric) else float(np.mean(changes))
    return Row(metric, f"{ALL} ({len(rows)})", change=float(mean))


def _p_values(effects: Sequence[_Effect], noise: Sequence[Noise]) -> tuple[float, float]:
    """Of worse, and of better."""
    margin = MARGIN if effects[0].row.metric in (SPEED, MEMORY) else 0.0
    mean, weights = float(np.mean([effect.worse_by for effect in effects])), [effect.weight for effect in effects]
    return p_beyond(mean, noise, weights, margin), p_beyond(-mean, noise, weights, margin)


def _noise(metric: str, arms: Arms, unmatched: Mapping[str, Seeds]) -> dict[str, Noise]:
    """By arm. Of losses and scores: of the reference's seeds. Of speed and memory: of the ratios of runs, as the new
    machine may be as unquiet as the old one. `{}`: it cannot be told."""
    if metric in (SPEED, MEMORY):
        samples = {arm: _log_ratios(metric, *sides) for arm, sides in arms.items()}
        return pool_noise({arm: ratios for arm, ratios in samples.items() if ratios})
    groups = {**unmatched, **{arm: ours for arm, (ours, _) in arms.items()}}
    values = {
        arm: [_scale(metric, run) for run in seeds.values() if metric in run.values] for arm, seeds in groups.items()
    }
    values = {arm: own for arm, own in values.items() if own and np.all(np.isfinite(own))}
    if len({value for own in values.values() for value in own}) < 3:  # one answer right, or none: no spread to go by
        return {}
    noise = pool_noise(values)
    return noise if any(one.variance for one in noise.values()) else {}


def _pair(ours: Seeds, theirs: Seeds) -> list[tuple[Measured, Measured]]:
    """The runs of the seeds in common; where there are none, by their order."""
    common = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    return common or list(zip(ours.values(), theirs.values()))


def _log_ratios(metric: str, ours: Seeds, theirs: Seeds) -> list[float]:
    """New ÷ reference of each pair that has both, on a machine that may be compared."""
    pairs = [pair for pair in _pair(ours, theirs) if all(metric in run.values for run in pair)]
    if _not_comparable(metric, [a for a, _ in pairs], [b for _, b in pairs]):
        return []
    ratios = [_scale(metric, b) - _scale(metric, a) for a, b in pairs]
    return [ratio for ratio in ratios if math.isfinite(ratio)]


def _scale(metric: str, run: Measured) -> float:
    value = run.values[metric]
    return (math.log(value) if value > 0 else math.nan) if is_ratio(metric) else value


def _not_comparable(metric: str, ours: Sequence[Measured], theirs: Sequence[Measured]) -> str:
    """Why the values of an arm's runs are none of one thing; empty: they are."""
    if not ours or not theirs:
        return f"{'the new side' if ours else 'the reference'} lacks it"
    runs = [*ours, *theirs]
    if metric in (SPEED, MEMORY):
        differing = [key for key in MACHINE if len({str(run.environment.get(key)) for run in runs}) > 1]
        return f"another machine: {', '.join(differing)}" if differing else ""
    if metric == LOSS:
        texts = {run.environment.get("shards", {}).get("validation") for run in runs}
        parts = {run.environment.get("final_loss_over") for run in runs}
        return "other validation text" if len(texts) > 1 else "over another part of the text" if len(parts) > 1 else ""
    sets = {run.evaluation_sets.get(metric.partition("/")[0]) for run in runs} - {None}
    return "other evaluation set" if len(sets) > 1 else ""


def _is_repetition(ours: Measured, theirs: Measured) -> bool:
    """Is one run the other once more: settings, text, machine, versions and commit?"""
    commit = str(ours.environment.get("git") or "dirty")
    same = ours.settings == theirs.settings and ours.environment == theirs.environment
    return same and not commit.endswith("dirty")
