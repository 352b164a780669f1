"""Signals that end a process: a step that has begun is ended first, and saved."""

import errno
import os
import signal
import sys
import termios
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from replication.system.streams import escape, shorten

# Ctrl-C; a scheduler's or the system's end; a terminal that is closed; Slurm's notice of preemption.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
ECHO = 1.0  # seconds in which a signal is the one before it: a terminal and a launcher both send it


class Interrupted(KeyboardInterrupt):
    """A signal ends the process.

    Attributes:
        number: the signal's.
        kept: what became of what was done, for who reads the last line.
    """

    def __init__(self, number: int, kept: str = "what was saved is kept, and the same command goes on") -> None:
        super().__init__(number, kept)
        self.number, self.kept = number, kept

    def __str__(self) -> str:
        return f"{signal.Signals(self.number).name}: {self.kept}"

    @property
    def code(self) -> int:
        """The exit code, as shells have it."""
        return 128 + self.number


class _Held:
    """How many signals have come since they are held back, and which came first."""

    depth = 0
    number: int | None = None
    count = 0
    last = -ECHO


def read_signal() -> int | None:
    """The signal that came since they are `held`, if one did."""
    return _Held.number


def times_asked() -> int:
    """How often; one that is sent again a second later is sent in earnest."""
    return _Held.count


@contextmanager
def listening(numbers: Iterable[int] = ENDING) -> Iterator[None]:
    """While it lasts these signals raise `Interrupted`, or are held back where something is being ended.

    What is ignored stays so, as under nohup. Does nothing but in the main thread, where alone Python handles signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, _handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held(numbers: Iterable[int] = ENDING) -> Iterator[None]:
    """These signals are noted for who asks (`read_signal`), and raised at its end unless that was done."""
    with listening(numbers):
        _Held.depth += 1
        try:
            yield
        finally:
            _Held.depth -= 1
            number = _Held.number
            if not _Held.depth:
                _Held.number, _Held.count = None, 0
        if number and not _Held.depth:
            raise Interrupted(number)


def tell(line: str) -> None:
    """A last line on stderr, if there still is one."""
    with suppress(OSError, ValueError):
        print(shorten(escape(line)), file=sys.stderr, flush=True)


def _handle(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        _leave_terminal()
    now = time.monotonic()
    if now - _Held.last < ECHO:
        return
    _Held.last = now
    if not _Held.depth:
        raise Interrupted(number)
    _Held.number, _Held.count = _Held.number or number, _Held.count + 1


def _leave_terminal() -> None:
    """What is said from here on goes nowhere, where the terminal is gone: writing there would fail."""
    for stream in (1, 2):
        try:
            termios.tcgetattr(stream)
        except termios.error as error:
            if error.args[0] == errno.EIO:  # not that it never was one
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def quit_at_once(number: int) -> None:
    """Let a signal end this process where nothing is to be saved or said."""
    signal.signal(number, _quit)


def _quit(number: int, frame: Any) -> None:
    os._exit(128 + number)
