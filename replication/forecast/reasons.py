"""Why a configuration is suggested: a sentence with numbers, of logged pairs, the law, or the plan of its phases."""

from typing import Any

import numpy as np

from replication.config.profiles import load_profile
from replication.config.run_config import RunConfig
from replication.flops.plan import check_schedule, plan_phases
from replication.forecast.logged import Logged, Record

EXECUTION = ("train.precision", "train.kernels", "sparsity.block_shape")  # what changes how fast a step is


def explain_logged(arm: str, logged: Logged) -> str:
    """Of an arm that was trained: which one did better for less; else how it did beside what it is a variant of, or
    beside dense."""
    config, (base, own) = logged.records[arm].config, _variation(arm, logged.profile)
    parts = [f"varies {base} by {_list(own)}"] if own else []
    parts.append(
        _better_for_less(arm, logged)
        or _beside(arm, base or "dense", logged)
        or f"trained with {_seeds(len(logged.records[arm].losses))}, and no arm here to compare it with"
    )
    return "; ".join([*parts, *explain_plan(config)])


def explain_predicted(arm: str, config: RunConfig, ratio: float, difference: float) -> str:
    """Of an arm with changes: what a law says of them.

    Args:
        ratio: its FLOPs ÷ the arm's.
        difference: its loss minus the arm's, both by the law, nats.
    """
    parts = [f"not trained: {ratio:.2f} of the FLOPs of {arm}, for which the law expects {difference:+.3f} nats"]
    if config.train.steps_fraction < 1:
        parts.append(f"its learning rate, {config.train.learning_rate:g}, is that of the whole length")
    return "; ".join([*parts, *explain_plan(config)])


def explain_plan(config: RunConfig) -> list[str]:
    """The phase of MST that costs most beyond its share of the steps, and what its schedule will not do although it
    says so."""
    if config.method != "mst":
        return []
    length = {phase.name: (phase.end - phase.start) / config.train.steps for phase in plan_phases(config)}
    dear = max(plan_phases(config), key=lambda phase: phase.flops_share - length[phase.name])
    share = f"{dear.flops_share:.0%} of its planned FLOPs are {dear.name}, in {length[dear.name]:.0%} of the steps"
    return [share, *check_schedule(config)]


def execution(logged: Logged) -> list[str]:
    """A line for each logged pair of arms that differ in how a step is executed: its time and loss beside the
    other's."""
    lines = []
    for arm in logged.records:
        base, own = _variation(arm, logged.profile)
        if not (own and own.keys() <= set(EXECUTION) and base in logged.records):
            continue
        records = [logged.records[name] for name in (arm, base)]
        shared = sorted(records[0].losses.keys() & records[1].losses.keys())
        where = {_where(record, seed) for record in records for seed in shared}
        if len(where) != 1 or not logged.compares(arm, base):
            continue
        mine, others = (np.mean([record.statuses[seed]["seconds"] for seed in shared]) for record in records)
        gap = f"{logged.gaps(arm, base).mean():+.3f} nats beside it"
        lines.append(f"{_list(own)}: {others / mine:.2f}× as fast as {base} and {gap}, in {_seeds(len(shared))}.")
    return lines


def _where(record: Record, seed: int) -> tuple[object, ...]:
    return tuple(record.environments[seed].get(key) for key in ("processor", "threads", "device"))


def _better_for_less(arm: str, logged: Logged) -> str:
    """The arm that ended lowest of those that cost no more, and ended lower in every seed that both have."""
    cost = logged.cost(arm)
    cheaper = {
        other: logged.gaps(other, arm) for other in logged.records if other != arm and logged.cost(other) <= cost
    }
    lower = {other: gaps for other, gaps in cheaper.items() if len(gaps) and (gaps < 0).all()}
    for other in sorted(lower, key=lambda other: lower[other].mean()):
        if logged.compares(arm, other):
            num = len(lower[other])
            return (
                f"{other} costs {logged.cost(other) / cost:.2f} of it, and ended {-lower[other].mean():.3f} nats lower "
                f"in {num} of {_seeds(num)}"
            )
    return ""


def _beside(arm: str, other: str, logged: Logged) -> str:
    if other not in logged.records or other == arm or not logged.compares(arm, other):
        return ""
    gaps = logged.gaps(arm, other)
    if not len(gaps):
        return ""
    agree, side = int((np.sign(gaps) == np.sign(gaps.mean())).sum()), "lower" if gaps.mean() < 0 else "higher"
    return (
        f"ended {abs(gaps.mean()):.3f} nats {side} than {other} in {agree} of {_seeds(len(gaps))}, "
        f"at {logged.cost(arm) / logged.cost(other):.2f} of its FLOPs"
    )


def _variation(arm: str, profile: str) -> tuple[str, dict[str, Any]]:
    """The arm that this one is a variant of, and by what; nothing for an arm of its own."""
    values = load_profile(profile)
    changes = (values["arms"] | values["ablations"]).get(arm, {})
    own = {key: value for key, value in changes.items() if key != "like"}
    return (changes["like"], own) if "like" in changes else ("", {})


def _list(changes: dict[str, Any]) -> str:
    """As they are given to `--set`."""
    said = {key: str(value).lower() if isinstance(value, bool) else value for key, value in changes.items()}
    return ", ".join(f"{key}={value}" for key, value in said.items())


def _seeds(num: int) -> str:
    return f"{num} seed" if num == 1 else f"{num} seeds"
