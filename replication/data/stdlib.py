"""The embedded corpus: the text of the running interpreter's own standard library.

Nothing of it is imported but its help topics.
"""

import re
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from replication.system.errors import UserError

_EXCLUDED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "idlelib",
    "site-packages",
    "dist-packages",
    "_bundled",
    "__pycache__",
}
_GENERATED_TABLES = {
    "encodings/aliases.py",
    "html/entities.py",
    "pydoc_data/topics.py",
    "re/_casefix.py",
    "stringprep.py",
}
_CHARACTER_MAP = re.compile(r"^decoding_(table|map) =", re.MULTILINE)


def stdlib_documents() -> Iterator[tuple[str, str]]:
    """(path, text) of every module's source, sorted by path, then of every topic of `pydoc_data.topics`.

    Paths are relative to the library's folder, so that they are the same on every machine. Left out: tests,
    idlelib, bundled packages, generated tables, empty files, and texts that occurred before.

    Raises:
        UserError: this interpreter has no source of its standard library.
    """
    seen = set()
    for path, text in [*_modules(Path(sysconfig.get_path("stdlib"))), *_topics()]:
        if text.strip() and text not in seen:
            seen.add(text)
            yield path, text


def _modules(folder: Path) -> Iterator[tuple[str, str]]:
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*.py")}
    if "os.py" not in files:
        raise UserError(
            f"data.source is stdlib, but {folder} holds no source of Python's standard library; "
            "allowed: an interpreter with it, or data.source=files"
        )
    for path in sorted(files):
        if _is_wanted(path):
            with tokenize.open(files[path]) as file:
                text = file.read()
            if not (path.startswith("encodings/") and _CHARACTER_MAP.search(text)):
                yield path, text


def _is_wanted(path: str) -> bool:
    *folders, name = path.split("/")
    return (
        path not in _GENERATED_TABLES
        and not _EXCLUDED_FOLDERS.intersection(folders)
        and not name.startswith("_sysconfigdata")
    )


def _topics() -> Iterator[tuple[str, str]]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield f"pydoc_data/topics/{name}", topics[name].strip() + "\n"
