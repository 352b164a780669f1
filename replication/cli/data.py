"""`data`: a profile's tokens and the evaluation sets."""

import argparse
import json
from pathlib import Path

from replication.cli.options import PROFILES, Words, add_data_dir, add_option, add_set
from replication.config.profiles import arm_names, load_config
from replication.system.hub import offline_if_unreachable
from replication.system.streams import say


def add(words: Words) -> None:
    data = words.command("data", run, "prepare a profile's tokens and the held-out sets, or a task's file")
    add_option(data, "--profile", PROFILES, default="small")
    local = "take one of the paper's evaluation sets from a local file instead (eval/README.md); repeatable"
    add_option(data, "--eval-file", local, action="append", default=[], metavar="TASK=FILE")
    add_set(data)
    add_data_dir(data)


def run(options: argparse.Namespace) -> int:
    if options.eval_file:
        from replication.eval.local_files import import_file

        for task, _, file in (pair.partition("=") for pair in options.eval_file):
            say(import_file(task, Path(file), options.data_dir))
        return 0
    offline_if_unreachable()
    from replication.data import prepare, write_evaluation_sets

    config = load_config(options.profile, arm_names(options.profile)[0], 0, options.set)
    print(json.dumps(prepare(config.data, options.data_dir).manifest, indent=1))
    say(write_evaluation_sets(config.data, options.data_dir))
    return 0
