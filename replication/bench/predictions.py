"""Time as `plan` predicts it from a calibration, against the time that runs took that were not used for it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from replication.analysis.tables import to_markdown
from replication.bench.calibration import calibrate, on_random_tokens
from replication.planning.predict import predict
from replication.profiles import load_config
from replication.training import trainer

STEPS = 60
# method, precision; width, layers, context, vocabulary, sequences of a batch
RUNS = (
    ("dense", "fp32", 96, 4, 128, 1024, 8),
    ("dense", "bf16", 192, 2, 256, 2048, 4),
    ("dense", "fp32", 320, 3, 128, 4096, 8),
    ("static", "fp32", 192, 4, 128, 1024, 16),
    ("static", "bf16", 384, 2, 256, 2048, 4),
    ("set", "fp32", 128, 6, 128, 2048, 8),
    ("rigl", "fp32", 256, 2, 256, 4096, 4),
    ("mst", "fp32", 64, 8, 128, 1024, 8),
    ("mst", "bf16", 256, 3, 256, 1024, 8),
    ("mst", "fp32", 512, 2, 512, 2048, 2),
)


def measure_predictions(num_runs: int | None = None) -> Iterator[dict[str, Any]]:
    """A row for each run, after a calibration: predicted seconds, and those that its steps took."""
    calibration = calibrate()
    for method, precision, width, layers, context, vocabulary, batch in RUNS[:num_runs]:
        shape = {"n_layer": layers, "n_head": width // 32, "n_embd": width, "n_positions": context}
        settings = {f"model.{key}": value for key, value in shape.items()}
        settings |= {"data.vocab_size": vocabulary, "train.precision": precision, "train.batch_size": batch}
        settings |= {"train.num_steps": STEPS, "train.warmup_steps": 10, "sparsity.update_freq": 5}
        overrides = [f"{key}={value}" for key, value in settings.items()]
        config = load_config("small", method, 0, overrides, with_tuned=False)
        state = on_random_tokens(config)
        began = time.perf_counter()
        for _ in range(STEPS):
            trainer.train_step(state, state.model.transformer)
        seconds = time.perf_counter() - began
        what = {"contender": method, "precision": precision, **shape, "vocabulary": vocabulary, "batch": batch}
        known = predict(config, calibration)
        calibrated = {"predicted": known.seconds, "calibration_seconds": calibration.seconds}
        yield what | {"steps": STEPS, "seconds": [seconds]} | calibrated


def render_predictions(rows: list[dict[str, Any]], folder: Path) -> str:
    """A line for each run."""
    table = [
        {
            "method": row["contender"],
            "precision": row["precision"],
            "width": row["n_embd"],
            "layers": row["n_layer"],
            "context": row["n_positions"],
            "vocabulary": row["vocabulary"],
            "batch": row["batch"],
            "predicted s": f"{row['predicted']:.2f}",
            "measured s": f"{row['seconds'][0]:.2f}",
            "predicted ÷ measured": f"{row['predicted'] / row['seconds'][0]:.2f}",
        }
        for row in rows
    ]
    near = sum(abs(row["predicted"] / row["seconds"][0] - 1) <= 0.2 for row in rows)
    return "\n\n".join(
        [
            "## (h) Time, predicted and measured",
            f"Runs of {rows[0]['steps']} steps, after a calibration of {rows[0]['calibration_seconds']:.0f} s "
            f"(`plan --calibrate`) that used none of them: {near} of {len(rows)} within 20 %.",
            to_markdown(pd.DataFrame(table)),
        ]
    )
