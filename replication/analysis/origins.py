"""Where the runs of a table come from: commits and machines, in a line, and in a column where they differ."""

import textwrap
from collections.abc import Iterable

import pandas as pd

from replication.runs.folder import RunFolder


def origin(runs: Iterable[RunFolder]) -> str:
    """Commits, processor or device, threads and torch of some runs, and what of it they went on with later."""
    found: dict[str, set] = {"commit": set(), "on": set(), "threads": set(), "torch": set()}
    for run in runs:
        began = run.environment()
        later = [
            {key: change[1] for key, change in record.items() if isinstance(change, list) and len(change) == 2}
            for record in began.get("resumed", [])
        ]
        for facts in (began, *(began | record for record in later)):
            device = facts.get("device", "cpu")
            found["commit"].add(str(facts.get("git", "not recorded")))
            found["on"].add(str(facts.get("processor", "not recorded")) if device == "cpu" else device)
            found["threads"].add(str(facts.get("threads", "not recorded")))
            found["torch"].add(str(facts.get("versions", {}).get("torch", "not recorded")))
    return ", ".join(f"{key} {' and '.join(sorted(values))}" for key, values in found.items())


def origins(table: pd.DataFrame) -> list[str]:
    """A line on where the runs come from; as many as there are, where they come from several places."""
    places = _places(table)
    if len(places) == 1:
        return [textwrap.fill(f"All runs: {places[0]}.", 118, break_on_hyphens=False)]
    lines = [f"- {_letter(place)}: {origin}" for place, origin in enumerate(places)]
    return ["The runs come from different commits or machines (column `from`):\n\n" + "\n".join(lines)]


def origin_column(table: pd.DataFrame) -> dict[str, list[str]]:
    """`from` -> the letter of each row's place, in `origins`' order; nothing where there is one place."""
    places = _places(table)
    return {"from": [_letter(places.index(place)) for place in table["origin"]]} if len(places) > 1 else {}


def _places(table: pd.DataFrame) -> list[str]:
    return list(dict.fromkeys(table["origin"]))


def _letter(place: int) -> str:
    return chr(ord("A") + place % 26) * (1 + place // 26)
