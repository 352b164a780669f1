"""Where a command prints to: closed, plain or gone, it ends nothing."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO


def prepare_streams() -> None:
    """What is printed can be: a stream that is closed leads nowhere, and a plain terminal shows what it can of a ÷."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file would be where errors are printed
        pass
    os.close(free)
    sys.stdout, sys.stderr = sys.stdout or _to(1), sys.stderr or _to(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _to(number: int) -> TextIO:
    return os.fdopen(number, "w", encoding="utf-8", closefd=False)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Nothing on stderr, of this process or of those that it starts."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
