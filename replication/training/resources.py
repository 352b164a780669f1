"""What a run uses: seconds by part of a step, processor time, memory, input and output, energy, share of the peak."""

import math
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch

from replication.system.errors import describe_error
from replication.system.machine import peak_memory
from replication.system.signals import tell

# A step's parts, beside which there are evaluation and saving
STEP = ("data", "forward", "backward", "communication", "topology", "optimizer")
WATTS = 7.0  # of a busy core, where nothing measures it (ours: a server's processor has 4 to 7 W for each of its cores)
RAPL = "/sys/class/powercap"
LOOKS = 1.0  # seconds between two readings of a counter of energy
FAILED = ", until it failed"  # of a meter of energy
PEAK_SIZE, PEAK_TRIALS = 1024, 4  # of the product that measures the peak; the first trial warms up
PEAK_SIZE_GPU = 8192  # smaller ones are over before a GPU has begun

Usage = dict[str, float]


class Resources:
    """Counts what this process uses, by phase: of a run of several, the first one's own is kept.

    On a GPU the parts of a step are its own seconds, between events; elsewhere the clock's.

    Attributes:
        phases: phase -> `steps`, seconds by part (keys `seconds.<part>`), `cpu_seconds`, `read_bytes`, `written_bytes`
            and `joules`, each a sum; and `resident_bytes`, the most that was seen.
        energy: what `joules` is measured by: `NVML`, `RAPL` (the whole processor, whoever uses it), or `estimated`;
            with `FAILED` where the meter said nothing more at some time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.process = device, psutil.Process()
        self.phases: dict[str, Usage] = {}
        self.phase = ""
        self.steps = 0  # since `take`
        self.seconds: Usage = defaultdict(float)  # of parts, since `take`
        self._events: list[tuple[str, Any, Any]] = []  # on a GPU: (part, start, end) that have not been read yet
        self._last: dict[str, Any] = {}  # that a meter said
        self._failed: set[str] = set()
        self._gpu = _nvml(device)
        self._meters = [] if self._gpu else _rapl_meters()
        self.energy = "NVML" if self._gpu else "RAPL" if self._meters else "estimated"
        self._before = self._counters()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Its time is that of a part of a step."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
            return
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def enter(self, phase: str) -> None:
        """A step of this phase begins."""
        if self.phase and phase != self.phase:
            self.take()
        self.phase = phase
        self.steps += 1

    def take(self) -> dict[str, Any]:
        """Account for what was used since the last time; returns all so far, for a logged row."""
        self._read_events()
        account, now = self.phases.setdefault(self.phase, defaultdict(float)), self._counters()
        account["steps"] += self.steps
        for name, seconds in self.seconds.items():
            account[f"seconds.{name}"] += seconds
        for name, value in now.items():
            account[name] += max(0.0, value - self._before.get(name, value))
        resident = self._reading("memory", lambda: float(self.process.memory_info().rss))
        account["resident_bytes"] = max(account["resident_bytes"], resident)
        self._before, self.steps = now, 0
        self.seconds.clear()
        names = dict.fromkeys(name for used in self.phases.values() for name in used if name != "steps")
        sums = {name: sum(used.get(name, 0.0) for used in self.phases.values()) for name in names}
        facts = {"resident_bytes": resident, "threads": self._reading("threads", self.process.num_threads)}
        return _nest(sums | facts | {"energy": self.energy} | self._reading("the GPU's use", self._gpu_now, {}))

    def report(self, flops: Mapping[str, int], dense_step: int, precision: str, processes: int = 1) -> dict[str, Any]:
        """The run folder's `resources.json`.

        Args:
            flops: of each phase, attention counted causally and the head counted; of all processes together.
            dense_step: those of a step of dense training.
            precision: of the products, `bf16` or `fp32`.
            processes: that the run has, each with such a peak.

        Returns:
            `phases` as above, with `mfu`: FLOPs ÷ (seconds of the steps × measured peak × processes), as PaLM has it
            (arXiv 2204.02311), and `dense_mfu`, the dense model's instead (what sparsity makes of the machine; ours);
            both again over the whole run; `peak_flops`, per second; `peak_bytes`; and `energy`.
        """
        peak_bytes = peak_memory(self.device)  # before the product that follows
        peak = measure_peak(self.device, precision, torch.get_num_threads())
        seconds = {phase: sum(used.get(f"seconds.{part}", 0.0) for part in STEP) for phase, used in self.phases.items()}
        dense = {phase: dense_step * used.get("steps", 0) for phase, used in self.phases.items()}

        def shares(over: Iterable[str]) -> Usage:
            possible = peak * processes * sum(seconds[phase] for phase in over) or math.inf
            spent = {"mfu": sum(flops.get(phase, 0) for phase in over), "dense_mfu": sum(dense[p] for p in over)}
            return {name: count / possible for name, count in spent.items()}

        phases = {phase: _nest(dict(used)) | shares([phase]) for phase, used in self.phases.items()}
        facts = {"peak_flops": peak, "energy": self.energy, "peak_bytes": peak_bytes}
        return {"phases": phases} | shares(list(self.phases)) | facts

    def state(self) -> dict[str, Usage]:
        """All that was used so far, as JSON, for `load_state`."""
        self.take()
        return {phase: dict(used) for phase, used in self.phases.items()}

    def load_state(self, state: Mapping[str, Usage]) -> None:
        self.phases = {phase: defaultdict(float, used) for phase, used in state.items()}

    def _counters(self) -> Usage:
        cpu = self._reading("processor time", lambda: sum(self.process.cpu_times()[:2]))
        moved: Usage = {}
        if hasattr(self.process, "io_counters"):  # macOS tells no process's input and output
            moved = self._reading("input and output", self._moved, {})
        joules = self._reading("energy", lambda: self._joules(cpu))
        if "energy" in self._failed and not self.energy.endswith(FAILED):
            self.energy += FAILED
        return {"cpu_seconds": cpu, **moved, "joules": joules}

    def _reading(self, name: str, read: Callable[[], Any], nothing: Any = 0.0) -> Any:
        """What a meter says; from when it fails on, which is said, what it said last."""
        if name not in self._failed:
            try:
                self._last[name] = read()
            except Exception as error:  # of psutil, NVML or a file of the kernel's: they have no common class
                self._failed.add(name)
                if name in self._last:  # else this machine does not tell it
                    problem = describe_error(error)
                    tell(f"resources: {name} cannot be read any more ({problem}); the run goes on without it")
        return self._last.get(name, nothing)

    def _moved(self) -> Usage:
        moved = self.process.io_counters()  # type: ignore[attr-defined]
        return {"read_bytes": float(moved.read_bytes), "written_bytes": float(moved.write_bytes)}

    def _joules(self, cpu_seconds: float) -> float:
        if self._gpu:
            return self._gpu[0].nvmlDeviceGetTotalEnergyConsumption(self._gpu[1]) / 1e3
        if self._meters:
            return sum(meter.read() for meter in self._meters) / 1e6
        return cpu_seconds * WATTS

    def _gpu_now(self) -> dict[str, float]:
        if not self._gpu:
            return {}
        nvml, handle = self._gpu
        return {
            "gpu_utilisation": nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            "gpu_bytes": nvml.nvmlDeviceGetMemoryInfo(handle).used,
        }

    def _read_events(self) -> None:
        if self._events:
            torch.cuda.synchronize(self.device)
        for name, start, end in self._events:
            self.seconds[name] += start.elapsed_time(end) / 1e3
        self._events.clear()


@lru_cache
def measure_peak(device: torch.device, precision: str, threads: int) -> float:
    """FLOPs per second of a large dense product here, the best of a few: what a step could reach at most (ours)."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    size = PEAK_SIZE if device.type == "cpu" else PEAK_SIZE_GPU
    one = torch.ones(size, size, dtype=dtype, device=device)
    if device.type != "cpu":  # ones cost a GPU less power, and so less time, than numbers do
        one.normal_(generator=torch.Generator(device).manual_seed(0))
    best = float("inf")
    for _ in range(PEAK_TRIALS):
        began = time.perf_counter()
        (one @ one)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


class _Package:
    """A processor's energy in µJ since this was made, by a counter that begins anew at the end of its range."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.range = 0  # where the kernel does not say it: what is used as it begins anew is not counted
        with suppress(OSError, ValueError):
            self.range = _number(folder / "max_energy_range_uj")
        self.last, self.used, self._reading = _number(folder / "energy_uj"), 0, threading.Lock()

    def read(self) -> int:
        """Raises OSError or ValueError: it cannot be read."""
        with self._reading:
            now = _number(self.folder / "energy_uj")
            self.used += now - self.last if now >= self.last else max(0, now - self.last + self.range)
            self.last = now
            return self.used


def _watch(meters: "weakref.WeakSet[_Package]") -> None:
    """Read them now and then as long as they are used, so that none begins anew twice unseen, whatever takes long."""
    while len(meters):
        time.sleep(LOOKS)
        for meter in list(meters):
            with suppress(OSError, ValueError):  # which is said when it is to be accounted for
                meter.read()
            del meter  # so that it can go


def _number(file: Path) -> int:
    return int(file.read_text(encoding="utf-8"))


def _rapl_meters() -> list[_Package]:
    """The processors' packages: other domains are parts of one, or hold it (`psys`, the whole machine's). None where
    the kernel shows none, or not to this user."""
    try:
        folders = [path for path in sorted(Path(RAPL).glob("intel-rapl:*")) if path.name.count(":") == 1]
        meters = [_Package(folder) for folder in folders if _domain(folder).startswith("package")]
    except (OSError, ValueError):
        return []
    threading.Thread(target=_watch, args=(weakref.WeakSet(meters),), daemon=True).start()
    return meters


def _domain(folder: Path) -> str:
    """Its name; from before the kernel had them, a domain of the first level is a package."""
    file = folder / "name"
    return file.read_text(encoding="utf-8").strip() if file.exists() else "package"


def _nvml(device: torch.device) -> tuple[Any, Any] | None:
    """NVIDIA's library and its handle of the device; None: there is none."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        pynvml.nvmlDeviceGetUtilizationRates(handle)
        return pynvml, handle
    except Exception:  # not installed, or not allowed; its errors have no class without it
        return None


def _nest(usage: Mapping[str, Any]) -> dict[str, Any]:
    """With the parts' seconds together, under `seconds`."""
    prefix = "seconds."
    parts = {key.removeprefix(prefix): value for key, value in usage.items() if key.startswith(prefix)}
    return {"seconds": parts} | {key: value for key, value in usage.items() if not key.startswith(prefix)}
