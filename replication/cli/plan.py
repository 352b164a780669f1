"""`plan`: a run's FLOPs, time and energy before it is trained; a suggestion; this machine's speed."""

import argparse
import json
import math
from dataclasses import asdict

from replication.cli.options import Words, add_data_dir, add_flag, add_option, add_run
from replication.cli.output import announce, describe_run
from replication.cli.parsing import numbers
from replication.cli.search import add_asked, run_trials
from replication.config.profiles import load_config
from replication.config.run_config import RunConfig
from replication.system.errors import UserError
from replication.system.machine import busy
from replication.system.signals import tell
from replication.system.streams import say


def add(words: Words) -> None:
    plan = words.group("plan", "before training: what a run costs, what to train within a budget, this machine's speed")
    _add_run(plan)
    _add_suggest(plan)
    summary = "time training steps on this machine: from then on plans tell time and energy, and `auto` goes by it"
    plan.command("machine", measure, summary)


def _add_run(words: Words) -> None:
    parser = words.command("run", run, "FLOPs, time and energy of a run, without training; what `plan` alone means")
    add_run(parser, required=False)
    add_flag(parser, "--print-config", "print the configuration instead, and where each value is from")
    add_flag(parser, "--json", "the whole ledger, or the solutions, as JSON")
    target = "find settings at which dense ÷ method is X instead"
    add_option(parser, "--target-reduction", target, type=float, metavar="X")
    parser.add_argument("--calibrate", help=argparse.SUPPRESS, action="store_true")  # `plan machine` now
    price = "of an hour of this machine, for the cost (default: not told)"
    add_option(parser, "--price", price, type=float, default=0.0)
    add_option(parser, "--convention", "under which X is counted (default: %(default)s)", default="head_counted_full")
    hold = "hold a knob, as in ultra_sparsity=0.9; the others are varied"
    add_option(parser, "--fix", hold, nargs="+", default=[], action="extend", metavar="KNOB=VALUE")


def _add_suggest(words: Words) -> None:
    summary = "what to train within a budget, by a law fitted to the logged runs: loss, FLOPs, time, and why"
    parser = words.command("suggest", run_trials, summary)
    add_asked(parser)
    parser.add_argument("--search", help=argparse.SUPPRESS, type=int, default=0)  # `search trials` now
    add_data_dir(parser)


def run(options: argparse.Namespace) -> int:
    from replication.flops.plan import plan, remarks, render

    if options.calibrate:
        measure(options)
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
    from replication.forecast import predict
    from replication.system.machine import machine

    say(render(config, describe_run(options)))
    print(predict.render(config, machine(), options.price))
    return 0


def measure(options: argparse.Namespace) -> int:
    """Time this machine's training steps, and which kernels gain on it."""
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
    return 0


def print_config(options: argparse.Namespace) -> int:
    """What `--print-config` does, of `train` too."""
    from replication.config.printing import render

    print(render(options.profile, options.method, options.seed, options.set))
    return 0


def _solve(config: RunConfig, options: argparse.Namespace) -> int:
    from replication.flops.solver import render, solve

    family = solve(config, options.target_reduction, options.convention, numbers("--fix", options.fix))
    if options.json:
        print(json.dumps(asdict(family), indent=1))
    text = render(family)  # raises where there is no solution, whatever was printed
    if not options.json:
        say(text)
    return 0
