"""`study`: the queue of docs/study, worked off under its protocol."""

import argparse
from pathlib import Path

from replication.cli.options import Words, add_data_dir, add_option
from replication.cli.output import announce, end
from replication.system.hub import offline_if_unreachable
from replication.system.streams import say


def add(words: Words) -> None:
    study = words.group("study", "the study's queue: work it off under its protocol, or see how far it is")
    run = study.command("run", run_queue, "tune and train what is not done, one run at a time, in the queue's order")
    _add_places(run)
    add_data_dir(run)
    status = study.command(
        "status", show_status, "what is done, begun and left of the queue, and how many hours that is"
    )
    _add_places(status)

    report = study.command("report", show_report, "the cells and the hypotheses' verdicts, as Markdown")
    _add_places(report)


def _add_places(parser: argparse.ArgumentParser) -> None:
    folder = "holds protocol.md, protocol.yaml, queue.yaml and the profiles (default: %(default)s)"
    add_option(parser, "--study", folder, type=Path, default=Path("docs/study"), metavar="DIR")
    held = "holds the study's runs (default: %(default)s)"
    add_option(parser, "--results", held, type=Path, default=Path("results/study"), metavar="DIR")


def run_queue(options: argparse.Namespace) -> int:
    announce(f"{options.study}: its queue → {options.results}")
    offline_if_unreachable()
    from replication.campaign.study import run_study

    return end("", run_study(options.study, options.results, options.data_dir))


def show_report(options: argparse.Namespace) -> int:
    from replication.analysis.hypotheses import ask, judge, read_losses, read_registration, render, tabulate_cells
    from replication.campaign.study import load_protocol

    protocol = load_protocol(options.study)
    losses = read_losses(options.results, list(protocol.points))
    registered = {point: read_registration(options.results, point, protocol.accepted) for point in losses}
    asked = ask(losses, protocol.core, protocol.points, protocol.margin)
    say(render(tabulate_cells(losses, protocol.points), judge(asked, protocol.level), registered))
    return 0


def show_status(options: argparse.Namespace) -> int:
    from replication.campaign.study import look_at, render

    say(render(look_at(options.study, options.results)))
    return 0
