"""What became of a run's masks: by layer, from `masks.npz` and the last rows of `topology.jsonl`; and as a table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from replication.analysis.arms import label
from replication.model.layout import layout
from replication.runs import frames
from replication.sparsity import metrics
from replication.sparsity.metrics import ALARM, LayerUpdate
from replication.system.files import Json
from replication.system.terminal import WIDE, empty_table

LEGEND = (
    "dead: units (hidden ones: of an MLP) that no active weight leaves or enters; degrees: smallest, median, largest "
    "number of active weights; ever: active at some time (ITOP); first left: what is left of the first mask"
)


@dataclass(frozen=True)
class Topology:
    """A run's masks at its end, and its updates.

    Attributes:
        name: profile, arm and seed.
        layers: name -> its final mask, as an update that changed nothing.
        updates: rows of `topology.jsonl`.
    """

    name: str
    arm: str
    layers: Mapping[str, LayerUpdate]
    updates: list[Json]

    @cached_property
    def last(self) -> dict[str, Json]:
        """Layer -> its last update's row."""
        return {row["layer"]: row for row in self.updates}

    @cached_property
    def density(self) -> float:
        """Share of active weights over all layers."""
        return sum(int(layer.after.sum()) for layer in self.layers.values()) / self._sum("size")

    @cached_property
    def ever_active(self) -> float | None:
        """Share of all weights that were ever active (ITOP, arXiv 2102.02887); None where no update is logged."""
        if not self.last:
            return None
        return sum(row["ever_active"] * row["size"] for row in self.last.values()) / self._sum("size")

    @cached_property
    def parts(self) -> dict[str, float]:
        """Q, K and V -> share of their weights that are active, over all layers."""
        fused = [metrics.sparsity(layer) for layer in self.layers.values() if layer.layout.parts]
        return {
            part: 1 - float(np.mean([values[part] for values in fused]))
            for part in (fused[0] if fused else ())
            if part != "all"
        }

    @cached_property
    def hidden(self) -> dict[str, tuple[int, int]]:
        """Block -> hidden units of its MLP that are dead, and all: without an active input or an active output, so
        that they pass nothing on (biases are fixed at 0)."""
        counts = {}
        for name, layer in self.layers.items():
            if name.endswith("mlp.c_fc.weight") and (after := self.layers.get(name.replace("c_fc", "c_proj"))):
                dead = ~layer.after.any(0) | ~after.after.any(1)
                counts[short(name).partition(".mlp")[0]] = (int(dead.sum()), dead.size)
        return counts

    def _sum(self, what: str) -> int:
        return sum(getattr(layer.after, what) for layer in self.layers.values())


def read(path: Path) -> Topology | str:
    """The topology of the run in a folder; or a line that says why it has none.

    Raises:
        UserError: the folder holds no run.
        DamagedError: a file of it is not as it was written.
    """
    run = frames.load(path).folder
    status, config = run.status(), run.config()
    masks = run.masks()
    arm = str(config.get("arm"))
    name = f"{config.get('profile')}: {label(arm)}, seed {config.get('seed')}"
    if not masks:
        ended = status["status"] == "finished"
        why = "a dense run has none" if ended else f"it is {status['status']}, at step {status.get('step', 0)}"
        return f"{name}: no masks ({why})"
    layers = {layer: metrics.final(layer, layout(layer), mask) for layer, mask in masks.items()}
    return Topology(name, arm, layers, run.topology())


def show(paths: Iterable[Path], console: Console) -> list[Topology]:
    """Print what each run's masks are; returns those that have some."""
    shown = []
    for place, path in enumerate(paths):
        topology = read(path)
        if place:
            console.print()
        if isinstance(topology, str):
            console.print(topology, markup=False, highlight=False, soft_wrap=True)
            continue
        shown.append(topology)
        console.print(topology.name, style="bold", markup=False, highlight=False)
        console.print(headline(topology), markup=False, highlight=False)
        console.print(_table(topology, console.width >= WIDE))
        for row in topology.updates:
            if "note" in row:
                console.print(f"{short(row['layer'])}: {row['note']} at step {row['step']}", style="yellow")
    if shown:
        console.print(f"\n{LEGEND}", style="dim", markup=False, highlight=False)
    return shown


def headline(topology: Topology) -> str:
    """The finding first: how sparse, how Q, K and V share, how many hidden units are dead."""
    said = [f"{1 - topology.density:.0%} sparse"]
    if topology.parts:
        said.append(
            " ".join(f"{part.upper()} {100 * share:.0f}" for part, share in topology.parts.items()) + " % active"
        )
    if topology.hidden:
        said.append("dead hidden units {}/{}".format(*map(sum, zip(*topology.hidden.values()))))
    itop = topology.ever_active
    return "; ".join([*said, "no update is logged" if itop is None else f"ever active {itop:.0%}"])


def short(layer: str) -> str:
    """`h.0.mlp.c_fc` of `transformer.h.0.mlp.c_fc.weight`."""
    return layer.removeprefix("transformer.").removesuffix(".weight")


def _table(topology: Topology, wide: bool) -> Table:
    table = empty_table()
    columns = ("layer", "active", "Q K V, %", "dead in", "dead out", "in-degree", "ever")
    for column in (*columns, *(("out-degree", "first left") if wide else ())):
        table.add_column(column, justify="left" if column == "layer" else "right", no_wrap=True)
    for name, layer in topology.layers.items():
        sparsity, dead, row = metrics.sparsity(layer), metrics.dead(layer), topology.last.get(name)
        parts = " ".join(f"{100 * (1 - sparsity[part]):.0f}" for part in layer.layout.parts)
        units = (dead["inputs"], len(layer.out_degrees)), (dead["outputs"], len(layer.in_degrees))
        cells = [short(name), f"{1 - sparsity['all']:.1%}", parts, *(_dead(*counts) for counts in units)]
        cells += [_degrees(layer, "in"), f"{row['ever_active']:.0%}" if row else "–"]
        cells += [_degrees(layer, "out"), f"{row['overlap_first']:.0%}" if row else "–"] if wide else []
        table.add_row(*cells)
    return table


def _degrees(layer: LayerUpdate, way: str) -> str:
    """Smallest, median, largest."""
    degrees = metrics.degrees(layer)
    return " ".join(f"{degrees[f'{way}_{which}']:g}" for which in ("min", "median", "max"))


def _dead(count: int, of: int) -> Text:
    return Text(f"{count}/{of}", "yellow" if count > ALARM * of else "")
