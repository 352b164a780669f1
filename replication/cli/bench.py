"""`bench`: what sparsity saves on the clock, of this processor or of a GPU."""

import argparse
from pathlib import Path

from replication.cli.options import Words, add_data_dir, add_flag, add_option
from replication.cli.output import end
from replication.cli.parsing import names
from replication.system.files import check_writable
from replication.system.hub import offline_if_unreachable


def add(words: Words) -> None:
    bench = words.group("bench", "measure what sparsity saves on the clock of this machine")
    _add_cpu(bench)
    _add_gpu(bench)


def _add_cpu(words: Words) -> None:
    summary = "on this processor, which should have nothing else to do; what `bench` alone means"
    cpu = words.command("cpu", measure_cpu, summary)
    parts = "layers, steps, runs, densities, profile, metrics, predictions, corpus, processes"
    add_option(cpu, "--only", f"{parts} (default: those not measured at this commit)", default="", metavar="A,B")
    add_flag(cpu, "--quick", "the smallest sizes and few rounds, to see that it works")
    kept = "with a folder for each kind of processor (default: results/bench, or with --quick results/bench-quick)"
    add_option(cpu, "--out", kept, type=Path, metavar="DIR")
    add_data_dir(cpu)


def _add_gpu(words: Words) -> None:
    gpu = words.command("gpu", measure_gpu, "on a GPU: the tests that need one, and what is measured there")
    add_option(gpu, "--only", "tests, steps, attention, blocks (default: all)", default="", metavar="A,B")
    kept = "where gpu.json and gpu.md go, in a folder for each kind of GPU (default: %(default)s)"
    add_option(gpu, "--out", kept, type=Path, default=Path("results/bench"), metavar="DIR")


def measure_cpu(options: argparse.Namespace) -> int:
    offline_if_unreachable()
    from replication.bench.run import bench

    out = options.out or Path("results/bench-quick" if options.quick else "results/bench")
    print(bench(names(options.only), out, options.data_dir, options.quick))
    return 0


def measure_gpu(options: argparse.Namespace) -> int:
    from replication.bench.gpu_check import gpu_check

    check_writable(options.out)
    return end(*gpu_check(names(options.only), options.out))
