"""The table of commands in docs/commands.md, from the command line's parser: python docs/list_commands.py writes it."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from replication.cli import build_parser

PAGE = Path(__file__).with_name("commands.md")
Parser = argparse.ArgumentParser
BEGIN, END = "<!-- made by docs/list_commands.py -->\n", "<!-- end -->\n"


def list_commands(
    parser: argparse.ArgumentParser, words: str = ""
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """(words, what it does, its parser) of every command."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for choice in (choice for group in groups for choice in group._choices_actions):
        below = groups[0].choices[choice.dest]
        deeper = list(list_commands(below, f"{words}{choice.dest} "))
        yield from deeper or [(f"{words}{choice.dest}", choice.help.replace("%%", "%"), below)]


def name_options(parser: Parser) -> str:
    """What it takes, in the order of its help; what a user need not know is not there."""
    shown = [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]
    return ", ".join(f"`{action.option_strings[-1] if action.option_strings else action.metavar}`" for action in shown)


def render() -> str:
    commands = list_commands(build_parser())
    rows = [f"| `{words}` | {summary} | {name_options(parser)} |" for words, summary, parser in commands]
    return "\n".join(["| command | what it does | what it takes |", "| --- | --- | --- |", *rows]) + "\n"


def insert(page: str) -> str:
    """The page with today's table in it."""
    return re.sub(f"(?<={BEGIN}).*?(?={END})", lambda _: render(), page, count=1, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(insert(PAGE.read_text()))
