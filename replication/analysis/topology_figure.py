"""The figure of `runs topology`: density by layer and part, degrees, dead units, and how much each update exchanges."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from replication.analysis.drawing import HEAT, WIDTH, sign
from replication.analysis.palette import INK, colour
from replication.analysis.topology import Topology, short
from replication.sparsity import metrics

COLUMNS = {"attn.c_proj": "attn out", "mlp.c_fc": "MLP in", "mlp.c_proj": "MLP out", "wte": "head"}


def figure(runs: Sequence[Topology]) -> Figure:
    """In one column a heat map of each run; then all runs together, in their arms' colours and markers."""
    heights = [0.24 * len(density_by_part(run)) + 0.75 for run in runs]
    sizes = [*heights, 2.7, 2.7, 2.7]
    whole = Figure(figsize=(WIDTH, sum(sizes) + 0.25 * len(runs)), layout="constrained")
    *heats, degrees, dead, churn = whole.subplots(len(sizes), 1, height_ratios=sizes)
    for axes, run in zip(heats, runs):
        _heat(axes, run)
    for run in runs:
        style = {"label": run.name, "lw": 1.6, "markevery": 0.12, **sign(run.arm)}
        _degrees(degrees, run, style)
        _churn(churn, run, style)
    uneven = max(runs, key=lambda run: float(np.std(_relative_degrees(run))))
    degrees.set_title(f"Most uneven: {uneven.name}, ± {np.std(_relative_degrees(uneven)):.0%} of the mean")
    drops = [float(_shares(run).max()) for run in runs if run.updates]
    title = f"An update drops up to {max(drops):.0%} of the active weights" if drops else "No run has an update"
    churn.set(title=title, xlabel="step", ylabel="dropped, share of active", ylim=(0, None))
    churn.yaxis.set_major_formatter(PercentFormatter(1))
    _dead(dead, runs)
    whole.legend(*degrees.get_legend_handles_labels(), loc="outside lower center", ncols=1)
    return whole


def density_by_part(run: Topology) -> pd.DataFrame:
    """Share of active weights: a row for each block, and one for the head if it is masked; a column for each part."""
    cells: dict[str, dict[str, float]] = {}
    for name, layer in run.layers.items():
        block, _, kind = re.fullmatch(r"(h\.\d+|wte)(\.(.+))?", short(name)).groups("wte")
        shares = {part.upper(): 1 - value for part, value in metrics.sparsity(layer).items() if part != "all"}
        cells.setdefault(block, {}).update(shares or {COLUMNS[kind]: layer.after.mean()})
    columns = ["Q", "K", "V", *COLUMNS.values()]
    frame = pd.DataFrame.from_dict(cells, orient="index")
    frame = frame.reindex([*(block for block in cells if block != "wte"), *(["wte"] if "wte" in cells else [])])
    return frame.reindex(columns=[column for column in columns if column in frame])


def _heat(axes: Axes, run: Topology) -> None:
    frame = density_by_part(run)
    words = {"annot": True, "fmt": ".0%", "annot_kws": {"fontsize": 9, "color": INK}}
    sns.heatmap(frame, ax=axes, vmin=0, vmax=1, cmap=HEAT, cbar=False, linewidths=1, **words)
    shares = ", ".join(f"{part.upper()} {share:.0%}" for part, share in run.parts.items())
    axes.set_title(f"{run.name}\n{shares} active")
    axes.tick_params(rotation=0, labelsize=9)
    axes.grid(visible=False)


def _degrees(axes: Axes, run: Topology, style: dict[str, Any]) -> None:
    """The distribution over the units of all layers, each relative to its layer's mean, which makes them comparable."""
    units = np.sort(_relative_degrees(run))
    axes.plot(units, np.arange(1, len(units) + 1) / len(units), **style)
    axes.set(xlabel="in-degree ÷ its layer's mean", xlim=(0, 4), ylim=(0, 1.02))
    axes.set_ylabel("units with so much or less")
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _relative_degrees(run: Topology) -> np.ndarray:
    """In-degree ÷ its layer's mean, of the units of all layers."""
    return np.concatenate([layer.in_degrees / max(1e-9, layer.in_degrees.mean()) for layer in run.layers.values()])


def _dead(axes: Axes, runs: Sequence[Topology]) -> None:
    """Dead units of each kind as a share of all of the kind, with their number."""
    width = 0.8 / len(runs)
    for place, run in enumerate(runs):
        counts = _dead_counts(run)
        shares = [dead / max(1, units) for dead, units in counts.values()]
        middles = np.arange(len(counts)) + (place - (len(runs) - 1) / 2) * width
        bars = axes.bar(middles, shares, width * 0.92, color=colour(run.arm), ec="white", lw=0)
        axes.bar_label(bars, [str(dead) for dead, _ in counts.values()], fontsize=9)
    axes.set_xticks(range(len(counts)), list(counts))
    worst = max(runs, key=lambda run: _dead_counts(run)["hidden units"])
    dead, units = _dead_counts(worst)["hidden units"]
    axes.set_title(f"Up to {dead} of {units} hidden units are dead" if dead else "No hidden unit is dead")
    axes.set_ylabel("dead, share of all")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(axis="x", visible=False)


def _dead_counts(run: Topology) -> dict[str, tuple[int, int]]:
    """Kind of unit -> how many are dead, and how many there are."""
    layers = [(metrics.dead(layer), len(layer.out_degrees), len(layer.in_degrees)) for layer in run.layers.values()]
    hidden = run.hidden.values()
    return {
        "hidden units": (sum(dead for dead, _ in hidden), sum(units for _, units in hidden)),
        "a layer's inputs": (sum(dead["inputs"] for dead, *_ in layers), sum(units for _, units, _ in layers)),
        "its outputs": (sum(dead["outputs"] for dead, *_ in layers), sum(units for *_, units in layers)),
    }


def _churn(axes: Axes, run: Topology, style: dict[str, Any]) -> None:
    if run.updates:
        shares = _shares(run)
        axes.plot(shares.index, shares, **style)


def _shares(run: Topology) -> pd.Series:
    """Of each update, by step: dropped ÷ active before, over all layers."""
    rows = pd.DataFrame(run.updates).groupby("step")[["nnz", "dropped", "grown"]].sum()
    return rows["dropped"] / (rows["nnz"] + rows["dropped"] - rows["grown"])
