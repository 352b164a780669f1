"""From a source of text to train, validation and test documents."""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
from datasets import load_dataset

from replication.config.fields import DataConfig
from replication.data.readers import END_OF_TEXT, ENDINGS, LONGEST, UnreadableError, documents, is_blank, too_long
from replication.data.stdlib import stdlib_documents
from replication.system.errors import UserError
from replication.system.files import real_path, sha256

SPLITS = ("train", "validation", "test")


class Document(NamedTuple):
    """Its identity is its path in the standard library, its file's name and its index there, or its index in the hub's
    split; blank documents are none, and have no index."""

    split: str
    identity: str
    text: str


def read_corpus(config: DataConfig, size: int | None = None) -> Iterator[Document]:
    """The documents of all splits, one after another, always in the same order; none is kept.

    A document's split is a hash of its identity; or, by `size`, its place in the text.

    Args:
        size: what `size_of_few` says.

    Raises:
        UserError: a file that is missing, empty, not UTF-8, of an unsupported ending or without the text column;
            an unreachable hub.
    """
    if config.validation_files:
        _check_apart(config)
        for identity, text in _files("data.files", config.files, config.text_column):
            yield Document("train", identity, text)
    documents = _divide(config)
    yield from (
        _split(documents, *_shares(config)) if size is None else _split_by_size(documents, *_shares(config), size)
    )


def size_of_few(config: DataConfig) -> int | None:
    """Characters of the documents that are divided into splits, where these are too few to be divided by hash: less
    than one to be expected in a split, or none there (ours). None: they are enough, and were not read to their end.

    Raises:
        UserError: as `read_corpus`.
    """
    if config.source == "stdlib":
        return None
    wanted = {"validation", "test"} if config.validation_files else set(SPLITS)
    found, number, size = set(), 0, 0
    for document in _split(_divide(config), *_shares(config)):
        found.add(document.split)
        number, size = number + 1, size + len(document.text)
        if found >= wanted and number * min(_shares(config)) >= 1:
            return None
    return size


def describe_few(config: DataConfig, size: int) -> str:
    """How so few documents are divided, in a line."""
    shares = " and ".join(f"{share:.4g}" for share in _shares(config))
    where = "data.validation_files" if config.validation_files else "the text"
    return (
        f"data: too few documents to be held out whole (in a text file, a line {END_OF_TEXT} ends each): the last "
        f"{shares} of {where}'s {size:,} characters are the validation and the test split"
    )


def remarks(config: DataConfig) -> list[str]:
    """What is to be said of local files before they are prepared, as far as they can be read."""
    try:
        size = size_of_few(config)
    except UserError:  # preparing them says what is wrong
        return []
    return [] if size is None else [describe_few(config, size)]


def _divide(config: DataConfig) -> Iterator[tuple[str, str]]:
    """Identity and text of the documents that are divided into splits."""
    if config.source == "stdlib":
        return iter(stdlib_documents())
    if config.source == "hub":
        return _number(config.hub_name or "", _hub_texts(config))
    if config.validation_files:
        return _files("data.validation_files", config.validation_files, config.text_column)
    return _files("data.files", config.files, config.text_column)


def _shares(config: DataConfig) -> tuple[float, float]:
    """Of what is divided, for validation and test."""
    return (0.5, 0.5) if config.validation_files else (config.validation_fraction, config.test_fraction)


def _check_apart(config: DataConfig) -> None:
    """Raises UserError where a file is given for training and for validation, under whichever name."""
    for held_out in config.validation_files:
        for file in config.files:
            if _is_same(Path(file), Path(held_out)):
                raise UserError(
                    f"data.validation_files: {held_out} is the training file {file}; "
                    "allowed: files that are not trained on"
                )


def _is_same(a: Path, b: Path) -> bool:
    if not (a.is_file() and b.is_file()):  # what is wrong with them is said when they are read
        return False
    return a.samefile(b) or (a.stat().st_size == b.stat().st_size > 0 and sha256(a) == sha256(b))


def split_of(identity: str, validation_fraction: float, test_fraction: float) -> str:
    """The side that a document is on, from the sha256 of its identity alone (ours)."""
    share = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
    if share < test_fraction:
        return "test"
    return "validation" if share < test_fraction + validation_fraction else "train"


def _split(
    documents: Iterable[tuple[str, str]], validation_fraction: float, test_fraction: float
) -> Iterator[Document]:
    for identity, text in documents:
        yield Document(split_of(identity, validation_fraction, test_fraction), identity, text)


def _split_by_size(
    documents: Iterable[tuple[str, str]], validation_fraction: float, test_fraction: float, size: int
) -> Iterator[Document]:
    """The text's last characters are held out; where an end of a split falls within a document, that is cut in two."""
    test = size - round(size * test_fraction)
    starts = {"train": 0, "validation": test - round(size * validation_fraction), "test": test}
    start = 0
    for identity, text in documents:
        for (split, first), end in zip(starts.items(), (starts["validation"], test, size)):
            part = text[max(0, first - start) : max(0, end - start)]
            if not is_blank(part):
                yield Document(split, identity, part)
        start += len(text)


def no_documents(config: DataConfig, split: str, counts: dict[str, int]) -> str:
    """What is wrong where a split has none of the documents, of which each has `counts`."""
    key = "data.validation_files" if config.validation_files and split != "train" else f"data.{config.source}"
    return (
        f"{key} leaves the {split} split without documents ({sum(counts.values())} in all); allowed: more documents "
        f"(in a text file, a line {END_OF_TEXT} ends each), or other data.validation_fraction and data.test_fraction"
    )


def _hub_texts(config: DataConfig) -> Iterator[str]:
    """Of a data set of the hub, as a stream; without a network, of the copy that an earlier download left."""
    name, column = config.hub_name, config.text_column
    try:
        streamed = not datasets.config.HF_HUB_OFFLINE
        rows = iter(load_dataset(name, config.hub_config, split=config.hub_split, streaming=streamed))
        row = next(rows, None)
        while row is not None:
            if column not in row:
                raise UserError(
                    f"data.hub_name={name} has no column data.text_column={column}; allowed: {', '.join(row)}"
                )
            if not isinstance(row[column], str):
                kind = "null" if row[column] is None else type(row[column]).__name__
                raise UserError(
                    f"data.hub_name={name}: data.text_column={column} holds {kind}; allowed: a string in each row"
                )
            if len(row[column]) > LONGEST:
                raise UserError(f"data.hub_name={name} {too_long('a row')}; allowed: shorter documents")
            if not is_blank(row[column]):
                yield row[column]
            row = next(rows, None)
    except UserError:
        raise
    except Exception as error:  # the hub's failures have no common class
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"data.hub_name={name} (data.hub_config={config.hub_config}, data.hub_split={config.hub_split}) "
            f"cannot be loaded: {reason}; allowed: a data set that the hub serves, or local files with "
            f"data.source=files data.files=[…] ({', '.join(ENDINGS)})"
        ) from None


def _files(key: str, files: tuple[str, ...], column: str) -> Iterator[tuple[str, str]]:
    for file in files:
        _check_file(f"{key}: {file}", Path(file))
    for file in files:
        yield from _number(real_path(file).name, _file_texts(f"{key}: {file}", Path(file), column))


def _number(name: str, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
    for index, text in enumerate(texts):
        yield f"{name}:{index}", text


def _check_file(what: str, file: Path) -> None:
    if not file.is_file():
        raise UserError(f"{what} does not exist or is not a file; allowed: existing files")
    if not file.name.endswith(ENDINGS):
        raise UserError(f"{what} has an unsupported ending; allowed: {', '.join(ENDINGS)}")


def _file_texts(what: str, file: Path, column: str) -> Iterator[str]:
    is_empty = True
    try:
        for text in documents(real_path(file), column):
            is_empty = False
            yield text
    except UnreadableError as error:
        raise UserError(f"{what} {error}; allowed: {', '.join(ENDINGS)} in UTF-8, with a string in each row") from None
    if is_empty:
        raise UserError(f"{what} is empty; allowed: files with text")
