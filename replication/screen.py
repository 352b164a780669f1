"""What a terminal has room for, and how a table looks on it."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

WIDE = 110  # columns, from which on there is room for all
NARROW = 75  # columns, below which only that stays which decides


class Screen(Console):
    """What a command prints on, until nobody reads it."""

    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which ends in one way however it prints."""
        raise BrokenPipeError


def empty_table() -> Table:
    """With a line below its header, and no other."""
    return Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
