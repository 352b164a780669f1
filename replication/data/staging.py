"""A folder that is made apart and appears whole, or leaves nothing: not even by who is killed."""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from replication.system.files import writing

LEFT = re.compile(r"\.([0-9a-f]{16})-\w{8}")  # the name of such a folder: of what is prepared, and tempfile's letters
PROGRESS = "progress.json"  # in a folder that was not finished, and that the next one who makes it goes on with


@contextmanager
def staging(target: Path, is_complete: Callable[[], bool]) -> Iterator[Path]:
    """A folder beside `target` that takes its place at the end, unless another process was first.

    Who dies meanwhile leaves its folder to the next one, who removes it or, where there is progress in it and `target`
    is still to be made, goes on. It is known by its lock, which ends with a process.

    Raises:
        UserError: it cannot be written; what is beside it is then as it was.
    """
    parent, existed = target.parent, target.parent.exists()
    with writing(parent):
        parent.mkdir(parents=True, exist_ok=True)
        with _locked(parent):
            folder, owner = _find_begun(target) or _new(target)
    try:
        with writing(parent):
            yield folder
        folder.chmod(0o755)
        try:
            folder.replace(target)
        except OSError:
            if not is_complete():
                shutil.rmtree(target, ignore_errors=True)
                folder.replace(target)
    finally:
        if not (folder / PROGRESS).exists():
            shutil.rmtree(folder, ignore_errors=True)
        os.close(owner)
        _remove_left(parent)
        if not existed and not any(parent.iterdir()):
            parent.rmdir()


def _find_begun(target: Path) -> tuple[Path, int] | None:
    """A folder in which somebody who died came forward, and its lock."""
    for left in sorted(target.parent.glob(f".{target.name}-*/{PROGRESS}")):
        with suppress(OSError):  # another one is at it
            return left.parent, _lock(left.parent)
    return None


def _new(target: Path) -> tuple[Path, int]:
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    return folder, _lock(folder)


def _remove_left(parent: Path) -> None:
    with suppress(OSError), _locked(parent):  # where folders have no locks nothing is known of who died
        for left in parent.glob(".*-*"):
            named = LEFT.fullmatch(left.name)
            if not named:  # somebody else's: a folder for data may be one's home
                continue
            with suppress(BlockingIOError, NotADirectoryError):
                owner = _lock(left)
                if (parent / named[1]).exists() or not (left / PROGRESS).exists():
                    shutil.rmtree(left, ignore_errors=True)
                os.close(owner)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """While it lasts no other process makes or removes a folder in this one."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _lock(folder: Path) -> int:
    """What holds a folder until it is closed. Raises BlockingIOError: another process holds it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock
