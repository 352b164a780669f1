"""What each command does: it calls one part of the system, and prints what came of it."""

import argparse
import json
import math
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from replication.config import RunConfig
from replication.errors import TrainingError, UserError
from replication.files import check_writable
from replication.hub import offline_if_unreachable
from replication.interrupts import tell
from replication.launcher import is_first, rank_of
from replication.machine import busy, cores, is_terminal
from replication.parsing import names, numbers, seeds
from replication.profiles import arm_names, load_config
from replication.runs import RunFolder, check_not_reference, is_finished
from replication.streams import printable, say


def train(options: argparse.Namespace) -> int:
    config = load_config(options.profile, options.method, options.seed, options.set)
    if options.dry_run:
        return _dry_run(config, options)
    tokens = config.train.steps * config.train.batch_size * config.model.n_positions
    announce(f"{_run(options)}: {config.train.steps} steps, {tokens:,} tokens → {options.out}")
    offline_if_unreachable()
    from replication.planning.plan import snapshot_steps
    from replication.snapshots import LACKING, lacks
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


def evaluate(options: argparse.Namespace) -> int:
    tasks = names(options.tasks)
    if not tasks:
        raise UserError("--tasks is empty; allowed: names of lm-eval tasks, separated by commas")
    announce(f"{options.checkpoint}: {', '.join(tasks)}")
    offline_if_unreachable()
    from replication.card import offer_cards
    from replication.data import write_evaluation_sets
    from replication.eval.zero_shot import available_tasks, check_files, check_tasks, score

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
    for task, metrics in score(options.checkpoint, tasks, out).items():
        for metric, value in metrics.items():
            say(f"{task}  {metric}  {value:.6g}")
    if is_run and out == run.path / "eval":
        offer_cards(run)
    return 0


def push(options: argparse.Namespace) -> int:
    from replication.push import push

    say(push(options.run, options.repo, options.private, options.revision))
    return 0


def calibrate(options: argparse.Namespace) -> int:
    offline_if_unreachable()
    from replication.eval.calibrate import calibrate, render

    readings = calibrate(options.model, options.reference or Path(options.model).name)
    print(render(readings))
    return 0 if all(reading.is_within for reading in readings) else 1


def replicate(options: argparse.Namespace) -> int:
    every = arm_names(options.profile) + (arm_names(options.profile, "ablations") if options.ablations else [])
    chosen = _many(options, every)
    if options.sweep:
        from replication.sweep import sweep

        swept = (options.profile, chosen["arms"], options.sweep, options.results)
        options.profile, chosen["arms"] = sweep(*swept)
        chosen["profile"] = options.profile
    announce(f"{options.profile}: {len(chosen['arms'])} arms → {options.results}")
    offline_if_unreachable()
    from replication.pipeline import replicate

    text, failures = replicate(**chosen, ablations=options.ablations)
    if text and is_terminal(sys.stdout):
        from replication.analysis import terminal
        from replication.screen import Screen

        show = terminal.show_ablations if options.ablations else terminal.show_table1
        show(options.results / options.profile, Screen())
        text = ""
    return _end(text, failures)


def tune(options: argparse.Namespace) -> int:
    offline_if_unreachable()
    from replication.tune import tunable_arms, tune

    chosen = _many(options, tunable_arms(options.profile))
    return _end(*tune(**chosen | {"num_jobs": options.jobs or cores()}, knobs=names(options.knobs)))


def tradeoffs(options: argparse.Namespace) -> int:
    from replication.analysis.tradeoffs import by_phase, render, runs_of, tradeoffs, write_tradeoffs
    from replication.runs import chosen, is_reference

    results, which = chosen(options.read, options.profile)
    found, left_out = runs_of(results, options.profile, options.ablations)
    table, phases = tradeoffs(found, options.loss, options.convention), by_phase(found)
    text = render(table, phases, options.profile, options.convention) + left_out
    out = options.out or (None if is_reference(results) else results / options.profile)
    if out:
        write_tradeoffs(out, table, phases, text)
    say(which)
    if is_terminal(sys.stdout):
        from replication.analysis import terminal
        from replication.screen import Screen

        terminal.show_tradeoffs(table, phases, out, Screen())
        text = left_out
    print(printable(text), end="")
    return 0


def plan(options: argparse.Namespace) -> int:
    from replication.planning.plan import plan, remarks, render

    if options.calibrate:
        _calibrate_machine()
    elif options.method is None:
        raise UserError("--method is missing; allowed: an arm of the profile, as --help lists them")
    if options.method is None:
        return 0
    if not (options.price >= 0 and math.isfinite(options.price)):
        raise UserError(f"--price is {options.price}; allowed: 0 or more")
    config = load_config(options.profile, options.method, options.seed, options.set)
    if options.target_reduction is not None:
        return _solve(config, options)
    for remark in remarks(config):
        tell(remark)
    if options.json:
        print(json.dumps(plan(config), indent=1))
        return 0
    from replication.machine import machine
    from replication.planning import predict

    say(render(config, _run(options)))
    print(predict.render(config, machine(), options.price))
    return 0


def _calibrate_machine() -> None:
    from replication.bench.calibration import calibrate
    from replication.bench.limits import keep_limits

    announce("timing training steps on this machine, for less than a minute")
    if found := busy():
        tell(f"{found}: steps are timed beside that work, and marked so; which kernels `auto` takes is not measured")
    else:
        keep_limits()  # by which `auto` takes kernels: what steps take depends on them
    calibration = calibrate(found)
    how = f"{len(calibration.rows)} kinds of step in {calibration.seconds:.0f} s"
    say(f"{calibration.save()}: {how}, {calibration.machine['threads']} thread(s)")


def suggest(options: argparse.Namespace) -> int:
    if options.search < 0 or options.jobs < 1:
        key, value, least = ("--jobs", options.jobs, 1) if options.search >= 0 else ("--search", options.search, 0)
        raise UserError(f"{key} is {value}; allowed: {least} or more")
    announce(f"{options.profile}: fitting a law to the logged runs")
    from replication.planning.showing import render, to_json
    from replication.planning.suggest import suggest

    asked = {name: getattr(options, name) for name in ("budget", "hours", "loss")}
    suggestions = suggest(options.profile, options.logged, **asked, convention=options.convention)
    print(json.dumps(to_json(suggestions), indent=1) if options.json else render(suggestions), flush=True)
    if not options.search:
        return 0
    offline_if_unreachable()
    from replication.search import search

    results = options.logged or Path("results")
    check_not_reference(results)
    return _end(*search(suggestions.found[0], options.search, options.jobs, results, options.data_dir))


def paper(options: argparse.Namespace) -> int:
    from replication.paper import render

    print(render())
    return 0


def data(options: argparse.Namespace) -> int:
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


def bench(options: argparse.Namespace) -> int:
    offline_if_unreachable()
    from replication.bench.run import bench

    out = options.out or Path("results/bench-quick" if options.quick else "results/bench")
    print(bench(names(options.only), out, options.data_dir, options.quick))
    return 0


def gpu_check(options: argparse.Namespace) -> int:
    from replication.bench.gpu_check import gpu_check

    check_writable(options.out)
    return _end(*gpu_check(names(options.only), options.out))


def ls(options: argparse.Namespace) -> int:
    from replication.listing import listed

    print(listed(options.folder))
    return 0


def watch(options: argparse.Namespace) -> int:
    try:
        announce(f"{options.folder}: looking for runs; Ctrl-C ends this, and no run")
        from replication.monitor import watch

        watch(options.folder, options.once)
    except KeyboardInterrupt as error:
        if getattr(error, "number", signal.SIGINT) != signal.SIGINT:  # that is how it is meant to end
            raise
    return 0


def show(options: argparse.Namespace) -> int:
    from replication.listing import shown

    print(shown(options.run))
    return 0


def topology(options: argparse.Namespace) -> int:
    from replication.analysis.topology import show
    from replication.screen import Screen

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


def compare(options: argparse.Namespace) -> int:
    from replication.analysis.compare import compare
    from replication.analysis.sides import MEMORY, SPEED

    comparison = compare(options.reference, options.new, options.all)
    if options.json:
        print(json.dumps(comparison.to_dict(), indent=1))
    elif is_terminal(sys.stdout):
        from replication.analysis.compare_text import show
        from replication.screen import Screen

        show(comparison, Screen())
    else:
        from replication.analysis.compare_text import markdown

        say(markdown(comparison))
    but_for = (SPEED, MEMORY) if options.fail_on == "worse-result" else ()
    return 1 if options.fail_on and comparison.is_worse(but_for) else 0


def report(options: argparse.Namespace) -> int:
    from replication.report.page import write_report

    say(write_report(options.read_from, options.profile, options.out))
    return 0


def print_config(options: argparse.Namespace) -> int:
    from replication.profiles.printing import render

    print(render(options.profile, options.method, options.seed, options.set))
    return 0


def announce(line: str) -> None:
    """The first line for who watches, before what takes seconds to import; in a log an error stands alone."""
    if is_terminal(sys.stderr) and is_first():
        tell(line)


def _run(options: argparse.Namespace) -> str:
    return f"{options.method} on profile {options.profile}, seed {options.seed}"


def _dry_run(config: RunConfig, options: argparse.Namespace) -> int:
    from replication.machine import machine
    from replication.planning import predict
    from replication.planning.dry_run import dry_run, render
    from replication.planning.plan import remarks

    for remark in remarks(config):
        tell(remark)
    say(render(dry_run(config, options.devices, options.tflops, options.utilisation), _run(options)))
    print(predict.render(config, machine()))
    return 0


def _solve(config: RunConfig, options: argparse.Namespace) -> int:
    from replication.planning.solver import render, solve

    family = solve(config, options.target_reduction, options.convention, numbers("--fix", options.fix))
    if options.json:
        print(json.dumps(asdict(family), indent=1))
    text = render(family)  # raises where there is no solution, whatever was printed
    if not options.json:
        say(text)
    return 0


def _many(options: argparse.Namespace, every: list[str]) -> dict[str, Any]:
    """What `replicate` and `tune` are called with."""
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


def _end(text: str, failures: Iterable[str]) -> int:
    """Print what came out, and what failed; returns the exit code."""
    failures = list(failures)
    if text:
        say(text)
    for failure in failures:
        tell(failure)
    return 1 if failures else 0
