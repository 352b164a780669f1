"""What options are made of, and those that several commands take."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import shtab

from replication.config import printing
from replication.system.signals import tell

PROFILES = "smoke, small, text, paper, or the path of a .yaml file (default: %(default)s)"
PATHS = ("--profile", "--plugin", "--include-path")  # that are completed as such
ARM = "an arm of the profile: dense, static, set, rigl, mst …; --help lists them"


class Parser(argparse.ArgumentParser):
    """One line on a mistake, not the whole usage; arms and fields at the end of a help that asks for them."""

    lists: bool = False

    def error(self, message: str) -> None:
        tell(f"error: {message}; see {self.prog} --help")
        raise SystemExit(2)

    def format_help(self) -> str:
        if not self.lists:
            return super().format_help()
        return (
            f"{super().format_help()}\narms (--method):\n{printing.list_arms()}\n\n"
            f"fields (--set), with their defaults; --print-config shows a run's own:\n{printing.list_fields()}\n"
        )


class Words:
    """The words that may come next on the command line; each is a command, or has words of its own."""

    def __init__(self, parser: argparse.ArgumentParser, metavar: str) -> None:
        self.added = parser.add_subparsers(required=True, metavar=metavar)

    def command(self, name: str, run: Callable[[argparse.Namespace], int], summary: str) -> Parser:
        """A command's parser, to which its options are added."""
        parser = self._parser(name, summary)
        parser.set_defaults(command=run)
        return parser

    def group(self, name: str, summary: str) -> "Words":
        """A word that has others under it."""
        return Words(self._parser(name, summary), "WORD")

    def _parser(self, name: str, summary: str) -> Parser:
        summary = summary.replace("%", "%%")
        return self.added.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")


def add_option(parser: Any, name: str, meaning: str, **how: Any) -> None:
    option = parser.add_argument(name, help=meaning, **how)
    if how.get("type") is Path or name in PATHS:
        option.complete = shtab.FILE


def add_flag(parser: Any, name: str, meaning: str) -> None:
    parser.add_argument(name, help=meaning, action="store_true")


def add_run(parser: Parser, required: bool = True) -> None:
    """What says which run it is."""
    parser.lists = True
    add_option(parser, "--profile", PROFILES, default="small")
    add_option(parser, "--method", ARM, required=required)
    add_option(parser, "--seed", "default: %(default)s", type=int, default=0)
    add_set(parser)
    add_plugin(parser)


def add_runs(parser: Parser, seeds: str, which: str) -> None:
    """What a command takes that trains many runs."""
    parser.lists = True
    add_option(parser, "--profile", PROFILES, default="small")
    add_option(parser, "--methods", "arms (default: all of the table's)", default="", metavar="A,B")
    add_option(parser, "--seeds", which, default=seeds, metavar="0,1")
    jobs = "runs at a time (default: one a core; replicate: or as `plan machine` found)"
    add_option(parser, "--jobs", jobs, type=int)
    held = "holds the run folders (default: %(default)s)"
    add_option(parser, "--results", held, type=Path, default=Path("results"), metavar="DIR")
    add_set(parser)
    add_plugin(parser)
    add_data_dir(parser)


def add_set(parser: Any) -> None:
    field = "override a field, as in train.learning_rate=1e-3; repeatable"
    add_option(parser, "--set", field, action="append", default=[], metavar="KEY=VALUE")


def add_plugin(parser: Any) -> None:
    module = "import a module that registers methods, by name or as a .py file; repeatable"
    add_option(parser, "--plugin", module, action="append", default=[], metavar="MODULE")


def add_include_path(parser: Any) -> None:
    folder = "a folder of lm-eval tasks of one's own; repeatable"
    add_option(parser, "--include-path", folder, action="append", default=[], metavar="DIR")


def add_log_to(parser: Any) -> None:
    where = "what is logged goes to these too: tensorboard (in the run folder), wandb, trackio"
    add_option(parser, "--log-to", where, default=os.environ.get("REPLICATION_LOG_TO", ""), metavar="A,B")


def add_data_dir(parser: Any) -> None:
    default = Path(os.environ.get("REPLICATION_DATA", "data"))
    where = "prepared data (default: %(default)s, or $REPLICATION_DATA)"
    add_option(parser, "--data-dir", where, type=Path, default=default, metavar="DIR")
