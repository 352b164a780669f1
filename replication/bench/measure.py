"""Configurations timed in turns, in this process or in others; the seconds of every repetition are kept."""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any

import torch

from replication.kernels.engine import keep_memory
from replication.system.machine import peak_memory

Pause = Callable[[], None]  # a contender calls it before each step and once after the last


def clock(work: Callable[[], Any]) -> Callable[[], float]:
    """The work as a turn: does it, returns its seconds."""

    def turn() -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    return turn


def alternate(turns: Mapping[str, Callable[[], float]], rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of each contender's turn in every round; the first `warmup` rounds do not count."""
    for _ in range(warmup):
        for turn in turns.values():
            turn()
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            seconds[name].append(turn())
    return seconds


class Contender:
    """A training in a process of its own, which takes one step at a time.

    Args:
        train: called there as train(pause, *arguments); calls `pause` before each step, and once after the last if it
            ends.
    """

    def __init__(self, train: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(other, torch.get_num_threads(), train, arguments), daemon=True
        )
        with unhearing():
            self.process.start()
        other.close()
        self.pipe.recv()  # it is set up
        self.peak_memory = 0  # bytes, after the last step

    def step(self) -> float:
        """Seconds of its next step."""
        self.pipe.send(None)
        seconds, self.peak_memory = self.pipe.recv()
        return seconds

    def stop(self) -> None:
        self.process.terminate()
        self.process.join()


def take_turns(contenders: Mapping[str, Contender], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """`alternate` over the contenders' steps, which end with it."""
    try:
        return alternate({name: contender.step for name, contender in contenders.items()}, rounds, warmup)
    finally:
        stop(contenders.values())


@contextmanager
def unhearing() -> Iterator[None]:
    """Processes that are started in it leave Ctrl-C to this one, which ends them; a terminal sends it to them too."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def stop(contenders: Iterable[Contender]) -> None:
    for contender in contenders:
        contender.stop()


def _serve(pipe: Connection, threads: int, train: Callable[..., None], arguments: tuple) -> None:
    torch.set_num_threads(threads)
    keep_memory()  # an allocator's setting that anyone could make: none of them is to gain by it alone
    began = None

    def pause() -> None:
        nonlocal began
        pipe.send(None if began is None else (time.perf_counter() - began, peak_memory(torch.device("cpu"))))
        pipe.recv()
        began = time.perf_counter()

    with suppress(EOFError, ConnectionError):  # who measures has ended
        train(pause, *arguments)
