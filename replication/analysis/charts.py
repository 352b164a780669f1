"""Figures of tables: differences to dense, ablations, tuning, trade-offs. Each takes data frames, returns a Figure."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from replication.analysis.arms import DENSE_HEAD, colour, family, label, marker
from replication.analysis.claims import MARGIN
from replication.analysis.figures import panels

HEADS = {"masked": "head masked", "dense": "head dense"}  # `head` of Table 1's rows -> a panel's title


def against_dense(table: pd.DataFrame, convention: dict[str, str]) -> Figure:
    """What each sparse arm's loss adds to dense's, by reading of the head.

    The mean over the seeds in common, with its 95 % t interval.

    Args:
        table: `tables.table1(...)`.
        convention: `head` -> the counting convention of its panel's ×.
    """
    heads = [head for head in HEADS if (table["head"] == head).any()]
    figure, grid = panels(1, len(heads), (6.2 * len(heads), 4.4), squeeze=False)
    for axes, head in zip(grid[0], heads):
        is_shown = (table["head"].isin([head, ""])) & table["minus_dense"].notna() & (table["arm"] != "dense")
        _differences(axes, table[is_shown], "minus_dense", f"reduction ({convention[head]})")
        axes.axvspan(-MARGIN, MARGIN, color="#cfe3d4", alpha=0.6, lw=0, zorder=0)
        axes.set(title=f"{HEADS[head]} (× under {convention[head]})", xlabel="validation loss − dense, nats per token")
    return figure


def ablations(table: pd.DataFrame) -> Figure:
    """What each ablation's loss adds to that of the arm that it ablates; `table` is `ablations.ablations(...)`."""
    table = table.dropna(subset="minus_base")
    figure, axes = panels(1, 1, (10, 0.42 * len(table) + 1.6))
    _differences(axes, table, "minus_base", "reduction (head_counted_full)")
    axes.set(
        title="Ablations (× under head_counted_full)",
        xlabel="validation loss − that of the arm that is ablated, nats per token",
    )
    return figure


def tuning(table: pd.DataFrame) -> Figure:
    """First seed's loss against the learning rate, above the arm's best; a ring marks what was chosen in the end.

    Args:
        table: of `tuning.csv`.
    """
    rates = "train.learning_rate"
    of_heads = table["arm"].str.endswith(DENSE_HEAD)
    figure, grid = panels(1, 2, (12, 4.4), sharey=True)
    for axes, part, title in zip(grid, (table[~of_heads], table[of_heads]), ("dense, and head masked", "head dense")):
        for arm, rows in part.groupby("arm", sort=False):
            best = rows["first_seed"].min()
            line = rows.groupby(rates)["first_seed"].min().sort_index() - best
            axes.plot(line.index, line, f"{marker(arm)}-", ms=4, lw=1.4, color=colour(arm), label=rows["label"].iloc[0])
            chosen = rows[rows["chosen"]]
            axes.plot(chosen[rates], chosen["first_seed"] - best, "o", ms=9, mfc="none", color=colour(arm))
        axes.set(title=f"Tuning: {title}", xlabel="learning rate", xscale="log", ylim=(-0.02, 0.6))
        tried = sorted(part[rates].unique())
        axes.set_xticks(tried, [f"{rate:g}" for rate in tried], rotation=45)
        axes.set_xticks([], minor=True)
        axes.legend(fontsize=8, ncols=2)
    grid[0].set_ylabel("loss of the first seed above the arm's best, nats")
    return figure


def tradeoffs(table: pd.DataFrame, phases: pd.DataFrame) -> Figure:
    """Loss against density and against FLOPs, FLOPs to reach a loss, and loss on the way, where it is known.

    Bars are the std over seeds; markers are hollow where the head is dense.

    Args:
        table, phases: `tradeoffs.tradeoffs(...)` and `tradeoffs.by_phase(...)`.
    """
    num = 4 if len(phases) else 3
    figure, grid = panels(2, 2, (13, 10)) if num == 4 else panels(1, 3, (17, 5.4))
    by_density, by_flops, reached, *on_the_way = np.ravel(grid)
    _scatter(by_density, table, "density")
    _scatter(by_flops, table, "flops")
    best = table.loc[table["validation_loss_mean"].idxmin()]
    by_density.set(title=f"Lowest loss: {best['label']}, at {best['density']:.0%} density", xlim=(0, 1.05))
    by_density.set_xlabel("density: share of maskable weights active, mean over training")
    by_density.xaxis.set_major_formatter(PercentFormatter(1))
    for column, style, name in (("is_dense", "-", "dense line"), ("on_front", ":", "Pareto front")):
        line = table[table[column]].sort_values("flops")
        by_flops.plot(line["flops"], line["validation_loss_mean"], style, color="#1f2933", lw=1.2, label=name, zorder=2)
    below = int((table["minus_dense_line"].where(~table["is_dense"]) < 0).sum())
    others = int((table["minus_dense_line"].notna() & ~table["is_dense"]).sum())
    by_flops.set(title=f"{below} of {others} arms are below the dense line", xscale="log", xlabel="training FLOPs")
    _reached(reached, table)
    for axes in on_the_way:
        _on_the_way(axes, phases)
    handles, names = by_flops.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, fontsize=9)
    return figure


def page(table: pd.DataFrame) -> Any:
    """A table for a notebook; the same text for the same table."""
    from IPython.display import HTML

    with pd.option_context("display.max_colwidth", None):
        return HTML(table.to_html(index=False, justify="left"))


def save(figure: Figure, file: Path) -> None:
    """As PNG, the same bytes for the same figure."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})


def _scatter(axes: Axes, table: pd.DataFrame, x: str) -> None:
    """Final loss against a column, a marker per arm; the arms of a sweep are joined."""
    for name, rows in table.groupby(table["arm"].map(family), sort=False):
        rows = rows.sort_values(x)
        losses, spreads = rows["validation_loss_mean"], rows["validation_loss_std"].fillna(0)
        style = {"marker": marker(name), "color": colour(name), "ls": "-" if len(rows) > 1 else "none", "lw": 1}
        style |= {"mfc": "none", "mew": 1.8} if name.endswith(DENSE_HEAD) else {"mec": "white", "mew": 0.8}
        axes.errorbar(
            rows[x], losses, yerr=spreads, ms=9, capsize=2, elinewidth=1, label=label(name), zorder=4, **style
        )
    axes.set_ylabel("final validation loss, nats per token")


def _reached(axes: Axes, table: pd.DataFrame) -> None:
    """FLOPs to reach the loss, a row per arm from the top down."""
    rows = table.dropna(subset="flops_to_loss_mean").sort_values("flops_to_loss_mean", ascending=False)
    places, means = np.arange(len(rows)), rows["flops_to_loss_mean"].to_numpy(float)
    spreads = rows["flops_to_loss_std"].fillna(0).to_numpy(float)
    axes.barh(places, means, color=[colour(arm) for arm in rows["arm"]], height=0.62, zorder=3)
    axes.errorbar(means, places, xerr=spreads, fmt="none", ecolor="#1f2933", elinewidth=1, capsize=2, zorder=4)
    for place, end, bound in zip(places, means + spreads, rows["is_bound"]):
        axes.annotate(" or less" if bound else "", (end, place), va="center", fontsize=8.5)
    axes.set_yticks(places, rows["label"])
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.16)
    axes.set_xlabel("training FLOPs")
    loss, least = f"loss {table['loss'].iloc[0]:.4g}", rows["label"].iloc[-1]
    title = f"FLOPs to reach {loss}" if rows["is_bound"].any() else f"To reach {loss}, {least} needs least"
    axes.set_title(textwrap.fill(title, 34, break_on_hyphens=False))


def _on_the_way(axes: Axes, phases: pd.DataFrame) -> None:
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
        axes.axvline(end, color="#b8c0c8", lw=1, ls="--", zorder=1)
        style = {"rotation": 90, "va": "center", "ha": "right", "fontsize": 9, "color": "#52606d"}
        axes.annotate(phase, (end, 0.5), xycoords=("data", "axes fraction"), **style)
    axes.set(title="On the way (rings: under dense attention)", xlabel="step")
    axes.set_ylabel("validation loss, nats per token")
    axes.legend(fontsize=8)


def _differences(axes: Axes, table: pd.DataFrame, name: str, reduction: str) -> None:
    """A bar per row, from the top down, with its interval; beside it the difference, × and n."""
    table = table.iloc[::-1]
    places, means = np.arange(len(table)), table[name].to_numpy(float)
    axes.barh(places, means, color=[colour(arm) for arm in table["arm"]], height=0.62, zorder=3)
    ends = (means - table[f"{name}_low"].to_numpy(float), table[f"{name}_high"].to_numpy(float) - means)
    axes.errorbar(
        means, places, xerr=np.nan_to_num(ends), fmt="none", ecolor="#1f2933", elinewidth=1, capsize=2, zorder=4
    )
    right = np.maximum(0, means + np.nan_to_num(ends[1]))
    for place, end, mean, times, n in zip(places, right, means, table[reduction], table[f"{name}_n"]):
        text = f" {mean:+.3f}, {times:.2f}×, n = {n:.0f}"
        axes.annotate(text, (end, place), va="center", fontsize=8.5, zorder=5)
    axes.set_yticks(places, table["label"])
    axes.axvline(0, color="#1f2933", lw=1, zorder=4)
    left, end = axes.get_xlim()
    axes.set_xlim(left, end + 0.4 * (end - left))  # room for the words
    axes.grid(axis="y", visible=False)
