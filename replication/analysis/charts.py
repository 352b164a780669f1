"""Figures of tables: differences to dense, ablations, tuning. Each takes a data frame and returns a Figure."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replication.analysis.arms import DENSE_HEAD, colour, marker
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


def save(figure: Figure, file: Path) -> None:
    """As PNG, the same bytes for the same figure."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110, metadata={"Software": None})


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
