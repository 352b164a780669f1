"""A checkpoint's model card: what it is, how it was trained, what it costs and scores, how to use it. No torch."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from replication.config.fields import DataConfig
from replication.config.run_config import RunConfig
from replication.flops.ledger import CONVENTIONS, is_counted, total
from replication.model.layout import HEAD, layout
from replication.runs.folder import CARD, RunFolder
from replication.runs.snapshots import DENSE_LOSS, MASKS, OWN_LOSS, Snapshot, last_of, snapshots_of
from replication.system.errors import UserError, describe_error
from replication.system.files import Json, write_atomically
from replication.system.signals import tell
from replication.system.streams import escape

TEMPLATE = Path(__file__).with_name("card.md")


def write_cards(run: RunFolder) -> None:
    """Write the card of the run's checkpoint, and of each snapshot that has its weights, as its scores are now.

    The run is trained to its end; no other file is touched.

    Raises:
        UserError: a card cannot be written.
        DamagedError: a file of the run is not as it was written.
    """
    for snapshot in {each.step: each for each in (*snapshots_of(run), last_of(run))}.values():
        if snapshot.has_weights:
            write_atomically(snapshot.weights / CARD, card(snapshot))


def offer_cards(run: RunFolder) -> None:
    """As `write_cards`; where it fails, a line says so: cards tell of a run, and are no part of it."""
    try:
        write_cards(run)
    except Exception as error:  # a full disk, a template's or the hub's library's
        problem = error if isinstance(error, UserError) else describe_error(error)
        tell(f"{run.path}: a card is not written ({problem})")


def card(snapshot: Snapshot) -> str:
    """Front matter, as the Hugging Face hub reads it, and Markdown."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData
    from jinja2 import Environment
    from markupsafe import Markup

    config, scores = snapshot.run.configuration(), list(_scores(snapshot))
    name = f"{config.profile}-{config.arm}-seed-{config.seed}"
    results = [
        EvalResult("text-generation", task, task, metric, value, metric_name=f"{metric}, {pattern} attention")
        for task, pattern, metric, value in scores
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["gpt2", "sparse-training", "mixed-sparsity-training", config.method, "arxiv:2408.11746"],
        datasets=[config.data.hub_name] if config.data.source == "hub" else None,
        model_name=name,
        eval_results=results or None,
    )
    facts = _facts(snapshot, config) | {"scores": scores, "card_data": Markup(data.to_yaml())}
    template = Environment(finalize=_plain).from_string(TEMPLATE.read_text(encoding="utf-8"))
    return str(ModelCard(template.render(facts))).rstrip("\n") + "\n"


def _plain(value: Any) -> Any:
    """What the template puts in, so that Markdown shows names of files, arms and tasks as they are, and obeys none."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    text = " ".join(escape(value).split())
    return re.sub(r"[&<>|\[\]*`~\\]|(?<!\w)_|_(?!\w)", lambda found: f"&#{ord(found[0])};", text)


def _facts(snapshot: Snapshot, config: RunConfig) -> dict[str, Any]:
    """What the template is filled with."""
    row, environment = snapshot.row, snapshot.run.environment()
    masks = _masks(snapshot)
    parts = list(_count_by_part(masks))
    loss = row.get(DENSE_LOSS, row.get("validation_loss"))
    return {
        "config": config,
        "row": row,
        "environment": environment,
        "is_last": snapshot.is_last,
        "text": _text(config.data),
        "loss": loss,
        "own_loss": row.get(OWN_LOSS, loss),
        "perplexity": _perplexity(loss),
        "flops": _flops(snapshot),
        "parts": [*parts, ("all masked matrices", sum(part[1] for part in parts), sum(part[2] for part in parts))],
        "is_sparse": bool(masks),
        "has_masks": (snapshot.weights / MASKS).exists(),
        "tasks": ",".join(config.eval.tasks) or "embedded_lastword",
    }


def _perplexity(loss: float) -> float:
    """Infinite where no number is so large."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _masks(snapshot: Snapshot) -> Mapping[str, np.ndarray]:
    """Weight's name -> mask; a checkpoint from before it held them has them in the run alone."""
    from safetensors.numpy import load_file

    if (file := snapshot.weights / MASKS).exists():
        return load_file(file)
    return snapshot.run.masks() if snapshot.is_last else {}


def _count_by_part(masks: Mapping[str, np.ndarray]) -> Iterator[tuple[str, int, int]]:
    """What a matrix does in a block, over all blocks: its name, weights, and active weights."""
    sizes: dict[str, int] = defaultdict(int)
    active: dict[str, int] = defaultdict(int)
    for name, mask in masks.items():
        parts = layout(name).parts
        for part, columns in zip(parts or ("",), np.split(mask, len(parts) or 1, axis=1)):
            key = "token embedding and LM head" if name == HEAD else re.sub(r"^.*\.h\.\d+\.|\.weight$", "", name)
            key += f", {part.upper()}" if part else ""
            sizes[key] += columns.size
            active[key] += int(columns.sum())
    return ((key, size, active[key]) for key, size in sizes.items())


def _flops(snapshot: Snapshot) -> dict[str, Json]:
    """Convention -> FLOPs so far; after the last step dense's and × too."""
    if snapshot.is_last:
        return snapshot.run.flops()["conventions"]
    spent = snapshot.row["flops"]
    return {name: {"flops": total(spent, name)} for name in CONVENTIONS if is_counted(spent, name)}


def _text(data: DataConfig) -> str:
    """Where the text is from; of files, their names without a machine's folders."""
    if data.source == "stdlib":
        return "Python's standard library"
    if data.source == "hub":
        return f"the data set {data.hub_name}, {data.hub_split}"
    return ", ".join(Path(file).name for file in data.files)


def _scores(snapshot: Snapshot) -> Iterator[tuple[str, str, str, float]]:
    """Task, attention pattern, metric and value, of all that was scored."""
    for pattern in snapshot.patterns:
        for task, raw in snapshot.evals(pattern).items():
            for metric, value in raw["results"][task].items():
                if isinstance(value, float) and "_stderr" not in metric:
                    yield task, pattern, metric.removesuffix(",none"), value
