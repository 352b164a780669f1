"""`runs watch`: every run below a folder, live, and from the folders alone: it works for runs on other machines too."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from replication.config.run_config import RunConfig
from replication.runs import finding
from replication.runs.folder import UNREADABLE, RunFolder
from replication.system.errors import UserError
from replication.system.machine import is_terminal
from replication.system.streams import escape
from replication.system.terminal import NARROW, WIDE, Screen
from replication.watching.board import STYLES, duration
from replication.watching.following import Followed, ago, row_at
from replication.watching.listing import runs_below

REFRESH = 1.0  # seconds
SEARCH = 5.0  # seconds between searches for new runs
PLAIN = 120  # columns where there is no terminal
PHASE = 10  # characters of a phase below `WIDE`
ALARMS = 5  # lines at most
DISK_FREE = 2e9  # bytes, below which a run's next save is in danger (ours)


@dataclass(frozen=True)
class Column:
    """What the table says of a run, from how many columns of the terminal on."""

    title: str
    cell: Callable[[Followed], str]
    from_width: int = 0


class Monitor:
    """The runs below a folder, and how they are shown."""

    def __init__(self, results: Path, console: Console) -> None:
        self.results, self.console = results, console
        self.began = time.time()
        self.next_search = 0.0
        self.runs: dict[Path, Followed] = {}
        self.dense_losses: dict[Path, tuple[int, str]] = {}  # by run: at which step it was found
        self.columns = (
            Column("phase", self._phase),
            Column("step", lambda run: f"{run.step}/{run.steps or '?'}"),
            Column("loss", lambda run: _number(run, "loss", ".3f")),
            Column("dense", self.dense_loss),
            Column("sparsity", lambda run: _number(run, "sparsity", ".3f"), WIDE),
            Column("saved", lambda run: "" if (saved := run.share_saved()) is None else f"{saved:.0%}", NARROW),
            Column("tokens/s", lambda run: _number(run, "tokens_per_second", ",.0f"), WIDE),
            Column("MB", lambda run: _number(run, "memory_bytes", ",.0f", 1e-6), WIDE),
            Column("left", lambda run: "" if (left := run.seconds_left()) is None else duration(left)),
            Column("alive", lambda run: ago(run.life.age()), NARROW),
        )

    def look(self) -> None:
        """Read what is new in every folder."""
        if time.monotonic() >= self.next_search:
            for folder in runs_below(self.results, without=finding.REFERENCE):
                name = escape(folder.path.relative_to(self.results).as_posix().replace("/seed-", "/"))
                self.runs.setdefault(folder.path, Followed(folder, name))
            self.next_search = time.monotonic() + SEARCH
        for run in self.runs.values():
            run.look()

    def render(self, height: int | None) -> Group:
        """The table, the alarms and a line on the whole: all runs, or the most telling that `height` lines hold."""
        alarms = [f"{run.name} {alarm[0]}: {alarm[1]}" for run in self.runs.values() if (alarm := run.alarm())]
        free = _free(self.results)
        if free < DISK_FREE:
            alarms.insert(0, f"full disk: {free / 1e9:.1f} GB free where {self.results} is")
        if len(alarms) > ALARMS:
            alarms[ALARMS - 1 :] = [f"and {len(alarms) - ALARMS + 1} more"]
        shown = self._shown(height - len(alarms) - 3 if height else len(self.runs))
        whole = f"{self._whole(len(self.runs) - len(shown))}; {free / 1e9:,.0f} GB free"
        lines = [*((f"! {line}", "bold red") for line in alarms), (whole, "dim")]
        texts = [Text(line, style, no_wrap=True, overflow="ellipsis") for line, style in lines]
        return Group(self._table(shown), *texts)

    def dense_loss(self, run: Followed) -> str:
        """The loss at the same step of the dense run of the same profile, seed, text and shape, in the same folder of
        results or else among the committed runs; blank: there is none."""
        known = self.dense_losses.get(run.folder.path)
        if known and known[0] == run.step:
            return known[1]
        for log in self._dense_logs(run):
            with suppress(OSError, UserError, *UNREADABLE):  # its own row says so
                if row := row_at(log, run.step):
                    self.dense_losses[run.folder.path] = run.step, f"{row['loss']:.3f}"
                    return self.dense_losses[run.folder.path][1]
        return ""

    def _dense_logs(self, run: Followed) -> list[Path]:
        """Where that loss may be."""
        if not run.logged or not run.config or run.config.arm == "dense":
            return []
        config, path = run.config, run.folder.path
        logs = [
            other.log.file
            for other in self.runs.values()
            if other.config and _is_dense_of(other.config, config) and _are_beside(other.folder.path, path)
        ]
        committed = finding.REFERENCE / config.profile / "dense" / f"seed-{config.seed}"
        if (dense := read_committed_config(committed)) and _is_dense_of(dense, config):
            logs.append(committed / "metrics.jsonl")
        return logs

    def _phase(self, run: Followed) -> str:
        if alarm := run.alarm():
            return alarm[0]
        phase = str(run.logged.get("phase", "")) if run.state == "running" else ""
        phase = phase or run.state
        return phase if self.console.width >= WIDE or len(phase) <= PHASE else phase[: PHASE - 1] + "…"

    def _shown(self, room: int) -> list[Followed]:
        """By what they tell; where not all have room, those that had finished before are left out."""
        ordered = sorted(self.runs.values(), key=lambda run: (self._rank(run), run.name))
        if len(ordered) <= room:
            return ordered
        return [run for run in ordered if self._rank(run) < 4][: max(1, room)]

    def _rank(self, run: Followed) -> int:
        if run.alarm():
            return 0
        if run.state == "finished":
            return 2 if run.finished_at >= self.began else 4
        return 3 if run.state == "gone" else 1

    def _table(self, shown: list[Followed]) -> Table:
        width = self.console.width
        columns = [column for column in self.columns if width >= column.from_width]
        rows = [[column.cell(run) for column in columns] for run in shown]
        gap = 2 if width >= WIDE else 1
        taken = [max(map(cell_len, cells)) + gap for cells in zip([column.title for column in columns], *rows)]
        room = max(6, width - sum(taken))
        table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
        table.add_column("run", no_wrap=True)
        for column in columns:
            table.add_column(column.title, no_wrap=True, justify="left" if column.title == "phase" else "right")
        for run, cells in zip(shown, rows):
            style = "bold red" if run.alarm() else STYLES.get(run.state, "")
            name = run.name if cell_len(run.name) <= room else "…" + run.name[1 - room :]
            table.add_row(*(Text(cell, style) for cell in (name, *cells)))
        return table

    def _whole(self, hidden: int) -> str:
        """How many there are, by state."""
        if not self.runs:
            return f"no runs below {self.results} yet"
        states = [run.state for run in self.runs.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
        return counts + (f", {hidden} not shown" if hidden else "") + f" in {self.results}"


def watch(results: Path, once: bool) -> None:
    """Show the runs until Ctrl-C; once where it is asked for, and where there is no terminal.

    Raises:
        UserError: there is no such folder.
    """
    if not results.is_dir():
        raise UserError(f"{results} is no folder; allowed: one with runs in it, such as results")
    terminal = is_terminal(sys.stdout)
    console = Screen(force_terminal=terminal, width=None if terminal or "COLUMNS" in os.environ else PLAIN)
    monitor = Monitor(results, console)
    monitor.look()
    if once or not terminal:
        console.print(monitor.render(None))
        return
    with Live(monitor.render(console.height), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            time.sleep(REFRESH)
            monitor.look()
            live.update(monitor.render(console.height), refresh=True)


def _is_dense_of(dense: RunConfig, config: RunConfig) -> bool:
    """Would its loss at a step be another only by the method?"""
    same = (
        (dense.profile, dense.seed, dense.data) == (config.profile, config.seed, config.data)
        and dense.model == (config.reference or config.model)
        and dense.train.num_steps == config.train.num_steps
        and dense.train.batch_size == config.train.batch_size
    )
    return same and dense.arm == "dense"


@cache
def read_committed_config(folder: Path) -> RunConfig | None:
    """Of a run that no command changes; None: there is none."""
    try:
        return RunFolder(folder).configuration()
    except UserError:
        return None


def _are_beside(one: Path, other: Path) -> bool:
    """As `train --out` puts runs that are to be compared, or `replicate` arms."""
    return one.parent == other.parent or one.parent.parent == other.parent.parent


def _free(folder: Path) -> float:
    """Bytes on its disk; infinite where that is not known."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return float("inf")


def _number(run: Followed, key: str, form: str, scale: float = 1) -> str:
    """A value of its last logged row; blank: it has none."""
    value = run.logged.get(key)
    return format(value * scale, form) if isinstance(value, int | float) else ""
