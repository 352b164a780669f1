"""`make bench`: measures the parts that are asked for, keeps each as `<out>/<part>.json`, and reports all there are."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from replication.bench import layers, steps
from replication.bench.corpus import measure_corpus
from replication.bench.metrics import measure_metrics
from replication.bench.predictions import measure_predictions
from replication.bench.processes import WIDTHS, measure_processes
from replication.bench.profile import measure_profile
from replication.bench.report import SECTIONS, write_report
from replication.errors import UserError
from replication.files import write_json
from replication.kernels.library import KINDS, library, processor_kind
from replication.keys import check_known
from replication.machine import machine


def bench(parts: Sequence[str], out: Path, data_dir: Path, quick: bool = False) -> str:
    """Measure and report.

    Args:
        parts: of the report's `SECTIONS`, or none for all; those that are not measured now are reported as they were.
        quick: the smallest sizes and few rounds, to see that it works.

    Returns:
        The report as Markdown.

    Raises:
        UserError: an unknown part; the kernels were not built.
    """
    for part in parts:
        check_known("--only", part, list(SECTIONS))
    if library() is None:
        raise UserError(
            "the sparse kernels were not built from this source; allowed: after `make install`, with a C compiler"
        )
    measures = {
        "layers": lambda: layers.measure(3 if quick else 5, ("smoke",) if quick else layers.PROFILES),
        "steps": lambda: _each(
            steps.SIZES, quick, lambda width: steps.measure_steps(width, 3 if quick else 9, data_dir)
        ),
        "densities": lambda: steps.measure_densities(64 if quick else 768, 3 if quick else 5, data_dir),
        "profile": lambda: measure_profile(64 if quick else 768, data_dir),
        "metrics": lambda: measure_metrics("smoke" if quick else "small", 30 if quick else 300, data_dir),
        "processes": lambda: _each(WIDTHS, quick, lambda width: measure_processes(width, 3 if quick else 21, data_dir)),
        "predictions": lambda: measure_predictions(2 if quick else None),
        "corpus": lambda: measure_corpus(*((5, 1, 100) if quick else ())),
        "runs": lambda: steps.measure_runs(64 if quick else 768, 40 if quick else 200, data_dir),
    }
    for part in parts or SECTIONS:
        rows = []
        for row in measures[part]():
            rows.append(row)
            print(
                f"{part}: {', '.join(f'{key} {value}' for key, value in row.items() if key != 'seconds')}",
                file=sys.stderr,
            )
        write_json(out / f"{part}.json", {"machine": machine() | {"kernels": KINDS[processor_kind()]}, "rows": rows})
    return write_report(out)


def _each(sizes: Iterable[int], quick: bool, measure) -> Iterator[dict[str, Any]]:
    return chain.from_iterable(map(measure, list(sizes)[: 1 if quick else None]))
