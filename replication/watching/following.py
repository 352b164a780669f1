"""A run as it grows, told from its folder alone: only new bytes of its log are read, and trouble is named."""

import math
import os
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from replication.config.run_config import RunConfig
from replication.flops.ledger import share_saved
from replication.runs.folder import UNREADABLE, RunFolder
from replication.runs.ownership import ALIVE_SECONDS
from replication.system.errors import DamagedError, UserError
from replication.system.files import Json, explain_damage, find_stored, open_log, parse_json

TAIL = 2**17  # bytes of a log that are read at the first look: some 200 lines
BLOCK = 2**13  # bytes that are searched for a step line by line
MARK = 64  # bytes before the place where reading goes on, by which a log is known again
RECENT = 20  # logged lines, over which speed and usual interval are taken

# Ours. Smoothed so, no loss of the 122 committed runs rises by more than 0.061 nats, MST's ramps among them.
SMOOTHING = 10  # logged lines
DIVERGED = 0.3  # nats of the smoothed loss above its lowest
LIFELESS = 6 * ALIVE_SECONDS  # seconds without a sign of life
QUIET = 10  # usual intervals without a logged line, and LIFELESS at least, as validating and saving take time


class Log:
    """Rows of a growing `metrics.jsonl`, each given once."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.offset = 0  # up to which it was read
        self.mark = b""  # the bytes before it

    def read(self) -> tuple[list[Json], bool]:
        """The rows since the last look, at the first one those of the last `TAIL` bytes.

        Returns:
            The rows, and whether the log is another than before: truncated as its run was resumed, or replaced.

        Raises:
            DamagedError: a line is no JSON object, or the log is packed and damaged.
            OSError: there is no log, or none that can be read.
        """
        with open_log(self.file) as file:
            size = file.seek(0, os.SEEK_END)
            is_new = self.offset > 0 and not (size >= self.offset and self._is_known(file))
            if is_new or not self.offset:
                self.offset, self.mark = max(0, size - TAIL), b""
            file.seek(self.offset)
            if self.offset and not self.mark:
                self.offset += len(file.readline())  # its end alone
            new = file.read(size - self.offset)
        new = new[: new.rfind(b"\n") + 1]  # not a line that is being written
        rows = [_row(self.file, line) for line in new.splitlines()]
        self.offset += len(new)
        self.mark = (self.mark + new)[-MARK:]
        return rows, is_new

    def _is_known(self, file: Any) -> bool:
        file.seek(self.offset - len(self.mark))
        return file.read(len(self.mark)) == self.mark


def row_at(log: Path, step: int) -> Json | None:
    """The row of one step in a log of any length, found by bisection; None: it has none.

    Raises:
        DamagedError: a line is no JSON object, or the log is packed and damaged.
        OSError: there is no log, or none that can be read.
    """
    with open_log(log) as file:
        low, high = 0, file.seek(0, os.SEEK_END)
        while high - low > BLOCK:
            middle = (low + high) // 2
            file.seek(middle)
            file.readline()
            line = file.readline()
            if line.endswith(b"\n") and _row(log, line)["step"] <= step:
                low = file.tell() - len(line)
            else:
                high = middle
        file.seek(low)
        while (line := file.readline()).endswith(b"\n"):
            row = _row(log, line)
            if row["step"] >= step:
                return row if row["step"] == step else None
    return None


@dataclass
class Sign:
    """When something last changed: by this machine's clock from the first change that is seen; before, by its own."""

    value: Any = None
    at: float = 0.0

    def note(self, value: Any, at: float) -> None:
        if value != self.value:
            self.value, self.at = value, at if self.value is None else time.time()

    def age(self) -> float:
        """Seconds."""
        return max(0.0, time.time() - self.at)


@dataclass
class Followed:
    """A run, as its folder has it now.

    Attributes:
        name: as it is shown.
        state: starting, running, finished, failed, damaged or gone.
        problem: of a run that failed, or whose folder is damaged.
        dense_step: FLOPs of a step of its profile's dense training; not a number: not known.
        logged: its last row of `metrics.jsonl`.
        finished_at: seconds since 1970.
        sealed: files that a checksum is kept of, but for its weights.
    """

    folder: RunFolder
    name: str
    state: str = "starting"
    problem: str = ""
    config: RunConfig | None = None
    dense_step: float = math.nan
    logged: Json = field(default_factory=dict)
    finished_at: float = 0.0
    num_lines: int = 0
    smoothed: float = 0.0
    lowest: float = math.inf
    recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT))  # step, seconds
    life: Sign = field(default_factory=Sign)
    growth: Sign = field(default_factory=Sign)
    sealed: list[str] = field(default_factory=list)
    stamps: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of files as they were when they were read

    def __post_init__(self) -> None:
        self.log = Log(self.folder.path / "metrics.jsonl")

    def look(self) -> None:
        """Read what is new; whatever is wrong with the folder becomes the run's state."""
        try:
            self._read_status()
            self._read_log()
            changed = [name for name in self.sealed if self._has_changed(name)]
            if self.state == "finished" and changed:
                self.folder.verify(without=["checkpoint/*"])
        except (OSError, UserError, *UNREADABLE) as error:
            is_there = (self.folder.path / "status.json").exists()
            self.state, self.problem = ("damaged", str(error)) if is_there else ("gone", "")
            self.stamps.clear()

    @property
    def step(self) -> int:
        return self.logged.get("step", 0)

    @property
    def steps(self) -> int | None:
        return self.config.train.steps if self.config else None

    def seconds_left(self) -> float | None:
        """At its recent speed; None: not known."""
        (first, began), (last, ended) = (self.recent[0], self.recent[-1]) if len(self.recent) > 1 else ((0, 0.0),) * 2
        if self.state != "running" or not self.steps or last == first:
            return None
        return (self.steps - self.step) * (ended - began) / (last - first)

    def share_saved(self) -> float | None:
        """Of dense's FLOPs so far; None: not known."""
        flops = self.logged.get("flops")
        return share_saved(flops, self.dense_step, self.step) if flops and self.dense_step * self.step > 0 else None

    def alarm(self) -> tuple[str, str] | None:
        """What is wrong with the run, as a word and a reason; None: nothing."""
        if self.state in ("failed", "damaged"):
            return self.state, self.problem
        if self.state not in ("running", "starting"):
            return None
        if self.logged and not math.isfinite(self.logged["loss"]):
            return "diverging", f"the loss is {self.logged['loss']}"
        if self.smoothed - self.lowest > DIVERGED:
            return "diverging", f"smoothed loss {self.smoothed:.3f}, {self.smoothed - self.lowest:.3f} over its lowest"
        if self.life.age() > LIFELESS:
            return "stalled", f"no sign of life for {ago(self.life.age())}"
        if self.recent and self.growth.age() > max(LIFELESS, QUIET * self._interval()):
            usual = ago(self._interval())
            return "stalled", f"no logged line for {ago(self.growth.age())}, one in {usual} is usual"
        return None

    def _interval(self) -> float:
        """Usual seconds between two logged lines."""
        (_, began), (_, ended) = self.recent[0], self.recent[-1]
        return (ended - began) / (len(self.recent) - 1) if len(self.recent) > 1 else ended

    def _read_status(self) -> None:
        if not self._has_changed("status.json"):
            return
        status = self.folder.status()
        begun, changed_at = "step" in status, self.stamps["status.json"][1] / 1e9
        if begun and self._has_changed("config.yaml"):
            self._read_config()
        if owner := status.get("owner"):
            self.life.note(owner["alive"], datetime.fromisoformat(owner["alive"]).timestamp())
        else:
            self.life.note(changed_at, changed_at)
        self.state = "starting" if status["status"] == "running" and not begun else status["status"]
        self.problem = status.get("reason") or ""
        self.sealed = [name for name in status.get("sha256", {}) if not name.startswith("checkpoint/")]
        self.finished_at = changed_at if self.state == "finished" else 0.0

    def _has_changed(self, name: str) -> bool:
        """Since this was asked last."""
        found = (self.folder.path / name).stat()
        before, now = self.stamps.get(name), (found.st_ino, found.st_mtime_ns, found.st_size)
        self.stamps[name] = now
        return now != before

    def _read_config(self) -> None:
        self.config, self.dense_step = None, math.nan
        try:
            self.config = self.folder.configuration()
        except DamagedError:
            raise
        except UserError:  # of another version: its rows say enough
            return
        self.dense_step = _dense_step(self.config)

    def _read_log(self) -> None:
        try:
            found = find_stored(self.log.file).stat()
            rows, is_new = self.log.read()
        except FileNotFoundError:  # of a run that has only begun
            return
        self.growth.note((found.st_ino, found.st_size), found.st_mtime)
        if is_new:
            self.logged, self.num_lines, self.smoothed, self.lowest = {}, 0, 0.0, math.inf
            self.recent.clear()
        for row in rows:
            self.recent.append((row["step"], row["seconds"]))
            self.num_lines += 1
            self.smoothed += (row["loss"] - self.smoothed) / min(self.num_lines, SMOOTHING)
            if self.num_lines >= SMOOTHING:
                self.lowest = min(self.lowest, self.smoothed)
            self.logged = row


def ago(seconds: float) -> str:
    """A time in its largest unit."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _dense_step(config: RunConfig) -> float:
    from replication.flops.stretches import build_ledger  # imports torch, which takes seconds

    return build_ledger(config).dense_step_flops()


def _row(file: Path, line: bytes) -> Json:
    row = parse_json(file, line.decode("utf-8", "replace"))
    if not (isinstance(row, dict) and _is_logged(row)):
        raise explain_damage(file, "a line of it is no logged step")
    return row


def _is_logged(row: Json) -> bool:
    """Has it what is reckoned with? The loss may be infinite, or not a number."""
    loss, flops = row.get("loss"), row.get("flops", {})
    counted = (row.get("step"), row.get("seconds"), *(flops.values() if isinstance(flops, dict) else [None]))
    return all(map(_is_finite, counted)) and (isinstance(loss, float) or _is_finite(loss))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= sys.float_info.max
