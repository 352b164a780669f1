"""Files that tell when they are not as they were written: atomic writing, checksums, sealed JSON, masks."""

import hashlib
import io
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from replication.errors import DamagedError, UserError

Json = dict[str, Any]
SEAL = "seal"  # key of a JSON object's own checksum
PARTIAL = ".partial"  # how the name of a file ends that is being written


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


def sealed(value: Json) -> Json:
    """`value` with the checksum of its content, by which `read_json` knows whether it is as it was written."""
    return value | {SEAL: _checksum(value)}


def write_sealed(path: Path, value: Json) -> None:
    write_json(path, sealed(value))


def read_json(path: Path) -> Any:
    """A JSON file's value, without its seal.

    Raises:
        DamagedError: it cannot be read, is no JSON, or differs from its seal.
    """
    value = parse_json(path, read_text(path))
    if isinstance(value, dict) and SEAL in value:
        seal = value.pop(SEAL)
        if seal != _checksum(value):
            raise damaged(path, "its content differs from its seal")
    return value


def read_text(path: Path) -> str:
    """Raises DamagedError: the file cannot be read, or is not UTF-8."""
    try:
        with open_regular(path) as file:
            return io.TextIOWrapper(file, encoding="utf-8").read()
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None
    except UnicodeDecodeError:
        raise damaged(path, "it is not UTF-8") from None


def open_regular(path: Path) -> io.BufferedReader:
    """The file, to be read: a pipe would be waited for, and a device never end.

    Raises:
        DamagedError: it is no regular file.
        OSError: it is not there, or cannot be opened.
    """
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # what is wrong with a folder, opening it says
        raise damaged(path, "it is a pipe or a device, and no file")
    return path.open("rb")


def real_path(path: Path | str) -> Path:
    """Absolute and without links; what leads round in a circle stays as it is, where `Path.resolve` raises."""
    return Path(os.path.realpath(path))


def parse_json(path: Path, text: str) -> Any:
    """The value of `text`, which is of the file `path`. Raises DamagedError: it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # of JSON, or of an integer of thousands of digits
        raise damaged(path, str(error)) from None


def sha256(path: Path, size: int | None = None) -> str:
    """Hexadecimal digest of a file, or of its first `size` bytes. Raises DamagedError: unreadable, or shorter."""
    try:
        with open_regular(path) as file:
            if size is None:
                return hashlib.file_digest(file, "sha256").hexdigest()
            start = file.read(size)
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from None
    if len(start) < size:
        raise damaged(path, f"it has {len(start)} bytes of the {size} that were recorded")
    return hashlib.sha256(start).hexdigest()


def check_sha256(path: Path, expected: str, size: int | None = None) -> None:
    """Raises DamagedError unless the file, or its first `size` bytes, has the digest that was recorded."""
    if sha256(path, size) != expected:
        raise damaged(path, "its sha256 is not the one that was recorded")


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


def damaged(path: Path, problem: str) -> DamagedError:
    return DamagedError(f"{path} is damaged ({problem}); allowed: the file as it was written")


def _checksum(value: Json) -> str:
    canonical = json.loads(json.dumps(value))  # as a reader will see it
    return hashlib.sha256(json.dumps(canonical, sort_keys=True).encode()).hexdigest()


def read_masks(file: Path) -> dict[str, np.ndarray]:
    """Name -> boolean mask, in its own shape, of what `write_masks` wrote; DamagedError where it is not as it was."""
    try:
        with open_regular(file) as opened, np.load(opened) as packed:
            names = [name for name in packed.files if not name.endswith(".shape")]
            return {name: _unpacked(packed[name], packed[f"{name}.shape"]) for name in names}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged(file, str(error)) from None


def write_masks(file: Path, masks: Mapping[str, np.ndarray]) -> None:
    """A bit for each weight. Raises UserError where it cannot be written."""
    arrays: dict[str, Any] = {name: np.packbits(mask) for name, mask in masks.items()}
    arrays |= {f"{name}.shape": np.array(mask.shape) for name, mask in masks.items()}
    with writing(file):
        np.savez(file, **arrays)


def _unpacked(bits: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
