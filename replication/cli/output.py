"""What commands print first and last."""

import argparse
import sys
from collections.abc import Iterable

from replication.system.launcher import is_first
from replication.system.machine import is_terminal
from replication.system.signals import tell
from replication.system.streams import say


def announce(line: str) -> None:
    """The first line for who watches, before what takes seconds to import; in a log an error stands alone."""
    if is_terminal(sys.stderr) and is_first():
        tell(line)


def describe_run(options: argparse.Namespace) -> str:
    return f"{options.method} on profile {options.profile}, seed {options.seed}"


def end(text: str, failures: Iterable[str]) -> int:
    """Print what came out, and what failed; returns the exit code."""
    failures = list(failures)
    if text:
        say(text)
    for failure in failures:
        tell(failure)
    return 1 if failures else 0
