"""Time as it was measured, beside FLOPs as they are counted: how much sooner than dense an arm was trained."""

from collections.abc import Mapping

import numpy as np

from replication.analysis.comparable import differences, facts_of
from replication.runs import RunFolder

MACHINE = ("processor", "device", "processes", "threads", "versions")
SAME, BEST = "× dense, same precision", "× best dense"


def speedups(arms: Mapping[str, list[RunFolder]]) -> dict[str, dict[str, float | None]]:
    """Arm -> seconds of a dense run ÷ seconds of the arm's, means over seeds.

    Of dense in the same precision, and of the fastest dense. Dense runs are those of the whole training, as the ledger
    has it, on the arm's own machine, versions and number of threads, both from before there were kernels or both from
    after; None where there is none, where the arm's runs differ in these or went on under other ones, or where the
    arms do not compare.
    """
    facts = {arm: _facts(runs) for arm, runs in arms.items()}
    dense = [arm for arm, runs in arms.items() if _is_whole_dense(runs[0]) and facts[arm]]
    settings = {arm: facts_of(runs[0]) for arm, runs in arms.items()}
    rivals = {arm: [facts[name] for name in dense if not differences(settings[name], settings[arm])] for arm in arms}
    return {arm: _ratios(facts[arm], rivals[arm]) for arm in arms}


def _facts(runs: list[RunFolder]) -> tuple[list, str, float] | None:
    """(machine, precision, mean seconds), of runs that agree on the first two."""
    environments = [run.environment() for run in runs]
    machine, *others = [
        [environment.get(key) for key in (*MACHINE, "precision")] + ["kernels" in environment]
        for environment in environments
    ]
    if any(other != machine for other in others) or not all(environments) or any(map(_moved, environments)):
        return None
    *place, precision, has_kernels = machine
    return [*place, has_kernels], precision, float(np.mean([run.status()["seconds"] for run in runs]))


def _moved(environment: Mapping[str, object]) -> bool:
    """Did the run go on on another machine, or with other threads or versions, than it began with?"""
    return any(key in record for record in environment.get("resumed", []) for key in (*MACHINE, "kernels"))


def _is_whole_dense(run: RunFolder) -> bool:
    return run.config()["method"] == "dense" and all(
        count["reduction"] == 1 for count in run.flops()["conventions"].values()
    )


def _ratios(own: tuple[list, str, float] | None, dense: list[tuple[list, str, float]]) -> dict[str, float | None]:
    if own is None:
        return {SAME: None, BEST: None}
    machine, precision, seconds = own
    there = [facts for facts in dense if facts[0] == machine]
    same = [facts[2] for facts in there if facts[1] == precision]
    every = [facts[2] for facts in there]
    return {SAME: min(same) / seconds if same else None, BEST: min(every) / seconds if every else None}
