"""From a source of text to train, validation and test documents, through `datasets`."""

import gzip
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetGenerationError

from replication.config import DataConfig
from replication.data.stdlib import stdlib_documents
from replication.data.tokenizer import END_OF_TEXT
from replication.errors import UserError

SPLITS = ("train", "validation", "test")
_ENDINGS = (".txt", ".txt.gz", ".jsonl", ".parquet")


def load_corpus(config: DataConfig) -> DatasetDict:
    """The corpus as splits train, validation, test with columns `path` (a document's identity) and `text`.

    A document's split is a hash of its identity: its path in the standard library, its file's name and its
    index there, or its index in the hub's split.

    Raises:
        UserError: a file that is missing, empty, not UTF-8, of an unsupported ending or without the text column;
            an unreachable hub; a split without documents.
    """
    held_out = config.validation_fraction, config.test_fraction
    if config.source == "stdlib":
        paths, texts = zip(*stdlib_documents())
        corpus = _split(Dataset.from_dict({"path": paths, "text": texts}), *held_out)
    elif config.source == "hub":
        corpus = _split(_load_hub(config), *held_out)
    elif config.validation_files:
        halves = _split(_load_files("data.validation_files", config.validation_files, config.text_column), 0.5, 0.5)
        corpus = {**halves, "train": _load_files("data.files", config.files, config.text_column)}
    else:
        corpus = _split(_load_files("data.files", config.files, config.text_column), *held_out)
    for split in SPLITS:
        if not len(corpus[split]):
            raise UserError(_no_documents(config, split, {name: len(part) for name, part in corpus.items()}))
    return DatasetDict({split: corpus[split] for split in SPLITS})


def split_of(identity: str, validation_fraction: float, test_fraction: float) -> str:
    """The side that a document is on, from the sha256 of its identity alone (ours)."""
    share = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
    if share < test_fraction:
        return "test"
    return "validation" if share < test_fraction + validation_fraction else "train"


def _split(documents: Dataset, validation_fraction: float, test_fraction: float) -> dict[str, Dataset]:
    rows = {split: [] for split in SPLITS}
    for index, path in enumerate(documents["path"]):
        rows[split_of(path, validation_fraction, test_fraction)].append(index)
    return {split: documents.select(indices) for split, indices in rows.items()}


def _no_documents(config: DataConfig, split: str, counts: dict[str, int]) -> str:
    key = "data.validation_files" if config.validation_files and split != "train" else f"data.{config.source}"
    return (
        f"{key} leaves the {split} split without documents ({sum(counts.values())} in all); allowed: more documents "
        f"(in a text file, a line {END_OF_TEXT} ends each), or other data.validation_fraction and data.test_fraction"
    )


def _load_hub(config: DataConfig) -> Dataset:
    name = config.hub_name
    try:
        rows = load_dataset(name, config.hub_config, split=config.hub_split)
    except Exception as error:  # the hub's failures have no common class: connection, HTTP, offline mode, unknown name, config or split
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"data.hub_name={name} (data.hub_config={config.hub_config}, data.hub_split={config.hub_split}) cannot be loaded: {reason}; "
            f"allowed: a data set that the hub serves, or local files with data.source=files data.files=[…] ({', '.join(_ENDINGS)})"
        ) from None
    return _with_paths(rows, f"data.hub_name={name}", name, config.text_column)


def _load_files(key: str, files: tuple[str, ...], column: str) -> Dataset:
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what is wrong with a file, our one line says
    return concatenate_datasets([_load_file(f"{key}: {file}", Path(file), column) for file in files])


def _load_file(what: str, file: Path, column: str) -> Dataset:
    if not file.is_file():
        raise UserError(f"{what} does not exist or is not a file; allowed: existing files")
    if not file.name.endswith(_ENDINGS):
        raise UserError(f"{what} has an unsupported ending; allowed: {', '.join(_ENDINGS)}")
    if file.stat().st_size == 0:
        raise UserError(f"{what} is empty; allowed: files with text")
    try:
        documents = _with_paths(_read(file), what, file.name, "text" if file.name.endswith((".txt", ".txt.gz")) else column)
        documents.data.column("text").validate(full=True)  # .jsonl and .parquet are not decoded before
        return documents
    except (DatasetGenerationError, OSError, ValueError) as error:
        raise UserError(f"{what} {_problem(error.__cause__ or error)}; allowed: {', '.join(_ENDINGS)} in UTF-8, with text") from None


def _problem(error: BaseException) -> str:
    reason = str(error).strip().partition("\n")[0]
    if "corresponds to no data" in reason:
        return "is empty"
    return "is not UTF-8" if re.search("utf-?8", reason, re.IGNORECASE) else f"cannot be read: {reason}"


def _read(file: Path) -> Dataset:
    if file.suffix == ".parquet":
        return load_dataset("parquet", data_files=str(file), split="train")
    if file.suffix == ".jsonl":
        return load_dataset("json", data_files=str(file), split="train")
    # `datasets` caches by arguments: size and time make a changed file a new one
    stat = file.stat()
    arguments = {"file": str(file), "version": (stat.st_size, stat.st_mtime_ns)}
    return Dataset.from_generator(_text_documents, datasets.Features({"text": datasets.Value("string")}), gen_kwargs=arguments)


def _text_documents(file: str, version: tuple[int, int]) -> Iterator[dict[str, Any]]:
    opener = gzip.open if file.endswith(".gz") else open
    with opener(file, "rt", encoding="utf-8") as lines:
        document = []
        for line in lines:
            if line.strip() != END_OF_TEXT:
                document.append(line)
                continue
            if "".join(document).strip():
                yield {"text": "".join(document)}
            document = []
    if "".join(document).strip():
        yield {"text": "".join(document)}


def _with_paths(rows: Dataset, what: str, name: str, column: str) -> Dataset:
    """`rows` reduced to `text` and the documents' identities; no text is copied."""
    if column not in rows.column_names:
        raise UserError(f"{what} has no column data.text_column={column}; allowed: {', '.join(rows.column_names)}")
    texts = rows.select_columns([column])
    kind, missing = getattr(texts.features[column], "dtype", "structures"), texts.data.column(column).null_count
    if kind not in ("string", "large_string") or missing:
        raise UserError(f"{what}: data.text_column={column} holds {kind}, with {missing} rows empty; allowed: a string in each row")
    if column != "text":
        texts = texts.rename_column(column, "text")
    return texts.add_column("path", [f"{name}:{index}" for index in range(len(texts))])
