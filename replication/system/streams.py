"""Where a command prints to: closed, plain or gone, it ends nothing."""

import contextlib
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import TextIO

LONGEST = 4000  # characters of a line about what is wrong: a value may have any length
JOINERS = "\u200c\u200d"  # of letters and of signs: they steer nothing


def prepare_streams() -> None:
    """What is printed can be: a stream that is closed leads nowhere, and a plain terminal shows what it can of a ÷."""
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file would be where errors are printed
        pass
    os.close(free)
    sys.stdout, sys.stderr = sys.stdout or _to(1), sys.stderr or _to(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def escape(text: str) -> str:
    """`text` with what would steer a terminal, or the order of what is read, written out: `\\x1b`, `\\u202e`."""
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(sign.encode("unicode_escape").decode() if _steers(sign) else sign for sign in text)


def _steers(sign: str) -> bool:
    return unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in f"\n\t{JOINERS}"


def say(what: object) -> None:
    """Print what is not ours alone: words of files, names of folders."""
    print(escape(str(what)))


def shorten(line: str) -> str:
    """With its middle left out where it is longer than anybody reads: the key comes first, what is allowed last."""
    if len(line) <= LONGEST:
        return line
    half = LONGEST // 2
    return f"{line[:half]} […{len(line) - 2 * half} characters…] {line[-half:]}"


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
