"""What can be said of a topology: one registered function a metric. Imports no torch, so that analysis shares it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from replication.system.errors import UserError

Value = float | Mapping[str, float]
NEEDS = ("weight", "gradient", "age", "earlier")  # fields of `LayerUpdate` that cost time or memory: None unless needed
TAKEN = ("step", "layer", "size", "nnz", "dropped", "grown", "note")  # what else a row of the log says
# A random mask leaves e^-d of the units dead at a mean degree d: a tenth at 2.3. Beyond it a layer is too sparse for
# its width, or growth crowds into few units (ours).
ALARM = 0.1


@dataclass(frozen=True)
class Layout:
    """How a weight is stored.

    Attributes:
        parts: names of the equal groups of columns that it fuses, such as q, k and v; none: it is one.
        outputs_first: a row is an output, [n_out, n_in]; else a column is.
    """

    parts: tuple[str, ...] = ()
    outputs_first: bool = False


@dataclass(frozen=True)
class LayerUpdate:
    """A layer at a topology update. Arrays are in the weight's shape, [rows, columns], and not to be written to.

    Attributes:
        step: of the update.
        num_dropped, num_grown: connections; one that is dropped and grown again at once counts in both.
        after: boolean, the mask that the update leaves.
        before: boolean, the one that it found.
        first: boolean, the run's first.
        ever_active: boolean, active after any update up to this one.
        weight: before the update, 0 where masked.
        gradient: dense, that growth reads; None where the method reads none.
        age: steps since a connection was grown (since step 0: of the first mask), of those that are active.
        earlier: boolean, the mask before the last update but this one; None at the first.
    """

    name: str
    layout: Layout
    step: int
    num_dropped: int
    num_grown: int
    after: np.ndarray
    before: np.ndarray
    first: np.ndarray
    ever_active: np.ndarray
    weight: np.ndarray | None = None
    gradient: np.ndarray | None = None
    age: np.ndarray | None = None
    earlier: np.ndarray | None = None

    @cached_property
    def gone(self) -> np.ndarray:
        """Boolean: active before and not after."""
        return self.before > self.after

    @cached_property
    def new(self) -> np.ndarray:
        """Boolean: active after and not before."""
        return self.after > self.before

    @cached_property
    def num_before(self) -> int:
        return int(np.count_nonzero(self.before))

    @cached_property
    def num_gone(self) -> int:
        return int(np.count_nonzero(self.gone))

    @cached_property
    def of_columns(self) -> np.ndarray:
        """Active weights of each column."""
        return _count(self.after, 0)

    @cached_property
    def in_degrees(self) -> np.ndarray:
        """Active inputs of each output, ascending: [n_out]."""
        return np.sort(_count(self.after, 1) if self.layout.outputs_first else self.of_columns)

    @cached_property
    def out_degrees(self) -> np.ndarray:
        """Active outputs of each input, ascending: [n_in]."""
        return np.sort(self.of_columns if self.layout.outputs_first else _count(self.after, 1))


@dataclass(frozen=True)
class Metric:
    """A function of a layer at an update, and which of `NEEDS` it reads."""

    function: Callable[[LayerUpdate], Value]
    needs: tuple[str, ...] = ()


METRICS: dict[str, Metric] = {}


def final(name: str, layout: Layout, mask: np.ndarray) -> LayerUpdate:
    """A mask with no update: as one that changed nothing."""
    return LayerUpdate(name, layout, 0, 0, 0, mask, mask, mask, mask)


def register_metric(needs: Iterable[str] = ()) -> Callable[[Callable[[LayerUpdate], Value]], Callable]:
    """Add the decorated function under its name; a plug-in's too.

    It returns a number, or a mapping of numbers; where it raises, it is null for the rest of the run, which is said.

    Args:
        needs: of `NEEDS`, the fields that it reads.

    Raises:
        UserError: the name is taken, or there is no such field.
    """
    needs = tuple(needs)

    def add(function: Callable[[LayerUpdate], Value]) -> Callable:
        name, metric = function.__name__, Metric(function, needs)
        if name in TAKEN or METRICS.get(name, metric) != metric:
            raise UserError(f"metric {name!r} is there already; allowed: a name of its own")
        if unknown := set(needs) - set(NEEDS):
            raise UserError(f"metric {name!r} needs {min(unknown)!r}; allowed: {', '.join(NEEDS)}")
        METRICS[name] = metric
        return function

    return add


@register_metric()
def overlap_first(layer: LayerUpdate) -> Value:
    """|M ∩ M₀| / |M₀|: what is left of the first mask M₀ (ours). Logged at every update."""
    return _share(layer.after & layer.first, layer.first)


@register_metric()
def ever_active(layer: LayerUpdate) -> Value:
    """|⋃ₜ Mₜ| / n: the share of the n weights that were ever active, R_s of ITOP (Liu et al. 2021, arXiv 2102.02887).
    Logged at every update."""
    return int(np.count_nonzero(layer.ever_active)) / layer.ever_active.size


@register_metric()
def sparsity(layer: LayerUpdate) -> Value:
    """1 - |M| / n, of `all` the weight and of each of its parts: Q, K and V of a fused matrix (ours)."""
    parts, size = layer.layout.parts, layer.after.size
    values = {"all": 1 - int(layer.of_columns.sum()) / size}
    for part, columns in zip(parts, np.split(layer.of_columns, len(parts) or 1)):
        values[part] = 1 - int(columns.sum()) * len(parts) / size
    return values


@register_metric()
def flow(layer: LayerUpdate) -> Value:
    """`drop`: dropped / |M before|; `grow`: grown / |M after| (as SET's ζ: Mocanu et al. 2018, arXiv 1707.04780)."""
    active = layer.num_before, int(layer.of_columns.sum())
    counts = zip(("drop", "grow"), (layer.num_dropped, layer.num_grown), active)
    return {name: num / of if of else 0.0 for name, num, of in counts}


@register_metric()
def overlap_previous(layer: LayerUpdate) -> Value:
    """|M ∩ M before| / |M before|: what the update leaves in place (ours)."""
    return 1 - layer.num_gone / layer.num_before if layer.num_before else 0.0


@register_metric()
def regrown(layer: LayerUpdate) -> Value:
    """1 - |M before ∖ M| / dropped: the share of the dropped that the same update grows again (ours); null if none is
    dropped."""
    return 1 - layer.num_gone / layer.num_dropped if layer.num_dropped else np.nan


@register_metric(needs=("earlier",))
def regrown_next(layer: LayerUpdate) -> Value:
    """|(E ∖ M before) ∩ M| / |E ∖ M before|, E the mask before the last update: the share of what that update took
    away which this one gives back (ours); null if there is none."""
    if layer.earlier is None:
        return np.nan
    gone = layer.earlier > layer.before
    return _share(gone & layer.after, gone) if gone.any() else np.nan


@register_metric(needs=("age",))
def age(layer: LayerUpdate) -> Value:
    """`mean` and `median` over the active of the steps since they were grown (ours)."""
    assert layer.age is not None
    ages = np.sort(layer.age[layer.after])
    return {"mean": float(ages.mean()), "median": _median(ages)} if len(ages) else {"mean": np.nan, "median": np.nan}


@register_metric()
def degrees(layer: LayerUpdate) -> Value:
    """Smallest, median and largest number of active inputs of an output (`in`) and outputs of an input (`out`), whose
    distribution SET is about (Mocanu et al. 2018, arXiv 1707.04780)."""
    values: dict[str, float] = {}
    for way, ascending in (("in", layer.in_degrees), ("out", layer.out_degrees)):
        values |= {
            f"{way}_min": int(ascending[0]),
            f"{way}_median": _median(ascending),
            f"{way}_max": int(ascending[-1]),
        }
    return values


@register_metric()
def gini(layer: LayerUpdate) -> Value:
    """Σᵢ (2i - n - 1) dᵢ / (n Σ dᵢ) of the n ascending degrees `in` and `out`: 0 if all are equal, towards 1 if a few
    units have all connections (Gini 1912; form: Hurley and Rickard 2009, arXiv 0811.4706, for sparsity)."""
    return {"in": _gini(layer.in_degrees), "out": _gini(layer.out_degrees)}


@register_metric()
def dead(layer: LayerUpdate) -> Value:
    """How many `inputs` and `outputs` have no active weight at all: #{i: dᵢ = 0} (ours)."""
    return {
        name: int(np.searchsorted(of, 1)) for name, of in (("inputs", layer.out_degrees), ("outputs", layer.in_degrees))
    }


@register_metric(needs=("weight",))
def weight_at_drop(layer: LayerUpdate) -> Value:
    """Mean |w| of the M before ∖ M that the update takes away, what SET's and RigL's criterion is about (Evci et al.
    2020, arXiv 1911.11134); null if there are none."""
    return _mean_magnitude(layer.weight, layer.gone)


@register_metric(needs=("gradient",))
def gradient_at_growth(layer: LayerUpdate) -> Value:
    """Mean |g| of the M ∖ M before that the update adds (RigL's criterion: Evci et al. 2020, arXiv 1911.11134); null
    if there are none, or the method reads no gradient."""
    return _mean_magnitude(layer.gradient, layer.new)


@register_metric(needs=("weight",))
def effective_rank(layer: LayerUpdate) -> Value:
    """exp(-Σ pᵢ ln pᵢ), pᵢ = σᵢ / Σ σ of the singular values σ of the masked weight (Roy and Vetterli 2007, The
    effective rank, EUSIPCO). A decomposition for each layer and update: on demand."""
    assert layer.weight is not None
    values = np.linalg.svd(layer.weight * layer.after, compute_uv=False)
    shares = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0.0


def _count(mask: np.ndarray, axis: int) -> np.ndarray:
    """Of the true along an axis, as `mask.sum(axis)`, which takes several times as long."""
    kind = np.uint16 if mask.shape[axis] < 2**16 else np.uint32
    return np.einsum("ij->j" if axis == 0 else "ij->i", mask.view(np.uint8), dtype=kind).astype(np.int64)


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    num = int(np.count_nonzero(whole))
    return int(np.count_nonzero(part)) / num if num else 0.0


def _median(ascending: np.ndarray) -> float:
    return (float(ascending[(len(ascending) - 1) // 2]) + float(ascending[len(ascending) // 2])) / 2


def _gini(ascending: np.ndarray) -> float:
    n, total = len(ascending), int(ascending.sum())
    return float((2 * np.arange(1, n + 1) - n - 1) @ ascending) / (n * total) if total else 0.0


def _mean_magnitude(values: np.ndarray | None, chosen: np.ndarray) -> float:
    places = np.flatnonzero(chosen)
    return float(np.abs(values.reshape(-1)[places]).mean()) if values is not None and len(places) else np.nan
