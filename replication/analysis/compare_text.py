"""What `compare` prints: what was found, what differs, and a table, for a terminal or as Markdown."""

import textwrap
from collections.abc import Iterable, Sequence

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from replication.analysis.compare import Comparison
from replication.analysis.iso import Iso
from replication.analysis.judging import ALL, BETTER, FLOPS, NOT_JUDGED, SAME, WORSE, Row, is_ratio
from replication.analysis.sides import MEMORY, SPEED
from replication.analysis.tables import to_markdown
from replication.system.terminal import WIDE, empty_table

COLOURS = {WORSE: "bold red", BETTER: "green", SAME: "", NOT_JUDGED: "dim"}
COLUMNS = ("metric", "arm", "reference", "new", "change", "p", "verdict")
ISO = ("arm", "FLOPs", "loss, reference", "loss, new", "loss", "FLOPs, reference", "FLOPs, new")
LEFT = ("metric", "arm", "verdict")


def show(comparison: Comparison, console: Console) -> None:
    """Print it on a terminal, whatever its width."""
    for line in _head(comparison):
        console.print(Text(line, "bold red" if line.startswith(("Worse", "Missing")) else ""))
    columns = [column for column in COLUMNS if console.width >= WIDE or column != "p"]
    console.print()
    console.print(_table(columns, [(_cells(row), COLOURS[row.verdict]) for row in select_rows(comparison)]))
    for line in _foot(comparison):
        console.print(Text(f"\n{line}"))
    if comparison.iso:
        console.print()
        console.print(_table(ISO, [(_iso_cells(row), "") for row in comparison.iso]))


def markdown(comparison: Comparison) -> str:
    """The same as Markdown."""
    parts = ["\n".join(_fill(line, "- ") for line in _head(comparison))]
    parts.append(_pipes(COLUMNS, map(_cells, select_rows(comparison))))
    parts += [_fill(line) for line in _foot(comparison)]
    parts += [_pipes(ISO, map(_iso_cells, comparison.iso))] if comparison.iso else []
    return "\n\n".join(parts)


def select_rows(comparison: Comparison) -> list[Row]:
    """Of each metric: all arms in one row, and those that are worse, better, or could only be looked at."""
    shown = []
    for metric in dict.fromkeys(row.metric for row in comparison.rows):
        rows = [row for row in comparison.rows if row.metric == metric]
        same = [row for row in rows if row.verdict == SAME]
        together = [row for row in rows if row.arm.startswith(ALL)]
        if not together and len(same) > 1:
            together = [
                Row(metric, f"{len(same)} arms", SAME, change=0.0 if all(not row.change for row in same) else None)
            ]
        alone = [row for row in rows if row not in together and row.verdict != SAME and row.change is not None]
        shown += [*(together or same), *alone, *(row for row in rows if row.verdict == WORSE and row.change is None)]
    return shown


def _head(comparison: Comparison) -> list[str]:
    """What was found, first."""
    worse, better = (comparison.of(verdict) for verdict in (WORSE, BETTER))
    lines = [f"Worse: {_list(worse)}." if worse else "Nothing is worse."]
    lines += [f"Better: {_list(better)}."] if better else []
    lines += [f"Missing in {comparison.new}: {_few(comparison.missing)}."] if comparison.missing else []
    lines += [f"Not trained in {comparison.new}: {_few(comparison.untrained)}."] if comparison.untrained else []
    lines += [f"Left out: {problem}" for problem in comparison.left_out]
    lines += [f"Only in {comparison.new}: {_few(comparison.unmatched)}."] if comparison.unmatched else []
    counts = [sum(count[side] for count in comparison.seeds.values()) for side in (0, 1)]
    runs = f"{len(comparison.seeds)} arm(s), {counts[0]} and {counts[1]} run(s), {comparison.num_tests} tests"
    rate = f"; where nothing has changed, one of them says worse in {comparison.alpha:.0%} of comparisons (Holm)"
    lines.append(f"{comparison.reference} against {comparison.new}: {runs}{rate if comparison.num_tests else ''}.")
    for title, differing in (("Environment", comparison.environment), ("Settings", comparison.settings)):
        values = [f"{key} {_short(a)} → {_short(b)}" for key, (a, b) in differing.items()]
        lines += [f"{title}: {'; '.join(values)}."] if values else []
    return lines


def _foot(comparison: Comparison) -> list[str]:
    """What is exactly so, and what was not judged, and why."""
    lines = [
        f"{row.metric}, {row.arm}: {row.why}." for row in comparison.rows if row.why and row.verdict in (WORSE, BETTER)
    ]
    reasons: dict[str, list[Row]] = {}
    for row in comparison.of(NOT_JUDGED):
        reasons.setdefault(row.why, []).append(row)
    for why, rows in reasons.items():
        metrics, arms = (list(dict.fromkeys(getattr(row, name) for row in rows)) for name in ("metric", "arm"))
        lines.append(f"Not judged ({why}): {', '.join(metrics)}, of {_few(arms)}.")
    if comparison.iso:
        lines.append(
            "At equal FLOPs (head_counted_full; what the cheaper arm costs, so the other one's learning rate is still "
            "high there), and to the reference's final loss:"
        )
    return lines


def _list(rows: Sequence[Row]) -> str:
    return _few([f"{row.metric} of {row.arm} {_cells(row)['change']}".rstrip() for row in rows], most=6)


def _few(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _short(value: str) -> str:
    """A checksum needs no more than its beginning to be told from another."""
    return f"{value[:12]}…" if len(value) == 64 and " " not in value else value


def _cells(row: Row) -> dict[str, str]:
    change = "" if row.change is None else _percent(row.change) if _is_share(row) else f"{row.change:+.3g}"
    values = {"reference": _number(row.metric, row.reference), "new": _number(row.metric, row.new)}
    p = "" if row.p is None else "< 0.0001" if row.p < 1e-4 else f"{row.p:.4f}"
    metric = row.metric if row.metric == SPEED else row.metric.replace("/", " ")  # breaks where it must
    return {"metric": metric, "arm": row.arm, **values, "change": change, "p": p, "verdict": row.verdict}


def _is_share(row: Row) -> bool:
    return row.metric == FLOPS or is_ratio(row.metric)


def _percent(share: float) -> str:
    """One FLOP more of a thousand million is more."""
    return f"{share:+.1%}" if abs(share) >= 5e-4 or not share else f"{share:+.0e}"


def _number(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    if metric == MEMORY:
        return f"{value / 1e6:,.0f} MB"
    return f"{value:,.0f}" if metric == SPEED else f"{value:.4g}"


def _iso_cells(row: Iso) -> dict[str, str]:
    losses = {
        name: "–" if loss is None else f"{loss:.4f}" for name, loss in zip(ISO[2:4], (row.reference_loss, row.new_loss))
    }
    spent = (row.reference_flops, row.new_flops)
    counts = {name: "not reached" if flops is None else f"{flops:.3g}" for name, flops in zip(ISO[5:], spent)}
    return {"arm": row.arm, "FLOPs": f"{row.flops:.3g}", **losses, "loss": f"{row.loss:.4f}", **counts}


def _table(columns: Sequence[str], rows: Iterable[tuple[dict[str, str], str]]) -> Table:
    table = empty_table()
    for column in columns:
        table.add_column(column, justify="left" if column in LEFT else "right", overflow="fold")
    for cells, style in rows:
        table.add_row(*(Text(cells[column]) for column in columns), style=style)
    return table


def _pipes(columns: Sequence[str], rows: Iterable[dict[str, str]]) -> str:
    return to_markdown(pd.DataFrame(list(rows), columns=list(columns)))


def _fill(line: str, mark: str = "") -> str:
    return textwrap.fill(mark + line, 118, subsequent_indent=" " * len(mark), break_on_hyphens=False)
