"""The bench's front page: every processor's headline ratios side by side, and what moved. Reads `<out>/*/` alone."""

from pathlib import Path

import pandas as pd

from replication.analysis.tables import to_markdown
from replication.bench import history
from replication.bench.headlines import HEADLINES, cell
from replication.bench.kind import read_parts
from replication.bench.ratios import Ratio
from replication.system.files import Json, explain_damage, read_json, write_atomically, write_json

FILE = "README.md"  # which a repository's pages show with its folder
TEXT = """
*This against that*: × is that's time ÷ this one's. It is the median over rounds, in which they take turns, and in
brackets are the quartiles of the same; of whole runs, the ratio of their sums, and where half of the ratios of redrawn
steps lie. A layer is the forward and backward pass of GPT-2 small's matrices. –: not measured there. Written by
`make bench`; behind a processor's name are its tables, pictures, memory and history.
""".strip()


def write_page(out: Path) -> str:
    """Write the page of all processors' folders in `out`; returns it.

    Raises:
        DamagedError: a file in them is not as it was written.
    """
    folders = [path.parent for path in sorted(out.glob("*/summary.json")) if read_parts(path.parent)]
    summaries = {folder.name: read_summary(folder) for folder in folders}
    moves = [
        f"- {folder.name}, {sentence}" for folder in folders for sentence in history.find_moved(history.read(folder))
    ]
    page = "\n\n".join(
        [
            "# What sparsity saves on the clock",
            TEXT,
            to_markdown(pd.DataFrame([_where(folder) for folder in folders])),
            side_by_side({name: own for name, own in summaries.items() if own}),
            "## What moved",
            "Against the commit that was measured before, by more than the spread of either.",
            "\n".join(moves) or history.NOTHING,
            *(f"On a GPU: [{path.parent.name}]({path.parent.name}/gpu.md)." for path in sorted(out.glob("*/gpu.json"))),
        ]
    )
    write_atomically(out / FILE, page + "\n")
    return page


def side_by_side(summaries: dict[str, dict[str, Ratio]]) -> str:
    """A line for each headline that some processor has, a column for each processor that has one."""
    rows = [
        {"`make bench` calls it": f"`{name}`"}
        | {kind: cell(name, own[name]) if name in own else "–" for kind, own in summaries.items()}
        | {"what it is": meaning}
        for name, meaning in HEADLINES.items()
        if any(name in own for own in summaries.values())
    ]
    return to_markdown(pd.DataFrame(rows)) if rows else "No headline was measured yet."


def write_summary(folder: Path, headlines: dict[str, Ratio]) -> None:
    """Name -> ratio, and under `spread` name -> [low, high]."""
    ratios = {name: value["ratio"] for name, value in headlines.items()}
    spread = {name: [value["low"], value["high"]] for name, value in headlines.items()}
    write_json(folder / "summary.json", ratios | {"spread": spread})


def read_summary(folder: Path) -> dict[str, Ratio]:
    """Headline -> ratio and spread. Raises DamagedError: it is not as it was written."""
    file = folder / "summary.json"
    summary: Json = read_json(file)
    try:
        spreads = summary["spread"].items()
        return {name: {"ratio": summary[name], "low": low, "high": high} for name, (low, high) in spreads}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise explain_damage(file, "it is no summary") from None


def _where(folder: Path) -> dict[str, str]:
    """Of a processor: what it calls itself, threads, and at which commits its parts were measured."""
    parts = read_parts(folder)
    commits: dict[str, list[str]] = {}
    for name, part in parts.items():
        commits.setdefault(str(part["machine"]["git"]), []).append(name)
    machine = next(part["machine"] for part in parts.values())
    return {
        "kind of processor": f"[{folder.name}]({folder.name}/bench.md)",
        "which": machine["processor"] + (", quick" if machine.get("is_quick") else ""),
        "threads": str(machine["threads"]),
        "measured, at commit": "; ".join(f"{', '.join(names)} {commit}" for commit, names in commits.items()),
    }
