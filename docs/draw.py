"""Draws the pictures of README.md from the committed runs of `small`: python docs/draw.py [FOLDER]."""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from replication.analysis import figures
from replication.analysis.arms import Runs, group_by_arm, table1_runs
from replication.analysis.drawing import panels, save
from replication.analysis.palette import INK, PATTERNS, PHASES, colour
from replication.analysis.series import first_seed, stretches
from replication.runs.finding import REFERENCE

WIDTH = 5.6  # inches; where the page shows it 420 pixels wide, its text is still 10 pixels high
DOES = {
    "ultra-sparsification": "connections move: every 10 steps\nthe weakest go, others grow",
    "restoration": "some come\nback",
}


def finding(runs: Runs) -> Figure:
    """Final loss against training FLOPs, beside the frontier of smaller dense models, a panel per reading of the head.

    The same figure as the notebook's.
    """
    return figures.quality_against_cost(runs).figure


def phases(runs: Runs) -> Figure:
    """What MST's schedule does: sparsity, aimed at and reached, and the attention pattern, over its three phases."""
    rows = first_seed(runs["mst"]).metrics()
    steps = [0, *(row["step"] for row in rows)]
    figure, (above, below) = panels(2, 1, (WIDTH, 3.9), sharex=True, height_ratios=(6, 1))
    for num, (phase, start, end) in enumerate(stretches(rows, "phase"), 1):
        above.axvspan(start, end, color=PHASES[phase], lw=0, zorder=0)
        short = end - start < steps[-1] / 5
        where, how = (start + 6, "left") if short else ((start + end) / 2, "center")
        above.text(where, 1.13, f"{num} {phase}", ha=how, va="center", fontweight="bold", fontsize=9.5)
        if phase in DOES:
            above.text((start + end) / 2, 0.3, DOES[phase], ha="center", va="center", fontsize=9.5)
    arrow = {"arrowstyle": "->", "color": INK}  # the first phase is narrower than its text
    above.annotate("connections go", (50, 0.68), (160, 0.62), fontsize=9.5, va="center", arrowprops=arrow)
    aimed = [rows[0]["sparsity"], *(row["sparsity_target"] for row in rows)]
    above.plot(steps, aimed, color=INK, lw=1.4, ls=":", label="aimed at", zorder=5)
    above.plot(
        steps,
        [0, *(row["sparsity"] for row in rows)],
        color=colour("mst"),
        lw=2.6,
        drawstyle="steps-pre",
        label="reached",
    )
    above.set(ylabel="weights that are zero", ylim=(-0.02, 1.24), xlim=(0, steps[-1]))
    above.set_yticks(np.linspace(0, 1, 5))
    above.yaxis.set_major_formatter(PercentFormatter(1))
    above.legend(loc="lower center", fontsize=9.5, ncols=2)
    for pattern, start, end in stretches(rows, "attention_pattern"):
        below.barh(0, end - start, left=start, height=1, color=PATTERNS[pattern], lw=0)
        light = pattern == "dense"
        below.text((start + end) / 2, 0, pattern, ha="center", va="center", color=INK if light else "white")
    below.set(xlabel="training step of profile small", ylim=(-0.5, 0.5))
    below.set_yticks([0], ["attention"])
    for axes in (above, below):
        axes.grid(axis="x", visible=False)
    return figure


def main(folder: Path) -> None:
    runs = group_by_arm(table1_runs(REFERENCE, "small"))
    for draw in (finding, phases):
        save(draw(runs), folder / f"{draw.__name__}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent, metavar="FOLDER")
    main(parser.parse_args().folder)
