"""Tables on a terminal, from their files: the columns that decide where it is narrow, more where it is wide."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from replication.analysis import ablations, claims, tables, tradeoffs
from replication.analysis.claims import Verdict
from replication.system.terminal import WIDE, empty_table

DECIDE = ("arm", "LM head", "n", "FLOPs saved", "val. loss ↓", "loss − dense (n)", "− that (n)")
DECIDE += ("density", "FLOPs", "front", "− dense line (n)", "phase", "step", "attention")  # of trade-offs
WORDS = ("label", "head", "tries", "origin", "base", "changes", "changed", "not_compared", "precision", "kernels")
TABLE1_WIDE = 150  # characters from which on it has all its columns
COLOURS = {
    claims.REPRODUCED: "green",
    claims.LOWER: "green",
    claims.NOT_REPRODUCED: "red",
    claims.NOT_LOWER: "red",
    claims.INCONCLUSIVE: "yellow",
    claims.NOT_TESTED: "dim",
}


def show_table1(folder: Path, console: Console) -> None:
    """Print Table 1 and the verdicts, of a profile's folder of results, in which `write_table1` wrote them."""
    table = _read(folder / "table1.csv")
    claimed = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    found = [Verdict(**verdict) for verdict in claimed["verdicts"]]
    console.print(_rows(tables.main_columns(table), console.width >= TABLE1_WIDE))
    powers = [verdict.power for verdict in found if verdict.power]
    for line in (*tables.remarks(table), *powers):
        console.print(f"\n{line}", highlight=False)
    console.print()
    console.print(_verdicts(found) if found else tables.PROVES_NOTHING.strip("*"))
    _say_where(folder, "table1", console)


def show_ablations(folder: Path, console: Console) -> None:
    """The same of what `write_ablations` wrote."""
    table = _read(folder / "ablations.csv")
    console.print(_rows(ablations.columns(table), console.width >= WIDE))
    _say_where(folder, "ablations", console)


def show_tradeoffs(table: pd.DataFrame, phases: pd.DataFrame, out: Path | None, console: Console) -> None:
    """Print what `report tradeoffs` found; `out` is where `write_tradeoffs` wrote it, None: nowhere."""
    wide = console.width >= WIDE
    console.print(_rows(tradeoffs.cost_columns(table), wide))
    console.print(f"\n{tradeoffs.title_reached(table)}", highlight=False)
    console.print(_rows(tradeoffs.name_reached_columns(table), True))
    if len(phases):
        console.print("\nBy phase:")
        console.print(_rows(tradeoffs.phase_columns(phases), wide))
    else:
        console.print(f"\n{tradeoffs.NO_PHASES}", highlight=False)
    if out:
        console.print(f"\nIn words: {out / 'tradeoffs.md'}; as data: .csv; as a figure: .png", highlight=False)


def _say_where(folder: Path, name: str, console: Console) -> None:
    where = f"\nEvery column, and the tests in words: {folder / name}.md; as data: .csv; for a paper: .tex"
    console.print(where, highlight=False)


def _read(file: Path) -> pd.DataFrame:
    table = pd.read_csv(file, dtype=dict.fromkeys(WORDS, str))
    return table.fillna({column: "" for column in WORDS if column in table})


def _rows(shown: pd.DataFrame, wide: bool) -> Table:
    table = empty_table()
    columns = [column for column in shown.columns if wide or column in DECIDE]
    for column in columns:
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=column != "arm")
    for _, row in shown.iterrows():
        table.add_row(*(str(row[column]) for column in columns))
    return table


def _verdicts(found: Iterable[Verdict]) -> Table:
    table = empty_table()
    for column in ("claim", "verdict", "measured", "n"):
        table.add_column(column, justify="left" if column in ("claim", "verdict") else "right")
    for verdict in found:
        if verdict.measured:
            statement = verdict.statement.partition(":")[0]
            said = Text(verdict.verdict, COLOURS[verdict.verdict])
            table.add_row(f"{verdict.claim}, {statement}", said, verdict.measured, str(verdict.n))
    return table
