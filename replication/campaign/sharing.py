"""How the cores are shared out among many runs: how many at a time, and with how many threads each. Source: ours."""

import heapq
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from replication.config.run_config import RunConfig
from replication.forecast.predict import load_calibration, predict
from replication.system.errors import UserError


def share(
    configs: Sequence[RunConfig], cores: int, machine: Mapping[str, Any], begun: int | None = None
) -> tuple[int, int, str]:
    """What ends all runs first, by this machine's calibrations for so many threads, as far as it was idle.

    Where fewer than two ways are known, a run has one thread, or, of fewer runs than cores, its share of them.

    Args:
        configs: of all runs, in their order; those that are done too, so that the rest goes on as it began.
        machine: as `machine.machine` tells it.
        begun: threads that some of the runs have had here, and all are to have.

    Returns:
        Runs at a time, threads of each, and why in words.
    """
    if as_begun := [jobs for jobs in range(1, cores + 1) if cores // jobs == begun]:
        return as_begun[-1], cores // as_begun[-1], "as the runs that there are"
    most = min(cores, len(configs))
    ends: dict[tuple[int, int], float] = {}
    for jobs in range(1, most + 1):
        if (known := load_calibration({**machine, "threads": cores // jobs})) and not known.busy:
            with suppress(UserError):  # it is damaged, or of an earlier version
                ends[jobs, cores // jobs] = _find_end([predict(config, known).seconds for config in configs], jobs)
    if len(ends) < 2:
        return most, cores // most, "a core each" if most == cores else "all cores"
    best = min(ends, key=lambda way: ends[way])
    slowest = max(ends, key=lambda way: ends[way])
    others = f"{ends[slowest] / ends[best]:.2f}× as fast as {slowest[0]} with {slowest[1]}"
    return *best, f"by this machine's calibration {others}"


def _find_end(seconds: Sequence[float], jobs: int) -> float:
    """When the last of runs that are begun in their order, so many at a time, ends."""
    free = [0.0] * jobs
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free) if seconds else math.nan
