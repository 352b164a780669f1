"""The figure of `report tradeoffs`: loss against density and FLOPs, FLOPs to reach a loss, and loss on the way."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from replication.analysis.arms import family, label
from replication.analysis.drawing import WIDTH, panels, sign
from replication.analysis.palette import INK, QUIET, RULE, colour, marker


def figure(table: pd.DataFrame, phases: pd.DataFrame) -> Figure:
    """Loss against density and against FLOPs, FLOPs to reach a loss, and loss on the way, where it is known.

    Bars are the std over seeds; markers are hollow where the head is dense.

    Args:
        table, phases: `tradeoffs.tradeoffs(...)` and `tradeoffs.tabulate_snapshots(...)`.
    """
    rows = 0.26 * table["flops_to_loss_mean"].notna().sum() + 1.2
    sizes = [3.2, 3.2, rows, *([3.4] if len(phases) else [])]
    whole, grid = panels(len(sizes), 1, (WIDTH, sum(sizes) + 0.9), height_ratios=sizes)
    by_density, by_flops, reached, *on_the_way = grid
    _scatter(by_density, table, "density")
    _scatter(by_flops, table, "flops")
    best = table.loc[table["validation_loss_mean"].idxmin()]
    by_density.set_title(f"Lowest loss: {best['label']},\nat {best['density']:.0%} density")
    by_density.set(xlim=(0, 1.05), xlabel="density, mean over training")
    by_density.xaxis.set_major_formatter(PercentFormatter(1))
    for column, style, name in (("is_dense", "-", "dense line"), ("on_front", ":", "Pareto front")):
        line = table[table[column]].sort_values("flops")
        by_flops.plot(line["flops"], line["validation_loss_mean"], style, color=INK, lw=1.2, label=name, zorder=2)
    below = int((table["minus_dense_line"].where(~table["is_dense"]) < 0).sum())
    others = int((table["minus_dense_line"].notna() & ~table["is_dense"]).sum())
    by_flops.set(title=f"{below} of {others} arms are below the dense line", xscale="log", xlabel="training FLOPs")
    _draw_reached(reached, table)
    for axes in on_the_way:
        _draw_snapshots(axes, phases)
    handles, names = by_flops.get_legend_handles_labels()
    whole.legend(handles, names, loc="outside lower center", ncols=2)
    return whole


def _scatter(axes: Axes, table: pd.DataFrame, x: str) -> None:
    """Final loss against a column, a marker per arm; the arms of a sweep are joined."""
    for name, rows in table.groupby(table["arm"].map(family), sort=False):
        rows = rows.sort_values(x)
        losses, spreads = rows["validation_loss_mean"], rows["validation_loss_std"].fillna(0)
        style = {"ls": "-" if len(rows) > 1 else "none", "lw": 1, "zorder": 4, "label": label(name), **sign(name)}
        axes.errorbar(rows[x], losses, yerr=spreads, capsize=2, elinewidth=1, **style)
    axes.set_ylabel("final validation loss, nats")


def _draw_reached(axes: Axes, table: pd.DataFrame) -> None:
    """FLOPs to reach the loss, a row per arm from the top down."""
    rows = table.dropna(subset="flops_to_loss_mean").sort_values("flops_to_loss_mean", ascending=False)
    places, means = np.arange(len(rows)), rows["flops_to_loss_mean"].to_numpy(float)
    spreads = rows["flops_to_loss_std"].fillna(0).to_numpy(float)
    axes.barh(places, means, color=[colour(arm) for arm in rows["arm"]], height=0.62, zorder=3)
    axes.errorbar(means, places, xerr=spreads, fmt="none", ecolor=INK, elinewidth=1, capsize=2, zorder=4)
    for place, end, bound in zip(places, means + spreads, rows["is_bound"]):
        axes.annotate(" or less" if bound else "", (end, place), va="center", fontsize=9)
    axes.set_yticks(places, rows["label"])
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.16)
    axes.set_xlabel("training FLOPs")
    loss, least = f"loss {table['loss'].iloc[0]:.4g}", rows["label"].iloc[-1]
    title = f"FLOPs to reach {loss}" if rows["is_bound"].any() else f"To reach {loss}, {least} needs least"
    axes.set_title(textwrap.fill(title, 36, break_on_hyphens=False))


def _draw_snapshots(axes: Axes, phases: pd.DataFrame) -> None:
    """Loss at each snapshot: under the attention that was trained with (line), and under dense attention (rings)."""
    for arm, rows in phases.groupby("arm", sort=False):
        own, others = rows[rows["is_own"]], rows[~rows["is_own"]]
        spreads = own["validation_loss_std"].fillna(0)
        style = {"color": colour(arm), "label": label(arm), "lw": 1.4, "ms": 7, "capsize": 2}
        axes.errorbar(own["step"], own["validation_loss_mean"], yerr=spreads, fmt=f"{marker(arm)}-", **style)
        axes.plot(others["step"], others["validation_loss_mean"], "o", ms=11, mfc="none", color=colour(arm))
    several = phases.groupby("arm")["phase"].transform("nunique") > 1
    ends = phases[several].groupby("phase", sort=False)["step"].max()
    for phase, end in ends.items():
        axes.axvline(end, color=RULE, lw=1, ls="--", zorder=1)
        style = {"rotation": 90, "va": "center", "ha": "right", "fontsize": 9, "color": QUIET}
        axes.annotate(phase, (end, 0.5), xycoords=("data", "axes fraction"), **style)
    axes.set(title="On the way\n(rings: under dense attention)", xlabel="step")
    axes.set_ylabel("validation loss, nats per token")
    axes.legend(fontsize=9)
