"""Who is told of a run while it trains: a terminal, by one line; a log, by a line at each evaluation; trackers."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from replication.flops.ledger import share_saved
from replication.system.errors import UserError, describe_error
from replication.system.files import Json
from replication.system.machine import is_terminal
from replication.system.signals import tell
from replication.system.terminal import NARROW, WIDE, Screen
from replication.training.trackers import Course, Tracker, scalars, tracker

REFRESHES = 4  # a second


class Observer:
    """Is told of a run while it trains; this one says nothing of it."""

    def step(self, row: Json) -> None:
        """A step is done. Args: row: as in `metrics.jsonl`, of a step that need not be logged."""

    def logged(self, logs: Mapping[str, list[Json]]) -> None:
        """Rows were added to the run's logs. Args: logs: file name -> rows."""


class Several(Observer):
    """All of them are told."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = observers

    def step(self, row: Json) -> None:
        for observer in self.observers:
            observer.step(row)

    def logged(self, logs: Mapping[str, list[Json]]) -> None:
        for observer in self.observers:
            observer.logged(logs)


class Spared(Observer):
    """Tells another one, whose failure ends nothing: it is said once, and the other is told no more."""

    def __init__(self, run: Path, name: str, other: Observer) -> None:
        self.run, self.name, self.other, self.failed = run, name, other, False

    def step(self, row: Json) -> None:
        if not self.failed:
            self.attempt(self.other.step, row)

    def logged(self, logs: Mapping[str, list[Json]]) -> None:
        if not self.failed:
            self.attempt(self.other.logged, logs)

    def attempt(self, do: Callable[..., Any], *arguments: Any) -> None:
        try:
            do(*arguments)
        except (Exception, SystemExit) as error:  # a service's, a library's, a full disk: they have no common class
            if not self.failed:
                tell(f"{self.run}: {self.name} failed ({describe_error(error)}); the run goes on without it")
            self.failed = True


class Tracked(Observer):
    """Hands on what is logged, and no other step, to a tracker of experiments."""

    def __init__(self, course: Course, tracker: Tracker) -> None:
        self.tracker, self.dense_step = tracker, course.dense_step

    def logged(self, logs: Mapping[str, list[Json]]) -> None:
        for step, values in scalars(logs, self.dense_step):
            self.tracker.log(values, step)


class Lines(Observer):
    """Where there is no terminal."""

    def __init__(self, course: Course) -> None:
        self.course = course

    def step(self, row: Json) -> None:
        if "validation_loss" in row:
            left = row["seconds"] / row["step"] * (self.course.steps - row["step"])
            step, loss = f"step {row['step']}/{self.course.steps}", f"validation loss {row['validation_loss']:.3f}"
            tell(f"{step}, {describe_row(self.course.dense_step, row)}, {loss}, {left:.0f} s left")


class Bar(Observer):
    """On a terminal; with what it has room for."""

    def __init__(self, course: Course, progress: Progress) -> None:
        self.course, self.progress = course, progress
        self.task = progress.add_task("", total=course.steps, completed=course.step, said="")
        self.width = progress.console.width
        self.next = 0.0  # when the line is to change again

    def step(self, row: Json) -> None:
        now, is_last = time.monotonic(), row["step"] == self.course.steps
        if now >= self.next or is_last:
            self.next = now + 1 / REFRESHES
            said = describe_row(self.course.dense_step, row, self.width)
            self.progress.update(self.task, completed=row["step"], said=said)


def describe_row(dense_step: float, row: Json, width: int = WIDE) -> str:
    """Phase, loss, share of dense's FLOPs that was saved so far (head_counted_full), and speed, where so many columns
    have room for it."""
    saved = share_saved(row["flops"], dense_step, row["step"])
    speed, loss = f"{row['tokens_per_second'] / 1000:.1f}k", f"loss {row['loss']:.3f}"
    if width < WIDE:
        return f"{row['phase']} {loss} saved {saved:.0%}" + (f" {speed} tok/s" if width >= NARROW else "")
    sparsity = f"sparsity {row['sparsity']:.2f}"
    return f"{row['phase']}, {loss}, {sparsity}, FLOPs saved {saved:.0%}, {speed} tokens/s"


@contextmanager
def observer(course: Course, trackers: Sequence[str], progress: bool) -> Iterator[Observer]:
    """Who is told of the run while it lasts: trackers by their names, and the terminal where `progress` is on.

    Raises:
        UserError: a tracker cannot begin.
    """
    with ExitStack() as stack:
        told = {f"--log-to {name}": _tracked(course, name) for name in trackers}
        if progress:
            told["the progress display"] = _progress(course)
        yield Several([stack.enter_context(_spared(course.path, name, begun)) for name, begun in told.items()])


@contextmanager
def _spared(run: Path, name: str, begun: AbstractContextManager[Observer]) -> Iterator[Observer]:
    """What is begun, spared. Raises UserError where it cannot begin and says so."""
    observer = Spared(run, name, Observer())
    try:
        observer.other = begun.__enter__()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        tell(f"{run}: {name} cannot begin ({describe_error(error)}); the run goes on without it")
        yield Observer()
        return
    try:
        yield observer
    finally:
        observer.attempt(begun.__exit__, None, None, None)


@contextmanager
def _tracked(course: Course, name: str) -> Iterator[Observer]:
    with tracker(name, course) as begun:
        yield Tracked(course, begun)


@contextmanager
def _progress(course: Course) -> Iterator[Observer]:
    console = Screen(stderr=True, force_terminal=is_terminal(sys.stderr))
    if not console.is_terminal:
        yield Lines(course)
        return
    what = (MofNCompleteColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn(True))
    columns = (BarColumn(None), *what) if console.width >= NARROW else what
    with Progress(*columns, console=console, refresh_per_second=REFRESHES, expand=True) as bar:
        yield Bar(course, bar)
