"""`evaluate`: a checkpoint's scores by lm-eval, or a known model's beside its reference values."""

import argparse
import os
from pathlib import Path

from replication.cli.options import Words, add_data_dir, add_include_path, add_option
from replication.cli.output import announce
from replication.cli.parsing import names
from replication.runs.finding import check_not_reference
from replication.runs.folder import RunFolder
from replication.system.errors import UserError
from replication.system.hub import offline_if_unreachable
from replication.system.signals import tell
from replication.system.streams import say


def add(words: Words) -> None:
    summary = "score a checkpoint with lm-eval; with --reference a known model, beside the values that are known of it"
    evaluate = words.command("evaluate", run, summary)
    folder = "a Hugging Face model folder, such as DIR/checkpoint; with --reference also a name on the hub"
    add_option(evaluate, "checkpoint", folder, metavar="CHECKPOINT")
    what = evaluate.add_mutually_exclusive_group(required=True)
    add_option(what, "--tasks", "lm-eval tasks, ours or its own", metavar="A,B")
    add_option(what, "--reference", "the model whose values are known, such as gpt2: their tasks", metavar="NAME")
    kept = "keep lm-eval's raw output here (default: in the run, if the checkpoint is of one)"
    add_option(evaluate, "--out", kept, type=Path, metavar="DIR")
    add_include_path(evaluate)
    add_data_dir(evaluate)


def run(options: argparse.Namespace) -> int:
    if options.reference is not None:
        return _compare_with_reference(options)
    tasks = names(options.tasks)
    if not tasks:
        raise UserError("--tasks is empty; allowed: names of lm-eval tasks, separated by commas")
    announce(f"{options.checkpoint}: {', '.join(tasks)}")
    offline_if_unreachable()
    from replication.data import write_evaluation_sets
    from replication.eval.zero_shot import available_tasks, check_files, check_tasks, score
    from replication.publish.card import offer_cards

    checkpoint = Path(os.path.realpath(options.checkpoint))
    run = RunFolder(checkpoint.parent)
    is_run = checkpoint == run.checkpoint and run.is_finished()
    if is_run:
        run.verify()
    check_files(checkpoint)
    out = options.out or (run.path / "eval" if is_run else None)
    if is_run and options.out is None and not os.access(run.path, os.W_OK):
        tell(f"{run.path} cannot be written: the scores are not kept")
        out = None
    if out:
        check_not_reference(out)
    if any(task.startswith("embedded_") for task in tasks if task in available_tasks()):
        write_evaluation_sets(run.configuration().data if is_run else None, options.data_dir)
    check_tasks(tasks)
    for task, metrics in score(Path(options.checkpoint), tasks, out).items():
        for metric, value in metrics.items():
            say(f"{task}  {metric}  {value:.6g}")
    if is_run and out == run.path / "eval":
        offer_cards(run)
    return 0


def _compare_with_reference(options: argparse.Namespace) -> int:
    """Returns 1 where a value lies outside its tolerance."""
    offline_if_unreachable()
    from replication.eval.calibrate import calibrate, render

    readings = calibrate(options.checkpoint, options.reference)
    print(render(readings))
    return 0 if all(reading.is_within for reading in readings) else 1
