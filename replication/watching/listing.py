"""`runs list` and `runs show`: which runs there are, how far they are, what came of them."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from replication.flops.ledger import CONVENTIONS
from replication.runs import frames
from replication.runs.folder import UNREADABLE, RunFolder
from replication.runs.ownership import is_left
from replication.system.errors import DamagedError, UserError
from replication.system.files import Json, explain_damage, real_path
from replication.system.machine import is_terminal
from replication.system.streams import escape
from replication.system.terminal import Screen, empty_table


def list_runs(folder: Path) -> str:
    """A line for each run below a folder.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; allowed: one with runs in it, such as results")
    rows = [_row(run, folder) for run in runs_below(folder)]
    if not rows:
        raise UserError(
            f"{folder} holds no runs; allowed: a folder that does, as `train --out` and `replicate` make them"
        )
    table = _table("run", "state", "steps", "val. loss", "× FLOPs", "minutes")
    for row in rows:
        table.add_row(*row)
    return _print_to_text(table, None if is_terminal(sys.stdout) else 200)


def show_run(path: Path) -> str:
    """What one run is and what came of it.

    Raises:
        UserError: the folder holds no run.
        DamagedError: a file of it is not a run's.
    """
    run = frames.load(path)
    try:
        return _describe(run)
    except UNREADABLE as error:
        raise explain_damage(run.folder.path, f"it is not a run's: {type(error).__name__} {error}") from None


def _describe(run: frames.Run) -> str:
    status, environment, config = run.status, run.folder.environment(), run.config
    facts = {
        "run": " ".join(str(config.get(key, "")) for key in ("profile", "arm")) + f", seed {config.get('seed')}",
        "method": config.get("method"),
        "state": ": ".join(filter(None, (_state(run.folder, status), status.get("reason")))),
        "where": f"{environment.get('processor')}, {environment.get('threads')} thread(s), {environment.get('device')}",
        "how": f"{environment.get('precision')}, kernels {environment.get('kernels')}",
        "commit": environment.get("git"),
    }
    parts = ["\n".join(escape(f"{name:<8}{value}") for name, value in facts.items())]
    if len(run.metrics):
        parts.append(_phases(run))
    if resources := run.folder.resources():
        parts.append(_resources(resources, environment.get("processes", 1)))
    if len(run.flops):
        table = _table("counted as", "FLOPs", "dense FLOPs", "dense ÷ method")
        for name, row in run.flops.iterrows():
            table.add_row(str(name), f"{row['flops']:.3g}", f"{row['dense_flops']:.3g}", f"{row['reduction']:.2f}×")
        parts.append(_print_to_text(table))
    if len(run.scores):
        table = _table("task", "metric", "value")
        for (task, metric), row in run.scores.iterrows():
            table.add_row(task, metric, f"{row['value']:.4g}")
        parts.append(_print_to_text(table))
    return "\n\n".join(parts)


def _phases(run: frames.Run) -> str:
    """How each phase ended."""
    table = _table("phase", "steps", "sparsity", "loss", "val. loss", "tokens/s")
    start = 0
    metrics = run.metrics.reset_index()
    for _, rows in metrics.groupby((metrics["phase"] != metrics["phase"].shift()).cumsum()):
        last = rows.iloc[-1]
        validations = rows["validation_loss"].dropna() if "validation_loss" in rows else []
        validation = f"{validations.iloc[-1]:.4f}" if len(validations) else "–"
        cells = (f"{start} to {last['step']}", f"{last['sparsity']:.3f}", f"{last['loss']:.4f}", validation)
        table.add_row(str(rows["phase"].iloc[0]), *cells, f"{last['tokens_per_second']:,.0f}")
        start = last["step"]
    return _print_to_text(table)


def _resources(resources: dict[str, Any], processes: int) -> str:
    """What each phase used."""
    phases = resources["phases"]
    table = _table("used" if processes == 1 else f"used by the first of {processes} processes", *phases)
    seconds = dict.fromkeys(part for used in phases.values() for part in used["seconds"])
    for part in seconds:
        table.add_row(f"{part}, s", *(f"{used['seconds'].get(part, 0):,.2f}" for used in phases.values()))
    energy = f"energy ({resources['energy']}), kJ"
    for title, key, scale in (
        ("processor time, s", "cpu_seconds", 1),
        (energy, "joules", 1e-3),
        ("memory, MiB", "resident_bytes", 2**-20),
        ("read, MiB", "read_bytes", 2**-20),
        ("written, MiB", "written_bytes", 2**-20),
        ("MFU, %", "mfu", 100),
        ("MFU if it were dense, %", "dense_mfu", 100),
    ):
        table.add_row(title, *(f"{used.get(key, 0) * scale:,.2f}" for used in phases.values()))
    peak = f"{resources['peak_flops'] / 1e9:,.0f} GFLOP/s" + (" of each process" if processes > 1 else "")
    return _print_to_text(table) + f"\nMFU is of the measured peak, {peak}."


def _row(run: RunFolder, folder: Path) -> list[str]:
    name = run.path.relative_to(folder).as_posix()
    try:
        status, rows, flops = run.status(), run.metrics(), run.flops() or {}
        if status["status"] == "finished":
            run.verify(without=["checkpoint/*"])
        losses = [row["validation_loss"] for row in rows if "validation_loss" in row]
        count: dict[str, Any] = flops.get("conventions", {}).get(next(iter(CONVENTIONS)), {})
        reduction = f"{count['reduction']:.2f}×" if count else ""
        minutes = f"{status['seconds'] / 60:.1f}" if "seconds" in status else ""
        loss = f"{losses[-1]:.4f}" if losses else ""
        return [name, _state(run, status), str(status.get("step", 0)), loss, reduction, minutes]
    except (DamagedError, *UNREADABLE):
        return [name, "damaged", "", "", "", ""]


def _state(run: RunFolder, status: Json) -> str:
    return "interrupted" if is_left(run.path) else status["status"]


def runs_below(folder: Path, without: Path | None = None) -> Iterator[RunFolder]:
    """The run folders below a folder, damaged ones too, by path; not those below `without`."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if without is None or real_path(Path(place) / name) != without)
        if "status.json" in files:
            folders.clear()  # its parts are no runs
            yield RunFolder(place)


def _table(*columns: str) -> Table:
    table = empty_table()
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 or column in ("state", "metric") else "right")
    return table


def _print_to_text(table: Table, width: int | None = None) -> str:
    console = Screen(markup=False, highlight=False, width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")
