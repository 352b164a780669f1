"""Steps of two processes: gradients averaged while the backward pass runs (DDP), or tensor by tensor after it."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd
import torch

from replication.analysis.tables import to_markdown
from replication.bench.measure import alternate, clock, unhearing
from replication.bench.ratios import Rows, compare, times
from replication.bench.steps import ULTRA, configure, set_up
from replication.data import prepare
from replication.training.steps import parallel_forward, train_step

WIDTHS = (64, 256, 768)
METHODS = {"dense": ("dense",), "MST ultra": ("mst", *ULTRA)}
DDP, AFTER = "DDP", "tensor by tensor"


def measure_processes(width: int, rounds: int, data_dir: Path) -> Iterator[dict[str, Any]]:
    """A row for each method and way: seconds of a step of two processes of one thread, in float32, in every round."""
    prepare(configure(width, "dense", "fp32").data, data_dir)  # not by both at once
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with unhearing():
        pool = multiprocessing.get_context("spawn").Pool(2)
    with pool as processes:
        seconds, _ = processes.starmap(_train, [(rank, port, width, rounds, data_dir) for rank in (0, 1)], chunksize=1)
    for (method, way), each in seconds.items():
        yield {"width": width, "method": method, "contender": way, "seconds": each}


def _train(rank: int, port: int, width: int, rounds: int, data_dir: Path) -> dict[tuple[str, str], list[float]]:
    """One of the two processes; the same turns in both."""
    where = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in where.items()}
    torch.set_num_threads(1)
    turns = {(name, way): _turn(way, width, of, data_dir) for name, of in METHODS.items() for way in (DDP, AFTER)}
    return alternate(turns, rounds, warmup=2)


def _turn(way: str, width: int, of: tuple[str, ...], data_dir: Path) -> Callable[[], float]:
    state = set_up(configure(width, of[0], "fp32", *of[1:]), data_dir)
    forward = parallel_forward(state) if way == DDP else state.model.transformer

    def step() -> None:
        train_step(state, forward)
        state.world.wait()

    def turn() -> float:
        state.world.wait()
        return clock(step)()

    return turn


def render_processes(rows: Rows, folder: Path) -> str:
    """A line for each width and method."""
    seconds = {(row["width"], row["method"], row["contender"]): row["seconds"] for row in rows}
    table = [
        {
            "width": width,
            "method": method,
            f"ms a step, {AFTER}": f"{1000 * median(after):.1f}",
            f"ms a step, {DDP}": f"{1000 * median(own):.1f}",
            "×": times(compare([(after, own)])),
        }
        for (width, method, way), own in seconds.items()
        if way == DDP
        for after in [seconds[width, method, AFTER]]
    ]
    return "\n\n".join(
        [
            "## (j) Two processes",
            "A training step of two processes of one thread each, in float32. *DDP* averages gradients in buckets "
            f"while the backward pass runs; *{AFTER}*, one all-reduce a tensor follows it.",
            to_markdown(pd.DataFrame(table)),
        ]
    )
