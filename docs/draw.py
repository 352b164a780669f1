"""Draws the pictures of README.md from the committed runs of `small`: python docs/draw.py [FOLDER]."""

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from replication.analysis.arms import DENSE_HEAD, Runs, by_arm, final_losses, label, table1_runs
from replication.analysis.claims import READINGS
from replication.analysis.drawing import panels, save
from replication.analysis.palette import INK, PATTERNS, PHASES, colour, marker
from replication.analysis.series import first_seed, stretches
from replication.analysis.statistics import paired_differences
from replication.runs import REFERENCE

WIDTH = 5.6  # inches; where the page shows it 420 pixels wide, its text is still 10 pixels high
BESIDE = {"ha": "left", "va": "center"}
# Where an arm's name stands, from its marker, in points; those that lie on each other have one name.
NAMES = {
    "dense": ((0, 10), {"ha": "center", "va": "bottom"}),
    "dense_quarter": ((9, 0), BESIDE),
    "dense_4x": ((-6, 8), {"ha": "center", "va": "bottom"}),
    "set": ((9, 3), BESIDE | {"va": "bottom"}),
    "rigl": ((9, -5), BESIDE | {"va": "top"}),
    "mst": ((-10, -1), {"ha": "right", "va": "center"}),
    "set_4x": ((9, 0), BESIDE),
    "set_dense_head": ((2, 9), {"ha": "left", "va": "bottom"}),
    "rigl_dense_head": ((9, -4), BESIDE | {"va": "top"}),
    "mst_dense_head": ((-9, 5), {"ha": "right", "va": "bottom"}),
    "set_4x_dense_head": ((-9, -4), {"ha": "right", "va": "top"}),
}
TOGETHER = {"set": "static, SET", "set_dense_head": "static, SET"}
DOES = {
    "ultra-sparsification": "connections move: every 10 steps\nthe weakest go, others grow",
    "restoration": "some come\nback",
}


def finding(runs: Runs) -> Figure:
    """Final loss against training FLOPs, a panel per reading of the LM head; a small marker per seed."""
    figure, grid = panels(2, 1, (WIDTH, 5.8), sharex=True, sharey=True)
    for axes, reading in zip(grid, READINGS):
        for arm, seeds in runs.items():
            if arm.startswith("dense") or arm.endswith(DENSE_HEAD) == bool(reading.suffix):
                _point(axes, arm, list(final_losses(seeds).values()), 1 / reduction(runs, arm, reading.convention))
        mst = reading.arm("mst")
        above = np.mean(paired_differences(final_losses(runs[mst]), final_losses(runs["dense"])))
        times = reduction(runs, mst, reading.convention)
        axes.set_title(
            f"LM {reading.name}: at {times:.1f}× MST ends {above:+.2f} nats from dense", fontsize=10.5, x=-0.1
        )
        axes.set(ylabel="validation loss, nats", ylim=(3.66, 5.35))
    shares = {"⅙": 1 / 6, "¼": 1 / 4, "⅓": 1 / 3, "½": 1 / 2, "1": 1}
    axes.set(xscale="log", xlim=(0.12, 1.2), xlabel="training FLOPs, as a share of dense training's")
    axes.set_xticks(list(shares.values()), list(shares))
    axes.set_xticks([], minor=True)
    return figure


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


def reduction(runs: Runs, arm: str, convention: str) -> float:
    """Dense ÷ arm in training FLOPs, as Table 1 has it."""
    return first_seed(runs[arm]).flops()["conventions"][convention]["reduction"]


def _point(axes: Axes, arm: str, losses: list[float], share: float) -> None:
    """One arm: its seeds, their mean, and its name."""
    edge = {"mfc": "white", "mew": 2.2} if arm.endswith(DENSE_HEAD) else {"mec": "white", "mew": 0.8}
    style = {"marker": marker(arm), "color": colour(arm), "ls": "none"}
    axes.plot([share] * len(losses), losses, **style, ms=4, alpha=0.4, mew=0)
    size = 15 if arm.startswith("mst") else 10
    axes.plot(share, np.mean(losses), **style | edge, ms=size, zorder=6 if arm.startswith("mst") else 4)
    if arm in NAMES:
        offset, how = NAMES[arm]
        weight = "bold" if arm.startswith("mst") else "normal"
        name = TOGETHER.get(
            arm, label(arm).removesuffix(", dense head").replace("dense, small, at 4×", "smaller dense")
        )
        axes.annotate(name, (share, np.mean(losses)), offset, textcoords="offset points", fontweight=weight, **how)


def main(folder: Path) -> None:
    runs = by_arm(table1_runs(REFERENCE, "small"))
    for draw in (finding, phases):
        save(draw(runs), folder / f"{draw.__name__}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
