"""The machine and the installation that numbers were measured on."""

import platform
import resource
import subprocess
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Source, versions, processor and threads."""
    import numpy
    import tokenizers
    import transformers

    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True
    )
    return {
        "git": described.stdout.strip() or None,
        "python": platform.python_version(),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, tokenizers, numpy)},
        "processor": _processor(),
        "threads": torch.get_num_threads(),
    }


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: allocated on a GPU, or else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # getrusage counts what a parent held too, after a fork
    if status.exists():
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
