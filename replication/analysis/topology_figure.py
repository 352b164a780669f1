"""The figure of `topology`: density by layer and part, degrees, dead units, and how much each update exchanges."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from replication.analysis.arms import colour, marker
from replication.analysis.topology import Topology, short
from replication.sparsity import metrics

COLUMNS = {"attn.c_proj": "attn out", "mlp.c_fc": "MLP in", "mlp.c_proj": "MLP out", "wte": "head"}


def figure(runs: Sequence[Topology]) -> Figure:
    """A heat map of each run above; below all runs together, in their arms' colours and markers."""
    height = 1.8 + 0.34 * max(len(density_by_part(run)) for run in runs)
    whole = Figure(figsize=(max(13.5, 4.6 * len(runs)), height + 4.2), layout="constrained")
    above, below = whole.subfigures(2, 1, height_ratios=(height, 4.2))
    for axes, run in zip(above.subplots(1, len(runs), squeeze=False)[0], runs):
        _heat(axes, run)
    degrees, dead, churn = below.subplots(1, 3)
    for run in runs:
        style = {"color": colour(run.arm), "marker": marker(run.arm), "label": run.name, "ms": 5, "lw": 1.6}
        _degrees(degrees, run, style | {"markevery": 0.12})
        _churn(churn, run, style | {"markevery": 0.12})
    churn.set(title="What an update drops", xlabel="step", ylabel="share of the active weights", ylim=(0, None))
    churn.yaxis.set_major_formatter(PercentFormatter(1))
    _dead(dead, runs)
    below.legend(*degrees.get_legend_handles_labels(), loc="outside lower center", ncols=3)
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
    shades = sns.light_palette("#17486b", as_cmap=True)
    sns.heatmap(frame, ax=axes, vmin=0, vmax=1, cmap=shades, annot=True, fmt=".0%", cbar=False, linewidths=1)
    shares = ", ".join(f"{part.upper()} {share:.0%}" for part, share in run.parts.items())
    axes.set_title(f"{run.name}\n{shares} active", fontsize=10)
    axes.tick_params(rotation=0, labelsize=9)
    axes.grid(visible=False)


def _degrees(axes: Axes, run: Topology, style: dict[str, Any]) -> None:
    """The distribution over the units of all layers, each relative to its layer's mean, which makes them comparable."""
    relative = [layer.in_degrees / max(1e-9, layer.in_degrees.mean()) for layer in run.layers.values()]
    units = np.sort(np.concatenate(relative))
    axes.plot(units, np.arange(1, len(units) + 1) / len(units), **style)
    axes.set(title="How evenly units share inputs", xlabel="in-degree ÷ its layer's mean", xlim=(0, 4), ylim=(0, 1.02))
    axes.set_ylabel("share of units with so much or less")
    axes.yaxis.set_major_formatter(PercentFormatter(1))


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
