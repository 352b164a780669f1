"""`train`: one run."""

import argparse
from pathlib import Path

from replication.cli.options import Words, add_data_dir, add_flag, add_log_to, add_option, add_run
from replication.cli.output import announce, describe_run
from replication.config.profiles import load_config
from replication.config.run_config import RunConfig
from replication.runs.finding import is_finished
from replication.system.errors import TrainingError
from replication.system.hub import offline_if_unreachable
from replication.system.launcher import is_first, rank_of
from replication.system.signals import tell
from replication.system.streams import say


def add(words: Words) -> None:
    train = words.command("train", run, "train one run")
    add_run(train)
    what = train.add_mutually_exclusive_group(required=True)
    add_option(what, "--out", "the run folder", type=Path, metavar="DIR")
    add_flag(what, "--dry-run", "train nothing: print parameters, tokens, FLOPs, memory, disk and time")
    add_flag(what, "--print-config", "train nothing: print the configuration, and where each value is from")
    add_flag(train, "--resume", "go on with an interrupted run")
    add_log_to(train)
    default = "(default: %(default)s)"
    add_option(train, "--devices", f"for --dry-run: data-parallel devices {default}", type=int, default=4)
    peak = f"for --dry-run: a device's peak in TFLOP/s {default}: A100, bf16"
    add_option(train, "--tflops", peak, type=float, default=312.0)
    reached = f"for --dry-run: share of the peak that is reached {default}"
    add_option(train, "--utilisation", reached, type=float, default=0.4)
    add_data_dir(train)


def run(options: argparse.Namespace) -> int:
    config = load_config(options.profile, options.method, options.seed, options.set)
    if options.dry_run:
        return _show_needs(config, options)
    tokens = config.train.steps * config.train.batch_size * config.model.n_positions
    announce(f"{describe_run(options)}: {config.train.steps} steps, {tokens:,} tokens → {options.out}")
    offline_if_unreachable()
    from replication.flops.plan import snapshot_steps
    from replication.runs.snapshots import LACKING, lacks
    from replication.training.trainer import train

    before = "was finished before, and is left as it is; " if is_finished(options.out) else ""
    try:
        run = train(config, options.out, options.data_dir, resume=options.resume)
    except TrainingError as error:
        if (rank := rank_of(error)) is not None:
            resume = options.out / "resume"
            kept = f"; the last good state is kept in {resume}" if any(resume.glob("step-*")) else ""
            tell(f"{rank}failed: {error}{kept}")
        return 1
    if not is_first():
        return 0
    if lacks(run, snapshot_steps(config)):
        tell(f"{run.path}: {LACKING}")
    say(f"{run.checkpoint}: {before}validation loss {run.metrics()[-1]['validation_loss']:.4f}")
    return 0


def _show_needs(config: RunConfig, options: argparse.Namespace) -> int:
    from replication.flops.plan import remarks
    from replication.forecast import predict
    from replication.forecast.dry_run import dry_run, render
    from replication.system.machine import machine

    for remark in remarks(config):
        tell(remark)
    say(render(dry_run(config, options.devices, options.tflops, options.utilisation), describe_run(options)))
    print(predict.render(config, machine()))
    return 0
