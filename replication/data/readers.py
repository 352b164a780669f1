"""Documents from files of text, one after another, the same whatever the file's format."""

import gzip
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from replication.data.tokenizer import END_OF_TEXT

ENDINGS = (".txt", ".txt.gz", ".jsonl", ".parquet")
LONGEST = 2**27  # characters of a document, and bytes of a row (ours): what is held in memory stays bounded
_ROWS = 1024  # of a Parquet file at a time, at most


class UnreadableError(ValueError):
    """What is wrong with a file, as the rest of a sentence that begins with its name."""


def documents(file: Path, column: str) -> Iterator[str]:
    """The documents of a file: in text what lies between lines `<|endoftext|>`, else the rows' texts.

    Blank ones are left out; a byte-order mark before a document is taken off, and every end of line is `\\n`.

    Args:
        file: ends in one of `ENDINGS`.
        column: the one of .jsonl and .parquet that is read; the others may hold anything.

    Raises:
        UnreadableError: the file cannot be read to its end, or a document is longer than `LONGEST`; with the number of
            the line, row or document.
    """
    if file.suffix == ".parquet":
        texts = _parquet(file, column)
    elif file.suffix == ".jsonl":
        texts = _jsonl(file, column)
    else:
        texts = _text(file)
    try:
        for text in texts:
            text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
            if not is_blank(text):
                yield text
    except (OSError, EOFError) as error:
        raise UnreadableError(f"cannot be read: {error}") from None


def too_long(what: str, unit: str = "characters") -> str:
    """The problem with a document that is longer than `LONGEST`."""
    return f"cannot be read: {what} is longer than {LONGEST:,} {unit}"


def is_blank(text: str) -> bool:
    """Is it no document? (WikiText's rows, among others, are every other one empty.)"""
    return not text.strip().removeprefix("\ufeff").strip()


def _text(file: Path) -> Iterator[str]:
    opener = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8-sig") as lines:
            document: list[str] = []
            number, size = 1, 0
            for line in iter(partial(lines.readline, LONGEST + 1), ""):
                if line.strip() == END_OF_TEXT:
                    yield "".join(document)
                    document, size, number = [], 0, number + 1
                else:
                    document.append(line)
                    size += len(line)
                    if size > LONGEST:
                        raise UnreadableError(f"{too_long(f'document {number}')} (a line {END_OF_TEXT} ends each)")
        yield "".join(document)
    except UnicodeDecodeError:
        raise UnreadableError("is not UTF-8") from None


def _jsonl(file: Path, column: str) -> Iterator[str]:
    with file.open("rb") as lines:
        for number, line in enumerate(iter(partial(lines.readline, LONGEST + 1), b""), 1):
            if len(line) > LONGEST:
                raise UnreadableError(too_long(f"line {number}", "bytes"))
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _check(_parse(line, number), column, f"line {number}")


def _parse(line: bytes, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise UnreadableError(f"is not UTF-8 in line {number}") from None
    except (ValueError, RecursionError) as error:  # or a whole number of thousands of digits
        raise UnreadableError(f"cannot be read: line {number} is no JSON ({error})") from None
    if not isinstance(row, dict):
        raise UnreadableError(f"cannot be read: line {number} is no JSON object")
    return row


def _check(row: dict[str, Any], column: str, place: str) -> str:
    if column not in row:
        raise UnreadableError(f"has no column data.text_column={column} in {place}, only {', '.join(row)}")
    text = row[column]
    if not isinstance(text, str):
        raise UnreadableError(
            f"holds {'null' if text is None else type(text).__name__} in {place} of data.text_column={column}, "
            "and no string"
        )
    if len(text) > LONGEST:
        raise UnreadableError(too_long(place))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UnreadableError(f"holds half of a surrogate pair in {place}, which is not UTF-8") from None
    return text


def _parquet(file: Path, column: str) -> Iterator[str]:
    try:
        with file.open("rb") as source:
            table, row = pq.ParquetFile(source), 0
            names = table.schema_arrow.names
            if column not in names:
                raise UnreadableError(f"has no column data.text_column={column}, only {', '.join(names)}")
            kind = table.schema_arrow.field(column).type
            if not _is_string(kind.value_type if pa.types.is_dictionary(kind) else kind):
                raise UnreadableError(f"holds {kind} in data.text_column={column}, and no strings")
            for batch in table.iter_batches(_rows_at_once(table.metadata, names.index(column)), columns=[column]):
                for text in batch.column(0):
                    row += 1
                    yield _check({column: text.as_py()}, column, f"row {row}")
    except UnicodeDecodeError:
        raise UnreadableError("is not UTF-8") from None
    except (OSError, pa.ArrowException) as error:
        raise UnreadableError(f"cannot be read: {str(error).partition(chr(10))[0]}") from None


def _rows_at_once(metadata: pq.FileMetaData, column: int) -> int:
    """So many that they are seldom longer than a document may be; 1 where the column is not told apart."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    if any(group.num_columns <= column for group in groups):
        return 1
    sizes = [group.column(column).total_uncompressed_size / max(1, group.num_rows) for group in groups]
    return max(1, min(_ROWS, int(LONGEST / max([1, *sizes]))))


def _is_string(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
