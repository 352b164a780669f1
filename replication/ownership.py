"""Who may write in a run folder: one process at a time, and a sign of life by which a dead owner is told from a living one."""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from replication.errors import DamagedError, UserError
from replication.files import PARTIAL, read_json, write_sealed

LOCK = ".lock"  # in the run folder, as long as it is owned
ALIVE_SECONDS = 10.0  # between signs of life
write_lock = threading.Lock()  # of status.json, which the trainer and the signs of life write


def this_process() -> dict[str, Any]:
    """Host and pid of this process, and the time, as `status.json` has its owner."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "alive": datetime.now(UTC).isoformat(timespec="milliseconds")}


@contextmanager
def owned(folder: Path, wait: bool = False) -> Iterator[None]:
    """Hold a run folder, which is made where it is not there and removed again if nothing was written.

    The lock ends with its process, however that ends. Where a file system does not share locks between machines, the
    signs of life in `status.json` tell whether an owner elsewhere lives.

    Args:
        wait: until the owner has ended; else a folder that is owned is refused.

    Raises:
        UserError: another process owns the folder, or it cannot be made.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / LOCK, timeout=-1 if wait else 0)
            lock.acquire()
        except Timeout:
            raise _in_use(folder) from None
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror or error}; allowed: a folder that can") from None
        try:
            _await_other_machine(folder, wait)
            for left in folder.glob(f".*{PARTIAL}"):  # by a process that died while it wrote
                left.unlink(missing_ok=True)
            (folder / LOCK).write_text(json.dumps(this_process()), encoding="utf-8")
            with _signs_of_life(folder):
                yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)  # while it is held: who waits for it sees that, and makes another
            lock.release()
    finally:
        with suppress(OSError):  # until one is not empty
            for path in made:
                path.rmdir()


def _in_use(folder: Path) -> UserError:
    owner = max(filter(None, (_owner(folder), _locker(folder))), key=lambda owner: owner["alive"], default=None)
    who = f"by process {owner['pid']} on {owner['host']} (last sign of life {owner['alive']})" if owner else "by another process"
    return UserError(f"{folder} is being trained {who}; allowed: another folder, or to wait until it has ended")


def _owner(folder: Path) -> dict[str, Any] | None:
    """Whose run the status says it is, while it is running."""
    try:
        status = read_json(folder / "status.json")
    except DamagedError:  # or not there
        return None
    return status.get("owner") if isinstance(status, dict) and status.get("status") == "running" else None


def _locker(folder: Path) -> dict[str, Any] | None:
    """Who holds the lock, in the moments before there is a status."""
    try:
        return json.loads((folder / LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _await_other_machine(folder: Path, wait: bool) -> None:
    """Returns when the run's owner, if it is on another machine, gives no sign of life any more; clocks need not agree."""
    owner = _owner(folder)
    while owner and owner["host"] != socket.gethostname():
        time.sleep(2.5 * ALIVE_SECONDS)
        before, owner = owner, _owner(folder)
        if owner == before:
            return
        if owner and not wait:
            raise _in_use(folder)


@contextmanager
def _signs_of_life(folder: Path) -> Iterator[None]:
    """While it lasts, the time in `status.json` is renewed."""
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(ALIVE_SECONDS):
            with suppress(OSError, DamagedError), write_lock:
                status = read_json(folder / "status.json")
                if status["status"] == "running":
                    write_sealed(folder / "status.json", status | {"owner": this_process()})

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
