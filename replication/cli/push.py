"""`push`: a finished run's checkpoint, to the Hugging Face hub."""

import argparse
from pathlib import Path

from replication.cli.options import Words, add_flag, add_option
from replication.system.streams import say


def add(words: Words) -> None:
    push = words.command("push", run, "upload a finished run's checkpoint to the Hugging Face hub")
    add_option(push, "run", "a run's folder, or a checkpoint's", type=Path, metavar="RUN_OR_CHECKPOINT")
    add_option(push, "repo", "where to, as in me/model; made if it is not there", metavar="REPO_ID")
    add_flag(push, "--private", "make it a private one, or refuse one that is not")
    add_option(push, "--revision", "a branch (default: the main one), made if it is not there", metavar="BRANCH")


def run(options: argparse.Namespace) -> int:
    from replication.publish.push import push

    say(push(options.run, options.repo, options.private, options.revision))
    return 0
