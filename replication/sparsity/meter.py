"""The chosen metrics of a run: what they need to remember, what is said when one fails, and the alarm of dead units."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from replication.sparsity.metrics import ALARM, METRICS, LayerUpdate, Layout, Metric

ALWAYS = ("overlap_first", "ever_active")


class Meter:
    """Measures layers at their updates; the same values on every rank.

    Args:
        names: of registered metrics, beside `ALWAYS`.
        layout: layer -> how its weight is stored.
    """

    def __init__(self, names: Iterable[str] = (), layout: Callable[[str], Layout] = lambda name: Layout()) -> None:
        self.metrics: dict[str, Metric] = {name: METRICS[name] for name in dict.fromkeys((*ALWAYS, *names))}
        self.layout = layout
        self.needs = {need for metric in self.metrics.values() for need in metric.needs}
        self.remarks: list[str] = []
        self.failed: set[str] = set()  # metrics
        self.alarmed: set[str] = set()  # layers
        self.born: dict[str, np.ndarray] = {}  # step at which each connection was grown last, int32
        self.earlier: dict[str, np.ndarray] = {}  # mask before the last update

    def begin(self, masks: Mapping[str, Tensor]) -> None:
        """The first masks are there."""
        if "age" in self.needs:
            self.born = {name: np.zeros(mask.shape, np.int32) for name, mask in masks.items()}

    def measure(
        self,
        name: str,
        step: int,
        num_dropped: int,
        num_grown: int,
        *,
        weight: Tensor,
        gradient: Tensor | None,
        **masks: Tensor,
    ) -> dict[str, Any]:
        """Metric -> a number, a mapping of numbers, or None; and `note`, where the layer raises the alarm.

        Args:
            masks: before, after, first and ever_active of `LayerUpdate`, whose fields the others are too.
        """
        arrays: dict[str, np.ndarray | None] = {key: _array(mask) for key, mask in masks.items()}
        arrays |= self._remembered(name, step, _array(masks["before"]), _array(masks["after"]))
        if "weight" in self.needs:
            arrays["weight"] = _array(weight)
        if "gradient" in self.needs and gradient is not None:
            arrays["gradient"] = _array(gradient)
        layer = LayerUpdate(name, self.layout(name), step, num_dropped, num_grown, **arrays)  # type: ignore[arg-type]
        values = {key: self._value(key, metric, layer) for key, metric in self.metrics.items()}
        note = self._alarm(layer, values.get("dead"))
        return values | ({"note": note} if note else {})

    def take_remarks(self) -> list[str]:
        """Lines for who watches, of what happened since they were last taken."""
        taken, self.remarks = self.remarks, []
        return taken

    def state_dict(self) -> dict[str, Tensor]:
        state = {f"born.{name}": torch.from_numpy(born) for name, born in self.born.items()}
        state |= {f"earlier.{name}": torch.from_numpy(mask.copy()) for name, mask in self.earlier.items()}
        state |= {f"failed.{name}": torch.tensor(True) for name in self.failed}
        return state | {f"alarmed.{name}": torch.tensor(True) for name in self.alarmed}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Of a state that lacks what a metric needs, ages count from the next update on, and no mask is earlier."""
        held = {kind: under(f"{kind}.", state) for kind in ("born", "earlier", "failed", "alarmed")}
        self.failed, self.alarmed = set(held["failed"]), set(held["alarmed"])
        if "age" in self.needs:
            self.born = {name: born.numpy().copy() for name, born in held["born"].items()}
        if "earlier" in self.needs:
            self.earlier = {name: mask.numpy().copy() for name, mask in held["earlier"].items()}

    def _remembered(self, name: str, step: int, before: np.ndarray, after: np.ndarray) -> dict[str, np.ndarray | None]:
        remembered: dict[str, np.ndarray | None] = {}
        if "age" in self.needs:
            born = self.born.setdefault(name, np.full(after.shape, step, np.int32))
            born[after > before] = step
            remembered["age"] = step - born
        if "earlier" in self.needs:
            remembered["earlier"] = self.earlier.get(name)
            self.earlier[name] = before
        return remembered

    def _value(self, name: str, metric: Metric, layer: LayerUpdate) -> Any:
        if name in self.failed:
            return None
        try:
            value = metric.function(layer)
            return (
                {str(key): _number(part) for key, part in value.items()}
                if isinstance(value, Mapping)
                else _number(value)
            )
        except Exception as error:  # whatever a user's own does
            self.failed.add(name)
            problem = f"{type(error).__name__}: {error}".partition("\n")[0]
            self.remarks.append(f"metric {name} fails at step {layer.step} and is null from here on ({problem})")
            return None

    def _alarm(self, layer: LayerUpdate, dead: Mapping[str, int] | None) -> str | None:
        """A note, once per layer, where more than `ALARM` of its inputs or outputs are dead; the first is said too."""
        if not dead or layer.name in self.alarmed:
            return None
        for units, of, lacking in (("outputs", layer.in_degrees, "input"), ("inputs", layer.out_degrees, "output")):
            if dead[units] > ALARM * len(of):
                note = f"{dead[units]} of {len(of)} {units} have no active {lacking}"
                if not self.alarmed:
                    self.remarks.append(f"{layer.name}: {note} at step {layer.step}; `runs topology` shows all layers")
                self.alarmed.add(layer.name)
                return note
        return None


def _array(tensor: Tensor) -> np.ndarray:
    """On a CPU the tensor's own memory, which no metric is to write to."""
    array = tensor.detach().cpu().numpy()
    array.flags.writeable = False
    return array


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a state holds under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _number(value: Any) -> float | int | None:
    """As JSON has it; None where it is not finite."""
    if not math.isfinite(value):
        return None
    return int(value) if isinstance(value, (int, np.integer)) else float(value)
