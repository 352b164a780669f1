"""Before training: seconds, memory, energy and cost of a run on this machine, from its calibration (ours).

A step's time is put together from timed steps: layers, the rest, what other batches, contexts and vocabularies add, and
what an update of the topology does. Between the densities that were timed it is a line, between the widths a power law.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from replication.config.run_config import RunConfig
from replication.flops.automatic_phases import fix_phases
from replication.flops.stretches import Stretch, stretches
from replication.forecast.dry_run import dry_run
from replication.model.gpt2 import HEAD, matrix_shapes, select_masked_shapes
from replication.system.errors import UserError
from replication.system.files import read_json, write_json
from replication.system.machine import cache_file, cpu_precision

CALIBRATION = "calibration"
Points = list[tuple[float, float]]  # (density, value)
LEAST = 0.05  # of a step is what it takes more than another, however noisy both are (ours)
UNITS = (("years", 31_557_600), ("days", 86400), ("h", 3600), ("min", 60), ("s", 1))
HALF, FEW = 0.5, 0.1  # densities at which more than plain steps are timed
BATCH, CONTEXT, VOCABULARY = 8, 128, 1024  # of the steps that are timed, where nothing else is said
ERROR = 0.2  # of a prediction, either way: ten runs lay within 0.18 (`make bench ONLY=predictions`)


@dataclass(frozen=True)
class Step:
    """A kind of training step.

    Attributes:
        density: overall, of the masked weights; 1: dense training.
        kind: `plain`; `topology`, which changes it at random; or `update`, which reads the dense gradient for it.
        batch: in sequences.
        context: in tokens.
        pattern: of attention.
    """

    width: int
    precision: str
    layers: int
    density: float = 1.0
    kind: str = "plain"
    batch: int = BATCH
    context: int = CONTEXT
    vocabulary: int = VOCABULARY
    pattern: str = "dense"


@dataclass(frozen=True)
class Row:
    """A step's seconds, the density of its blocks and of its head, and the watts of the process meanwhile."""

    step: Step
    seconds: float
    blocks: float
    head: float
    watts: float = 0.0


@dataclass(frozen=True)
class Calibration:
    """What was timed on a machine.

    Attributes:
        machine: as `machine.machine` tells it.
        watts: of this process, on average while a step was timed; `energy` says by what.
        base_bytes: that a process takes before its run has begun.
        seconds: that it took.
        busy: what the machine did meanwhile, in words; empty: little.
    """

    machine: Mapping[str, Any]
    rows: list[Row]
    watts: float
    energy: str
    base_bytes: int
    seconds: float
    busy: str = ""

    def save(self) -> Path:
        """Keep it for this machine and number of threads. Raises UserError where it cannot be written."""
        file = cache_file(CALIBRATION, self.machine["threads"])
        write_json(file, asdict(self))
        return file

    @property
    def caution(self) -> str:
        """To be added to what is said of it; empty where the machine was idle."""
        return f"; timed while {self.busy}: calibrate anew when it is idle" if self.busy else ""

    @cached_property
    def _steps(self) -> dict[Step, Row]:
        return {row.step: row for row in self.rows}

    def row(self, *what: Any, **more: Any) -> Row:
        return self._steps[Step(*what, **more)]


@dataclass(frozen=True)
class Prediction:
    """What a run will take, evaluation and saving left out; `low` and `high` bound its seconds."""

    seconds: float
    low: float
    high: float
    joules: float
    energy: str


def load_calibration(machine: Mapping[str, Any]) -> Calibration | None:
    """This machine's, with so many threads; None: it was not calibrated, or under other versions."""
    try:
        kept = read_json(cache_file(CALIBRATION, machine["threads"]))
        if kept["machine"]["versions"] != machine["versions"]:
            return None
        rows = [Row(**(row | {"step": Step(**row["step"])})) for row in kept["rows"]]
        return Calibration(**(kept | {"rows": rows}))
    except (UserError, OSError, KeyError, TypeError):
        return None


def densities(config: RunConfig, nnz: Mapping[str, int]) -> tuple[float, float]:
    """Of the blocks' masked matrices, and of the head; 1 where nothing is masked."""
    shapes = select_masked_shapes(config)
    blocks = {name: n_in * n_out for name, (n_in, n_out) in shapes.items() if name != HEAD}
    head = nnz[HEAD] / (shapes[HEAD][0] * shapes[HEAD][1]) if HEAD in nnz else 1.0
    return sum(nnz.get(name, size) for name, size in blocks.items()) / sum(blocks.values()), head


def predict(config: RunConfig, calibration: Calibration) -> Prediction:
    """Of a run of any shape, as far as the calibration's widths reach; a wider one is extrapolated.

    Raises:
        UserError: the calibration lacks a kind of step, as one of an earlier version may, or a time in it is none.
    """
    found = list(stretches(fix_phases(config)))
    try:
        clock = _Clock(calibration, config)
        seconds = sum(stretch.num_steps * clock.step(stretch) for stretch in found)
    except (LookupError, TypeError, ValueError):
        seconds = math.nan
    if not math.isfinite(seconds):
        file = cache_file(CALIBRATION, calibration.machine["threads"])
        raise UserError(f"{file} is damaged, or of an earlier version; allowed: as `plan machine` writes it anew")
    joules = seconds * calibration.watts
    return Prediction(seconds, seconds * (1 - ERROR), seconds * (1 + ERROR), joules, calibration.energy)


def predict_memory(config: RunConfig, calibration: Calibration) -> int:
    """The most bytes that a run's process takes: what any takes, and the run's own as `dry_run` counts them."""
    return calibration.base_bytes + int(dry_run(config, devices=1)["memory_bytes"]["sum"])


def render(config: RunConfig, machine: Mapping[str, Any], price: float = 0.0) -> str:
    """For the terminal: a line on time, memory, energy and cost here, or on how to know them.

    Args:
        price: of an hour of this machine, in any currency; 0: not asked for.
    """
    calibration = load_calibration(machine)
    if calibration is None:
        return "time here: not known; `plan machine` measures this machine in less than a minute"
    known = predict(config, calibration)
    unit, scale = next((unit, scale) for unit, scale in UNITS if known.seconds >= 2 * scale or scale == 1)
    low, likely, high = (f"{seconds / scale:,.1f}" for seconds in (known.low, known.seconds, known.high))
    where = f"{machine['processor']}, {machine['threads']} thread(s)"
    cost = f", cost {known.seconds / 3600 * price:,.2f}" if price else ""
    energy = f"{known.joules / 1000:,.2f} kJ ({known.energy})"
    memory = f"{predict_memory(config, calibration) / 2**30:,.2f} GiB"
    said = f"time here: {likely} {unit} ({low} to {high}), {memory}, {energy}{cost}; of training alone, on {where}"
    return said + calibration.caution


class _Clock:
    """The time of a configuration's steps, in seconds."""

    def __init__(self, calibration: Calibration, config: RunConfig) -> None:
        self.calibration, self.config = calibration, config
        self.precision = cpu_precision() if config.train.precision == "auto" else config.train.precision
        self.widths = sorted({row.step.width for row in calibration.rows})
        self.tokens = config.train.batch_size * config.model.n_positions / (BATCH * CONTEXT)  # relative to the timed
        self.tables: dict[Callable[[int], Points], list[tuple[np.ndarray, np.ndarray]]] = {}
        self.masked = sum(n_in * n_out for n_in, n_out in select_masked_shapes(config).values())

    def step(self, stretch: Stretch) -> float:
        """Of each step of the stretch."""
        blocks, head = densities(self.config, stretch.nnz)
        entries = math.prod(matrix_shapes(self.config)[HEAD]) / self.config.model.n_embd / VOCABULARY
        steady = self.config.model.n_layer * self._at(self._layer, blocks) + self._at(self._rest, head)
        steady += (entries - 1) * self._at(self._head, head)
        share = min(1.0, self._at(self._share, blocks))
        return steady * (1 - share + share * self.tokens) + self._attention(stretch.pattern) + self._update(stretch)

    def _row(self, width: int, layers: int, density: float = 1.0, **more: Any) -> Row:
        return self.calibration.row(width, self.precision, layers, density, **more)

    def _points(self, width: int) -> Iterator[tuple[Row, Row]]:
        """Rows of one layer and of three, by density."""
        for density in sorted({row.step.density for row in self.calibration.rows}):
            yield self._row(width, 1, density), self._row(width, 3, density)

    def _layer(self, width: int) -> Points:
        return [(three.blocks, _more(three, one) / 2) for one, three in self._points(width)]

    def _rest(self, width: int) -> Points:
        """Embeddings, head, loss and what every step costs."""
        return [
            (one.head, max(one.seconds - _more(three, one) / 2, LEAST * one.seconds))
            for one, three in self._points(width)
        ]

    def _head(self, width: int) -> Points:
        """What as many more entries as `VOCABULARY` cost."""
        points = []
        for density in (FEW, 1.0):
            few, many = self._row(width, 1, density), self._row(width, 1, density, vocabulary=4 * VOCABULARY)
            points.append((few.head, _more(many, few) / 3))
        return points

    def _share(self, width: int) -> Points:
        """Of a step's time that is proportional to its tokens."""
        points = []
        for density in (FEW, 1.0):
            once, twice = (self._row(width, 3, density, batch=batch) for batch in (BATCH, 2 * BATCH))
            points.append((once.blocks, _more(twice, once) / once.seconds))
        return points

    def _attention(self, pattern: str) -> float:
        """What attention costs beside that of dense attention over `CONTEXT`, which layers have in them."""
        width = self.widths[len(self.widths) // 2]
        kind = "dense" if pattern == "dense" else "sparse"
        short, long = (
            self._row(width, 3, context=factor * CONTEXT, batch=BATCH // factor, pattern=kind) for factor in (1, 4)
        )
        base = self._row(width, 3, context=CONTEXT, batch=BATCH).seconds
        unit = self.tokens * self.config.model.n_layer * self.config.model.n_embd / (3 * width)
        further = (self.config.model.n_positions / CONTEXT - 1) / 3
        return unit * (short.seconds - base + further * (long.seconds - short.seconds))

    def _update(self, stretch: Stretch) -> float:
        """What a change of the topology costs: choosing by the weight, and the dense gradient by weight and token."""
        if not (stretch.update or stretch.dense_gradient):
            return 0.0
        blocks, _ = densities(self.config, stretch.nnz)
        topology, update = self._at(self._topology, blocks), self._at(self._whole_update, blocks)
        gradient = max(0.0, update - topology) * self.tokens if stretch.dense_gradient else 0.0
        return (topology * stretch.update + gradient) * self.masked

    def _topology(self, width: int) -> Points:
        return self._beside_plain(width, "topology")

    def _whole_update(self, width: int) -> Points:
        return self._beside_plain(width, "update")

    def _beside_plain(self, width: int, kind: str) -> Points:
        """What such a step takes more than a plain one, for each masked weight."""
        points = []
        for density in (FEW, HALF):
            row, plain = self._row(width, 3, density, kind=kind), self._row(width, 3, density)
            size = 3 * 12 * width**2 + width * VOCABULARY
            points.append((row.blocks, _more(row, plain) / size))
        return points

    def _at(self, quantity: Callable[[int], Points], density: float) -> float:
        """A quantity at this run's width, and at a density."""
        if quantity not in self.tables:  # a run has thousands of stretches
            points = (np.array(sorted(quantity(width))) for width in self.widths)
            self.tables[quantity] = [(known, value) for known, value in map(np.transpose, points)]
        values = [math.log(np.interp(density, known, value)) for known, value in self.tables[quantity]]
        own, widths = math.log(self.config.model.n_embd), np.log(self.widths)
        # Beyond the last width as between the last two.
        place = int(np.clip(np.searchsorted(widths, own), 1, len(widths) - 1))
        slope = (values[place] - values[place - 1]) / (widths[place] - widths[place - 1])
        return math.exp(values[place - 1] + slope * (own - widths[place - 1]))


def _more(one: Row, other: Row) -> float:
    """Seconds that a step takes more than another."""
    return max(one.seconds - other.seconds, LEAST * one.seconds)
