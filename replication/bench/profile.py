"""Where the time of a training step goes, by torch's profiler."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity

from replication.bench.steps import PRECISIONS, ULTRA, configure, set_up
from replication.training import trainer

# What the profiler calls it, with what it calls in turn -> what it is.
PARTS = {
    "_SparseLinear": "linear layers",
    "aten::mm": "linear layers",
    "_LinearCrossEntropy": "head and loss",
    "_PatternAttention": "attention",
    "aten::scaled_dot_product_attention": "attention",
    "_Gelu": "GELU",
    "aten::native_layer_norm": "layer norm",
    "aten::native_layer_norm_backward": "layer norm",
    "Optimizer.step#AdamW.step": "optimizer",
}
REST = "rest"
PRODUCTS = ("linear layers", "head and loss")
WIDTHS = (64, 768)
STEPS = 10  # one with a topology update among them, where MST has any


def measure_profile(width: int, data_dir: Path) -> Iterator[dict[str, Any]]:
    """A row for each precision, method and part of a step: its seconds, as a mean over `STEPS`."""
    for precision in PRECISIONS:
        for name, config in (
            ("dense", configure(width, "dense", precision)),
            ("MST ultra", configure(width, "mst", precision, *ULTRA)),
        ):
            state = set_up(config, data_dir)
            for _ in range(2):
                trainer.train_step(state, state.model.transformer)
            with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profile:
                for _ in range(STEPS):
                    trainer.train_step(state, state.model.transformer)
            seconds: Counter[str] = Counter()
            for event in profile.events():
                seconds[part_of(event)] += event.self_cpu_time_total / 1e6 / STEPS
            for part, share in seconds.most_common():
                yield {"width": width, "precision": precision, "contender": name, "part": part, "seconds": [share]}


def part_of(event: FunctionEvent) -> str:
    """The part of the outermost call in `PARTS` that the event is, or is within."""
    names = []
    while event is not None:
        names.append(event.name.removesuffix("Backward"))
        event = event.cpu_parent
    return next((PARTS[name] for name in reversed(names) if name in PARTS), REST)
