"""Files that tell when they are not as they were written: atomic writing, checksums, sealed JSON, logs, masks."""

import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from replication.system.errors import DamagedError, UserError

Json = dict[str, Any]
Opener = Callable[[Path], AbstractContextManager[io.BufferedIOBase]]  # gives a file's content
SEAL = "seal"  # key of a JSON object's own checksum
PARTIAL = ".partial"  # how the name of a file ends that is being written
PACKED = ".gz"  # how the name of a log ends that is kept packed
LARGEST_UNPACKED = 2**28  # bytes of a packed log's content (ours): over 300 times the largest of `small`


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never a part.

    Raises:
        UserError: the file cannot be written: no right to, no space.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
        except BaseException:  # a full disk, a signal: what is written so far is in nobody's way
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1) + "\n")


def add_seal(value: Json) -> Json:
    """`value` with the checksum of its content, by which `read_json` knows whether it is as it was written."""
    return value | {SEAL: _checksum(value)}


def write_sealed(path: Path, value: Json) -> None:
    write_json(path, add_seal(value))


def read_json(path: Path) -> Any:
    """A JSON file's value, without its seal.

    Raises:
        DamagedError: it cannot be read, is no JSON, or differs from its seal.
    """
    value = parse_json(path, read_text(path))
    if isinstance(value, dict) and SEAL in value:
        seal = value.pop(SEAL)
        if seal != _checksum(value):
            raise explain_damage(path, "its content differs from its seal")
    return value


def open_regular(path: Path) -> io.BufferedReader:
    """The file, to be read: a pipe would be waited for, and a device never end.

    Raises:
        DamagedError: it is no regular file.
        OSError: it is not there, or cannot be opened.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # what is wrong with a folder, opening it says
        raise explain_damage(path, "it is a pipe or a device, and no file")
    return path.open("rb")


def find_stored(log: Path) -> Path:
    """Where a log is: there, or packed beside that place. Raises DamagedError: both are there."""
    packed = log.with_name(log.name + PACKED)
    if not packed.exists():
        return log
    if log.exists():
        raise DamagedError(f"{log} and {packed.name} are both there; allowed: one of them, the one that is right")
    return packed


@contextmanager
def open_log(path: Path) -> Iterator[io.BufferedIOBase]:
    """The content of a log, which may be packed: seekable bytes, the same either way.

    Raises:
        DamagedError: it is no regular file, or packed and not whole or too large; told before any of it is given.
        OSError: there is none, or none that can be read.
    """
    file = find_stored(path)
    if file.exists() and not file.is_file():
        raise explain_damage(file, "it is no regular file")
    if file.suffix == PACKED and not file.stat().st_size:  # which gzip takes for no rows
        raise explain_damage(file, "it is empty")
    if file.suffix != PACKED:
        with open_regular(file) as content:
            yield content
        return
    try:
        with gzip.open(file) as content:
            if content.seek(LARGEST_UNPACKED + 1) > LARGEST_UNPACKED:  # this reads it to its end, and its checksum
                raise explain_damage(file, f"unpacked it has more than {LARGEST_UNPACKED} bytes")
            content.seek(0)
            yield content
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise explain_damage(file, str(error)) from None


def pack_log(log: Path, packed: Path) -> None:
    """Write a log's content packed. The same content gives the same bytes: no time, no name, a fixed level."""
    with open_log(log) as content, packed.open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as target:
        shutil.copyfileobj(content, target)


def unpack_log(log: Path) -> None:
    """Let a log lie plain, as it must where lines are to be added; one that does is left as it is."""
    if (packed := find_stored(log)) != log:
        partial = log.with_name(f".{log.name}.{os.getpid()}{PARTIAL}")
        with writing(log), open_log(packed) as content, partial.open("wb") as file:
            shutil.copyfileobj(content, file)
        partial.replace(log)
        packed.unlink()  # last: an interruption leaves both, which is told, and loses neither


def read_text(path: Path, opener: Opener = open_regular) -> str:
    """Raises DamagedError: the file cannot be read, or is not UTF-8."""
    try:
        with opener(path) as file:
            return io.IncrementalNewlineDecoder(None, translate=True).decode(file.read().decode("utf-8"), final=True)
    except OSError as error:
        raise explain_damage(path, error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise explain_damage(path, "it is not UTF-8") from None


def real_path(path: Path | str) -> Path:
    """Absolute and without links; what leads round in a circle stays as it is, where `Path.resolve` raises."""
    return Path(os.path.realpath(path))


def parse_json(path: Path, text: str) -> Any:
    """The value of `text`, which is of the file `path`. Raises DamagedError: it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # of JSON, or of an integer of thousands of digits
        raise explain_damage(path, str(error)) from None


def sha256(path: Path, size: int | None = None, opener: Opener = open_regular) -> str:
    """Hexadecimal digest of a file, or of its first `size` bytes. Raises DamagedError: unreadable, or shorter."""
    try:
        with opener(path) as file:
            if size is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            start = file.read(size)
    except OSError as error:
        raise explain_damage(path, error.strerror or str(error)) from None
    if len(start) < size:
        raise explain_damage(path, f"it has {len(start)} bytes of the {size} that were recorded")
    return hashlib.sha256(start).hexdigest()


def check_sha256(path: Path, expected: str, size: int | None = None, opener: Opener = open_regular) -> None:
    """Raises DamagedError unless the file, or its first `size` bytes, has the digest that was recorded."""
    if sha256(path, size, opener) != expected:
        raise explain_damage(path, "its sha256 is not the one that was recorded")


def unwritable(path: Path, error: Exception) -> UserError:
    reason = getattr(error, "strerror", None) or error
    return UserError(f"{path} cannot be written: {reason}; allowed: a place that can be written, with space")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises UserError where what is done in it cannot write `path`, or in it."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from None


def check_writable(folder: Path) -> None:
    """Raises UserError where nothing could be written in `folder`, or the folder could not be made."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"{folder} cannot be written; allowed: a folder that can")


def explain_damage(path: Path, problem: str) -> DamagedError:
    return DamagedError(f"{path} is damaged ({problem}); allowed: the file as it was written")


def _checksum(value: Json) -> str:
    canonical = json.loads(json.dumps(value))  # as a reader will see it
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


def read_masks(file: Path) -> dict[str, np.ndarray]:
    """Name -> boolean mask, in its own shape, of what `write_masks` wrote; DamagedError where it is not as it was."""
    try:
        with open_regular(file) as opened, np.load(opened) as packed:
            names = [name for name in packed.files if not name.endswith(".shape")]
            return {name: _unpack(packed[name], packed[f"{name}.shape"]) for name in names}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise explain_damage(file, str(error)) from None


def write_masks(file: Path, masks: Mapping[str, np.ndarray]) -> None:
    """A bit for each weight. Raises UserError where it cannot be written."""
    arrays: dict[str, Any] = {name: np.packbits(mask) for name, mask in masks.items()}
    arrays |= {f"{name}.shape": np.array(mask.shape) for name, mask in masks.items()}
    with writing(file):
        np.savez(file, **arrays)


def _unpack(bits: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
