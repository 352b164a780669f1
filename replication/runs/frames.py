"""A run as data frames, for notebooks and scripts of one's own: `frames.load(path)`."""

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from replication.config.keys import flatten
from replication.runs.folder import RunFolder
from replication.system.errors import UserError
from replication.system.files import Json


@dataclass(frozen=True)
class Run:
    """What a run folder holds, read when it is asked for.

    Each raises DamagedError, naming the file, where it is not as it was written.
    """

    folder: RunFolder

    @cached_property
    def config(self) -> Json:
        """Nested, as in `config.yaml`."""
        return self.folder.config()

    @cached_property
    def status(self) -> Json:
        """`status` (running | finished | failed), `step`, `seconds` and more."""
        return self.folder.status()

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A row per logged step, by `step`: loss and validation_loss in nats per token, lr, sparsity, phase,
        tokens_per_second, seconds, memory_bytes; and FLOPs so far by component as `flops.<component>`."""
        return _frame([flatten(row) for row in self.folder.metrics()], "step")

    @cached_property
    def topology(self) -> pd.DataFrame:
        """A row per topology update and layer: step, layer, size, nnz, dropped and grown (weights), overlap_first and
        ever_active (shares), and the configured metrics, as `dead.outputs` where one has several values."""
        return _frame([flatten(row) for row in self.folder.topology()])

    @cached_property
    def flops(self) -> pd.DataFrame:
        """A row per counting convention: dense_flops and flops of the whole run, and reduction (dense ÷ method)."""
        conventions = (self.folder.flops() or {}).get("conventions", {})
        return numeric(pd.DataFrame.from_dict(conventions, orient="index").rename_axis("convention"))

    @cached_property
    def scores(self) -> pd.DataFrame:
        """A row per lm-eval task and metric: value."""
        rows = [
            {"task": task, "metric": metric, "value": value}
            for task, raw in self.folder.evals().items()
            for metric, value in raw["results"][task].items()
            if isinstance(value, float)
        ]
        return pd.DataFrame(rows, columns=["task", "metric", "value"]).set_index(["task", "metric"])

    @property
    def masks(self):
        """Layer name -> the final boolean mask, a numpy array in the weight's shape."""
        return self.folder.masks()


def load(path) -> Run:
    """The run in a folder.

    Raises:
        UserError: there is none.
        DamagedError: it is finished, and a file of it is not as it was written.
    """
    folder = RunFolder(path)
    if not folder.status():
        raise UserError(f"{folder.path} holds no run; allowed: a run's folder, such as those that `runs list` lists")
    if folder.is_finished():
        folder.verify(without=["checkpoint/*"])
    return Run(folder)


def _frame(rows: list[Json], index: str | None = None) -> pd.DataFrame:
    frame = numeric(pd.DataFrame(rows))
    return frame.set_index(index) if index and len(frame) else frame


def numeric(frame: pd.DataFrame) -> pd.DataFrame:
    """The same, with columns of counts of which one is beyond 2⁶³ as float64: pandas would have objects."""
    large = [
        name
        for name in frame.columns
        if frame[name].dtype in (object, "uint64") and {type(value) for value in frame[name]} <= {int, float}
    ]
    return frame.astype(dict.fromkeys(large, "float64"))
