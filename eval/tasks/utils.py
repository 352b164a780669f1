"""Where the embedded tasks find their text; lm-eval loads this file by its path, so it imports nothing of the project."""

import json
import os
from pathlib import Path
from typing import Any

import datasets


def evaluation_set(name: str, **_: Any) -> dict[str, datasets.Dataset]:
    """{"test": rows {"text"}} of `$REPLICATION_DATA/eval/<name>.jsonl`, by default under `data/` of the repository.

    Raises:
        SystemExit: with one line, where the file is missing, as lm-eval's own command shows it.
    """
    folder = Path(os.environ.get("REPLICATION_DATA") or Path(__file__).parents[2] / "data")
    file = folder / "eval" / f"{name}.jsonl"
    if not file.is_file():
        raise SystemExit(f"error: {name} has no evaluation set {file}; run `python -m replication data` first, or set REPLICATION_DATA to its data folder")
    with file.open(encoding="utf-8") as lines:
        return {"test": datasets.Dataset.from_list(list(map(json.loads, lines)))}
