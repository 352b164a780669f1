"""What the metrics of the topology that are on by default take of training, by a timer round them."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from replication.analysis.tables import to_markdown
from replication.bench.steps import set_up
from replication.config.profiles import load_config
from replication.training import trainer


def measure_metrics(profile: str, num_steps: int, data_dir: Path) -> Iterator[dict[str, Any]]:
    """A row for each method that reads the gradient: seconds of all steps, and of the metrics within them."""
    for method in ("mst", "rigl"):
        state = set_up(load_config(profile, method), data_dir)
        meter, spent = state.algorithm.meter, []
        measure = meter.measure

        def timed(*args: Any, measure=measure, spent=spent, **kwargs: Any) -> dict[str, Any]:
            began = time.perf_counter()
            values = measure(*args, **kwargs)
            spent.append(time.perf_counter() - began)
            return values

        meter.measure = timed
        trainer.train_step(state, state.model.transformer)  # the first sets up what all others use
        began = time.perf_counter()
        for _ in range(num_steps):
            trainer.train_step(state, state.model.transformer)
        seconds = time.perf_counter() - began
        updates = len(spent) // len(state.algorithm.masks)
        yield {"profile": profile, "contender": method, "steps": num_steps, "updates": updates} | {
            "metrics_seconds": sum(spent),
            "seconds": [seconds],
        }


def render_metrics(rows: list[dict[str, Any]], folder: Path) -> str:
    """A line for each method."""
    table = [
        {
            "method": row["contender"],
            "updates": row["updates"],
            "ms an update": f"{1000 * row['metrics_seconds'] / max(1, row['updates']):.1f}",
            "share of training": f"{row['metrics_seconds'] / row['seconds'][0]:.2%}",
        }
        for row in rows
    ]
    return "\n\n".join(
        [
            "## (g) What the metrics of the topology take",
            f"{rows[0]['steps']} steps of profile `{rows[0]['profile']}`, with those of `sparsity.metrics` that are on "
            "by default; the timer is round them alone, and what is logged without them counts too.",
            to_markdown(pd.DataFrame(table)),
        ]
    )
