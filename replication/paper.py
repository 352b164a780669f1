"""The fidelity record: what is known of the paper, from which source, and where the code uses it (paper.yaml)."""

from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

import yaml
from tabulate import tabulate

from replication.system.errors import UserError

ARMS = ("dense", "static", "rigl", "mst")  # of the paper's tables, as far as they are known (tmlr)
TAGS = ("abstract", "readme", "code", "tmlr", "derived", "pdf", "ours")
_KEYS = {
    "facts": ({"fact", "value", "tags", "used"}, {"unit"}),
    "results": ({"arm", "quantity", "value", "tags"}, {"unit"}),
    "references": ({"model", "task", "metric", "value", "tolerance", "source"}, set()),
}


def load() -> dict[str, list[dict[str, Any]]]:
    """paper.yaml, checked: `facts`, `results` and `references`.

    Raises:
        UserError: as of `check`.
    """
    ledger = yaml.safe_load(resources.files("replication").joinpath("paper.yaml").read_text(encoding="utf-8"))
    check(ledger)
    return ledger


def check(ledger: Mapping[str, list[dict[str, Any]]]) -> None:
    """Check what `load` loads.

    Raises:
        UserError: unknown sections, keys, tags or arms, a result without a source, not a number or given twice; it
            names the entry.
    """
    if set(ledger) != set(_KEYS):
        raise UserError(f"paper.yaml has the sections {', '.join(ledger)}; allowed: {', '.join(_KEYS)}")
    for section, (needed, optional) in _KEYS.items():
        for entry in ledger[section]:
            name = _name(section, entry)
            if not needed <= entry.keys() <= needed | optional:
                raise UserError(
                    f"{name} has the keys {', '.join(entry)}; allowed: {', '.join(sorted(needed))}"
                    + (f" and {', '.join(optional)}" if optional else "")
                )
            tags = entry.get("tags")
            if "tags" in needed and not (isinstance(tags, list) and tags and set(tags) <= set(TAGS)):
                raise UserError(f"{name} has the tags {tags}; allowed: a list of one or more of {', '.join(TAGS)}")
            if section == "results":
                _check_result(name, entry)
        _check_unique([_name(section, entry) for entry in ledger[section]])


def _name(section: str, entry: Mapping[str, Any]) -> str:
    keys = {"facts": ("fact",), "results": ("arm", "quantity"), "references": ("model", "task", "metric")}[section]
    return f"paper.yaml, {section}: {' '.join(str(entry.get(key)) for key in keys)}"


def _check_unique(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{name} is given {names.count(name)} times; allowed: once")


def _check_result(name: str, entry: Mapping[str, Any]) -> None:
    value, is_ours = entry["value"], "ours" in entry["tags"]
    if entry["arm"] not in ARMS:
        raise UserError(f"{name} has the arm {entry['arm']}; allowed: {', '.join(ARMS)}")
    if not (value is None or (isinstance(value, int | float) and not isinstance(value, bool))):
        raise UserError(f"{name} is {value!r}; allowed: null or a number")
    if (value is None) != is_ours:
        raise UserError(
            f"{name} is {value} with the tags {', '.join(entry['tags'])}; "
            "allowed: null with ours, or a value with its source (pdf)"
        )


def cell(arm: str, quantity: str) -> float | None:
    """The paper's result for an arm of Table 1; None where it is not known."""
    return _cells().get((arm, quantity))


@cache
def _cells() -> dict[tuple[str, str], float | None]:
    return {(entry["arm"], entry["quantity"]): entry["value"] for entry in load()["results"]}


def groups() -> dict[str, list[dict[str, Any]]]:
    """Known, derived, ours, and the result cells that wait for someone with the PDF -> their entries, in words: fact,
    value, unit, source and used."""
    ledger = load()
    results = [
        {"fact": f"{entry['arm']}: {entry['quantity']}", "used": ["Table 1, column paper"], **entry}
        for entry in ledger["results"]
    ]
    found: dict[str, list[dict[str, Any]]] = {
        "Known": [],
        "Derived": [],
        "Ours: in no source known to us": [],
        "Not known: fill in from the PDF": [],
    }
    for entry in ledger["facts"] + results:
        found[_group(entry)].append(
            {
                "fact": entry["fact"],
                "value": _show(entry["value"]),
                "unit": entry.get("unit", ""),
                "source": ", ".join(entry["tags"]),
                "used": ", ".join(entry["used"]),
            }
        )
    return found


def render() -> str:
    """`groups` as Markdown tables."""
    return "\n\n".join(f"## {title}\n\n{_table(entries)}" for title, entries in groups().items())


def _group(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "Not known: fill in from the PDF"
    return {"derived": "Derived", "ours": "Ours: in no source known to us"}.get(entry["tags"][0], "Known")


def _table(entries: list[dict[str, Any]]) -> str:
    rows = [tuple(text.replace("|", r"\|") for text in entry.values()) for entry in entries]
    return tabulate(rows, ("fact", "value", "unit", "source", "used"), tablefmt="pipe", disable_numparse=True)


def _show(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
