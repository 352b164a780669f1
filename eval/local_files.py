"""The paper's evaluation sets from the files that their sources distribute, checked and made into what tasks read."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replication.config.keys import check_known
from replication.eval.tasks import utils
from replication.system.errors import UserError
from replication.system.files import write_atomically

Rows = list[dict[str, Any]]

# GLUE subtask -> columns of its TSV files as {hub's name: file's name}, and labels as the files write them, in the
# hub's order.
_GLUE: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "cola": ({"sentence": "sentence", "label": "label"}, ("0", "1")),
    "mnli": (
        {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
        ("entailment", "neutral", "contradiction"),
    ),
    "mrpc": ({"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"}, ("0", "1")),
    "qnli": ({"question": "question", "sentence": "sentence", "label": "label"}, ("entailment", "not_entailment")),
    "qqp": ({"question1": "question1", "question2": "question2", "label": "is_duplicate"}, ("0", "1")),
    "rte": ({"sentence1": "sentence1", "sentence2": "sentence2", "label": "label"}, ("entailment", "not_entailment")),
    "sst2": ({"sentence": "sentence", "label": "label"}, ("0", "1")),
    "wnli": ({"sentence1": "sentence1", "sentence2": "sentence2", "label": "label"}, ("0", "1")),
}
_COLA_HEADER = ["source", "label", "note", "sentence"]  # CoLA's files alone have none


def import_file(task: str, path: Path, data_dir: Path) -> Path:
    """Read a task's local file and write the rows that the task reads: `<data_dir>/eval/<task>.jsonl`.

    Args:
        task: one of the paper's tasks, or `blimp_pairs`.
        path: the file as its source distributes it (eval/README.md), for GLUE the folder with train.tsv and dev.tsv
            (MNLI: dev_matched.tsv), or train.jsonl and validation.jsonl.

    Returns:
        What was written.

    Raises:
        UserError: no such task, a file that is missing, empty, not UTF-8 or of another shape. Nothing is written then.
    """
    check_known("--eval-file", task, [*utils.HUB, "blimp_pairs"])
    rows = _glue(task, path) if task.startswith("paper_glue_") else _READERS[task](task, path)
    out = data_dir / "eval" / f"{task}.jsonl"
    write_atomically(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return out


def _lambada(task: str, path: Path) -> Rows:
    rows, allowed = [], '{"text": "…"} on each line'
    for number, row in enumerate(_objects(task, path, allowed), 1):
        text = row.get("text")
        # as the task cuts off its last word
        if not isinstance(text, str) or not all(part.strip() for part in text.rpartition(" ")[::2]):
            problem = f"line {number} has no text of two words or more, the last one at its end"
            raise _wrong(task, path, problem, allowed)
        rows.append({"text": text})
    return rows


def _blimp(task: str, path: Path) -> Rows:
    """Its authors' 67 files in one; `syntax/semantics` is their other name of the field `syntax_semantics`."""
    keys = ("UID", "linguistics_term", "field", "sentence_good", "sentence_bad")
    rows, allowed = [], f"{{{', '.join(keys)}}} as text on each line, as in BLiMP's .jsonl files"
    for number, row in enumerate(_objects(task, path, allowed), 1):
        if not all(isinstance(row.get(key), str) and row[key].strip() for key in keys):
            raise _wrong(task, path, f"line {number} lacks one of them", allowed)
        rows.append({key: row[key] for key in keys} | {"field": row["field"].replace("/", "_")})
    return rows


def _wikitext(task: str, path: Path) -> Rows:
    lines = _text(task, path).split("\n")
    pages = list(utils.articles(lines))
    if not any(re.fullmatch(r"\s*= [^=].* =\s*", line) for line in lines):
        allowed = "WikiText's test file, with a heading ' = Title = ' before each article"
        raise _wrong(task, path, "it has no heading", allowed)
    return pages


def _ptb(task: str, path: Path) -> Rows:
    return utils.joined(_sentences(task, path))


def _lm1b(task: str, path: Path) -> Rows:
    return utils.apart(_sentences(task, path))


_READERS: dict[str, Callable[[str, Path], Rows]] = {
    "paper_lambada": _lambada,
    "paper_wikitext2": _wikitext,
    "paper_wikitext103": _wikitext,
    "paper_ptb": _ptb,
    "paper_lm1b": _lm1b,
    "blimp_pairs": _blimp,
}


def _sentences(task: str, path: Path) -> list[str]:
    lines = _lines(task, path)
    for number, line in enumerate(lines, 1):
        if "\t" in line or _is_json(line):
            raise _wrong(task, path, f"line {number} has columns or is JSON", "plain text, a sentence on each line")
    if all(" " not in line.strip() for line in lines):
        raise _wrong(task, path, "no line has two words", "plain text, a sentence on each line")
    return lines


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except json.JSONDecodeError:
        return False


def _glue(task: str, folder: Path) -> Rows:
    dev = "dev_matched.tsv" if task == "paper_glue_mnli" else "dev.tsv"
    if not folder.is_dir():
        allowed = f"a folder with GLUE's train.tsv and {dev}, or the hub's rows in train.jsonl and validation.jsonl"
        raise _wrong(task, folder, "it is no folder", allowed)
    files = (
        {"train": "train.jsonl", "validation": "validation.jsonl"}
        if (folder / "train.jsonl").is_file()
        else {"train": "train.tsv", "validation": dev}
    )
    return [
        row | {"split": split}
        for split, name in files.items()
        for row in (_tsv if name.endswith(".tsv") else _hub_jsonl)(task, folder / name)
    ]


def _hub_jsonl(task: str, path: Path) -> Rows:
    columns, labels = _GLUE[task.removeprefix("paper_glue_")]
    allowed = f"the hub's fields {', '.join(columns)}: strings, and a label of 0 to {len(labels) - 1}"
    rows = []
    for number, row in enumerate(_objects(task, path, allowed), 1):
        if not all(type(row.get(name)) is (int if name == "label" else str) for name in columns):
            raise _wrong(task, path, f"line {number} lacks a field, or one has another type", allowed)
        if row["label"] not in range(len(labels)):
            raise _wrong(task, path, f"line {number} has the label {row['label']}", allowed)
        rows.append({name: row[name] for name in columns})
    return rows


def _tsv(task: str, path: Path) -> Rows:
    columns, labels = _GLUE[task.removeprefix("paper_glue_")]
    lines = [line.split("\t") for line in _lines(task, path)]  # GLUE quotes nothing
    header = _COLA_HEADER if task == "paper_glue_cola" else lines.pop(0)
    missing = [column for column in columns.values() if column not in header]
    if missing:
        allowed = f"GLUE's columns {', '.join(columns.values())}"
        raise _wrong(task, path, f"its header lacks {', '.join(missing)}", allowed)
    if not lines:
        raise _wrong(task, path, "it has no rows", "GLUE's own file")
    rows = []
    for number, cells in enumerate(lines, 1):
        if len(cells) != len(header):
            raise _wrong(task, path, f"row {number} has {len(cells)} cells", f"{len(header)}, separated by tabs")
        row: dict[str, Any] = {name: cells[header.index(column)] for name, column in columns.items()}
        if row["label"] not in labels:
            raise _wrong(task, path, f"row {number} has the label {row['label']!r}", ", ".join(labels))
        rows.append(row | {"label": labels.index(row["label"])})
    return rows


def _objects(task: str, path: Path, allowed: str) -> Rows:
    rows = []
    for number, line in enumerate(_lines(task, path), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise _wrong(task, path, f"line {number} is no JSON", allowed) from None
        if not isinstance(rows[-1], dict):
            raise _wrong(task, path, f"line {number} is no JSON object", allowed)
    return rows


def _lines(task: str, path: Path) -> list[str]:
    return [line for line in _text(task, path).split("\n") if line.strip()]


def _text(task: str, path: Path) -> str:
    if not path.is_file():
        raise _wrong(task, path, "it does not exist or is no file", "an existing file")
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = raw.decode("utf-8-sig")
    except (OSError, EOFError) as error:
        raise _wrong(task, path, f"it is no gzip file ({error})", "one that gunzip reads") from None
    except UnicodeDecodeError:
        raise _wrong(task, path, "it is not UTF-8", "text in UTF-8") from None
    if not text.strip():
        raise _wrong(task, path, "it is empty", "a file with text")
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as Python opens a text file


def _wrong(task: str, path: Path, problem: str, allowed: str) -> UserError:
    return UserError(f"--eval-file {task}={path}: {problem}; allowed: {allowed}")
