"""What a terminal has room for, and how a table looks on it."""

from collections.abc import Iterable
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from replication.system.streams import escape

WIDE = 110  # columns, from which on there is room for all
NARROW = 75  # columns, below which only that stays which decides


class Screen(Console):
    """What a command prints on, until nobody reads it: names of folders and words of files steer no terminal."""

    def render_str(self, text: str, **style: Any) -> Text:
        """As it is measured for a column, too."""
        return super().render_str(escape(text), **style)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=escape(segment.text))

    def on_broken_pipe(self) -> None:
        """Leave it to the command line, which ends in one way however it prints."""
        raise BrokenPipeError


def empty_table() -> Table:
    """With a line below its header, and no other."""
    return Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
