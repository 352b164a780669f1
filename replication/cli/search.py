"""`search`: settings, by one rule for every arm, over a grid, or in trials around a suggestion."""

import argparse
import json
from pathlib import Path

from replication.cli import replicate
from replication.cli.options import (
    PROFILES,
    Words,
    add_data_dir,
    add_flag,
    add_include_path,
    add_log_to,
    add_option,
    add_runs,
)
from replication.cli.output import announce, end
from replication.cli.parsing import names
from replication.runs.finding import check_not_reference
from replication.system.errors import UserError
from replication.system.hub import offline_if_unreachable
from replication.system.machine import cores


def add(words: Words) -> None:
    search = words.group("search", "settings: by one rule for every arm, over a grid, or in short trials")
    _add_tune(search)
    _add_grid(search)
    _add_trials(search)


def _add_tune(words: Words) -> None:
    summary = "find each arm's learning rate, drop fraction and update interval, by one rule"
    parser = words.command("tune", tune, summary)
    add_runs(parser, "1000,1001,1002", "none that a table uses (default: %(default)s)")
    knobs = "learning_rate,drop_fraction,update_freq,fine_learning_rate"
    add_option(parser, "--knobs", "what is varied, in this order (default: %(default)s)", default=knobs, metavar="A,B")


def _add_grid(words: Words) -> None:
    summary = "train and score arms at each of some settings; they are kept in RESULTS/<profile>_sweep.yaml"
    parser = words.command("grid", replicate.run, summary)
    what = "values of a key, as in sparsity.sparsity=0.5,0.9; several make a grid"
    parser.add_argument("sweep", help=what, nargs="+", metavar="KEY=A,B")
    add_runs(parser, "", "whole numbers (default: 0,1,2, or as the profile says)")
    add_include_path(parser)
    add_log_to(parser)
    parser.set_defaults(ablations=False)


def _add_trials(words: Words) -> None:
    summary = "train short trials around what `plan suggest` suggests first, at equal FLOPs (needs optuna)"
    parser = words.command("trials", run_trials, summary)
    add_option(parser, "search", "how many", type=int, metavar="N")
    add_asked(parser)
    add_data_dir(parser)


def add_asked(parser: argparse.ArgumentParser) -> None:
    """What a suggestion is asked for."""
    asked = parser.add_mutually_exclusive_group(required=True)
    add_option(asked, "--budget", "training FLOPs of a run", type=float, metavar="FLOPS")
    add_option(asked, "--hours", "of a run's training, on this machine", type=float, metavar="H")
    add_option(asked, "--loss", "validation loss to reach, in nats per token", type=float, metavar="L")
    add_option(parser, "--profile", PROFILES, default="small")
    which = "whose logged runs are read (default: yours where they are complete, else the committed ones)"
    add_option(parser, "--results", which, type=Path, metavar="DIR", dest="logged")
    counted = "under which FLOPs are counted (default: %(default)s)"
    add_option(parser, "--convention", counted, default="head_counted_full")
    add_option(parser, "--jobs", "of trials: runs at a time (default: one a core)", type=int, default=cores())
    add_flag(parser, "--json", "all of it as JSON, configurations included")


def tune(options: argparse.Namespace) -> int:
    offline_if_unreachable()
    from replication.campaign.tune import tunable_arms, tune

    chosen = replicate.read_many(options, tunable_arms(options.profile))
    return end(*tune(**chosen | {"num_jobs": options.jobs or cores()}, knobs=names(options.knobs)))


def run_trials(options: argparse.Namespace) -> int:
    """Suggest, and then train the trials that are asked for; none where `options.search` is 0."""
    if options.search < 0 or options.jobs < 1:
        key, value, least = ("--jobs", options.jobs, 1) if options.search >= 0 else ("trials", options.search, 0)
        raise UserError(f"{key} is {value}; allowed: {least} or more")
    announce(f"{options.profile}: fitting a law to the logged runs")
    from replication.forecast.suggest import suggest
    from replication.forecast.suggest_text import render, to_json

    asked = {name: getattr(options, name) for name in ("budget", "hours", "loss")}
    suggestions = suggest(options.profile, options.logged, **asked, convention=options.convention)
    print(json.dumps(to_json(suggestions), indent=1) if options.json else render(suggestions), flush=True)
    if not options.search:
        return 0
    offline_if_unreachable()
    from replication.campaign.search import search

    results = options.logged or Path("results")
    check_not_reference(results)
    return end(*search(suggestions.found[0], options.search, options.jobs, results, options.data_dir))
