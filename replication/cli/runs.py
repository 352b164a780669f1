"""`runs`: what is in the run folders, while they are trained and after."""

import argparse
import signal
from pathlib import Path

from replication.cli.options import Words, add_flag, add_option
from replication.cli.output import announce
from replication.runs.finding import check_not_reference
from replication.system.errors import UserError


def add(words: Words) -> None:
    runs = words.group("runs", "runs in a folder: list them, watch them train, show one, what became of its masks")
    below = "where runs are (default: %(default)s)"
    listing = runs.command("list", list_runs, "list the runs in a folder: how far they are, and what came of them")
    add_option(listing, "folder", below, type=Path, nargs="?", default=Path("results"), metavar="DIR")
    summary = "follow all runs in a folder, wherever they are trained: progress, loss beside dense's, alarms"
    watch = runs.command("watch", watch_runs, summary)
    add_option(watch, "folder", below, type=Path, nargs="?", default=Path("results"), metavar="RESULTS")
    add_flag(watch, "--once", "print one table; so it is without a terminal")
    show = runs.command("show", show_run, "what a run is, how its phases ended, what it cost and scored")
    add_option(show, "run", "its folder", type=Path, metavar="RUN")
    summary = "what became of runs' masks, by layer: active weights, dead units, degrees"
    topology = runs.command("topology", show_topology, summary)
    add_option(topology, "runs", "their folders", type=Path, nargs="+", metavar="RUN")
    add_option(topology, "--figure", "draw it too, with the updates over time", type=Path, metavar="FILE.png")


def list_runs(options: argparse.Namespace) -> int:
    from replication.watching.listing import list_runs

    print(list_runs(options.folder))
    return 0


def watch_runs(options: argparse.Namespace) -> int:
    try:
        announce(f"{options.folder}: looking for runs; Ctrl-C ends this, and no run")
        from replication.watching.monitor import watch

        watch(options.folder, options.once)
    except KeyboardInterrupt as error:
        if getattr(error, "number", signal.SIGINT) != signal.SIGINT:  # that is how it is meant to end
            raise
    return 0


def show_run(options: argparse.Namespace) -> int:
    from replication.watching.listing import show_run

    print(show_run(options.run))
    return 0


def show_topology(options: argparse.Namespace) -> int:
    from replication.analysis.topology import show
    from replication.system.terminal import Screen

    if options.figure:
        if options.figure.suffix != ".png":
            raise UserError(f"--figure is {options.figure}; allowed: a file whose name ends in .png")
        check_not_reference(options.figure)
    drawn = show(options.runs, Screen())
    if options.figure and not drawn:
        raise UserError(f"--figure {options.figure} is not drawn: no run has masks; allowed: with one that has")
    if options.figure:
        from replication.analysis.drawing import save
        from replication.analysis.topology_figure import figure

        save(figure(drawn), options.figure)
    return 0
