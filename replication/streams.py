"""Where a command prints to: closed, plain or gone, it ends nothing."""

import io
import os
import sys
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
