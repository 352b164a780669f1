"""What to train next: configurations within a budget, or that reach a loss, by what the logged runs say of each."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from replication.config.keys import check_known
from replication.config.run_config import RunConfig, build_config
from replication.flops.ledger import COSTS
from replication.flops.plan import check_schedule, plan
from replication.flops.solver import solve
from replication.forecast import loss_model, reasons
from replication.forecast.logged import Logged, groups, size
from replication.forecast.loss_model import OUTSIDE, SAME, LossModel, Prediction, fit_model
from replication.forecast.predict import load_calibration, predict
from replication.runs.finding import choose_results, sort_out_runs
from replication.system.errors import UserError
from replication.system.machine import cores, machine, processor

SHOWN = 10  # suggestions
OVER = 1.01  # how far one may be above the budget, as a factor (ours)
RUNGS = 5  # budgets that are looked at for a loss, between the cheapest and the dearest logged run (ours)
HELD = ("warmup_end", "restoration_end", "final_sparsity")  # of MST, where another is solved for

Changes = dict[str, Any]  # dotted key -> value
Seconds = tuple[float, float, float]  # expected, lowest, highest


@dataclass(frozen=True)
class Clock:
    """Tells the seconds of a configuration's training here, None where it cannot; `source`: by what, in a sentence."""

    seconds: Callable[[RunConfig], Seconds | None]
    source: str


@dataclass(frozen=True)
class Suggestion:
    """A configuration, and what is to be expected of it.

    Attributes:
        arm: of the profile, that it is or is made from.
        changes: what it sets otherwise than the arm.
        config: whole.
        size: N and D, as of `logged.size`.
        expected: final validation loss.
        seeds: that it was trained with; 0: a law says what is expected.
        flops: under the convention that was asked for.
        seconds: of one run, on this processor; None: not known.
        reason: in a sentence.
    """

    arm: str
    changes: Changes
    config: RunConfig
    size: tuple[float, int]
    expected: Prediction
    seeds: int
    flops: int
    seconds: Seconds | None
    reason: str = ""


@dataclass(frozen=True)
class Suggestions:
    """What was asked, and found, in an order; and lines on how it was found."""

    asked: str
    order: str
    convention: str
    found: list[Suggestion]
    remarks: list[str]


def suggest(
    profile: str,
    results: Path | None = None,
    budget: float | None = None,
    hours: float | None = None,
    loss: float | None = None,
    convention: str = "head_counted_full",
) -> Suggestions:
    """Configurations within a budget in FLOPs or hours, or that reach a loss; one of the three is given.

    Ranked by the upper end of the loss's interval, so that what was measured comes before what might be; those that
    reach a loss by FLOPs.

    Args:
        results: whose logged runs are read; None: a user's own where Table 1 is complete, else the committed ones.
        budget: training FLOPs of a run, under `convention`.
        hours: of a run's training, on this processor.
        loss: validation loss, nats per token, that the interval is to lie below.

    Raises:
        UserError: the logged runs do not say enough: too few arms, a law that misses those left out, a budget or loss
            outside theirs, a time that is not known here; runs of different texts.
    """
    check_known("--convention", convention, list(COSTS))
    for option, value in (("--budget", budget), ("--hours", hours), ("--loss", loss)):
        if value is not None and not (value > 0 and np.isfinite(value)):
            raise UserError(f"{option} is {value:g}; allowed: above 0")
    folder, which = choose_results(results, profile)
    runs, damaged = sort_out_runs(folder, profile)
    logged = Logged(profile, runs, convention)
    search = _Search(logged, fit_model(logged.arms()), read_calibrated_clock() or read_logged_clock(logged))
    if budget is not None:
        found, asked = search.within_flops(budget), f"at most {budget:.3g} FLOPs"
    elif hours is not None:
        found, asked = search.within_hours(hours), f"at most {hours:g} h of training"
    else:
        found, asked = search.reaching(loss or 0.0), f"a loss of {loss:g} or less"
    if not found:
        raise UserError(f"no configuration is known or expected to have {asked}; allowed: {search.possible()}")
    shown = [dataclasses.replace(one, reason=search.reason(one)) for one in found[:SHOWN]]
    remarks = [which, *(f"Left out: {problem}" for problem in damaged), *search.remarks(len(found) - len(shown))]
    order = "lowest upper end of the loss" if loss is None else "cheapest"
    return Suggestions(asked, order, convention, shown, remarks)


def read_calibrated_clock() -> Clock | None:
    """By this machine's calibration; None without one."""
    here = machine()
    calibration = load_calibration(here)
    if calibration is None:
        return None

    def seconds(config: RunConfig) -> Seconds:
        known = predict(config, calibration)
        return known.seconds, known.low, known.high

    by = f"by this machine's calibration, with {here['threads']} thread(s){calibration.caution}"
    return Clock(seconds, f"Seconds: {by}.")


def read_logged_clock(logged: Logged) -> Clock:
    """At the tokens per second of the nearest logged run on this processor: of the same method, precision, kernels and
    shape, as far as there is one, and of those the nearest in active weights; lowest and highest are by that arm's
    seeds."""
    here = processor()
    records = [
        record
        for record in logged.records.values()
        if all(environment.get("processor") == here for environment in record.environments.values())
    ]

    def seconds(config: RunConfig) -> Seconds | None:
        if not records:
            return None
        weights, tokens = size(plan(config))
        nearest = min(
            records, key=lambda record: (_differ(record.config, config), abs(np.log(record.size[0] / weights)))
        )
        rates = [status["tokens_per_second"] for status in nearest.statuses.values()]
        return tokens / float(np.mean(rates)), tokens / max(rates), tokens / min(rates)

    return Clock(seconds, "Seconds: at the tokens per second of the nearest logged run on this processor.")


def apply_changes(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """A configuration with some dotted keys set; a shape that is changed goes on being compared with its own.

    Raises:
        UserError: a value that is out of range.
    """
    values = config.to_dict()
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (values[section] if section else values)[name] = value
    made = build_config(values)
    return made if made.model == config.model else dataclasses.replace(made, reference=config.reference or config.model)


class _Search:
    """Candidates: logged arms as they are; and, made from them, other sparsities, phases, widths and lengths."""

    def __init__(self, logged: Logged, model: LossModel, clock: Clock) -> None:
        self.logged, self.model, self.clock = logged, model, clock
        self.outside = 0  # candidates that the logged runs say nothing of

    def within_flops(self, budget: float) -> list[Suggestion]:
        costs = [self.logged.cost(arm) for arm in self.logged.records]
        if not loss_model.within(budget, costs, OUTSIDE):
            raise UserError(
                f"--budget is {budget:.3g} FLOPs, where the logged runs of {self.logged.profile} cost {min(costs):.3g} "
                f"to {max(costs):.3g}; allowed: these, or beyond by a factor of {OUTSIDE:g} at most"
            )
        return sorted(self._affordable(budget), key=lambda one: one.expected.high)

    def within_hours(self, hours: float) -> list[Suggestion]:
        if all(one.seconds is None for one in self.trained):
            raise UserError(
                f"--hours is {hours:g}, and no logged run is of this processor ({processor()}); "
                "allowed: after `plan machine`, --budget FLOPs, or --results with runs of this machine"
            )
        limit = 3600 * hours
        found = [one for one in self.trained if one.seconds and one.seconds[0] <= limit]
        for one in self._origins():
            if one.seconds and one.seconds[0] > limit:
                found += self._predicted(one, _shorter(one.config, limit / one.seconds[0]), found)
        return sorted(found, key=lambda one: one.expected.high)

    def reaching(self, loss: float) -> list[Suggestion]:
        costs = [self.logged.cost(arm) for arm in self.logged.records]
        found: list[Suggestion] = []
        for budget in np.geomspace(min(costs), max(costs), RUNGS):
            fit = [one for one in self._affordable(budget) if one.expected.high <= loss]
            found += [one for one in fit if one not in found]
        return sorted(found, key=lambda one: one.flops)

    def possible(self) -> str:
        """For who asked for too much."""
        best = min(self.trained, key=lambda one: one.expected.high)
        cheapest = min(self.trained, key=lambda one: one.flops)
        return f"a loss from {best.expected.high:.3f} on ({best.arm}), or {cheapest.flops:.3g} FLOPs ({cheapest.arm})"

    def reason(self, one: Suggestion) -> str:
        if one.seeds:
            return reasons.explain_logged(one.arm, self.logged)
        origin = self.logged.records[one.arm]
        before = self.model.predict(*origin.size, groups(origin.config))
        ratio = one.flops / self.logged.cost(one.arm)
        return reasons.explain_predicted(one.arm, one.config, ratio, one.expected.loss - before.loss)

    def remarks(self, num_more: int) -> list[str]:
        """On what is not listed, the law, execution and time."""
        lines = [f"{num_more} more are not listed."] if num_more else []
        if self.outside:
            lines.append(f"{self.outside} candidates lie farther beyond the logged runs than {OUTSIDE:g}×: left out.")
        lines += [*self.model.remarks(), *reasons.execution(self.logged)]
        environments = [one for record in self.logged.records.values() for one in record.environments.values()]
        threads = {environment.get("threads") for environment in environments}
        if len(threads) == 1 and (num := threads.pop()) and cores() > num:
            fit = cores() // num
            lines.append(
                f"Every logged run had {num} thread(s); {fit} such runs fit the {cores()} cores: --jobs {fit}."
            )
        if all(one.seconds is None for one in self.trained):
            lines.append(
                f"Time is not known: no logged run is of this processor ({processor()}), which `plan machine` measures."
            )
        else:
            lines.append(self.clock.source)
        return lines

    @cached_property
    def trained(self) -> list[Suggestion]:
        """Every logged arm."""
        found = []
        for arm, record in self.logged.records.items():
            expected = self.model.measured(tuple(record.losses.values()))
            cost, seconds = self.logged.cost(arm), self.clock.seconds(record.config)
            found.append(Suggestion(arm, {}, record.config, record.size, expected, len(record.losses), cost, seconds))
        return found

    def _affordable(self, budget: float) -> list[Suggestion]:
        found = [one for one in self.trained if one.flops <= budget * OVER]
        for one in self._origins():
            for changes in self._changes(one, budget):
                found += [new for new in self._predicted(one, changes, found) if new.flops <= budget * OVER]
        return found

    def _origins(self) -> list[Suggestion]:
        """From which others are made: own arms of the whole length."""
        own = self.logged.own_arms
        return [one for one in self.trained if one.arm in own and one.config.train.steps_fraction == 1]

    def _predicted(self, origin: Suggestion, changes: Changes, known: Iterable[Suggestion]) -> list[Suggestion]:
        """An arm with changes: one suggestion; none where it cannot be trained, lies outside, or is known already."""
        try:
            config = apply_changes(origin.config, changes)
            check_schedule(config)
        except UserError:
            return []
        flops = plan(config)
        sizes, own = size(flops), groups(config)
        alike = (one for one in known if groups(one.config) == own)
        if any(all(loss_model.within(a, [b], SAME) for a, b in zip(one.size, sizes)) for one in alike):
            return []
        if not self.model.covers(*sizes):
            self.outside += 1
            return []
        expected, cost = self.model.predict(*sizes, own), flops["conventions"][self.logged.convention]["flops"]
        return [Suggestion(origin.arm, changes, config, sizes, expected, 0, cost, self.clock.seconds(config))]

    def _changes(self, origin: Suggestion, budget: float) -> Iterator[Changes]:
        """What brings an arm to the budget: its sparsity or its width; and fewer steps."""
        config, convention = origin.config, self.logged.convention
        if config.method != "dense":
            section = "mst" if config.method == "mst" else "sparsity"
            fixed = {name: getattr(config.mst, name) for name in HELD} if section == "mst" else {}
            dense = self.logged.records[origin.arm].flops["conventions"][convention]["dense_flops"]
            with suppress(UserError):  # none reaches it
                for solution in solve(config, dense / budget, convention, fixed).solutions:
                    yield {f"{section}.{name}": solution.values[name] for name in solution.varied}
        elif origin.flops > budget:
            heads = config.model.n_head
            for width in range(config.model.n_embd - heads, 0, -heads):
                narrow = plan(apply_changes(config, {"model.n_embd": width}))
                if narrow["conventions"][convention]["flops"] <= budget:
                    yield {"model.n_embd": width}
                    break
        if origin.flops > budget:
            yield _shorter(config, budget / origin.flops)


def _shorter(config: RunConfig, share: float) -> Changes:
    """Fewer steps, and a warm-up of the learning rate that is shorter by as much."""
    share = int(share * 1000) / 1000
    return {"train.steps_fraction": share, "train.warmup_steps": int(config.train.warmup_steps * share)}


def _differ(one: RunConfig, other: RunConfig) -> int:
    """In how much of what decides the speed of a step."""
    pairs: list[tuple[Any, Any]] = [(one.method, other.method), (one.model, other.model)]
    pairs += [(getattr(one.train, key), getattr(other.train, key)) for key in ("precision", "kernels", "batch_size")]
    return sum(ours != theirs for ours, theirs in pairs)
