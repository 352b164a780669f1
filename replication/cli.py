"""The commands; composes the parts and holds no logic of its own."""

import argparse
import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

from replication.config import RunConfig
from replication.errors import UserError
from replication.files import check_writable
from replication.hub import offline_if_unreachable
from replication.profiles import arm_names, load_config
from replication.runs import RunFolder


class _Parser(argparse.ArgumentParser):
    """One line on a mistake, not the whole usage."""

    def error(self, message: str) -> None:
        print(f"error: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 where a run failed, 2 for bad input."""
    options = build_parser().parse_args(arguments)
    if "data_dir" in options:
        os.environ["REPLICATION_DATA"] = os.path.realpath(options.data_dir)  # where the lm-eval tasks look
        offline_if_unreachable()
    try:
        code = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a place that cannot be read or written, or a name that cannot be one
        print(
            f"error: {error.filename or 'a file'}: {error.strerror or error}; allowed: places that can be read and written",
            file=sys.stderr,
        )
        return 2
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:  # under torchrun every process has it
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; what was saved is kept, and the same command (train: with --resume) goes on", file=sys.stderr
        )
        return 130


def build_parser() -> argparse.ArgumentParser:
    """The command line, whole."""
    parser = _Parser(prog="python -m replication", description="Mixed Sparsity Training and its baselines, replicated.")
    commands = parser.add_subparsers(
        required=True, metavar="{train,evaluate,calibrate,replicate,tune,plan,paper,data,bench}"
    )

    train = _command(commands, "train", _train, "train one run")
    _add_run(train)
    what = train.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="DIR", help="the run folder")
    what.add_argument(
        "--dry-run", action="store_true", help="train nothing: print parameters, tokens, FLOPs, memory, disk and time"
    )
    train.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    train.add_argument(
        "--devices", type=int, default=4, help="for --dry-run: data-parallel devices (default: %(default)s)"
    )
    train.add_argument(
        "--tflops",
        type=float,
        default=312.0,
        help="for --dry-run: a device's peak in TFLOP/s (default: %(default)s, an A100 in bfloat16)",
    )
    train.add_argument(
        "--utilisation",
        type=float,
        default=0.4,
        help="for --dry-run: share of the peak that is reached (default: %(default)s)",
    )
    _add_data_dir(train)

    calibrate = _command(commands, "calibrate", _calibrate, "score a known model against its reference values")
    calibrate.add_argument(
        "model", metavar="MODEL", help="a Hugging Face model folder, or a name on the hub such as gpt2"
    )
    calibrate.add_argument(
        "--reference", metavar="NAME", help="the model whose references hold (default: MODEL's last part)"
    )
    _add_data_dir(calibrate)

    evaluate = _command(commands, "evaluate", _evaluate, "score a checkpoint with lm-eval")
    evaluate.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a Hugging Face model folder, such as DIR/checkpoint"
    )
    evaluate.add_argument("--tasks", required=True, metavar="A,B", help="lm-eval tasks, ours or its own")
    evaluate.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="keep lm-eval's raw output here (default: in the run, if the checkpoint is of one)",
    )
    _add_data_dir(evaluate)

    replicate = _command(
        commands, "replicate", _replicate, "train and score a profile's arms, and print Table 1 or the ablations"
    )
    replicate.add_argument("--ablations", action="store_true", help="the profile's ablation arms too, and their table")
    _add_runs(replicate, "", "whole numbers (default: 0,1,2, or as the profile says)")

    tune = _command(
        commands, "tune", _tune, "find each arm's learning rate, drop fraction and update interval, by one rule"
    )
    _add_runs(tune, "1000,1001,1002", "none that a table uses (default: %(default)s)")
    tune.add_argument(
        "--knobs",
        default="learning_rate,drop_fraction,update_freq,fine_learning_rate",
        metavar="A,B",
        help="what is varied, in this order (default: %(default)s)",
    )

    plan = _command(commands, "plan", _plan, "FLOPs of a run, without training")
    _add_run(plan)
    plan.add_argument("--json", action="store_true", help="the whole ledger, or the solutions, as JSON")
    plan.add_argument(
        "--target-reduction", type=float, metavar="X", help="find settings at which dense ÷ method is X instead"
    )
    plan.add_argument(
        "--convention", default="head_counted_full", help="under which X is counted (default: %(default)s)"
    )
    plan.add_argument(
        "--fix",
        nargs="+",
        default=[],
        action="extend",
        metavar="KNOB=VALUE",
        help="hold a knob, as in ultra_sparsity=0.9; the others are varied",
    )

    _command(commands, "paper", _paper, "what is known of the paper, from where, and where the code uses it")

    data = _command(commands, "data", _data, "prepare a profile's tokens and the held-out sets, or a task's local file")
    data.add_argument("--profile", default="small")
    data.add_argument(
        "--eval-file",
        action="append",
        default=[],
        metavar="TASK=FILE",
        help="take one of the paper's evaluation sets from a local file instead (eval/README.md); repeatable",
    )
    _add_set(data)
    _add_data_dir(data)

    bench = _command(
        commands,
        "bench",
        _bench,
        "measure what sparsity saves on the clock of this machine, which should have nothing else to do",
    )
    bench.add_argument(
        "--only", default="", metavar="A,B", help="layers, steps, runs, densities, profile (default: all)"
    )
    bench.add_argument("--quick", action="store_true", help="the smallest sizes and few rounds, to see that it works")
    bench.add_argument(
        "--out", type=Path, metavar="DIR", help="default: results/bench, or with --quick results/bench-quick"
    )
    _add_data_dir(bench)
    return parser


def _train(options: argparse.Namespace) -> int:
    config = load_config(options.profile, options.method, options.seed, options.set)
    if options.dry_run:
        from replication.planning.dry_run import dry_run, render
        from replication.planning.plan import check_schedule

        for remark in check_schedule(config):
            print(remark, file=sys.stderr)
        print(
            render(
                dry_run(config, options.devices, options.tflops, options.utilisation),
                f"{options.method} on profile {options.profile}, seed {options.seed}",
            )
        )
        return 0
    from replication.training.trainer import NonFiniteError, train

    try:
        run = train(config, options.out, options.data_dir, resume=options.resume)
    except NonFiniteError as error:
        print(f"failed: {error}; the last good state is kept in {options.out / 'resume'}", file=sys.stderr)
        return 1
    print(f"{run.checkpoint}: validation loss {run.metrics()[-1]['validation_loss']:.4f}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from replication.eval.zero_shot import score

    tasks = _names(options.tasks)
    if not tasks:
        raise UserError("--tasks is empty; allowed: names of lm-eval tasks, separated by commas")
    checkpoint = Path(os.path.realpath(options.checkpoint))
    run = RunFolder(checkpoint.parent)
    is_run = checkpoint == run.checkpoint and run.is_finished()
    if is_run:
        run.verify()
    out = options.out or (run.path / "eval" if is_run else None)
    if is_run and options.out is None and not os.access(run.path, os.W_OK):
        print(f"{run.path} cannot be written: the scores are not kept", file=sys.stderr)
        out = None
    for task, metrics in score(options.checkpoint, tasks, out).items():
        for metric, value in metrics.items():
            print(f"{task}  {metric}  {value:.6g}")
    return 0


def _calibrate(options: argparse.Namespace) -> int:
    from replication.eval.calibrate import calibrate, render

    readings = calibrate(options.model, options.reference or Path(options.model).name)
    print(render(readings))
    return 0 if all(reading.is_within for reading in readings) else 1


def _replicate(options: argparse.Namespace) -> int:
    from replication.pipeline import replicate

    every = arm_names(options.profile) + (arm_names(options.profile, "ablations") if options.ablations else [])
    return _say(*replicate(*_runs(options, every), options.set, options.ablations))


def _tune(options: argparse.Namespace) -> int:
    from replication.tune import tunable_arms, tune

    return _say(*tune(*_runs(options, tunable_arms(options.profile)), options.set, _names(options.knobs)))


def _runs(options: argparse.Namespace, every: list[str]) -> tuple:
    """Profile, arms, seeds, runs at a time, and the folders of results and data, of a command that trains many runs."""
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; allowed: 1 or more")
    if options.methods and not _names(options.methods):
        raise UserError(f"--methods is {options.methods!r}; allowed: arms, separated by commas")
    check_writable(options.results)
    arms, seeds = _names(options.methods) or every, _seeds(options.seeds) if options.seeds else None
    return options.profile, arms, seeds, options.jobs, options.results, options.data_dir


def _say(text: str, failures: list[str]) -> int:
    """Print what came out, and what failed; returns the exit code."""
    if text:
        print(text)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def _plan(options: argparse.Namespace) -> int:
    from replication.planning.plan import check_schedule, plan, plan_phases

    config = load_config(options.profile, options.method, options.seed, options.set)
    if options.target_reduction is not None:
        return _solve(config, options)
    for remark in check_schedule(config):
        print(remark, file=sys.stderr)
    ledger = plan(config)
    if options.json:
        print(json.dumps(ledger, indent=1))
        return 0
    print(
        f"{options.method} on profile {options.profile}: {ledger['steps']} steps, {ledger['tokens']:,} tokens, mean sparsity {ledger['mean_sparsity']:.4f}"
    )
    print(f"{'convention':<22}{'dense FLOPs':>14}{'FLOPs':>14}{'dense ÷ method':>16}")
    for name, count in ledger["conventions"].items():
        print(f"{name:<22}{count['dense_flops']:>14.4g}{count['flops']:>14.4g}{count['reduction']:>15.2f}×")
    print(f"{'phase':<22}{'steps':>18}{'updates':>9}{'largest cut':>13}{'of FLOPs':>10}")
    for phase in plan_phases(config):
        steps = f"{phase.start} to {phase.end}"
        print(f"{phase.name:<22}{steps:>18}{phase.num_updates:>9}{phase.largest_cut:>13.1%}{phase.flops_share:>10.1%}")
    return 0


def _solve(config: RunConfig, options: argparse.Namespace) -> int:
    from replication.planning.solver import render, solve

    family = solve(config, options.target_reduction, options.convention, _numbers("--fix", options.fix))
    print(json.dumps(asdict(family), indent=1) if options.json else render(family))
    return 0


def _paper(options: argparse.Namespace) -> int:
    from replication.paper import render

    print(render())
    return 0


def _data(options: argparse.Namespace) -> int:
    if options.eval_file:
        from replication.eval.local_files import import_file

        for task, _, file in (pair.partition("=") for pair in options.eval_file):
            print(import_file(task, Path(file), options.data_dir))
        return 0
    from replication.data import prepare, write_evaluation_sets

    config = load_config(options.profile, arm_names(options.profile)[0], 0, options.set)
    print(json.dumps(prepare(config.data, options.data_dir).manifest, indent=1))
    print(write_evaluation_sets(config.data, options.data_dir))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from replication.bench.run import bench

    out = options.out or Path("results/bench-quick" if options.quick else "results/bench")
    print(bench(_names(options.only), out, options.data_dir, options.quick))
    return 0


def _command(commands, name: str, function, summary: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(command=function)
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", default="small", help="smoke, small, text or paper (default: %(default)s)")
    parser.add_argument(
        "--method", required=True, help="an arm of the profile: dense, dense_quarter, static, set, rigl, mst"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    _add_set(parser)


def _add_runs(parser: argparse.ArgumentParser, seeds: str, which: str) -> None:
    """What a command takes that trains many runs."""
    parser.add_argument("--profile", default="small", help="smoke, small, text or paper (default: %(default)s)")
    parser.add_argument("--methods", default="", metavar="A,B", help="arms (default: all of the table's)")
    parser.add_argument("--seeds", default=seeds, metavar="0,1", help=which)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--jobs", type=int, default=cores, help="runs at a time (default: one a core)")
    help = "holds the run folders (default: %(default)s)"
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help=help)
    _add_set(parser)
    _add_data_dir(parser)


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a field, as in train.learning_rate=1e-3; repeatable",
    )


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("REPLICATION_DATA", "data"))
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=default,
        metavar="DIR",
        help="prepared data (default: %(default)s, or $REPLICATION_DATA)",
    )


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _numbers(option: str, pairs: list[str]) -> dict[str, float]:
    try:
        numbers = {key: float(value) for key, _, value in (pair.partition("=") for pair in pairs)}
        if all(map(math.isfinite, numbers.values())):
            return numbers
        raise ValueError
    except ValueError:
        raise UserError(f"{option} is {' '.join(pairs)!r}; allowed: NAME=NUMBER, as in ultra_sparsity=0.9") from None


def _seeds(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise UserError(f"seeds is {text!r}; allowed: whole numbers separated by commas") from None
