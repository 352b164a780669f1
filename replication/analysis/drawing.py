"""How every figure is laid out and shown: one column that a phone holds, the finding as its title, words beside it."""

import html
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replication.analysis.arms import DENSE_HEAD, Runs, head_of, label
from replication.analysis.palette import INK, PHASES, QUIET, RULE, colour, marker, method
from replication.analysis.series import first_seed, stretches

WIDTH = 5.2  # inches; where the page shows it 400 pixels wide, text of 9 points is still 9.6 pixels high
DPI = 150
WIDTHS = {"static": (3.4, 2.9), "mst": (2.2, 4)}  # of lines, and their order: those below are wider, and so are seen
HEAT = sns.blend_palette(("#ffffff", "#98a2ad"), as_cmap=True)  # its darkest still bears dark text
LINE = 0.165  # inches from one label to the next

sns.set_theme(
    style="whitegrid",
    rc={
        "figure.dpi": DPI,
        "font.size": 9.5,
        "font.sans-serif": ["DejaVu Sans"],  # matplotlib's own: the same layout on every machine
        "svg.fonttype": "none",  # words stay words: a sixth of their outlines' size
        "svg.hashsalt": "mst-replication",  # names within an SVG are the same every time
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9.5,
        "axes.formatter.use_mathtext": True,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "grid.color": "#e6e9ed",
        "axes.edgecolor": RULE,
        "legend.frameon": False,
    },
)


@dataclass(frozen=True)
class Drawn:
    """A figure with its words and its data.

    A notebook shows the picture with its alternative text and below it the caption; and the same text again, folded,
    as not every viewer of notebooks tells the alternative one.

    Attributes:
        title: the finding, in the data's numbers; it stands at the figure's head.
        caption: how to read it.
        alt: what somebody who does not see it is told.
        data: what it is drawn from, arms by their keys.
    """

    figure: Figure
    title: str
    caption: str
    alt: str
    data: pd.DataFrame

    def _ipython_display_(self) -> None:
        from IPython.display import Markdown, display

        words = {"alt": self.alt, "width": round(self.figure.get_figwidth() * 120)}
        picture = {"image/png": png(self.figure), "text/plain": self.alt}
        display(picture, raw=True, metadata={"image/png": words})
        in_words = f"<details><summary>The figure in words</summary>{html.escape(self.alt)}</details>"
        display(Markdown(f"{self.caption}\n\n{in_words}"))


@dataclass(frozen=True)
class NotDrawn:
    """What stands where a figure has nothing to show."""

    why: str

    def _repr_markdown_(self) -> str:
        return self.why


def finish_figure(figure: Figure, title: str, caption: str, alt: str, data: pd.DataFrame) -> Drawn:
    """The figure under its title; `alt` goes on where the title ends."""
    columns = round(figure.get_figwidth() * 10.5)  # of bold text
    figure.suptitle(
        textwrap.fill(title, columns, break_on_hyphens=False), x=0.01, ha="left", fontsize=11, fontweight="bold"
    )
    return Drawn(figure, title, caption, f"{title}. {alt}", data)


def panels(rows: int, columns: int, size: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes, as an array where there are several."""
    # Bare: pyplot would keep it, and a notebook would then show it twice.
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def column(count: int, height: float, **options: Any) -> tuple[Figure, list[Axes]]:
    """Panels below each other, each so many inches high."""
    figure, grid = panels(count, 1, (WIDTH, height * count + 0.5), squeeze=False, **options)
    return figure, list(grid[:, 0])


def png(figure: Figure) -> bytes:
    """The same bytes for the same figure."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=DPI, metadata={"Software": None})
    return picture.getvalue()


def svg(figure: Figure) -> str:
    """The same text for the same figure, places to a hundredth of a point."""
    picture = io.StringIO()
    figure.savefig(picture, format="svg", metadata={"Date": None, "Creator": None})
    text = picture.getvalue().replace("'DejaVu Sans';", "'DejaVu Sans', sans-serif;")  # numbers lack the other font
    text = " ".join(re.sub(r"<!--.*?-->", "", text).split())  # both are a third of its size
    return re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text)


def save(figure: Figure, file: Path) -> None:
    """As PNG, the same bytes for the same figure."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(png(figure))


def readings(arms: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """How the LM head was read -> its arms, those of dense training first; only readings with a sparse arm.

    A dense model that is solved for one reading's count, and so has its like of the other, stands with its own.
    """
    dense = [arm for arm in arms if not head_of(arm)]
    for head, other in (("masked", DENSE_HEAD), ("dense", "")):
        sparse = [arm for arm in arms if head_of(arm) == head]
        theirs = {f"{arm.removesuffix(DENSE_HEAD)}{other}" for arm in dense if arm.endswith(DENSE_HEAD)}
        if sparse:
            yield f"LM head {head}", [arm for arm in dense if arm not in theirs] + sparse
    if len(dense) == len(arms):
        yield "dense training", dense


def short_label(arm: str) -> str:
    """Without what the panel says already."""
    return label(arm).removesuffix(", dense head")


def line(arm: str) -> dict[str, Any]:
    """An arm's line, dashed where the head is dense."""
    style = "--" if head_of(arm) == "dense" else "-"
    width, order = WIDTHS.get(method(arm), (1.5, 3))
    return {"color": colour(arm), "lw": width, "ls": style, "zorder": order}


def sign(arm: str, hollow: bool | None = None) -> dict[str, Any]:
    """An arm's marker, hollow where the head is dense."""
    hollow = head_of(arm) == "dense" if hollow is None else hollow
    edge = {"mfc": "white", "mew": 1.6} if hollow else {"mec": "white", "mew": 0.8}
    size = 11 if marker(arm) == "*" else 7
    return {"marker": marker(arm), "color": colour(arm), "ms": size} | edge


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, dict, str]], height: float, lead: bool = False) -> None:
    """Name lines or points at the panel's right, as near to their height as names that do not touch allow.

    Args:
        ends: (x, y, style of the marker, or {}, name), in data; the limits of the axes are final.
        height: of the panel, inches.
        lead: draw a thin line from each point to its name.
    """
    axes.get_ylim()  # which works them out, where they are automatic
    scale = axes.transScale + axes.transLimits
    ends = sorted(ends, key=lambda end: end[1])
    wanted = [float(np.clip(scale.transform((x, y))[1], 0, 1)) for x, y, *_ in ends]
    for (x, y, style, name), place in zip(ends, spread_out(wanted, LINE / height)):
        if style:
            axes.plot(1.05, place, transform=axes.transAxes, clip_on=False, **style | {"ms": 0.8 * style["ms"]})
        axes.annotate(name, (1.09, place), xycoords="axes fraction", va="center", fontsize=9, color=INK)
        if lead:
            to = {"xy": (x, y), "xytext": (1.035, place), "textcoords": "axes fraction"}
            axes.annotate("", **to, arrowprops={"arrowstyle": "-", "color": RULE, "lw": 0.8}, zorder=2)


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places moved as little as keeps `gap` between them, the last at 1 at most where they fit."""
    moved: list[float] = []
    for place in places:
        moved.append(max(place, moved[-1] + gap) if moved else place)
    top = 1.0
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], top)
        top = moved[index] - gap
    return moved


def shade_phases(axes: Axes, runs: Runs, is_named: bool = True) -> None:
    """MST's phases behind the lines, with their numbers; at the top how a long one attends."""
    arm = next((arm for arm in runs if arm.startswith("mst")), None)
    if arm is None:
        return
    rows = first_seed(runs[arm]).metrics()
    patterns = dict(zip((row["phase"] for row in rows), (row["attention_pattern"] for row in rows)))
    for num, (phase, start, end) in enumerate(stretches(rows, "phase"), 1):
        axes.axvspan(start, end, color=PHASES.get(phase, "#eef1f4"), lw=0, zorder=0)
        is_wide = is_named and end - start > 0.4 * rows[-1]["step"]
        attends = f"MST, {patterns[phase]} attention" if patterns[phase] != "dense" else f"MST, {phase}"
        words = f"{num}: {attends}" if is_wide else str(num)
        style = {"ha": "center", "va": "top", "fontsize": 9, "color": QUIET}
        axes.text((start + end) / 2, 0.985, words, transform=axes.get_xaxis_transform(), **style, zorder=1)


PHASES_SAID = "Grey: MST's phases, 1 warm-up, 2 ultra-sparsification, 3 restoration."
