"""Copies a profile's finished runs, packed, to where ours are: python scripts/pack.py SOURCE DESTINATION."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from replication.runs.finding import check_whole, sort_out_runs
from replication.runs.folder import LOGS, RunFolder
from replication.system.errors import DamagedError, UserError
from replication.system.files import PACKED, PARTIAL, find_stored, pack_log, writing

# What is kept of a run, beside its logs; weights, saved states and what a tracker wrote stay where they are.
KEPT = ("config.yaml", "environment.json", "status.json", "flops.json", "resources.json", "masks.npz")
SCORES = ("eval/*.json", "at/*/eval/*/*.json")


def pack(source: Path, destination: Path) -> str:
    """Copy the finished runs of `<results>/<profile>`, and the tables beside them.

    Returns:
        A line that says what was copied, and which runs were not, as they are not finished.

    Raises:
        UserError: there is no finished run, or `destination` is not empty or no place to write, or has another name.
        DamagedError: runs are damaged; the line names each. Nothing is written.
    """
    if not source.is_dir():
        raise UserError(f"{source} is no folder; allowed: one of a profile's runs, such as results/small")
    if destination.resolve().name != source.resolve().name:
        raise UserError(f"{destination} is of another name than {source}; allowed: the same one, the profile's")
    if destination.exists() and not (destination.is_dir() and not any(destination.iterdir())):
        raise UserError(f"{destination} is there already; allowed: a new or empty folder, or this one removed before")
    source = source.resolve()  # its name is the profile's
    runs, damaged = sort_out_runs(source.parent, source.name)
    if damaged:
        raise DamagedError("; ".join(damaged))
    if not runs:
        raise UserError(f"{source} holds no finished run; allowed: a folder of a profile's runs, such as results/small")
    partial = destination.with_name(f".{destination.name}.{os.getpid()}{PARTIAL}")
    with writing(destination):
        try:
            _copy(source, runs, partial)
            partial.replace(destination)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    left = {path for path in source.glob("*/seed-*") if path.is_dir()} - {run.path for run in runs}
    names = ", ".join(sorted(path.relative_to(source).as_posix() for path in left))
    size = sum(file.stat().st_size for file in destination.rglob("*") if file.is_file())
    return f"{destination}: {len(runs)} runs, {size / 1e6:.1f} MB" + (f"; left out, not finished: {names}" * bool(left))


def _copy(source: Path, runs: list[RunFolder], destination: Path) -> None:
    """The runs, each read again where it is now; and the profile's tables, verdicts, figures and tuned settings."""
    destination.mkdir(parents=True)
    for run in runs:
        copy = RunFolder(destination / run.path.relative_to(source))
        _copy_run(run.path, copy.path)
        check_whole(copy)
    for file in source.iterdir():
        if file.is_file() and not file.name.startswith("."):
            shutil.copyfile(file, destination / file.name)


def _copy_run(run: Path, copy: Path) -> None:
    for file in (file for pattern in (*KEPT, *SCORES) for file in run.glob(pattern)):
        target = copy / file.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    for name in LOGS:
        if find_stored(run / name).exists():
            pack_log(run / name, copy / f"{name}{PACKED}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a profile's runs, such as results/small")
    parser.add_argument("destination", type=Path, metavar="DESTINATION", help="such as results/reference/small")
    options = parser.parse_args(arguments)
    try:
        print(pack(options.source, options.destination))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
