"""`make gpu-check`: the tests that need a GPU, and what is measured there, into `<out>/<GPU>/gpu.json` and `.md`."""

import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from replication.bench import gpu
from replication.bench.gpu_report import render
from replication.config.keys import check_known
from replication.system.errors import UserError
from replication.system.files import Json, read_json, write_atomically, write_json
from replication.system.machine import machine

TESTS = Path(__file__).parents[2] / "tests"
WORKERS = 4  # processes that share the GPU: each spends most of its time on imports
PARTS: dict[str, Callable[[], Iterable[Json]]] = {
    "tests": lambda: run_tests(),
    "steps": gpu.measure_steps,
    "attention": gpu.measure_attention,
    "blocks": gpu.measure_blocks,
}


def gpu_check(parts: Sequence[str], out: Path) -> tuple[str, list[str]]:
    """Test and measure; each part is written as soon as it is done, and those not asked for stay as they were.

    Args:
        parts: of `PARTS`, or none for all.
        out: holds a folder for each kind of GPU, `nvidia-h200`.

    Returns:
        What came out, as Markdown; and a line for each test or part that failed.

    Raises:
        UserError: an unknown part; no GPU.
    """
    for part in parts:
        check_known("--only", part, [*PARTS])
    if not torch.cuda.is_available():
        raise UserError(f"gpu-check found no GPU (torch {torch.__version__}); allowed: where torch.cuda is available")
    folder = out / re.sub(r"\W+", "-", gpu_machine()["gpu"].lower())
    file = folder / "gpu.json"
    found: Json = read_json(file) if file.exists() else {}
    failures = []
    for part in parts or PARTS:
        found[part] = _measure(part)
        write_json(file, found)
        failures += _failures(part, found[part])
    page = render(found)
    write_atomically(folder / "gpu.md", page + "\n")
    return page, failures


def _measure(part: str) -> Json:
    """Machine, seconds and rows of a part; and `error`, where it did not come to its end."""
    began, rows, problem = time.perf_counter(), [], {}
    try:
        for row in PARTS[part]():
            rows.append(row)
            said = ", ".join(f"{key} {value}" for key, value in row.items() if key not in ("seconds", "message"))
            print(f"{part}: {said}", file=sys.stderr, flush=True)
    except Exception as error:  # the other parts are worth having
        traceback.print_exc()
        problem = {"error": f"{type(error).__name__}: {error}".partition("\n")[0]}
    return {"machine": gpu_machine(), "total_seconds": time.perf_counter() - began, "rows": rows} | problem


def _failures(part: str, measured: Json) -> list[str]:
    failed = [f"{row['test']} {row['outcome']}" for row in measured["rows"] if row.get("outcome") == "failed"]
    return failed + ([f"{part}: {measured['error']}"] if "error" in measured else [])


def gpu_machine() -> Json:
    """The machine, its GPU, and what drives it."""
    properties = torch.cuda.get_device_properties(0)
    facts = {"gpu": properties.name, "gpus": torch.cuda.device_count(), "gpu_bytes": properties.total_memory}
    versions = {"cuda": torch.version.cuda, "driver": None}
    with suppress(Exception):  # its library is not installed, or its driver is not to be asked
        import pynvml

        pynvml.nvmlInit()
        versions["driver"] = pynvml.nvmlSystemGetDriverVersion()
    return machine() | facts | versions


def run_tests() -> Iterator[Json]:
    """A row for each test marked `cuda`: its name, its outcome, its seconds, and the message where it failed.

    Raises:
        UserError: the tests are not here.
    """
    if not TESTS.is_dir():
        raise UserError(f"{TESTS} is not there; allowed: from the repository, where the tests are")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", f"--numprocesses={WORKERS}"]
        command += [
            f"--junitxml={report}",
            str(TESTS / "bench" / "test_gpu.py"),
        ]  # others may want what is not installed
        done = subprocess.run(command, cwd=TESTS.parent, stdout=sys.stderr)
        if not report.exists():
            raise UserError(f"pytest ended with {done.returncode} and no report; allowed: with the tests' requirements")
        yield from outcomes(report)


def outcomes(report: Path) -> Iterator[Json]:
    """The rows of a report that pytest wrote."""
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        failed = next((problem for kind in ("failure", "error") if (problem := case.find(kind)) is not None), None)
        outcome = "failed" if failed is not None else "skipped" if case.find("skipped") is not None else "passed"
        row: dict[str, Any] = {"test": case.get("name"), "outcome": outcome, "seconds": float(case.get("time", 0))}
        yield row if failed is None else row | {"message": failed.get("message", "")}
