"""What this machine's clock says of a training step, by width, density and precision: `plan machine`.

Real steps of small models are timed: of one layer and of three, whose difference is two layers; at other batches,
vocabularies and contexts than the first, for what each of them adds. `planning.predict` puts a run together from these.
"""

import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from replication.config.profiles import load_config
from replication.config.run_config import RunConfig
from replication.forecast.predict import BATCH, CONTEXT, FEW, HALF, VOCABULARY, Calibration, Row, Step, densities
from replication.runs.folder import RunFolder
from replication.sparsity.schedules import AttentionSwitch
from replication.system.machine import machine, peak_memory
from replication.training import trainer
from replication.training.resources import Resources
from replication.training.steps import State
from replication.training.world import join

WIDTHS = (64, 192, 384)
DENSITIES = (1.0, HALF, FEW, 0.05)  # the first is dense training
PRECISIONS = ("fp32", "bf16")
STEPS, ENOUGH = 2, 0.06  # timed of each kind: at least so many, and for so many seconds; the median counts
LIMIT = 45  # seconds, in which kinds are timed again; the faster time counts, which other work disturbed less
NEVER = 10**6  # steps
TOKENS = 10**5


def calibrate(busy: str = "") -> Calibration:
    """Measure this machine, with as many threads as torch uses here.

    Args:
        busy: what it does meanwhile (`machine.busy`).
    """
    torch.manual_seed(0)
    base, began = peak_memory(torch.device("cpu")), time.perf_counter()
    rows: dict[Step, Row] = {}
    for step in itertools.chain(list_steps(), list_steps()):
        if step in rows and time.perf_counter() - began > LIMIT:
            break
        rows[step] = min(filter(None, (rows.get(step), _time(step))), key=lambda row: row.seconds)
    return Calibration(
        machine=machine(),
        rows=list(rows.values()),
        watts=float(np.average([row.watts for row in rows.values()], weights=[row.seconds for row in rows.values()])),
        energy=Resources(torch.device("cpu")).energy,
        base_bytes=base,
        seconds=time.perf_counter() - began,
        busy=busy,
    )


def list_steps() -> Iterator[Step]:
    """Each kind, once."""
    for precision, width in itertools.product(PRECISIONS, WIDTHS):
        for density, layers in itertools.product(DENSITIES, (1, 3)):
            yield Step(width, precision, layers, density)
        for density, kind in itertools.product((HALF, FEW), ("topology", "update")):
            yield Step(width, precision, 3, density, kind)
        for density in (1.0, FEW):
            yield Step(width, precision, 3, density, batch=2 * BATCH)
            yield Step(width, precision, 1, density, vocabulary=4 * VOCABULARY)
    others = (("dense", 4), ("sparse", 1), ("sparse", 4))  # than dense attention over `CONTEXT`
    for precision, (pattern, factor) in itertools.product(PRECISIONS, others):  # the same tokens
        context = {"context": factor * CONTEXT, "batch": BATCH // factor}
        yield Step(WIDTHS[1], precision, 3, pattern=pattern, **context)


def _time(step: Step) -> Row:
    """Seconds of such a step, the median of a few, and the densities that its layers really have."""
    state = _state(step)
    if step.pattern != "dense":
        always = AttentionSwitch(step.pattern, 0, NEVER)
        state.algorithm.schedules = replace(state.algorithm.schedules, attention=always)
    _seconds(state)  # the first one allocates
    seconds: list[float] = []
    before = state.resources.take()["joules"]
    while len(seconds) < STEPS or sum(seconds) < ENOUGH:
        seconds.append(_seconds(state))
    watts = (state.resources.take()["joules"] - before) / sum(seconds)
    return Row(step, statistics.median(seconds), *densities(state.config, state.algorithm.nnz), watts)


def _seconds(state: State) -> float:
    began = time.perf_counter()
    trainer.train_step(state, state.model.transformer)
    return time.perf_counter() - began


def _state(step: Step) -> State:
    """A run of such steps."""
    method = "dense" if step.density == 1 else {"plain": "static", "topology": "set", "update": "rigl"}[step.kind]
    settings = {
        "model.n_layer": step.layers,
        "model.n_head": max(1, step.width // 64),
        "model.n_embd": step.width,
        "model.n_positions": step.context,
        "data.vocab_size": step.vocabulary,
        "train.precision": step.precision,
        "train.batch_size": step.batch,
        "train.num_steps": NEVER,
        "sparsity.sparsity": round(1 - step.density, 6),
        "sparsity.update_freq": NEVER if step.kind == "plain" else 1,
    }
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return make_random_run(load_config("small", method, 0, overrides, with_tuned=False))


def make_random_run(config: RunConfig) -> State:
    """A run that needs no text and writes nothing."""
    tokens = np.random.default_rng(0).integers(config.data.vocab_size, size=TOKENS, dtype=np.uint16)
    manifest = {"end_of_text_id": 0}
    data: Any = SimpleNamespace(
        manifest=manifest, shards={}, parts=lambda part: (tokens, tokens), tokenizer_folder=Path("unused")
    )
    return trainer.setup(config, RunFolder(Path("unused")), join(), data)
