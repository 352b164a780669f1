"""What a run tells TensorBoard, Weights & Biases and Trackio, where it is asked to: `--log-to`. Imports no torch."""

import importlib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from replication.config.keys import check_known
from replication.flops.ledger import share_saved, total
from replication.system.errors import UserError, describe_error
from replication.system.files import Json

VARIABLE = "REPLICATION_LOG_TO"
TRACKERS = ("tensorboard", "wandb", "trackio")
PROJECT = "mst-replication"
SCALARS = (
    *("loss", "validation_loss", "lr", "grad_norm", "sparsity", "sparsity_target", "drop_fraction"),
    *("tokens_per_second", "memory_bytes"),
)
TOPOLOGY = ("dropped", "grown", "ever_active")  # whose means over the layers are told


@dataclass(frozen=True)
class Course:
    """What observers know of a run beside its rows.

    Attributes:
        path: its folder.
        config: nested plain values, as in `config.yaml`.
        step: how many steps are done when they are called.
        steps: how many there are.
        dense_step: FLOPs of a step of dense training (head_counted_full).
    """

    path: Path
    config: dict[str, Any]
    step: int
    steps: int
    dense_step: float


class Tracker(Protocol):
    """Where scalars go."""

    def log(self, scalars: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `<run>/tensorboard/`; those of steps that a resumed run takes again are purged."""

    def __init__(self, course: Course) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(course.path / "tensorboard"), purge_step=course.step + 1)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # for who looks now, and for a process that is killed

    def close(self) -> None:
        self.writer.close()


class Service:
    """W&B, or Trackio, which is called alike. A resumed run is one more of its run's group, from the step on that it
    goes on from: neither takes back what it was told of later ones."""

    def __init__(self, name: str, course: Course) -> None:
        self.module = importlib.import_module(name)
        part = f" from step {course.step}" if course.step else ""
        run = "{profile}/{arm}/seed-{seed}".format_map(course.config)
        place = {"dir": str(course.path)} if name == "wandb" else {}
        self.module.init(project=PROJECT, group=run, name=run + part, config=course.config, **place)

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        self.module.log(dict(scalars), step=step)

    def close(self) -> None:
        self.module.finish()


def check(names: Iterable[str]) -> None:
    """Raises UserError where one of `--log-to`'s names is none, or is not installed."""
    for name in names:
        check_known("--log-to", name, TRACKERS)
        found = find_spec(name)
        if found is None or found.origin is None:  # the latter: a folder of that name
            raise UserError(f"--log-to is {name!r}, which is not installed; allowed: to install it, or leave it out")


def read_asked_for() -> list[str]:
    """Those of `--log-to`, in this process and in those that it starts."""
    return list(filter(None, os.environ.get(VARIABLE, "").split(",")))


@contextmanager
def tracker(name: str, course: Course) -> Iterator[Tracker]:
    """Told of a run while it lasts.

    Raises:
        UserError: it cannot begin. What it raises later is its own.
    """
    try:
        begun: Tracker = TensorBoard(course) if name == "tensorboard" else Service(name, course)
    except (Exception, SystemExit) as error:  # no login, no network, no space: whatever a service says
        problem = describe_error(error)
        raise UserError(f"--log-to {name} cannot begin ({problem}); allowed: {name} set up, or left out") from None
    try:
        yield begun
    finally:
        begun.close()


def scalars(logs: Mapping[str, list[Json]], dense_step: float) -> list[tuple[int, dict[str, float]]]:
    """What trackers are told of new rows, with the number of steps done, in their order.

    Args:
        logs: file name -> rows: of `metrics.jsonl` the scalars and FLOPs (head_counted_full), of `topology.jsonl` each
            update's means over the layers.
        dense_step: what a step of dense training costs (head_counted_full).
    """
    told = _average_topology(logs["topology.jsonl"])
    for row in logs["metrics.jsonl"]:
        values = {name: row[name] for name in SCALARS if name in row}
        values["flops"] = total(row["flops"], "head_counted_full")
        values["flops_saved"] = share_saved(row["flops"], dense_step, row["step"])
        told[row["step"]] = values | told.get(row["step"], {})
    return sorted(told.items())


def _average_topology(rows: Iterable[Json]) -> dict[int, dict[str, float]]:
    """Steps done, the update's among them -> scalar -> mean over the layers."""
    updates: dict[int, list[Json]] = {}
    for row in rows:
        updates.setdefault(row["step"] + 1, []).append(row)
    return {
        step: {f"topology/{name}": sum(row[name] for row in layers) / len(layers) for name in TOPOLOGY}
        for step, layers in updates.items()
    }
