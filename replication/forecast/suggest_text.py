"""Suggestions for reading: a table on a terminal, Markdown elsewhere, JSON for programs."""

import sys
from typing import Any

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from replication.config.run_config import RunConfig
from replication.forecast.suggest import Suggestion, Suggestions
from replication.methods import build_schedules
from replication.system.files import Json
from replication.system.machine import is_terminal
from replication.system.terminal import Screen

KEY = "95 %: where 95 % of runs end; n: seeds that were trained, 0: a law says what to expect"


def render(suggestions: Suggestions) -> str:
    """What was asked, the table, a reason a line, and how it was found."""
    title = f"For {suggestions.asked}, the {suggestions.order} first. {KEY}; FLOPs: {suggestions.convention}."
    rows = [_row(place, one) for place, one in enumerate(suggestions.found, 1)]
    reasons = [f"{place}. {how(one.config)}: {one.reason}." for place, one in enumerate(suggestions.found, 1)]
    if not is_terminal(sys.stdout):
        align = ["right", "left", *["right"] * (len(rows[0]) - 2)]
        table = pd.DataFrame(rows).to_markdown(index=False, colalign=align, disable_numparse=True)
        remarks = [f"- {remark}" for remark in suggestions.remarks]
        return "\n".join([title, "", table, "", *reasons, "", *remarks])
    console = Screen()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in rows[0]:
        is_text = column == "run"
        table.add_column(column, justify="left" if is_text else "right", no_wrap=not is_text)
    for row in rows:
        table.add_row(*row.values())
    with console.capture() as captured:
        console.print(title, highlight=False)
        console.print()
        console.print(table)
        for part in (reasons, suggestions.remarks):
            console.print()
            for line in part:
                console.print(line, highlight=False, markup=False)
    return captured.get().rstrip()


def to_json(suggestions: Suggestions) -> Json:
    """Everything that is known of each, its whole configuration included."""
    rows = []
    for one in suggestions.found:
        loss = {"loss": one.expected.loss, "loss_low": one.expected.low, "loss_high": one.expected.high}
        seconds = dict(zip(("seconds", "seconds_low", "seconds_high"), one.seconds or (None,) * 3))
        row = {"arm": one.arm, "changes": one.changes, **loss, "seeds": one.seeds, "flops": one.flops, **seconds}
        rows.append(row | {"reason": one.reason, "config": one.config.to_dict()})
    asked = {"asked": suggestions.asked, "convention": suggestions.convention}
    return {**asked, "found": rows, "remarks": suggestions.remarks}


def how(config: RunConfig) -> str:
    """A configuration's method, schedule, length and execution, in words."""
    train, mst = config.train, config.mst
    parts = [config.method]
    if config.method == "mst":
        phases = f"{mst.warmup_end:g}, {mst.restoration_start:g} and {mst.restoration_end:g} of training"
        varied = f"{mst.ultra_sparsity:.1%} to {mst.final_sparsity:.1%} sparse, {mst.phases} phases, at {phases}"
        constant = f"{build_schedules(config).sparsity_at(0):.1%} sparse"
        parts.append(varied if mst.sparsity_variation else constant)
    elif config.method != "dense":
        parts.append(f"{config.sparsity.sparsity:.1%} sparse")
    if config.method != "dense":
        rows, columns = config.sparsity.block_shape
        parts.append(f"head {'masked' if config.sparsity.mask_lm_head else 'dense'}, {rows}×{columns} blocks")
    parts += [
        f"width {config.model.n_embd}",
        f"{train.steps} steps",
        f"precision {train.precision}, kernels {train.kernels}",
    ]
    return "; ".join(parts)


def _row(place: int, one: Suggestion) -> dict[str, str]:
    changes = ", ".join(f"{key.rpartition('.')[2]}={_short(value)}" for key, value in one.changes.items())
    return {
        "": str(place),
        "run": f"{one.arm}: {changes}" if changes else one.arm,
        "val. loss": f"{one.expected.loss:.3f}",
        "95 %": f"{one.expected.low:.2f} to {one.expected.high:.2f}",
        "n": str(one.seeds),
        "FLOPs": f"{one.flops:.2e}",
        "s": f"{one.seconds[0]:.0f}" if one.seconds else "–",
    }


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
