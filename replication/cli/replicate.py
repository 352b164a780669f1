"""`replicate`: a profile's arms, trained and scored, and their table."""

import argparse
import sys
from typing import Any

from replication.cli.options import Words, add_flag, add_include_path, add_log_to, add_runs
from replication.cli.output import announce, end
from replication.cli.parsing import names, seeds
from replication.config.profiles import arm_names
from replication.system.errors import UserError
from replication.system.files import check_writable
from replication.system.hub import offline_if_unreachable
from replication.system.machine import is_terminal


def add(words: Words) -> None:
    replicate = words.command("replicate", run, "train and score a profile's arms, and print Table 1 or the ablations")
    add_flag(replicate, "--ablations", "the profile's ablation arms too, and their table")
    add_runs(replicate, "", "whole numbers (default: 0,1,2, or as the profile says)")
    add_include_path(replicate)
    add_log_to(replicate)
    replicate.add_argument("--sweep", help=argparse.SUPPRESS, action="append", default=[])  # `search grid` now


def run(options: argparse.Namespace) -> int:
    every = arm_names(options.profile) + (arm_names(options.profile, "ablations") if options.ablations else [])
    chosen = read_many(options, every)
    if options.sweep:
        from replication.campaign.sweep import sweep

        swept = (options.profile, chosen["arms"], options.sweep, options.results)
        options.profile, chosen["arms"] = sweep(*swept)
        chosen["profile"] = options.profile
    announce(f"{options.profile}: {len(chosen['arms'])} arms → {options.results}")
    offline_if_unreachable()
    from replication.campaign.pipeline import replicate

    text, failures = replicate(**chosen, ablations=options.ablations)
    if text and is_terminal(sys.stdout):
        from replication.analysis import terminal
        from replication.system.terminal import Screen

        show = terminal.show_ablations if options.ablations else terminal.show_table1
        show(options.results / options.profile, Screen())
        text = ""
    return end(text, failures)


def read_many(options: argparse.Namespace, every: list[str]) -> dict[str, Any]:
    """What commands that train many runs are called with."""
    if options.jobs is not None and options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; allowed: 1 or more")
    if options.methods and not names(options.methods):
        raise UserError(f"--methods is {options.methods!r}; allowed: arms, separated by commas")
    check_writable(options.results)
    return {
        "profile": options.profile,
        "arms": names(options.methods) or every,
        "seeds": seeds(options.seeds) if options.seeds else None,
        "num_jobs": options.jobs,
        "results": options.results,
        "data_dir": options.data_dir,
        "overrides": options.set,
    }
