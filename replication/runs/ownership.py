"""Who may write in a run folder: one process at a time, whose signs of life tell it from one that died."""

import _thread
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from replication.system.errors import DamagedError, UserError
from replication.system.files import PARTIAL, read_json, write_sealed
from replication.system.signals import tell

ALIVE_SECONDS = 10.0  # between signs of life
PATIENCE = 1.0  # seconds, in which a lock that was left behind where locks are files is found to be
write_lock = threading.Lock()  # of status.json, which the trainer and the signs of life write


def this_process() -> dict[str, Any]:
    """Host and pid of this process, and the time, as `status.json` has its owner."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "alive": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


def lock_file(folder: Path) -> Path:
    """Beside the folder as long as it is owned."""
    folder = Path(os.path.realpath(folder))
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold a file that is read, changed and written again, which other processes wait for; its folder is made.

    Raises:
        UserError: it cannot be locked.
    """
    _make(file.parent)
    lock = FileLock(lock_file(file))
    try:
        lock.acquire()
    except OSError as error:
        raise _unlockable(file, error) from None
    try:
        yield
    finally:
        lock_file(file).unlink(missing_ok=True)  # while it is held, as in `owned`
        lock.release()


@contextmanager
def owned(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a run folder, which is made where it is not there and removed again if nothing was written.

    The lock ends with its process, however that ends. Where a file system does not share locks between machines, the
    signs of life in `status.json` tell whether an owner elsewhere lives.

    Args:
        wait: until the owner has ended, which is said; else a folder that is owned is refused.

    Raises:
        UserError: another process owns the folder, or it cannot be made or locked.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = _lock(folder, wait)
    try:
        _make(folder)  # once more, as who was waited for may have removed it
        _await_other_machine(folder, wait)
        for left in folder.rglob(f".*{PARTIAL}"):  # by a process that died while it wrote
            left.unlink(missing_ok=True)
        with _signs_of_life(folder):
            yield
    finally:
        lock_file(folder).unlink(missing_ok=True)  # while it is held: who waits for it sees that, and makes another
        lock.release()
        with suppress(OSError):  # until one is not empty
            for path in made:
                path.rmdir()


def _lock(folder: Path, wait: bool) -> FileLock:
    lock = FileLock(lock_file(folder))
    timeout = 0.0
    while True:
        _make(folder)
        try:
            lock.acquire(timeout=timeout)
            return lock
        except Timeout:
            if not wait and timeout == 0 and _is_marker(lock_file(folder)):
                timeout = PATIENCE
                continue
            if not wait:
                raise _describe_owner(folder) from None
            tell(f"{folder}: waiting for {_who(folder)}")
            timeout = -1
        except FileNotFoundError:  # its parent was removed by who owned it: there is no one to wait for
            continue
        except OSError as error:
            raise _unlockable(folder, error) from None


def _unlockable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be locked ({lock_file(path)}: {error.strerror or error}); "
        "allowed: a folder in which a lock can be made, on a file system with locks"
    )


def _is_marker(file: Path) -> bool:
    """Is this a lock where locks are files, with its owner in it?"""
    try:
        return file.stat().st_size > 0
    except OSError:
        return False


def is_left(folder: Path) -> bool:
    """Is this a run that its process left before its end, as far as this machine can tell?"""
    owner = _owner(folder)
    if not owner:
        return False
    is_here = owner["host"] == socket.gethostname()
    return not lock_file(folder).exists() or (is_here and not psutil.pid_exists(owner["pid"]))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}; allowed: a folder that can") from None


def _describe_owner(folder: Path) -> UserError:
    return UserError(
        f"{folder} is being trained by {_who(folder)}; allowed: another folder, or to wait until it has ended"
    )


def _who(folder: Path) -> str:
    owner = _owner(folder)
    if not owner:  # in the moments before there is a status
        return "another process"
    return f"process {owner['pid']} on {owner['host']} (last sign of life {owner['alive']})"


def _owner(folder: Path) -> dict[str, Any] | None:
    """Whose run the status says it is, while it is running."""
    try:
        status = read_json(folder / "status.json")
    except DamagedError:  # or not there
        return None
    owner = status.get("owner") if isinstance(status, dict) and status.get("status") == "running" else None
    return owner if isinstance(owner, dict) and owner.keys() == this_process().keys() else None


def _await_other_machine(folder: Path, wait: bool) -> None:
    """Returns when an owner on another machine gives no sign of life any more; clocks need not agree."""
    owner = _owner(folder)
    while owner and owner["host"] != socket.gethostname():
        tell(f"{folder}: looking for a sign of life of {_who(folder)}, for {2.5 * ALIVE_SECONDS:.0f} s")
        time.sleep(2.5 * ALIVE_SECONDS)
        before, owner = owner, _owner(folder)
        if owner == before:
            return
        if owner and not wait:
            raise _describe_owner(folder)


@contextmanager
def _signs_of_life(folder: Path) -> Iterator[None]:
    """While it lasts, the time in `status.json` is renewed."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(ALIVE_SECONDS):
            with suppress(OSError, UserError, KeyError, TypeError), write_lock:
                status = read_json(folder / "status.json")
                if status["status"] == "running" and not ended.is_set():
                    write_sealed(folder / "status.json", status | {"owner": this_process()})

    _thread.start_new_thread(renew, ())  # `Thread.start` waits for ever for one that finds no memory to begin
    try:
        yield
    finally:
        with write_lock:  # from here on none is written
            ended.set()
