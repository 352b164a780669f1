"""Training steps and whole runs: dense, MST masked and MST sparse in our trainer, and dense in others'."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from replication.bench.measure import Contender, Pause, take_turns
from replication.bench.rivals import train_plain, train_transformers
from replication.config.profiles import load_config
from replication.config.run_config import RunConfig
from replication.data import prepare
from replication.runs.folder import RunFolder
from replication.training import trainer
from replication.training.steps import State
from replication.training.world import join

# width: layers, context, vocabulary, sequences of a batch. The last has GPT-2 small's width and context.
SIZES = {
    64: (4, 128, 1024, 8),
    128: (4, 256, 2048, 8),
    256: (4, 256, 4096, 8),
    512: (2, 512, 8192, 4),
    768: (2, 1024, 8192, 4),
}
PRECISIONS = ("fp32", "bf16")
BLOCKS, TILES = "sparsity.block_shape=[2,2]", "sparsity.block_shape=[32,32]"
# every step is of the ultra phase
ULTRA = ("mst.warmup_end=0", "mst.ultra_sparsity=0.9", "mst.restoration_start=1", "mst.restoration_end=1")
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
# 4x under head_counted_full at width 768 in 200 steps: python -m replication plan --profile small --method mst
#   --target-reduction 4 --set model.n_layer=2 --set model.n_head=12 --set model.n_embd=768 --set model.n_positions=1024
#   --set data.vocab_size=8192 --set train.num_steps=200 --set sparsity.update_freq=20
#   --fix warmup_end=0.1 restoration_start=0.7 restoration_end=0.9 ultra_sparsity=0.9
UPDATE_FREQ = 20
RUN = (
    f"sparsity.update_freq={UPDATE_FREQ}",
    "mst.restoration_start=0.7",
    "mst.restoration_end=0.9",
    "mst.ultra_sparsity=0.9",
    "mst.final_sparsity=0.836",
)


def configure(width: int, method: str, precision: str, *overrides: str) -> RunConfig:
    """A run of one of `SIZES` on the standard library's text."""
    layers, context, vocabulary, batch = SIZES[width]
    shape = {
        "model.n_layer": layers,
        "model.n_head": max(1, width // 64),
        "model.n_embd": width,
        "model.n_positions": context,
    }
    rest = {
        "data.vocab_size": vocabulary,
        "train.batch_size": batch,
        "train.num_steps": 10**6,
        "train.warmup_steps": 0,  # the profile's own may be longer than what is timed
        "train.precision": precision,
    }
    return load_config("small", method, 0, [*(f"{key}={value}" for key, value in (shape | rest).items()), *overrides])


def set_up(config: RunConfig, data_dir: Path) -> State:
    """A run that writes nothing."""
    return trainer.setup(config, RunFolder(Path("unused")), join(), prepare(config.data, data_dir))


def train_ours(pause: Pause, config: RunConfig, data_dir: Path) -> None:
    """Our trainer's steps to the run's end, without logs, evaluation and checkpoints."""
    state = set_up(config, data_dir)
    transformer = state.model.transformer
    forward = torch.compile(transformer) if config.train.compile else transformer
    for _ in range(config.train.steps):
        pause()
        trainer.train_step(state, forward)
    pause()


def measure_steps(width: int, rounds: int, data_dir: Path) -> Iterator[dict[str, Any]]:
    """A row for each precision and contender: seconds of a step in every round, and peak memory."""
    for precision in PRECISIONS:
        dense, compiled = (
            configure(width, "dense", precision, f"train.compile={choice}") for choice in ("false", "true")
        )
        ultra = (width, "mst", precision, *ULTRA)
        trainings = {
            "dense": (train_ours, dense),
            "dense, compiled": (train_ours, compiled),
            "plain loop": (train_plain, dense),
            "plain loop, compiled": (train_plain, compiled),
            "transformers Trainer": (train_transformers, dense),
            "MST ultra, masked": (train_ours, configure(*ultra, "train.kernels=masked")),
            "MST ultra, auto": (train_ours, configure(*ultra)),
            "MST ultra, sparse": (train_ours, configure(*ultra, "train.kernels=sparse")),
            "MST ultra, sparse, 2×2 blocks": (train_ours, configure(*ultra, "train.kernels=sparse", BLOCKS)),
            "MST ultra, auto, 32×32 blocks": (train_ours, configure(*ultra, TILES)),
        }
        tokens = dense.train.batch_size * dense.model.n_positions
        yield from _rows(trainings, rounds, data_dir, width=width, precision=precision, tokens=tokens)


def measure_densities(width: int, rounds: int, data_dir: Path) -> Iterator[dict[str, Any]]:
    """A row for each precision, block shape and density of a static, uniform mask, and one for dense.

    Each has the seconds of a step in every round.
    """
    for precision, block in itertools.product(PRECISIONS, ("[1,1]", "[2,2]")):
        trainings = {"dense": (train_ours, configure(width, "dense", precision))}
        for density in DENSITIES:
            static = (
                "sparsity.distribution=uniform",
                f"sparsity.sparsity={1 - density:g}",
                "train.kernels=sparse",
                f"sparsity.block_shape={block}",
            )
            trainings[str(density)] = (train_ours, configure(width, "static", precision, *static))
        yield from _rows(trainings, rounds, data_dir, width=width, precision=precision, block_shape=block)


def measure_runs(width: int, num_steps: int, data_dir: Path) -> Iterator[dict[str, Any]]:
    """A row for each contender: seconds of every step, from first to last, the contenders taking turns at each."""
    run = (f"train.num_steps={num_steps}", *RUN)
    trainings = {
        f"dense {precision}": (train_ours, configure(width, "dense", precision, *run)) for precision in PRECISIONS
    }
    trainings |= {
        f"MST {precision}": (train_ours, configure(width, "mst", precision, *run)) for precision in PRECISIONS
    }
    for name, blocks in (("2×2", BLOCKS), ("32×32", TILES)):
        trainings[f"MST {name} blocks bf16"] = (train_ours, configure(width, "mst", "bf16", *run, blocks))
    yield from _rows(
        trainings, num_steps, data_dir, warmup=0, width=width, context=SIZES[width][1], update_freq=UPDATE_FREQ
    )


def _rows(
    trainings: dict[str, tuple], rounds: int, data_dir: Path, warmup: int = 2, **facts: Any
) -> Iterator[dict[str, Any]]:
    for _, config in trainings.values():
        prepare(config.data, data_dir)  # not on the account of the first contender
    contenders = {name: Contender(train, config, data_dir) for name, (train, config) in trainings.items()}
    for name, seconds in take_turns(contenders, rounds, warmup).items():
        yield facts | {"contender": name, "seconds": seconds, "peak_memory_bytes": contenders[name].peak_memory}
