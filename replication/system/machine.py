"""The machine and the installation that numbers were measured on."""

import functools
import math
import os
import platform
import re
import resource
import subprocess
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from replication.system.errors import UserError
from replication.system.instructions import LEVELS, read_level

if TYPE_CHECKING:
    import torch

BUSY = 0.7  # of the cores are at work already: what is timed then is slower than it need be
QUOTAS = ("/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us")  # of a container, in either version


def cores() -> int:
    """Those that this process may use: by its affinity, where the system has that, and by its container's quota."""
    return max(1, math.ceil(min(_affinity(), _quota())))


def busy() -> str:
    """What other work there is, in words, where it slows down what is timed; else empty."""
    load = os.getloadavg()[0]
    said = f"this machine was busy ({load:.1f} processes wanted its {cores()} cores)"
    return said if load > BUSY * cores() else ""


def limit_threads() -> None:
    """As many threads as a container's quota has cores, of which OpenMP knows nothing; to be set before torch loads."""
    if cores() < _affinity():
        os.environ.setdefault("OMP_NUM_THREADS", str(cores()))


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quota() -> float:
    """Cores' worth of time that a container allows; infinite without a limit."""
    for file in map(Path, QUOTAS):
        try:
            quota, *period = file.read_text(encoding="utf-8").split()
            length = period or file.with_name("cpu.cfs_period_us").read_text(encoding="utf-8").split()
            return int(quota) / int(length[0]) if int(quota) > 0 else math.inf
        except (OSError, ValueError):  # there is none, or its value is "max"
            continue
    return math.inf


def is_terminal(stream: IO[str]) -> bool:
    """Does somebody look at it, on a screen whose lines can be written again?"""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def machine() -> dict[str, Any]:
    """Source, versions, processor and threads."""
    import numpy
    import tokenizers
    import torch
    import transformers

    return {
        "git": _commit(),
        "python": platform.python_version(),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, tokenizers, numpy)},
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }


@functools.cache  # a process's source is that which it was started from
def _commit() -> str | None:
    """Of this source, as git describes it; None: there is no git, or the source lies in another repository."""
    here = Path(__file__).resolve().parents[1]
    try:
        top, described = (
            subprocess.run(["git", *command], cwd=here, capture_output=True, text=True).stdout.strip()
            for command in (["rev-parse", "--show-toplevel"], ["describe", "--always", "--dirty"])
        )
    except OSError:
        return None
    return described or None if top and Path(top) == here.parent else None


def check_memory(needed: int, what: str) -> None:
    """Raises UserError where this machine has less memory than `needed` bytes, so that the system would end us."""
    import psutil

    total = psutil.virtual_memory().total
    if needed > total:
        gib = 2**30
        raise UserError(
            f"out of memory: {what} are {needed / gib:,.1f} GiB, and this machine has {total / gib:,.1f}; "
            "allowed: a smaller model, or a larger machine"
        )


def cache_file(what: str, threads: int) -> Path:
    """Where what was measured of this machine with so many threads is kept. Raises UserError: there is no place."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mst-replication"
    except RuntimeError:  # as in a container whose user is not known there
        raise UserError(
            "HOME is not set; allowed: a folder that can be written, or XDG_CACHE_HOME set to one"
        ) from None
    name = re.sub(r"\W+", "-", f"{processor()} {threads}").strip("-").lower()
    return folder / f"{what}-{name}.json"


def cpu_precision() -> str:
    """What `train.precision=auto` is on this processor: `bf16` where it multiplies in it."""
    import torch

    may = read_level() >= LEVELS.index("avx512-bf16")
    return "bf16" if may and torch.cpu.get_capabilities().get("avx512_bf16") else "fp32"


def peak_memory(device: "torch.device") -> int:
    """The most bytes so far: allocated on a GPU, or else resident in this process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return peak_resident()


def peak_resident() -> int:
    """The most bytes that this process held in memory so far."""
    if resident := _values("/proc/self/status", "VmHWM"):  # getrusage counts what a parent held too, after a fork
        return 1024 * int(resident[0].split()[0])
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def processor() -> str:
    """Its name; where this process is held to a lower level of instructions, that too."""
    names = _values("/proc/cpuinfo", "model name")
    as_level = f", as {level}" if (level := LEVELS[read_level()]) != LEVELS[-1] else ""
    return (names[0] if names else platform.processor() or platform.machine()) + as_level


def family() -> str:
    """The number of the processor's family, on Linux; else empty."""
    return next(iter(_values("/proc/cpuinfo", "cpu family")), "")


def _values(file: str, key: str) -> list[str]:
    """Those of a key in a file of Linux's that says `key: value`; none elsewhere."""
    try:
        pairs = (line.partition(":") for line in Path(file).read_text(encoding="utf-8").splitlines())
    except OSError:
        return []
    return [value.strip() for name, _, value in pairs if name.strip() == key]
