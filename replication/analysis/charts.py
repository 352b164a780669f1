"""Figures of tables: differences to dense, ablations, tuning. Each takes data frames."""

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from replication.analysis import titles
from replication.analysis.arms import DENSE_HEAD, Runs, label
from replication.analysis.claims import MARGIN
from replication.analysis.drawing import WIDTH, Drawn, NotDrawn, column, finish_figure, panels, sign
from replication.analysis.palette import BAND, INK, colour

HEADS = {"masked": "LM head masked", "dense": "LM head dense"}  # `head` of Table 1's rows -> a panel's title
ROW = 0.36  # inches from one row of a chart to the next
QUESTIONS = {  # a setting that an ablation changes -> the question that it asks
    "sparsity_variation": "How sparse, and when?",
    "phases": "How sparse, and when?",
    "growth": "Where do connections grow?",
    "growth_score": "Where do connections grow?",
    "drop_fraction": "How many are dropped?",
    "hybrid_attention": "Which attention?",
    "start_step": "Which attention?",
    "end_step": "Which attention?",
    "update_replaces_step": "How is it executed?",
    "block_shape": "How is it executed?",
    "precision": "How is it executed?",
}
OTHERS = "What else?"
NOISE = 2  # ours: dense's standard deviations over seeds on either side of 0 that the band of the ablations takes


def against_dense(table: pd.DataFrame, convention: Mapping[str, str]) -> Drawn | NotDrawn:
    """What each sparse arm's loss adds to dense's, by reading of the head, the lowest first.

    The mean over the seeds in common, with its 95 % t interval.

    Args:
        table: `tables.table1(...)`.
        convention: `head` -> the counting convention of its panel's ×.
    """
    heads = [head for head in HEADS if (table["head"] == head).any()] or list(HEADS)[:1]
    shown = table[table["minus_dense"].notna() & (table["arm"] != "dense")].sort_values("minus_dense")
    if shown.empty:
        return NotDrawn("No arm has a seed in common with dense.")
    parts = [shown[shown["head"].isin([head, ""])] for head in heads]
    sizes = [ROW * len(part) + 0.8 for part in parts]
    figure, grid = panels(len(heads), 1, (WIDTH, sum(sizes) + 0.4), squeeze=False, sharex=True, height_ratios=sizes)
    for axes, head, part in zip(grid[:, 0], heads, parts):
        axes.axvspan(-MARGIN, MARGIN, color=BAND, lw=0, zorder=0)
        _differences(axes, part, "minus_dense", f"reduction ({convention[head]})")
        axes.set_title(HEADS[head])
    grid[-1, 0].set_xlabel("validation loss − dense, nats per token")
    caption = (
        f"Mean over n seeds in common and its 95 % t interval. Grey: within {MARGIN} nats of dense. × is dense ÷ "
        f"method in training FLOPs, {', '.join(f'{convention[head]} with the head {head}' for head in heads)}."
    )
    said = _all_said(shown, "minus_dense")
    ends = ["minus_dense", "minus_dense_low", "minus_dense_high", "minus_dense_n"]
    used = ["arm", "head", *ends, *dict.fromkeys(f"reduction ({convention[head]})" for head in heads)]
    return finish_figure(figure, titles.against_dense(table), caption, f"Differences to dense: {said}.", shown[used])


def ablations(table: pd.DataFrame) -> Drawn:
    """What each ablation's loss adds to that of the arm that it ablates, by question, the largest first.

    Args:
        table: `ablations.ablations(...)`.
    """
    noise = NOISE * float(table.loc[table["arm"] == "dense", "validation_loss_std"].fillna(0).sum())
    groups = list(group_by_question(table))
    sizes = [ROW * len(rows) + 0.45 for _, rows in groups]
    figure, grid = panels(
        max(1, len(groups)), 1, (WIDTH, sum(sizes) + 1.2), squeeze=False, sharex=True, height_ratios=sizes or None
    )
    limit = _limit(table["minus_base"].dropna(), noise)
    lows = table[["minus_base", "minus_base_low"]].astype(float)
    least = 1.08 * min(-2 * noise, -0.3 * limit, float(lows.min().min()) if len(groups) else 0)
    for axes, (question, rows) in zip(grid[:, 0], groups):
        axes.axvspan(-noise, noise, color=BAND, lw=0, zorder=0)
        axes.set_xlim(least, limit)
        _differences(axes, rows, "minus_base", "reduction (head_counted_full)")
        axes.set_title(question)
    grid[-1, 0].set_xlabel("validation loss − that of the arm that is ablated, nats")
    band = f"Grey: ± {NOISE} standard deviations of dense over its own seeds, {noise:.3f} nats." if noise else ""
    caption = (
        "Paired by seed: mean and 95 % t interval over n seeds (none where n = 1). To the right: the change made it "
        f"worse. An arrow: further out than is drawn. × is dense ÷ arm in training FLOPs, head_counted_full. {band}"
    )
    said = " ".join(f"{question} {_all_said(rows, 'minus_base')}." for question, rows in groups)
    return finish_figure(figure, titles.ablations(table, noise), caption, f"Differences, by question. {said}", table)


def group_by_question(table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Question -> the ablations that ask it and have a difference, the largest first."""
    table = table.dropna(subset="minus_base")
    asked = table["changes"].map(_question)
    for question in dict.fromkeys([*QUESTIONS.values(), OTHERS]):
        rows = table[asked == question]
        if len(rows):
            yield question, rows.sort_values("minus_base", ascending=False)


def tuning(table: pd.DataFrame) -> Drawn:
    """First seed's loss against the learning rate, above the arm's best; a ring marks what was chosen in the end.

    Args:
        table: of `tuning.csv`.
    """
    rates = "train.learning_rate"
    of_heads = table["arm"].str.endswith(DENSE_HEAD)
    parts = [(name, part) for name, part in zip(HEADS.values(), (table[~of_heads], table[of_heads])) if len(part)]
    figure, grid = column(len(parts), 3.4, sharex=True)
    for axes, (name, part) in zip(grid, parts):
        above = part["first_seed"] - part.groupby("arm")["first_seed"].transform("min")
        high = max(0.05, 2.2 * float(above.quantile(0.85)))  # a rate that diverges squeezes nothing
        for arm, rows in part.groupby("arm", sort=False):
            best = rows["first_seed"].min()
            course = rows.groupby(rates)["first_seed"].min().sort_index() - best
            style = sign(arm)
            axes.plot(course.index, course, lw=1.4, label=rows["label"].iloc[0], **style | {"ms": 0.7 * style["ms"]})
            chosen = rows[rows["chosen"]]
            axes.plot(chosen[rates], chosen["first_seed"] - best, "o", ms=11, mfc="none", color=colour(arm))
        axes.set(title=name, xscale="log", ylim=(-0.02, high), ylabel="above the arm's best, nats")
        tried = sorted(table[rates].unique())
        axes.set_xticks(tried, [f"{rate:g}" for rate in tried], rotation=60)
        axes.set_xticks([], minor=True)
        axes.legend(ncols=2, loc="upper center")
    grid[-1].set_xlabel("learning rate")
    chosen = table[table["chosen"]]
    caption = (
        "Validation loss of the first seed above the arm's own best. A ring marks what was chosen; it can lie off the "
        "line where other knobs were tried too."
    )
    said = "; ".join(f"{row['label']} {row[rates]:g}" for _, row in chosen.iterrows())
    return finish_figure(figure, titles.tuning(chosen), caption, f"Chosen learning rates: {said}.", table)


def page(table: pd.DataFrame) -> Any:
    """A table for a notebook, which scrolls by itself where it is wide; the same text for the same table."""
    from IPython.display import HTML

    shown = table.map(_cell)
    with pd.option_context("display.max_colwidth", None):
        return HTML(f'<div style="overflow-x: auto">{shown.to_html(index=False, justify="left", escape=False)}</div>')


def seeds(source: str, runs: Runs) -> Any:
    """For a notebook: where its runs are from, and which seeds each arm has."""
    from IPython.display import Markdown

    arms: dict[str, list[str]] = {}
    for arm, own in runs.items():
        arms.setdefault(", ".join(map(str, own)), []).append(label(arm))
    return Markdown("\n".join([f"{source}\n", *(f"- seeds {of}: {'; '.join(names)}" for of, names in arms.items())]))


def _cell(value: Any) -> Any:
    """A text as HTML: short ones stay on one line, long ones have room, as a phone's table would squeeze both."""
    if not isinstance(value, str):
        return value
    text = html.escape(value)
    if len(value) > 60:
        return f'<div style="min-width: 18rem; text-align: left">{text}</div>'
    return text.replace(" ", "&nbsp;") if len(value) < 16 else text


def _differences(axes: Axes, table: pd.DataFrame, name: str, reduction: str) -> None:
    """A row for each arm, from the top down: its name, marker, interval, and beside it the difference, × and n."""
    places, limits = np.arange(len(table))[::-1], axes.get_xlim()
    means = table[name].to_numpy(float)
    low, high = (table[f"{name}_{end}"].to_numpy(float) for end in ("low", "high"))
    is_fixed = not axes.get_autoscalex_on()
    right = limits[1] if is_fixed else np.inf
    for place, arm, mean, start, end in zip(places, table["arm"], means, low, high):
        if mean > right:
            axes.plot(right, place, ">", color=colour(arm), ms=7, clip_on=False, zorder=5)
            continue
        axes.plot([start, end], [place, place], "|-", color=INK, lw=1.2, ms=6, zorder=4)
        axes.plot(mean, place, zorder=5, **sign(arm))
    for place, (_, row) in zip(places, table.iterrows()):
        style = {"va": "center", "fontsize": 9, "color": INK, "xycoords": axes.get_yaxis_transform()}
        style |= {"bbox": {"fc": "white", "alpha": 0.7, "lw": 0, "pad": 0.5}}  # legible on the lines behind
        axes.annotate(row["label"], (0.01, place + 0.34), **style)
        axes.annotate(
            f"{row[name]:+.3f}, {row[reduction]:.2f}×, n = {row[f'{name}_n']:.0f}",
            (0.99, place + 0.34),
            ha="right",
            **style,
        )
    axes.set(yticks=[], ylim=(-0.5, len(table) - 0.25))
    axes.axvline(0, color=INK, lw=1, zorder=3)


def _describe(row: pd.Series, name: str) -> str:
    """A difference in words, with its interval where it has one."""
    interval = f" ({row[f'{name}_low']:+.3f} to {row[f'{name}_high']:+.3f})" if pd.notna(row[f"{name}_low"]) else ""
    return f"{row[name]:+.3f}{interval}, n = {row[f'{name}_n']:.0f}"


def _all_said(rows: pd.DataFrame, name: str) -> str:
    return "; ".join(f"{row['label']} {_describe(row, name)}" for _, row in rows.iterrows())


def _question(changes: str) -> str:
    """Of the settings that an ablation changes."""
    keys = re.findall(r"(\w+)=", changes)
    return next((QUESTIONS[key] for key in keys if key in QUESTIONS), OTHERS)


def _limit(means: pd.Series, noise: float) -> float:
    """Where the axis of the ablations ends, nats: what lies further out than thrice most of the others would squeeze
    them."""
    usual = float(means.abs().quantile(0.75)) if len(means) else 0.0
    return max(min(1.15 * float(means.abs().max() if len(means) else 0), 3 * usual), 3 * noise, 1e-3)
