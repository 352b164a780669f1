"""Processes that train a pipeline's runs: each ends alone, and what it says reaches who watches."""

import io
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from replication.methods import load_plugins
from replication.plugins import plugins
from replication.system.signals import ENDING, listening, quit_at_once

TOLD = signal.SIGTERM  # how the pipeline tells a worker to end; what else comes, comes to the pipeline too


class Worker:
    """A pool of one process, so that one that dies takes no other's run with it."""

    def __init__(self) -> None:
        self._said, theirs = multiprocessing.Pipe(duplex=False)
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(theirs,))

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future:
        return self.pool.submit(_do, function, *arguments)

    def tell(self, number: int = TOLD) -> None:
        """Send its process a signal: to end its step, to save and to raise `Interrupted`."""
        for process in list((self.pool._processes or {}).values()):
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)

    def said(self) -> list[str]:
        """The lines that its runs have written to stderr since they were asked for last."""
        lines = []
        with suppress(EOFError, OSError):  # of a process that died
            while self._said.poll():
                lines.append(self._said.recv())
        return lines

    def shutdown(self, wait: bool = True) -> None:
        self.pool.shutdown(wait, cancel_futures=not wait)


class _Relay(io.TextIOBase):
    """What is written to it goes through a pipe, line by line."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.part, self.lock = pipe, "", threading.Lock()

    def write(self, text: str) -> int:
        with self.lock, suppress(OSError):  # the pipeline is no more
            *lines, self.part = (self.part + text).split("\n")
            for line in filter(None, lines):
                self.pipe.send(line)
        return len(text)


def _do(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a worker: what it is told ends what it does, and not the process."""
    with listening((TOLD,)):
        return function(*arguments)


def _begin(pipe: Connection) -> None:
    """In a worker: end when the pipeline does, however it ends; the run resumes from its last save."""
    from tqdm import tqdm  # the libraries' bars

    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C is the pipeline's to handle
    quit_at_once(TOLD)
    tqdm.set_lock(threading.RLock())  # no semaphore of the system's, which a killed process would leave behind
    sys.stderr = _Relay(pipe)  # type: ignore[assignment]
    load_plugins(plugins())

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
