"""The evaluation sets of the embedded corpus, as local files that eval/tasks' tasks read. No model trains on them."""

import ast
import hashlib
import importlib.util
import inspect
import json
import platform
import re
import warnings
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from replication.config.fields import DataConfig
from replication.data.stdlib import stdlib_documents
from replication.system.errors import DamagedError, UserError
from replication.system.files import read_json, sha256, write_atomically, write_json

_VERSION = 2  # of the selection below: sets of another one are made anew
_TEST_FRACTION = DataConfig.test_fraction
_DEPENDENCIES = ("numpy", "pandas", "torch", "transformers")
_SET_CHARACTERS = 60_000
_DOCUMENT_CHARACTERS = 10_000
_LASTWORD_ITEMS = 500
_CONTEXT_WORDS = 60
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PLAIN_SENTENCE = re.compile(r"[A-Z][\w ,;:.'\"()*/\-]+ [A-Za-z]{3,}\.")


def write_evaluation_sets(config: DataConfig | None, data_dir: Path | str) -> Path:
    """The folder `data_dir/eval` with one `<task>.jsonl` per task, rows `{"text"}`; made in seconds where it is not
    there, or comes from another Python or other dependencies.

    `embedded_code`, `embedded_prose` and `embedded_lastword` are of the standard library's test split, the same
    whatever the corpus, and `embedded_dependencies` is of installed packages, which are read and never imported.

    Args:
        config: of the corpus that the models to be scored were trained on; None: that is not known.

    Raises:
        UserError: the corpus is the standard library with a smaller test split, so that it trains on these texts.
    """
    if config and config.source == "stdlib" and config.test_fraction < _TEST_FRACTION:
        raise UserError(
            f"data.test_fraction is {config.test_fraction}; allowed: at least {_TEST_FRACTION} "
            "where data.source is stdlib, as the evaluation sets are of that share"
        )
    folder = Path(data_dir) / "eval"
    facts = {
        "version": _VERSION,
        "python": platform.python_version(),
        "dependencies": {name: version(name) for name in _DEPENDENCIES},
    }
    if not _is_written(folder, facts):
        sets = _evaluation_sets()
        for task, texts in sets.items():
            write_atomically(folder / f"{task}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts))
        sizes = {
            task: {
                "documents": len(texts),
                "characters": sum(map(len, texts)),
                "sha256": sha256(folder / f"{task}.jsonl"),
            }
            for task, texts in sets.items()
        }
        write_json(folder / "manifest.json", {"facts": facts, "sets": sizes})
    return folder


def _is_written(folder: Path, facts: dict) -> bool:
    """Are the sets there as they were made? Else they are made anew, from the same sources."""
    try:
        manifest = read_json(folder / "manifest.json")
        sums = {task: entry["sha256"] for task, entry in manifest["sets"].items()}
        return manifest["facts"] == facts and all(
            sha256(folder / f"{task}.jsonl") == digest for task, digest in sums.items()
        )
    except (DamagedError, KeyError, TypeError, AttributeError):  # or not there
        return False


def _evaluation_sets() -> dict[str, list[str]]:
    from replication.data.corpus import split_of  # imports `datasets`, a second that a second call need not wait

    held_out = [(path, text) for path, text in stdlib_documents() if split_of(path, 0, _TEST_FRACTION) == "test"]
    modules = [text for path, text in held_out if path.endswith(".py")]
    topics = [text for path, text in held_out if not path.endswith(".py")]
    prose = [*map(_prose, modules), *topics]
    return {
        "embedded_lastword": _spread([item for text in prose for item in lastword_items(text)], _LASTWORD_ITEMS),
        "embedded_code": _sample(map(_code, modules), _SET_CHARACTERS),
        "embedded_prose": _sample(prose, _SET_CHARACTERS),
        "embedded_dependencies": [
            text
            for name in _DEPENDENCIES
            for text in _sample(_dependency_prose(name), _SET_CHARACTERS // len(_DEPENDENCIES))
        ],
    }


def lastword_items(text: str) -> Iterator[str]:
    """LAMBADA's form: a plain sentence without its full stop, after the words before it in the same text.

    The last word is alphabetic, of three letters at least; sentence and context have 15 words at least together.
    """
    context: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text):
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            words = sentence.split()
            item = [*context[-_CONTEXT_WORDS:], *words]
            if len(words) >= 5 and len(item) >= 15 and _PLAIN_SENTENCE.fullmatch(sentence):
                yield " ".join(item).removesuffix(".")
            context += words


def _docstrings(source: str) -> list[ast.Constant]:
    """The docstrings' nodes, in the order of the source; a file that does not parse has none."""
    try:
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except SyntaxError:
        return []
    bodies = (
        node.body
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    )
    firsts = (body[0].value for body in bodies if body and isinstance(body[0], ast.Expr))
    return sorted(
        (node for node in firsts if isinstance(node, ast.Constant) and isinstance(node.value, str)),
        key=lambda node: node.lineno,
    )


def _prose(source: str) -> str:
    return "\n\n".join(inspect.cleandoc(str(node.value)) for node in _docstrings(source))


def _code(source: str) -> str:
    lines = source.splitlines(keepends=True)
    for node in _docstrings(source):
        end = node.end_lineno or node.lineno
        lines[node.lineno - 1 : end] = [""] * (end - node.lineno + 1)
    return "".join(lines)


def _dependency_prose(name: str) -> Iterator[str]:
    """Each module's docstrings, in an order by hash, so that a few modules stand for all."""
    spec: Any = importlib.util.find_spec(name)  # of a package that is installed
    root = Path(spec.origin).parent
    files = {file.relative_to(root).as_posix(): file for file in root.rglob("*.py") if "tests" not in file.parts}
    for path in sorted(files, key=lambda path: hashlib.sha256(path.encode()).digest()):
        yield _prose(files[path].read_text(encoding="utf-8"))


def _sample(texts: Iterable[str], characters: int) -> list[str]:
    """Texts of 200 characters at least, each cut to its first lines, until they have `characters` together."""
    sample, total = [], 0
    for text in filter(lambda text: len(text) >= 200, texts):
        head = text[: min(_DOCUMENT_CHARACTERS, characters - total)]
        sample.append(head if len(head) == len(text) else head[: head.rfind("\n") + 1] or head)
        total += len(sample[-1])
        if characters - total < 200:
            break
    return sample


def _spread(items: list[str], num: int) -> list[str]:
    """At most `num` items, evenly spaced."""
    return [items[index * len(items) // num] for index in range(num)] if len(items) > num else items
