"""Many runs at once, for people who look: a table that lives on a terminal, a line for each run that ends elsewhere."""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from replication.flops.ledger import share_saved
from replication.system.machine import is_terminal
from replication.system.signals import tell
from replication.system.terminal import WIDE, Screen

STYLES = {"waiting": "dim", "training": "cyan", "scoring": "blue", "done": "green", "failed": "bold red"}
STYLES |= {"starting": "dim", "running": "cyan", "finished": "green", "gone": "dim"}  # of a folder
FIRST = ("failed", "training", "scoring", "done", "waiting")  # what is shown where not all rows fit

GONE = (OSError, ValueError, SystemExit)  # of a terminal that is gone or closed; the last is rich's, at a broken pipe


@dataclass
class Row:
    """A run, as far as it has come.

    Attributes:
        dense_flops: of a dense step (head_counted_full).
        since: when its state began, on `time.monotonic`'s clock.
        logged: its last row of `metrics.jsonl`.
    """

    name: str
    steps: int
    dense_flops: float
    state: str = "waiting"
    since: float = 0.0
    step: int = 0
    first: int | None = None  # the first step that was seen, of a run that goes on
    logged: Mapping[str, Any] | None = None

    def enter(self, state: str) -> None:
        if state != self.state:
            self.state, self.since = state, time.monotonic()

    def saw(self, logged: Mapping[str, Any] | None) -> None:
        """Take note of a logged row; never of an earlier one than before."""
        if logged and logged["step"] >= self.step:
            self.first = logged["step"] if self.first is None else self.first
            self.step, self.logged = logged["step"], logged


class Board:
    """The rows of a pipeline, and how they are shown."""

    def __init__(self, rows: Sequence[Row], console: Console) -> None:
        self.rows = {row.name: row for row in rows}
        self.console = console
        self.began = time.monotonic()

    def end(self, name: str, outcome: str, failed: bool) -> None:
        """A run has ended; where there is no terminal it is said."""
        row = self.rows[name]
        row.enter("failed" if failed else "done")
        if not failed:
            row.step = row.steps
        if not self.console.is_terminal:
            ended = sum(other.state in ("done", "failed") for other in self.rows.values())
            said = "failed, as the end says" if failed else outcome
            tell(f"[{ended}/{len(self.rows)}] {name}: {said}")

    def say(self, line: str) -> None:
        """Print a line that a run said, above the table."""
        if self.console.is_terminal:
            with suppress(*GONE):
                self.console.print(line, markup=False, highlight=False)
        else:
            tell(line)

    def render(self) -> Group:
        """The table, its most telling rows first where it is higher than the terminal, and the whole below it."""
        wide = self.console.width >= WIDE
        room = max(3, self.console.height - 6)
        chosen = sorted(self.rows.values(), key=lambda row: (FIRST.index(row.state), -row.since))[:room]
        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        table.add_column("run", no_wrap=True, ratio=1)
        for column in ("state", "step", "loss", "val. loss", "saved", *(("phase", "tokens/s") if wide else ()), "time"):
            table.add_column(column, no_wrap=True, justify="left" if column in ("state", "phase") else "right")
        for row in (row for row in self.rows.values() if row in chosen):
            table.add_row(*_cells(row, wide), style="dim" if row.state == "waiting" else "")
        return Group(table, self._whole())

    def _whole(self) -> Table:
        """How far all of them are, as one bar."""
        rows = self.rows.values()
        done, total = sum(row.step for row in rows), sum(row.steps for row in rows)
        spent, fresh = time.monotonic() - self.began, done - sum(row.first or 0 for row in rows)
        left = f", {duration(spent / fresh * (total - done))} left" if fresh and done < total else ""
        states = {state: sum(row.state == state for row in rows) for state in ("done", "failed", "training", "scoring")}
        counts = ", ".join(f"{count} {state}" for state, count in states.items() if count)
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(ratio=1)
        line.add_column(no_wrap=True)
        line.add_row(ProgressBar(total, done), f"{counts} of {len(rows)}{left}")
        return line


def _cells(row: Row, wide: bool) -> list[Text | str]:
    logged = row.logged or {}
    elapsed = duration(logged["seconds"]) if logged else ""
    loss = f"{logged['loss']:.3f}" if logged else ""
    validation = f"{logged['validation_loss']:.3f}" if "validation_loss" in logged else ""
    saved = ""
    if logged:
        saved = f"{share_saved(logged['flops'], row.dense_flops, logged['step']):.0%}"
    phase = [logged.get("phase", ""), f"{logged['tokens_per_second']:,.0f}" if logged else ""] if wide else []
    state = Text(row.state, STYLES[row.state])
    return [Text(row.name), state, f"{row.step}/{row.steps}", loss, validation, saved, *phase, elapsed]


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def board(rows: Sequence[Row]) -> Iterator[Board]:
    """Shown on stderr as long as it lasts."""
    console = Screen(stderr=True, force_terminal=is_terminal(sys.stderr))
    shown = Board(rows, console)
    if not console.is_terminal:
        yield shown
        return
    live = Live(get_renderable=shown.render, console=console, refresh_per_second=2, vertical_overflow="crop")
    with suppress(*GONE):
        live.start()
    try:
        yield shown
    finally:
        with suppress(*GONE):
            live.stop()
