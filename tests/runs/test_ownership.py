"""One process at a time in a run folder: refused, waited for, or taken over from the dead."""

import multiprocessing
import os
import signal
import socket
import time

import pytest

from replication.runs import ownership
from replication.runs.folder import RunFolder
from replication.runs.ownership import owned
from replication.system.errors import UserError
from replication.system.files import read_json, write_sealed

SPAWN = multiprocessing.get_context("spawn")


def hold(folder, seconds):
    with owned(folder):
        RunFolder(folder).write_status("running", step=0)
        time.sleep(seconds)


@pytest.fixture
def holder(tmp_path):
    """A process that owns `tmp_path / "run"` for a minute, once it does."""
    process = SPAWN.Process(target=hold, args=(tmp_path / "run", 60))
    process.start()
    while not (tmp_path / "run" / "status.json").exists():
        time.sleep(0.01)
    yield process
    process.kill()
    process.join()


def test_a_living_owner_is_named_and_its_folder_refused(holder, tmp_path):
    with (
        pytest.raises(
            UserError,
            match=f"is being trained by process {holder.pid} on {socket.gethostname()} \\(last sign of life 2",
        ) as error,
        owned(tmp_path / "run"),
    ):
        pass
    assert "\n" not in str(error.value) and holder.is_alive()


def test_a_dead_owner_is_taken_over_from_at_once(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert (
        read_json(tmp_path / "run" / "status.json")["owner"]["pid"] == holder.pid and (tmp_path / ".run.lock").exists()
    )
    with owned(tmp_path / "run"):
        pass
    assert not (tmp_path / ".run.lock").exists()


def test_who_waits_goes_on_when_the_owner_has_ended(holder, tmp_path):
    waiting = SPAWN.Process(target=_wait, args=(tmp_path / "run", tmp_path / "log"))
    waiting.start()
    waiting.join(1.5)
    assert waiting.is_alive() and not (tmp_path / "log").exists()
    os.kill(holder.pid, signal.SIGKILL)
    waiting.join(30)
    assert waiting.exitcode == 0 and (tmp_path / "log").read_text() == "mine"


def test_a_folder_that_is_removed_while_others_wait_for_it_is_made_again(tmp_path):
    """By each in turn, and by none at the same time."""
    processes = [SPAWN.Process(target=_take_turns, args=(tmp_path / "a" / "run", tmp_path / "turns")) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    turns = (tmp_path / "turns").read_text().split()
    assert len(turns) == 60 and all(begin == end for begin, end in zip(turns[::2], turns[1::2]))


def _take_turns(folder, log):
    for _ in range(10):
        with owned(folder, wait=True):
            for _ in range(2):
                with log.open("a") as file:
                    file.write(f"{os.getpid()}\n")
                time.sleep(0.002)


def test_where_there_are_no_locks_a_file_serves_and_who_died_is_taken_over_from(tmp_path, monkeypatch):
    import errno
    import fcntl

    def missing(*_):
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(fcntl, "flock", missing)
    with (
        pytest.warns(UserWarning, match="falling back"),
        owned(tmp_path / "run"),
        pytest.raises(UserError, match="is being trained by another process"),
        owned(tmp_path / "run"),
    ):
        pass
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks available")))
    with (
        pytest.raises(UserError, match="run cannot be locked .*; allowed: .* a file system with locks"),
        owned(tmp_path / "run"),
    ):
        pass


def _wait(folder, log):
    with owned(folder, wait=True):
        log.write_text("mine")


def test_an_owner_elsewhere_lives_while_its_signs_of_life_change(tmp_path, monkeypatch):
    """Where a file system does not share its locks, as far as the lock goes the folder is free."""
    run = RunFolder(tmp_path / "run")
    run.write_status("running", step=7)
    status = run.status()
    write_sealed(run.path / "status.json", status | {"owner": {"host": "elsewhere", "pid": 1, "alive": "2026-01-01"}})
    monkeypatch.setattr(ownership, "ALIVE_SECONDS", 0.01)
    with owned(run.path):  # no sign of life in 0.025 s: dead
        pass
    signs = iter(range(9))

    def renew(_):
        owner = {"host": "elsewhere", "pid": 1, "alive": f"2026-01-0{1 + next(signs)}"}
        write_sealed(run.path / "status.json", status | {"owner": owner})

    renew(0)
    monkeypatch.setattr(ownership.time, "sleep", renew)
    with pytest.raises(UserError, match="by process 1 on elsewhere"), owned(run.path):
        pass


def test_signs_of_life_are_renewed_while_the_run_lasts_and_no_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "ALIVE_SECONDS", 0.01)
    run = RunFolder(tmp_path / "run")
    with owned(run.path):
        run.write_status("running", step=3, seconds=1.5)
        first = run.status()
        while (now := run.status())["owner"] == first["owner"]:
            time.sleep(0.01)
        assert now["owner"]["pid"] == os.getpid() and now["owner"]["alive"] > first["owner"]["alive"]
        assert now | {"owner": None} == first | {"owner": None}
        run.write_status("finished", step=9)
        last = run.status()
        time.sleep(0.05)
        assert run.status() == last


def test_a_folder_in_which_nothing_was_written_is_not_left_behind(tmp_path):
    with owned(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / ".b.lock").exists()
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    with owned(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "x").touch()
    assert [file.name for file in (tmp_path / "a" / "b").iterdir()] == ["x"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match="file/run cannot be written: Not a directory; allowed:"),
        owned(tmp_path / "file" / "run"),
    ):
        pass
