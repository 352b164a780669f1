"""The command line: `main` runs a command, and says how it ended."""

import argparse
import os
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import shtab

from replication.cli import bench, compare, data, evaluate, plan, push, replicate, report, runs, search, study, train
from replication.cli.old_words import modernise
from replication.cli.options import Parser, Words
from replication.cli.parsing import names, settings
from replication.config.profiles import resolve_name
from replication.plugins import VARIABLE, blaming, plugins
from replication.runs.finding import check_not_reference
from replication.system.errors import UserError, out_of_memory
from replication.system.launcher import is_first, rank_of, read_launcher
from replication.system.machine import limit_threads
from replication.system.signals import Interrupted, tell
from replication.system.streams import prepare_streams

COMMANDS = (
    train,
    replicate,
    search,
    plan,
    evaluate,
    runs,
    compare,
    report,
    study,
    data,
    push,
    bench,
)  # as --help has them


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 where a run failed, 2 for bad input, 128 + n for signal n."""
    prepare_streams()
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read what is printed has seen enough
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        return 128 + signal.SIGPIPE
    except OSError as error:  # a place that cannot be read or written, or a name that cannot be one
        problem = f"{error.filename or 'a file'}: {error.strerror or error}"
        tell(f"error: {problem}; allowed: places that can be read and written")
        return 2
    except UserError as error:
        if (rank := rank_of(error)) is not None:
            tell(f"{rank}error: {error}")
        return 2
    except KeyboardInterrupt as error:
        interrupted = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        if is_first():
            tell(str(interrupted))
        return interrupted.code


def build_parser() -> argparse.ArgumentParser:
    """The command line, whole."""
    completes = "--print-completion" in sys.argv  # shells complete commands, not `python -m`
    installed = completes or Path(sys.argv[0]).name == "mst-replication"
    prog = "mst-replication" if installed else "python -m replication"
    parser = Parser(prog=prog, description="Mixed Sparsity Training and its baselines, replicated.")
    parser.add_argument("--version", action="version", version=_find_version())
    shtab.add_argument_to(parser, "--print-completion", help='for a shell; as in: eval "$(… --print-completion bash)"')
    words = Words(parser, "COMMAND")
    for command in COMMANDS:
        command.add(words)
    return parser


def _run(arguments: list[str]) -> int:
    try:
        options = build_parser().parse_args(modernise(arguments))
    except SystemExit:  # --help and the like, whose reader may be gone
        sys.stdout.flush()
        raise
    read_launcher()
    try:
        _prepare(options)
        with out_of_memory(), blaming():
            return options.command(options)
    except UserError as error:
        if options.command is train.run and not options.dry_run and read_launcher()[1] > 1:
            from replication.training.world import share

            share(error)  # what one process finds wrong before they meet in training, all raise
        raise


def _prepare(options: argparse.Namespace) -> None:
    """What holds for a command, the libraries that it calls, and the processes that it starts."""
    limit_threads()
    if "data_dir" in options:
        os.environ["REPLICATION_DATA"] = os.path.realpath(options.data_dir)  # where the lm-eval tasks look
    if "set" in options:
        options.set = [*settings(), *options.set]
    if "profile" in options:
        options.profile = resolve_name(options.profile)
    for folder in (getattr(options, name, None) for name in ("out", "results", "data_dir")):
        if folder:
            check_not_reference(folder)
    for option, variable in (("plugin", VARIABLE), ("include_path", "REPLICATION_TASKS")):
        is_path = Path.exists if option == "include_path" else (lambda path: path.suffix == ".py" and path.exists())
        given = [os.path.realpath(path) if is_path(Path(path)) else path for path in getattr(options, option, [])]
        if given:
            os.environ[variable] = "\n".join([*os.environ.get(variable, "").splitlines(), *given])
    if "log_to" in options:
        from replication.training import trackers

        chosen = names(options.log_to)
        trackers.check(chosen)
        os.environ[trackers.VARIABLE] = ",".join(chosen)
    if "plugin" in options and plugins():
        from replication.methods import load_plugins

        load_plugins(plugins())
    if getattr(options, "print_config", False):
        options.command = plan.print_config


def _find_version() -> str:
    try:
        return f"mst-replication {version('mst-replication')}"
    except PackageNotFoundError:  # run from its source
        return "mst-replication, from source"
