"""The command line: its options, and how a command ends."""

import argparse
import os
import signal
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import shtab

from replication import commands
from replication.errors import UserError, out_of_memory
from replication.flops import COSTS
from replication.interrupts import Interrupted, tell
from replication.launcher import is_first, launched, rank_of, share
from replication.machine import cores, limit_threads
from replication.parsing import Parser, names, settings
from replication.plugins import VARIABLE, blaming, plugins
from replication.profiles import named
from replication.runs import check_not_reference
from replication.streams import prepare_streams

PROFILES = "smoke, small, text, paper, or the path of a .yaml file (default: %(default)s)"
PATHS = ("--profile", "--plugin", "--include-path")  # that are completed as such
ARM = "an arm of the profile: dense, static, set, rigl, mst …; --help lists them"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 where a run failed, 2 for bad input, 128 + n for signal n."""
    prepare_streams()
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # who read what is printed has seen enough
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        return 128 + signal.SIGPIPE
    except OSError as error:  # a place that cannot be read or written, or a name that cannot be one
        problem = f"{error.filename or 'a file'}: {error.strerror or error}"
        tell(f"error: {problem}; allowed: places that can be read and written")
        return 2
    except UserError as error:
        if (rank := rank_of(error)) is not None:
            tell(f"{rank}error: {error}")
        return 2
    except KeyboardInterrupt as error:
        interrupted = error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)
        if is_first():
            tell(str(interrupted))
        return interrupted.code


def _run(arguments: list[str] | None) -> int:
    try:
        options = build_parser().parse_args(arguments)
    except SystemExit:  # --help and the like, whose reader may be gone
        sys.stdout.flush()
        raise
    launched()
    try:
        _prepare(options)
        with out_of_memory(), blaming():
            return options.command(options)
    except UserError as error:
        if options.command is commands.train and not options.dry_run:
            share(error)
        raise


def _prepare(options: argparse.Namespace) -> None:
    """What holds for a command, the libraries that it calls, and the processes that it starts."""
    limit_threads()
    if "data_dir" in options:
        os.environ["REPLICATION_DATA"] = os.path.realpath(options.data_dir)  # where the lm-eval tasks look
    if "set" in options:
        options.set = [*settings(), *options.set]
    if "profile" in options:
        options.profile = named(options.profile)
    for folder in (getattr(options, name, None) for name in ("out", "results", "data_dir")):
        if folder:
            check_not_reference(folder)
    for option, variable in (("plugin", VARIABLE), ("include_path", "REPLICATION_TASKS")):
        is_path = Path.exists if option == "include_path" else (lambda path: path.suffix == ".py" and path.exists())
        given = [os.path.realpath(path) if is_path(Path(path)) else path for path in getattr(options, option, [])]
        if given:
            os.environ[variable] = "\n".join([*os.environ.get(variable, "").splitlines(), *given])
    if "log_to" in options:
        from replication.training import trackers

        chosen = names(options.log_to)
        trackers.check(chosen)
        os.environ[trackers.VARIABLE] = ",".join(chosen)
    if "plugin" in options and plugins():
        from replication.methods import load_plugins

        load_plugins(plugins())
    if getattr(options, "print_config", False):
        options.command = commands.print_config


def build_parser() -> argparse.ArgumentParser:
    """The command line, whole."""
    completes = "--print-completion" in sys.argv  # shells complete commands, not `python -m`
    installed = completes or Path(sys.argv[0]).name == "mst-replication"
    prog = "mst-replication" if installed else "python -m replication"
    parser = Parser(prog=prog, description="Mixed Sparsity Training and its baselines, replicated.")
    parser.add_argument("--version", action="version", version=_version())
    shtab.add_argument_to(parser, "--print-completion", help='for a shell; as in: eval "$(… --print-completion bash)"')
    added = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        *(_train, _replicate, _tune, _plan, _suggest, _evaluate, _calibrate, _push),
        *(_ls, _watch, _show, _topology, _compare, _tradeoffs, _report, _data, _paper, _bench, _gpu_check),
    ):
        add(added)
    return parser


def _train(added: Any) -> None:
    train = _command(added, "train", commands.train, "train one run")
    _add_run(train)
    what = train.add_mutually_exclusive_group(required=True)
    _add(what, "--out", "the run folder", type=Path, metavar="DIR")
    _flag(what, "--dry-run", "train nothing: print parameters, tokens, FLOPs, memory, disk and time")
    _flag(what, "--print-config", "train nothing: print the configuration, and where each value is from")
    _flag(train, "--resume", "go on with an interrupted run")
    _add_log_to(train)
    default = "(default: %(default)s)"
    _add(train, "--devices", f"for --dry-run: data-parallel devices {default}", type=int, default=4)
    _add(
        train, "--tflops", f"for --dry-run: a device's peak in TFLOP/s {default}: A100, bf16", type=float, default=312.0
    )
    _add(train, "--utilisation", f"for --dry-run: share of the peak that is reached {default}", type=float, default=0.4)
    _add_data_dir(train)


def _replicate(added: Any) -> None:
    summary = "train and score a profile's arms, and print Table 1 or the ablations"
    replicate = _command(added, "replicate", commands.replicate, summary)
    _flag(replicate, "--ablations", "the profile's ablation arms too, and their table")
    grid = (
        "vary the arms instead, as in sparsity.sparsity=0.5,0.9; several make a grid; in RESULTS/<profile>_sweep.yaml"
    )
    _add(replicate, "--sweep", grid, action="append", default=[], metavar="KEY=A,B")
    _add_runs(replicate, "", "whole numbers (default: 0,1,2, or as the profile says)")
    _add_include_path(replicate)
    _add_log_to(replicate)


def _tune(added: Any) -> None:
    summary = "find each arm's learning rate, drop fraction and update interval, by one rule"
    tune = _command(added, "tune", commands.tune, summary)
    _add_runs(tune, "1000,1001,1002", "none that a table uses (default: %(default)s)")
    knobs = "learning_rate,drop_fraction,update_freq,fine_learning_rate"
    _add(tune, "--knobs", "what is varied, in this order (default: %(default)s)", default=knobs, metavar="A,B")


def _tradeoffs(added: Any) -> None:
    summary = "quality against FLOPs and density, FLOPs to reach a loss, and quality by phase, of finished runs"
    tradeoffs = _command(added, "tradeoffs", commands.tradeoffs, summary)
    _add(tradeoffs, "--profile", PROFILES, default="small")
    where = "holds the run folders (default: results if Table 1 is complete there, else the committed runs)"
    _add(tradeoffs, "--results", where, type=Path, dest="read", metavar="DIR")
    _add(
        tradeoffs, "--loss", "that is to be reached (default: the best that every run reaches)", type=float, metavar="L"
    )
    _add(
        tradeoffs,
        "--convention",
        "how FLOPs are counted (default: %(default)s)",
        default=next(iter(COSTS)),
        choices=list(COSTS),
        metavar="NAME",
    )
    _flag(tradeoffs, "--ablations", "the ablation arms too")
    kept = "where tables and figure go (default: beside the runs; of the committed ones nothing is kept)"
    _add(tradeoffs, "--out", kept, type=Path, metavar="DIR")


def _plan(added: Any) -> None:
    plan = _command(added, "plan", commands.plan, "FLOPs, time and energy of a run, without training")
    _add_run(plan, required=False)
    _flag(plan, "--print-config", "print the configuration instead, and where each value is from")
    _flag(plan, "--json", "the whole ledger, or the solutions, as JSON")
    _add(plan, "--target-reduction", "find settings at which dense ÷ method is X instead", type=float, metavar="X")
    _flag(plan, "--calibrate", "measure this machine first, from when on plans tell time and energy")
    _add(plan, "--price", "of an hour of this machine, for the cost (default: not told)", type=float, default=0.0)
    _add(plan, "--convention", "under which X is counted (default: %(default)s)", default="head_counted_full")
    hold = "hold a knob, as in ultra_sparsity=0.9; the others are varied"
    _add(plan, "--fix", hold, nargs="+", default=[], action="extend", metavar="KNOB=VALUE")


def _suggest(added: Any) -> None:
    summary = "what to train within a budget, by a law fitted to the logged runs: loss, FLOPs, time, and why"
    suggest = _command(added, "suggest", commands.suggest, summary)
    asked = suggest.add_mutually_exclusive_group(required=True)
    _add(asked, "--budget", "training FLOPs of a run", type=float, metavar="FLOPS")
    _add(asked, "--hours", "of a run's training, on this machine", type=float, metavar="H")
    _add(asked, "--loss", "validation loss to reach, in nats per token", type=float, metavar="L")
    _add(suggest, "--profile", PROFILES, default="small")
    which = "whose logged runs are read (default: yours where they are complete, else the committed ones)"
    _add(suggest, "--results", which, type=Path, metavar="DIR", dest="logged")
    _add(suggest, "--convention", "under which FLOPs are counted (default: %(default)s)", default="head_counted_full")
    trials = "then train N short trials around the first suggestion, at equal FLOPs (needs optuna)"
    _add(suggest, "--search", trials, type=int, default=0, metavar="N")
    _add(suggest, "--jobs", "of --search: runs at a time (default: one a core)", type=int, default=cores())
    _flag(suggest, "--json", "all of it as JSON, configurations included")
    _add_data_dir(suggest)


def _evaluate(added: Any) -> None:
    evaluate = _command(added, "evaluate", commands.evaluate, "score a checkpoint with lm-eval")
    folder = "a Hugging Face model folder, such as DIR/checkpoint"
    _add(evaluate, "checkpoint", folder, type=Path, metavar="CHECKPOINT")
    _add(evaluate, "--tasks", "lm-eval tasks, ours or its own", required=True, metavar="A,B")
    kept = "keep lm-eval's raw output here (default: in the run, if the checkpoint is of one)"
    _add(evaluate, "--out", kept, type=Path, metavar="DIR")
    _add_include_path(evaluate)
    _add_data_dir(evaluate)


def _calibrate(added: Any) -> None:
    summary = "score a known model against its reference values"
    calibrate = _command(added, "calibrate", commands.calibrate, summary)
    _add(calibrate, "model", "a Hugging Face model folder, or a name on the hub such as gpt2", metavar="MODEL")
    _add(calibrate, "--reference", "the model whose references hold (default: MODEL's last part)", metavar="NAME")
    _add_data_dir(calibrate)


def _push(added: Any) -> None:
    push = _command(added, "push", commands.push, "upload a finished run's checkpoint to the Hugging Face hub")
    _add(push, "run", "a run's folder, or a checkpoint's", type=Path, metavar="RUN_OR_CHECKPOINT")
    _add(push, "repo", "where to, as in me/model; made if it is not there", metavar="REPO_ID")
    _flag(push, "--private", "make it a private one, or refuse one that is not")
    _add(push, "--revision", "a branch (default: the main one), made if it is not there", metavar="BRANCH")


def _ls(added: Any) -> None:
    ls = _command(added, "ls", commands.ls, "list the runs in a folder: how far they are, and what came of them")
    below = "where runs are (default: %(default)s)"
    _add(ls, "folder", below, type=Path, nargs="?", default=Path("results"), metavar="DIR")


def _watch(added: Any) -> None:
    summary = "follow all runs in a folder, wherever they are trained: progress, loss beside dense's, alarms"
    watch = _command(added, "watch", commands.watch, summary)
    below = "where runs are (default: %(default)s)"
    _add(watch, "folder", below, type=Path, nargs="?", default=Path("results"), metavar="RESULTS")
    _flag(watch, "--once", "print one table; so it is without a terminal")


def _show(added: Any) -> None:
    show = _command(added, "show", commands.show, "what a run is, how its phases ended, what it cost and scored")
    _add(show, "run", "its folder", type=Path, metavar="RUN")


def _topology(added: Any) -> None:
    summary = "what became of runs' masks, by layer: active weights, dead units, degrees"
    topology = _command(added, "topology", commands.topology, summary)
    _add(topology, "runs", "their folders", type=Path, nargs="+", metavar="RUN")
    _add(topology, "--figure", "draw it too, with the updates over time", type=Path, metavar="FILE.png")


def _compare(added: Any) -> None:
    summary = "what of new runs is worse than of a reference, and what better, at a false-alarm rate of 1 %"
    compare = _command(added, "compare", commands.compare, summary.replace("%", "%%"))
    what = "a folder of results, of an arm or a run, or of what `evaluate --out` wrote"
    _add(compare, "reference", what, type=Path, metavar="REFERENCE")
    _add(compare, "new", "the same", type=Path, metavar="NEW")
    fails = "exit with 1 where a run is missing, or anything is worse; or anything but speed and memory"
    _add(compare, "--fail-on", fails, choices=["worse", "worse-result"])
    _flag(compare, "--all", "an arm of the reference that the new side has not trained counts as missing")
    _flag(compare, "--json", "every row, as JSON")


def _report(added: Any) -> None:
    summary = "one page for a browser: the finding, Table 1, the verdicts and every figure, with their data"
    report = _command(added, "report", commands.report, summary)
    _add(report, "--profile", PROFILES, default="small")
    held = (
        "holds the run folders, which are only read (default: your own, or until they are complete the committed ones)"
    )
    _add(report, "--results", held, type=Path, metavar="DIR", dest="read_from")
    _add(report, "--out", "the page (default: %(default)s)", type=Path, default=Path("report.html"), metavar="FILE")


def _data(added: Any) -> None:
    data = _command(added, "data", commands.data, "prepare a profile's tokens and the held-out sets, or a task's file")
    _add(data, "--profile", PROFILES, default="small")
    local = "take one of the paper's evaluation sets from a local file instead (eval/README.md); repeatable"
    _add(data, "--eval-file", local, action="append", default=[], metavar="TASK=FILE")
    _add_set(data)
    _add_data_dir(data)


def _paper(added: Any) -> None:
    _command(added, "paper", commands.paper, "what is known of the paper, from where, and where the code uses it")


def _bench(added: Any) -> None:
    summary = "measure what sparsity saves on the clock of this machine, which should have nothing else to do"
    bench = _command(added, "bench", commands.bench, summary)
    parts = "layers, steps, runs, densities, profile, metrics, predictions, corpus, processes"
    _add(bench, "--only", f"{parts} (default: those not measured at this commit)", default="", metavar="A,B")
    _flag(bench, "--quick", "the smallest sizes and few rounds, to see that it works")
    kept = "with a folder for each kind of processor (default: results/bench, or with --quick results/bench-quick)"
    _add(bench, "--out", kept, type=Path, metavar="DIR")
    _add_data_dir(bench)


def _gpu_check(added: Any) -> None:
    summary = "on a machine with a GPU: the tests that need one, and what is measured there"
    check = _command(added, "gpu-check", commands.gpu_check, summary)
    _add(check, "--only", "tests, steps, attention, blocks (default: all)", default="", metavar="A,B")
    kept = "where gpu.json and gpu.md go, in a folder for each kind of GPU (default: %(default)s)"
    _add(check, "--out", kept, type=Path, default=Path("results/bench"), metavar="DIR")


def _command(added: Any, name: str, function: Any, summary: str) -> argparse.ArgumentParser:
    parser = added.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    parser.set_defaults(command=function)
    return parser


def _add(parser: Any, name: str, meaning: str, **how: Any) -> None:
    option = parser.add_argument(name, help=meaning, **how)
    if how.get("type") is Path or name in PATHS:
        option.complete = shtab.FILE


def _flag(parser: Any, name: str, meaning: str) -> None:
    parser.add_argument(name, help=meaning, action="store_true")


def _add_run(parser: Parser, required: bool = True) -> None:
    """What says which run it is."""
    parser.lists = True
    _add(parser, "--profile", PROFILES, default="small")
    _add(parser, "--method", ARM, required=required)
    _add(parser, "--seed", "default: %(default)s", type=int, default=0)
    _add_set(parser)
    _add_plugin(parser)


def _add_runs(parser: Parser, seeds: str, which: str) -> None:
    """What a command takes that trains many runs."""
    parser.lists = True
    _add(parser, "--profile", PROFILES, default="small")
    _add(parser, "--methods", "arms (default: all of the table's)", default="", metavar="A,B")
    _add(parser, "--seeds", which, default=seeds, metavar="0,1")
    _add(parser, "--jobs", "runs at a time (default: one a core; replicate: or as `plan --calibrate` found)", type=int)
    held = "holds the run folders (default: %(default)s)"
    _add(parser, "--results", held, type=Path, default=Path("results"), metavar="DIR")
    _add_set(parser)
    _add_plugin(parser)
    _add_data_dir(parser)


def _add_set(parser: Any) -> None:
    field = "override a field, as in train.learning_rate=1e-3; repeatable"
    _add(parser, "--set", field, action="append", default=[], metavar="KEY=VALUE")


def _add_plugin(parser: Any) -> None:
    module = "import a module that registers methods, by name or as a .py file; repeatable"
    _add(parser, "--plugin", module, action="append", default=[], metavar="MODULE")


def _add_include_path(parser: Any) -> None:
    folder = "a folder of lm-eval tasks of one's own; repeatable"
    _add(parser, "--include-path", folder, action="append", default=[], metavar="DIR")


def _add_log_to(parser: Any) -> None:
    where = "what is logged goes to these too: tensorboard (in the run folder), wandb, trackio"
    _add(parser, "--log-to", where, default=os.environ.get("REPLICATION_LOG_TO", ""), metavar="A,B")


def _add_data_dir(parser: Any) -> None:
    default = Path(os.environ.get("REPLICATION_DATA", "data"))
    where = "prepared data (default: %(default)s, or $REPLICATION_DATA)"
    _add(parser, "--data-dir", where, type=Path, default=default, metavar="DIR")


def _version() -> str:
    try:
        return f"mst-replication {version('mst-replication')}"
    except PackageNotFoundError:  # run from its source
        return "mst-replication, from source"
