"""What a run says while it trains: one line that changes on a terminal, a line at each evaluation elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from replication.flops import total
from replication.machine import is_terminal
from replication.training.steps import State

REFRESHES = 4  # a second
WIDE = 110  # columns, from which on there is room for more
NARROW = 75  # below which there is none for bar and speed


class Observer(Protocol):
    """Is told of every step, once it is done."""

    def step(self, row: dict[str, Any]) -> None:
        """Args: row: as in `metrics.jsonl`, of a step that need not be logged."""


class Silent:
    """Of a run that others watch."""

    def step(self, row: dict[str, Any]) -> None:
        pass


class Lines:
    """Where there is no terminal."""

    def __init__(self, state: State) -> None:
        self.state = state

    def step(self, row: dict[str, Any]) -> None:
        if "validation_loss" in row:
            left = row["seconds"] / row["step"] * (self.state.config.train.steps - row["step"])
            step = f"step {row['step']}/{self.state.config.train.steps}"
            line = f"{step}, {said(self.state, row)}, validation loss {row['validation_loss']:.3f}, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)


class Bar:
    """On a terminal; with what it has room for."""

    def __init__(self, state: State, progress: Progress) -> None:
        self.state, self.progress = state, progress
        self.task = progress.add_task("", total=state.config.train.steps, completed=state.step, said="")
        self.width = progress.console.width
        self.next = 0.0  # when the line is to change again

    def step(self, row: dict[str, Any]) -> None:
        now, is_last = time.monotonic(), row["step"] == self.state.config.train.steps
        if now >= self.next or is_last:
            self.next = now + 1 / REFRESHES
            self.progress.update(self.task, completed=row["step"], said=said(self.state, row, self.width))


def said(state: State, row: dict[str, Any], width: int = WIDE) -> str:
    """Phase, loss, share of dense's FLOPs that was saved so far (head_counted_full), and speed, where so many columns
    have room for it."""
    dense = total(state.ledger.dense_components(), "head_counted_full") * row["step"] / state.config.train.num_steps
    saved = 1 - total(row["flops"], "head_counted_full") / dense
    speed, loss = f"{row['tokens_per_second'] / 1000:.1f}k", f"loss {row['loss']:.3f}"
    if width < WIDE:
        return f"{row['phase']} {loss} saved {saved:.0%}" + (f" {speed} tok/s" if width >= NARROW else "")
    sparsity = f"sparsity {row['sparsity']:.2f}"
    return f"{row['phase']}, {loss}, {sparsity}, FLOPs saved {saved:.0%}, {speed} tokens/s"


@contextmanager
def observer(state: State, progress: bool) -> Iterator[Observer]:
    """Who is told of the steps while it lasts."""
    console = Console(stderr=True, force_terminal=is_terminal(sys.stderr))
    if not progress:
        yield Silent()
    elif not console.is_terminal:
        yield Lines(state)
    else:
        what = (MofNCompleteColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn(True))
        columns = (BarColumn(None), *what) if console.width >= NARROW else what
        with Progress(*columns, console=console, refresh_per_second=REFRESHES, expand=True) as bar:
            yield Bar(state, bar)
