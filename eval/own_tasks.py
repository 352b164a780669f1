"""What a user's own lm-eval task is: its rows, its YAML with what that includes, and the code that it calls."""

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from replication.plugins import beside

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

# Keys that say where rows are, which are read themselves: their folder may move.
PLACES = {"dataset_path", "dataset_name", "dataset_kwargs", "include"}
_FUNCTION = re.compile(r"!function\s+([\w.]+)\.\w+")


class Loader(yaml.SafeLoader):
    """Knows lm-eval's tags, such as !function, and what they mean not."""


Loader.add_multi_constructor("!", lambda loader, tag, node: None)


def digest_of_task(manager: "TaskManager", name: str) -> str | None:
    """sha256 of all that a task is; None: it is a group or a tag, whose tasks are scored each for itself.

    Args:
        manager: lm-eval's index, which has the name.
    """
    entry = manager.task_index[name]
    if entry.kind.name not in ("TASK", "PY_TASK") or entry.yaml_path is None:
        return None
    with contextlib.redirect_stderr(io.StringIO()):  # of the libraries that load it
        (task,) = manager.load([name])["tasks"].values()
    files = list(dict.fromkeys(_files(entry.yaml_path)))
    code = {module: hashlib.sha256(module.read_bytes()).hexdigest() for file in files for module in _modules(file)}
    kept = {key: value for key, value in (entry.cfg or {}).items() if key not in PLACES}
    said = json.dumps(kept, sort_keys=True, default=name_functions)
    for file in files:  # lm-eval says of a function in which folder it lies
        said = said.replace(str(file.parent), "")
    whole = [said, {split: list(rows) for split, rows in _splits(task).items()}, sorted(code.values())]
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=name_functions).encode()).hexdigest()


def name_functions(value: Any) -> str:
    """A function goes by its name, as its code is hashed apart; its own text would say where it lies in memory."""
    return getattr(value, "__qualname__", None) or str(value)


def _splits(task: Any) -> dict[str, Any]:
    """Of a task that is a class of the user's own perhaps none."""
    return dict(getattr(task, "dataset", None) or {})


def _files(file: Path) -> Iterator[Path]:
    """A task's YAML, and those that it includes."""
    yield file
    included = (yaml.load(file.read_text(encoding="utf-8"), Loader) or {}).get("include") or []
    for name in [included] if isinstance(included, str) else included:
        if (below := file.parent / name).is_file():
            yield from _files(below)


def _modules(file: Path) -> Iterator[Path]:
    """The Python files beside a task's YAML that it calls functions of, and those beside them that they import."""
    for name in dict.fromkeys(_FUNCTION.findall(file.read_text(encoding="utf-8"))):
        if (module := file.parent.joinpath(*name.split(".")).with_suffix(".py")).is_file():
            yield from beside(module)
