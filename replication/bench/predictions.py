"""What `plan` predicts from a calibration, against what runs took that were not used for it: time, memory, energy."""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from replication.analysis.tables import to_markdown
from replication.bench.calibration import calibrate, make_random_run
from replication.config.profiles import load_config
from replication.config.run_config import RunConfig
from replication.forecast.predict import predict, predict_memory
from replication.system.machine import peak_memory
from replication.training import trainer

STEPS = 60


class Run(NamedTuple):
    """`batch`: in sequences of `context` tokens."""

    method: str
    precision: str
    width: int
    layers: int
    context: int
    vocabulary: int
    batch: int


RUNS = (
    Run("dense", "fp32", 96, 4, 128, 1024, 8),
    Run("dense", "bf16", 192, 2, 256, 2048, 4),
    Run("dense", "fp32", 320, 3, 128, 4096, 8),
    Run("static", "fp32", 192, 4, 128, 1024, 16),
    Run("static", "bf16", 384, 2, 256, 2048, 4),
    Run("set", "fp32", 128, 6, 128, 2048, 8),
    Run("rigl", "fp32", 256, 2, 256, 4096, 4),
    Run("mst", "fp32", 64, 8, 128, 1024, 8),
    Run("mst", "bf16", 256, 3, 256, 1024, 8),
    Run("mst", "fp32", 512, 2, 512, 2048, 2),
)


def measure_predictions(num_runs: int | None = None) -> Iterator[dict[str, Any]]:
    """A row for each run, after a calibration: what was predicted, and what its steps took."""
    calibration = calibrate()
    for run in RUNS[:num_runs]:
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:  # whose memory is that of this run
            used = alone.submit(_train, run).result()
        config = _config(run)
        known = predict(config, calibration)
        predicted = {
            "predicted": known.seconds,
            "predicted_joules": known.joules,
            "predicted_bytes": predict_memory(config, calibration),
        }
        yield {
            "contender": run.method,
            **run._asdict(),
            "steps": STEPS,
            "calibration_seconds": calibration.seconds,
            **predicted,
            **used,
        }


def _config(run: Run) -> RunConfig:
    settings = {
        "model.n_layer": run.layers,
        "model.n_head": run.width // 32,
        "model.n_embd": run.width,
        "model.n_positions": run.context,
        "data.vocab_size": run.vocabulary,
        "train.precision": run.precision,
        "train.batch_size": run.batch,
        "train.num_steps": STEPS,
        "train.warmup_steps": 10,
        "sparsity.update_freq": 5,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return load_config("small", run.method, 0, overrides, with_tuned=False)


def _train(run: Run) -> dict[str, Any]:
    """In a process of its own: the seconds and joules of its steps, and the most bytes that it held."""
    state = make_random_run(_config(run))
    state.resources.take()
    began = time.perf_counter()
    for _ in range(STEPS):
        trainer.train_step(state, state.model.transformer)
    seconds = time.perf_counter() - began
    joules = state.resources.take()["joules"]
    return {"seconds": [seconds], "joules": joules, "peak_bytes": peak_memory(torch.device("cpu"))}


def render_predictions(rows: list[dict[str, Any]], folder: Path) -> str:
    """A line for each run."""
    table, ratios = [], []
    for row in rows:
        seconds = row["seconds"][0]
        facts = {name: row[name] for name in Run._fields}
        facts |= {
            "s": f"{seconds:.2f}",
            "s ÷": f"{row['predicted'] / seconds:.2f}",
            "MiB": f"{row['peak_bytes'] / 2**20:.0f}",
            "MiB ÷": f"{row['predicted_bytes'] / row['peak_bytes']:.2f}",
            "J": f"{row['joules']:.0f}",
            "J ÷": f"{row['predicted_joules'] / row['joules']:.2f}",
        }
        table.append(facts)
        ratios.append([float(facts[f"{unit} ÷"]) for unit in ("s", "MiB", "J")])
    near = [sum(abs(ratio - 1) <= 0.2 for ratio in column) for column in zip(*ratios)]
    of = f"of {len(rows)} within 20 %"
    return "\n\n".join(
        [
            "## (h) Predicted and measured",
            f"Runs of {rows[0]['steps']} steps, after a calibration of {rows[0]['calibration_seconds']:.0f} s "
            f"(`plan machine`) that used none of them. Time: {near[0]} {of}; memory: {near[1]}; energy: {near[2]}. "
            "÷: predicted ÷ measured.",
            to_markdown(pd.DataFrame(table)),
        ]
    )
