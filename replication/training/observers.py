"""Who is told of a run while it trains: a terminal, by one line; a log, by a line at each evaluation; trackers."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from replication.errors import UserError, described
from replication.files import Json
from replication.flops import share_saved
from replication.interrupts import tell
from replication.machine import is_terminal
from replication.screen import NARROW, WIDE, Screen
from replication.training.trackers import Tracker, asked_for, scalars, tracker

if TYPE_CHECKING:
    from replication.training.steps import State

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

    def __init__(self, state: "State", name: str, other: Observer) -> None:
        self.state, self.name, self.other, self.failed = state, name, other, False

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
                tell(f"{self.state.run.path}: {self.name} failed ({described(error)}); the run goes on without it")
            self.failed = True


class Tracked(Observer):
    """Hands on what is logged, and no other step, to a tracker of experiments."""

    def __init__(self, state: "State", tracker: Tracker) -> None:
        self.tracker, self.dense_step = tracker, state.ledger.dense_step_flops()

    def logged(self, logs: Mapping[str, list[Json]]) -> None:
        for step, values in scalars(logs, self.dense_step):
            self.tracker.log(values, step)


class Lines(Observer):
    """Where there is no terminal."""

    def __init__(self, state: "State") -> None:
        self.state = state

    def step(self, row: Json) -> None:
        if "validation_loss" in row:
            left = row["seconds"] / row["step"] * (self.state.config.train.steps - row["step"])
            step = f"step {row['step']}/{self.state.config.train.steps}"
            line = f"{step}, {said(self.state, row)}, validation loss {row['validation_loss']:.3f}, {left:.0f} s left"
            tell(line)


class Bar(Observer):
    """On a terminal; with what it has room for."""

    def __init__(self, state: "State", progress: Progress) -> None:
        self.state, self.progress = state, progress
        self.task = progress.add_task("", total=state.config.train.steps, completed=state.step, said="")
        self.width = progress.console.width
        self.next = 0.0  # when the line is to change again

    def step(self, row: Json) -> None:
        now, is_last = time.monotonic(), row["step"] == self.state.config.train.steps
        if now >= self.next or is_last:
            self.next = now + 1 / REFRESHES
            self.progress.update(self.task, completed=row["step"], said=said(self.state, row, self.width))


def said(state: "State", row: Json, width: int = WIDE) -> str:
    """Phase, loss, share of dense's FLOPs that was saved so far (head_counted_full), and speed, where so many columns
    have room for it."""
    saved = share_saved(row["flops"], state.ledger.dense_step_flops(), row["step"])
    speed, loss = f"{row['tokens_per_second'] / 1000:.1f}k", f"loss {row['loss']:.3f}"
    if width < WIDE:
        return f"{row['phase']} {loss} saved {saved:.0%}" + (f" {speed} tok/s" if width >= NARROW else "")
    sparsity = f"sparsity {row['sparsity']:.2f}"
    return f"{row['phase']}, {loss}, {sparsity}, FLOPs saved {saved:.0%}, {speed} tokens/s"


@contextmanager
def observer(state: "State", progress: bool) -> Iterator[Observer]:
    """Who is told of the run while it lasts: the terminal where `progress` is on, and the trackers asked for.

    Raises:
        UserError: a tracker cannot begin.
    """
    with ExitStack() as stack:
        names = asked_for() if state.world.is_main else []
        told = [stack.enter_context(_spared(state, f"--log-to {name}", _tracked(state, name))) for name in names]
        display = [stack.enter_context(_spared(state, "the progress display", _progress(state)))] if progress else []
        yield Several([*told, *display])


@contextmanager
def _spared(state: "State", name: str, begun: AbstractContextManager[Observer]) -> Iterator[Observer]:
    """What is begun, spared. Raises UserError where it cannot begin and says so."""
    observer = Spared(state, name, Observer())
    try:
        observer.other = begun.__enter__()
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        tell(f"{state.run.path}: {name} cannot begin ({described(error)}); the run goes on without it")
        yield Observer()
        return
    try:
        yield observer
    finally:
        observer.attempt(begun.__exit__, None, None, None)


@contextmanager
def _tracked(state: "State", name: str) -> Iterator[Observer]:
    with tracker(name, state) as begun:
        yield Tracked(state, begun)


@contextmanager
def _progress(state: "State") -> Iterator[Observer]:
    console = Screen(stderr=True, force_terminal=is_terminal(sys.stderr))
    if not console.is_terminal:
        yield Lines(state)
        return
    what = (MofNCompleteColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn(True))
    columns = (BarColumn(None), *what) if console.width >= NARROW else what
    with Progress(*columns, console=console, refresh_per_second=REFRESHES, expand=True) as bar:
        yield Bar(state, bar)
