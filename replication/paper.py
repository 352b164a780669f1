"""The fidelity ledger: what is known of the paper, from which source, and where the code uses it (paper.yaml)."""

from collections.abc import Mapping
from importlib import resources
from typing import Any

import yaml
from tabulate import tabulate

from replication.errors import UserError

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
    """Raises UserError, naming the entry: missing or unknown keys, an unknown tag, a result filled in without a source."""
    for section, (needed, optional) in _KEYS.items():
        for entry in ledger[section]:
            name = f"paper.yaml, {section}: {entry.get('fact') or ' '.join(str(entry.get(key)) for key in ('arm', 'quantity', 'model', 'task') if key in entry)}"
            if not needed <= entry.keys() <= needed | optional:
                raise UserError(f"{name} has the keys {', '.join(entry)}; allowed: {', '.join(sorted(needed))}" + (f" and {', '.join(optional)}" if optional else ""))
            tags = entry.get("tags", [])
            if not set(tags) <= set(TAGS):
                raise UserError(f"{name} has the tags {', '.join(tags)}; allowed: {', '.join(TAGS)}")
            if section == "results" and (entry["value"] is None) != (tags == ["ours"]):
                raise UserError(f"{name} is {entry['value']} with the tags {', '.join(tags)}; allowed: null with ours, or a value with its source (pdf)")


def cell(arm: str, quantity: str) -> float | None:
    """The paper's result for an arm of Table 1; None where it is not known."""
    return next((entry["value"] for entry in load()["results"] if (entry["arm"], entry["quantity"]) == (arm, quantity)), None)


def render() -> str:
    """The ledger as Markdown tables: known, derived, ours, and the result cells that wait for someone with the PDF."""
    ledger = load()
    results = [{"fact": f"{entry['arm']}: {entry['quantity']}", "used": ["Table 1, column paper"], **entry} for entry in ledger["results"]]
    groups: dict[str, list[dict[str, Any]]] = {"Known": [], "Derived": [], "Ours: in no source known to us": [], "Not known: fill in from the PDF": []}
    for entry in ledger["facts"] + results:
        groups[_group(entry)].append(entry)
    return "\n\n".join(f"## {title}\n\n{_table(entries)}" for title, entries in groups.items())


def _group(entry: Mapping[str, Any]) -> str:
    if entry["value"] is None:
        return "Not known: fill in from the PDF"
    return {"derived": "Derived", "ours": "Ours: in no source known to us"}.get(entry["tags"][0], "Known")


def _table(entries: list[dict[str, Any]]) -> str:
    rows = [(entry["fact"], _shown(entry["value"]), entry.get("unit", ""), ", ".join(entry["tags"]), ", ".join(entry["used"])) for entry in entries]
    return tabulate(rows, ("fact", "value", "unit", "source", "used"), tablefmt="pipe", disable_numparse=True)


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
