"""`report`: finished runs as one page, as trade-offs, and beside what is known of the paper."""

import argparse
import sys
from pathlib import Path

from replication.cli.options import PROFILES, Words, add_flag, add_option
from replication.flops.ledger import COSTS
from replication.system.machine import is_terminal
from replication.system.streams import escape, say


def add(words: Words) -> None:
    report = words.group("report", "finished runs on one page, quality against cost, and what is known of the paper")
    _add_page(report)
    _add_tradeoffs(report)
    report.command("paper", show_paper, "what is known of the paper, from where, and where the code uses it")


def _add_page(words: Words) -> None:
    summary = "one page for a browser: the finding, Table 1, the verdicts and every figure; what `report` alone means"
    page = words.command("page", write_page, summary)
    add_option(page, "--profile", PROFILES, default="small")
    held = (
        "holds the run folders, which are only read (default: your own, or until they are complete the committed ones)"
    )
    add_option(page, "--results", held, type=Path, metavar="DIR", dest="read_from")
    add_option(page, "--out", "the page (default: %(default)s)", type=Path, default=Path("report.html"), metavar="FILE")


def _add_tradeoffs(words: Words) -> None:
    summary = "quality against FLOPs and density, FLOPs to reach a loss, and quality by phase, of finished runs"
    tradeoffs = words.command("tradeoffs", show_tradeoffs, summary)
    add_option(tradeoffs, "--profile", PROFILES, default="small")
    where = "holds the run folders (default: results if Table 1 is complete there, else the committed runs)"
    add_option(tradeoffs, "--results", where, type=Path, dest="read", metavar="DIR")
    reached = "that is to be reached (default: the best that every run reaches)"
    add_option(tradeoffs, "--loss", reached, type=float, metavar="L")
    first = next(iter(COSTS))
    counted = "how FLOPs are counted (default: %(default)s)"
    add_option(tradeoffs, "--convention", counted, default=first, choices=list(COSTS), metavar="NAME")
    add_flag(tradeoffs, "--ablations", "the ablation arms too")
    kept = "where tables and figure go (default: beside the runs; of the committed ones nothing is kept)"
    add_option(tradeoffs, "--out", kept, type=Path, metavar="DIR")


def write_page(options: argparse.Namespace) -> int:
    from replication.report.page import write_report

    say(write_report(options.read_from, options.profile, options.out))
    return 0


def show_tradeoffs(options: argparse.Namespace) -> int:
    from replication.analysis.tradeoffs import render, runs_of, tabulate_snapshots, tradeoffs, write_tradeoffs
    from replication.runs.finding import choose_results, is_reference

    results, which = choose_results(options.read, options.profile)
    found, left_out = runs_of(results, options.profile, options.ablations)
    table, phases = tradeoffs(found, options.loss, options.convention), tabulate_snapshots(found)
    text = render(table, phases, options.profile, options.convention) + left_out
    out = options.out or (None if is_reference(results) else results / options.profile)
    if out:
        write_tradeoffs(out, table, phases, text)
    say(which)
    if is_terminal(sys.stdout):
        from replication.analysis import terminal
        from replication.system.terminal import Screen

        terminal.show_tradeoffs(table, phases, out, Screen())
        text = left_out
    print(escape(text), end="")
    return 0


def show_paper(options: argparse.Namespace) -> int:
    from replication.paper import render

    print(render())
    return 0
