"""`make bench`: measures parts, each kept in `<out>/<kind of processor>/` once it is done, and reports all."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from replication.bench import history, layers, steps
from replication.bench.corpus import measure_corpus
from replication.bench.kind import check_same, read_parts, this_machine
from replication.bench.metrics import measure_metrics
from replication.bench.page import write_page
from replication.bench.predictions import measure_predictions
from replication.bench.processes import WIDTHS, measure_processes
from replication.bench.profile import WIDTHS as PROFILED
from replication.bench.profile import measure_profile
from replication.bench.report import SECTIONS, headlines, write_report
from replication.config.keys import check_known
from replication.kernels.library import library
from replication.system.errors import UserError
from replication.system.files import Json, check_writable, write_json


def bench(parts: Sequence[str], out: Path, data_dir: Path, quick: bool = False) -> str:
    """Measure and report; interrupted, it has lost no more than the part that it was at.

    Args:
        parts: of the report's `SECTIONS`; or none for all that were not measured at this commit. The others are
            reported as they were.
        quick: the smallest sizes and few rounds, to see that it works.

    Returns:
        The front page, as Markdown.

    Raises:
        UserError: an unknown part; the kernels were not built; the folder has measurements of another processor.
        DamagedError: a file of earlier measurements is not as it was written.
    """
    for part in parts:
        check_known("--only", part, list(SECTIONS))
    if library() is None:
        raise UserError(
            "the sparse kernels were not built from this source; allowed: after `make install`, with a C compiler"
        )
    machine = this_machine(quick)
    folder = out / machine["kind"]
    check_writable(folder)
    check_same(folder, machine)
    history.read(folder)  # damaged, it is better known now than after an hour
    for part in parts or _missing(folder, machine["git"]):
        _measure(part, _measures(quick, data_dir)[part], folder, machine)
        write_report(folder)
        write_page(out)
    write_report(folder)
    return write_page(out)


def _missing(folder: Path, commit: str | None) -> list[str]:
    """The parts that were not measured at this commit; all, where the source is no commit's."""
    is_commit = commit is not None and not commit.endswith("-dirty")
    done = [name for name, part in read_parts(folder).items() if is_commit and part["machine"]["git"] == commit]
    if done:
        print(f"measured at {commit} already: {', '.join(done)}; again with --only (make: ONLY=)", file=sys.stderr)
    return [part for part in SECTIONS if part not in done]


def _measure(part: str, rows_of: Callable[[], Iterable[Json]], folder: Path, machine: Json) -> None:
    """Measure a part, keep its rows, and add its headline ratios to the history."""
    rows = []
    for row in rows_of():
        rows.append(row)
        said = ", ".join(f"{key} {value}" for key, value in row.items() if key != "seconds")
        print(f"{part}: {said}", file=sys.stderr)
    measured = {"machine": machine, "rows": rows}
    write_json(folder / f"{part}.json", measured)
    history.append(folder, machine, headlines(part, measured))


def _measures(quick: bool, data_dir: Path) -> dict[str, Callable[[], Iterable[Json]]]:
    return {
        "layers": lambda: layers.measure(3 if quick else 5, ("smoke",) if quick else layers.PROFILES),
        "steps": lambda: _each(
            steps.SIZES, quick, lambda width: steps.measure_steps(width, 3 if quick else 9, data_dir)
        ),
        "densities": lambda: steps.measure_densities(64 if quick else 768, 3 if quick else 5, data_dir),
        "profile": lambda: _each(PROFILED, quick, lambda width: measure_profile(width, data_dir)),
        "metrics": lambda: measure_metrics("smoke" if quick else "small", 30 if quick else 300, data_dir),
        "processes": lambda: _each(WIDTHS, quick, lambda width: measure_processes(width, 3 if quick else 21, data_dir)),
        "predictions": lambda: measure_predictions(2 if quick else None),
        "corpus": lambda: measure_corpus(*((5, 1, 100) if quick else ())),
        "runs": lambda: steps.measure_runs(64 if quick else 768, 40 if quick else 200, data_dir),
    }


def _each(sizes: Iterable[int], quick: bool, measure: Callable[[int], Iterator[Json]]) -> Iterator[Json]:
    return chain.from_iterable(map(measure, list(sizes)[: 1 if quick else None]))
