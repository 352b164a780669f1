"""`python -m replication.bench.soak SECONDS [OUT]`: do memory, descriptors, processes and files stay as many?

One process trains, is interrupted by a signal, resumes, scores and writes a table, over and over. What grows with the
rounds is a leak: it is told by the last quarter of them against the second one; in the first one libraries fill.
"""

import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from replication.analysis.tables import write_table1
from replication.config.profiles import load_config
from replication.data import write_evaluation_sets
from replication.eval.zero_shot import score
from replication.system.files import Json, write_json
from replication.system.machine import machine
from replication.system.signals import Interrupted
from replication.training import trainer

METHODS = ("dense", "static", "set", "rigl", "mst")
STEPS = 30
MEASURES = ("memory_bytes", "descriptors", "threads", "processes", "files")
GROWTH = 0.02  # of memory, between the two quarters, that the allocator may have (ours)


def soak(seconds: float) -> Json:
    """Rounds for so many seconds, what each of them left, and whether all is flat.

    Returns:
        `rounds`, one mapping each: `seconds` since the start and the `MEASURES` after it; and by measure the medians of
        the `second` and the `last` quarter of the rounds, and whether it `is_flat`.
    """
    began, rounds = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for method in _alternate():
            _round(method, Path(folder), len(rounds))
            rounds.append({"seconds": time.monotonic() - began, "method": method, **_read_left(Path(folder))})
            if time.monotonic() - began >= seconds:
                break
    return {"machine": machine(), "summary": {name: _summary(rounds, name) for name in MEASURES}, "rounds": rounds}


def _alternate() -> Iterator[str]:
    while True:
        yield from METHODS


def _round(method: str, folder: Path, number: int) -> None:
    """A run of a method, interrupted at a step of its own, resumed, scored and put in a table."""
    run, data = folder / "results" / "smoke" / method / "seed-0", folder / "data"
    steps = [f"train.num_steps={STEPS}", "train.eval_freq=10", "train.checkpoint_freq=7", "train.warmup_steps=2"]
    config = load_config("smoke", method, 0, [*steps, "sparsity.update_freq=3"])
    shutil.rmtree(run, ignore_errors=True)
    inner, stop = trainer.train_step, 1 + number % (STEPS - 2)

    def step(state: Any, forward: Any) -> Json:
        if state.step == stop:
            os.kill(os.getpid(), signal.SIGUSR1)
        return inner(state, forward)

    trainer.train_step = step
    try:
        trainer.train(config, run, data, progress=False)
    except Interrupted:
        pass
    finally:
        trainer.train_step = inner
    finished = trainer.train(config, run, data, resume=True, progress=False)
    os.environ["REPLICATION_DATA"] = str(data)
    write_evaluation_sets(config.data, data)
    score(finished.checkpoint, ["embedded_lastword"], finished.path / "eval")
    write_table1(folder / "results", "smoke")


def _read_left(folder: Path) -> Json:
    process = psutil.Process()
    return {
        "memory_bytes": process.memory_info().rss,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
        "processes": len(process.children(recursive=True)),
        "files": sum(path.is_file() for path in folder.rglob("*")),
    }


def _summary(rounds: list[Json], name: str) -> Json:
    """Medians of the second and the last quarter of the rounds."""
    values, quarter = [row[name] for row in rounds], max(1, len(rounds) // 4)
    second, last = (statistics.median(part) for part in (values[quarter : 2 * quarter] or values, values[-quarter:]))
    return {"second": second, "last": last, "is_flat": last <= second * (1 + (GROWTH if name == "memory_bytes" else 0))}


if __name__ == "__main__":
    found = soak(float(sys.argv[1]))
    out = Path(sys.argv[2] if len(sys.argv) > 2 else "results/bench/soak.json")
    write_json(out, found)
    for name, row in found["summary"].items():
        print(f"{name}: {row['second']:,.0f} in the second quarter, {row['last']:,.0f} in the last", end="")
        print("" if row["is_flat"] else ": it grows")
    print(f"{out}: {len(found['rounds'])} rounds")
    sys.exit(not all(row["is_flat"] for row in found["summary"].values()))
