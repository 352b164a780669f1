"""Time as it was measured, beside FLOPs as they are counted: how much sooner than dense an arm was trained."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from replication.analysis.comparable import differences, facts_of
from replication.runs.folder import RunFolder

MACHINE = ("processor", "device", "processes", "threads", "versions")
USED = {"cpu_seconds": ("CPU s", "{:.0f}"), "joules": ("kJ", "{:.2f}"), "mfu": ("MFU", "{:.1%}")}  # how they are shown
USED_TEXT = (
    "\nCPU s and kJ are of the whole run, evaluation and saving included (kJ: as `resources.json` says, measured, or "
    "estimated from CPU s);\nof several processes, the first one's. MFU is FLOPs (head counted, causal) ÷ (seconds of "
    "the steps × the measured peak of a\ndense product × processes)."
)
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


def read_used(runs: list[RunFolder]) -> dict[str, list[float]]:
    """CPU seconds, joules (measured or estimated, as each run says), and MFU of the whole run: one of each for every
    run, none where a run is from before they were kept."""
    kept = [run.resources() for run in runs]
    if not all(kept):
        return {}
    phases = [list(resources["phases"].values()) for resources in kept]
    sums = {key: [sum(phase[key] for phase in own) for own in phases] for key in ("cpu_seconds", "joules")}
    return sums | {"mfu": [resources["mfu"] for resources in kept]}


def explain_clock(table: pd.DataFrame) -> str:
    """What the columns of time are."""
    text = (
        "Time, as the clock measured it: seconds and tokens/s of training alone, without evaluation and saving "
        "(means); × is dense ÷ method in\n"
        "seconds, against dense in the same precision and against the fastest dense, on the same machine and threads; "
        "× FLOPs is something else.\n"
        "Kernels: `masked` multiplies masked matrices densely, `auto` at their active weights alone wherever that is "
        "faster; – is from before\n"
        "there was a choice."
    )
    return text + (USED_TEXT if name_columns(table) else "")


def name_columns(table: pd.DataFrame) -> dict[str, list[str]]:
    """Those of `read_used`, for reading, where the table has any."""
    scale = {"joules": 1e-3}
    return {
        title: ["–" if pd.isna(value) else form.format(value * scale.get(key, 1)) for value in table[f"{key}_mean"]]
        for key, (title, form) in USED.items()
        if f"{key}_mean" in table and table[f"{key}_mean"].notna().any()
    }


def _facts(runs: list[RunFolder]) -> tuple[list, str, float] | None:
    """(machine, precision, mean seconds), of runs that agree on the first two."""
    environments = [run.environment() for run in runs]
    machine, *others = [
        [environment.get(key) for key in (*MACHINE, "precision")] + ["kernels" in environment]
        for environment in environments
    ]
    if any(other != machine for other in others) or not all(environments) or any(map(_has_moved, environments)):
        return None
    *place, precision, has_kernels = machine
    return [*place, has_kernels], precision, float(np.mean([run.status()["seconds"] for run in runs]))


def _has_moved(environment: Mapping[str, object]) -> bool:
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
