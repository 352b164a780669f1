"""How a processor's headline ratios moved from commit to commit: a line of `history.jsonl` for each part measured."""

import json
from pathlib import Path

import pandas as pd

from replication.analysis.tables import to_markdown
from replication.bench.headlines import cell
from replication.bench.kind import SAME
from replication.bench.ratios import Ratio
from replication.system.files import Json, explain_damage, parse_json, read_text, write_atomically

FILE = "history.jsonl"
COMMITTED = Path(__file__).parents[2] / "results" / "reference" / "bench"
FACTS = ("git", "date", *SAME)
NOTHING = "Nothing is known to have moved."  # it did not, or was measured once
AGES = ("last", "before", "before that")  # of the commits that are shown of each headline
Series = dict[str, dict[str, Ratio]]  # headline -> commit -> its last ratio there, in the order of measurement


def append(folder: Path, machine: Json, headlines: dict[str, Ratio]) -> None:
    """Keep what a part's measurement came to; nothing, where it has no headline.

    A folder's history goes on from the committed one.

    Raises:
        DamagedError, UserError: the history cannot be read, or written.
    """
    if headlines:
        earlier = read(folder) or read(COMMITTED / folder.name)
        entry = {key: machine[key] for key in FACTS} | {"headlines": headlines}
        lines = "".join(f"{json.dumps(one)}\n" for one in [*earlier, entry])
        write_atomically(folder / FILE, lines)


def read(folder: Path) -> list[Json]:
    """The lines, oldest first. Raises DamagedError: one is not as it was written."""
    file = folder / FILE
    lines = [parse_json(file, line) for line in read_text(file).splitlines()] if file.exists() else []
    for line in lines:
        if not isinstance(line, dict) or {*FACTS, "headlines"} - line.keys():
            raise explain_damage(file, "a line is no measurement")
    return lines


def series(entries: list[Json]) -> Series:
    """By headline, of the machine that measured last; a commit stands where it was last measured."""
    found: Series = {}
    for entry in entries:
        if all(entry[key] == entries[-1][key] for key in SAME):
            for name, value in entry["headlines"].items():
                own = found.setdefault(name, {})
                own.pop(str(entry["git"]), None)
                own[str(entry["git"])] = value
    return found


def find_moved(entries: list[Json]) -> list[str]:
    """A sentence for each headline whose last two commits differ by more than the spread of either."""
    sentences = []
    for name, own in series(entries).items():
        if len(own) > 1:
            (before, old), (now, new) = list(own.items())[-2:]
            if abs(new["ratio"] - old["ratio"]) > max(value["high"] - value["low"] for value in (old, new)):
                sentences.append(f"`{name}`: {cell(name, old)} at {before}, {cell(name, new)} at {now}")
    return sentences


def render(entries: list[Json]) -> str:
    """What moved; and a line for each headline, of its last commits."""
    table = []
    for name, own in series(entries).items():
        cells = [f"{cell(name, value)} {commit}" for commit, value in reversed(own.items())]
        table.append({"headline": f"`{name}`"} | dict(zip(AGES, cells)))
    changes = "\n".join(f"- {sentence}" for sentence in find_moved(entries)) or NOTHING
    return f"## By commit\n\n{changes}\n\n{to_markdown(pd.DataFrame(table).fillna('–'))}"
