"""The tokens of a split, which may lie in many files: read where they are wanted, never held."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from replication.system.files import explain_damage

KIND = np.dtype(np.uint16)


class Tokens:
    """A read-only row of tokens. What it is sliced to is read then; a memory map would count as memory, page by page.

    Args:
        files: with the tokens of each, in order.
        start: the place of the first one, among those of all files.
        stop: after the last one; None: to the end.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], start: int = 0, stop: int | None = None) -> None:
        self.files = list(files)
        self.ends = np.cumsum([size for _, size in files])
        self.start = start
        self.stop = int(self.ends[-1]) if stop is None else stop
        self._open = cache(_open_file)  # so a file that is removed meanwhile can be read on

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, place: slice) -> np.ndarray:
        """[tokens] uint16. Raises DamagedError: a file is shorter than it was, or cannot be read."""
        start, stop, step = place.indices(len(self))
        assert step == 1, step
        return self._read(self.start + start, self.start + max(start, stop))

    def between(self, start: int, stop: int) -> "Tokens":
        """Those of these places, unread."""
        return Tokens(self.files, self.start + start, self.start + stop)

    def _read(self, start: int, stop: int) -> np.ndarray:
        parts = [np.empty(0, KIND)]
        for index in range(int(np.searchsorted(self.ends, start, side="right")), len(self.files)):
            file, size = self.files[index]
            first = int(self.ends[index]) - size
            if first >= stop:
                break
            parts.append(self._part(file, max(start - first, 0), min(stop - first, size)))
        return parts[1] if len(parts) == 2 else np.concatenate(parts)

    def _part(self, file: Path, start: int, stop: int) -> np.ndarray:
        try:
            found = os.pread(self._open(file).fileno(), KIND.itemsize * (stop - start), KIND.itemsize * start)
        except OSError as error:
            raise explain_damage(file, error.strerror or str(error)) from None
        if len(found) < KIND.itemsize * (stop - start):
            raise explain_damage(file, "it is shorter than it was")
        return np.frombuffer(found, KIND)


def _open_file(file: Path) -> BinaryIO:
    return file.open("rb", buffering=0)
