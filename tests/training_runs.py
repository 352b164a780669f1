"""Runs that several tests train, stop and resume, and what is compared of them."""

import os
import subprocess
import sys

from safetensors.torch import load_file

from replication.data import prepare
from replication.runs.folder import RunFolder
from replication.training import trainer
from replication.training.world import join

METHODS = ("dense", "static", "set", "rigl", "gmp", "mst")


TIMING = ("tokens_per_second", "seconds", "memory_bytes", "resources")


def set_up(config, data_dir, path):
    return trainer.setup(config, RunFolder(path), join(), prepare(config.data, data_dir))


def run_steps(state, num):
    for _ in range(num):
        yield trainer.train_step(state, state.model.transformer)


def untimed(rows):
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def outcome(run):
    """All that a run leaves, but for timing."""
    weights = load_file(run.checkpoint / "model.safetensors")
    return {
        "metrics": untimed(run.metrics()),
        "topology": run.topology(),
        "flops": run.flops(),
        "masks": {name: mask.tobytes() for name, mask in run.masks().items()},
        "weights": {name: tensor.numpy().tobytes() for name, tensor in weights.items()},
    }


class Stop(Exception):
    pass


def train_to(step, config, folder, data_dir):
    """Train, and die before `step`."""
    inner = trainer.train_step

    def dying(state, forward):
        if state.step == step:
            raise Stop
        return inner(state, forward)

    trainer.train_step = dying
    try:
        trainer.train(config, folder, data_dir, progress=False)
    except Stop:
        return RunFolder(folder)
    finally:
        trainer.train_step = inner


def resume(config, run, data_dir):
    return trainer.train(config, run.path, data_dir, resume=True, progress=False)


def torchrun(num_processes, *arguments):
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={num_processes}", "--rdzv-backend=c10d"]
    command = [sys.executable, *launch, "--rdzv-endpoint=localhost:0", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
