"""The file that a text is from, later: touched, deleted, changed; and a disk that is full."""

import errno
import fcntl
import os
import shutil
from dataclasses import replace

import pytest

from replication.config.fields import DataConfig
from replication.data import building, prepare
from replication.system.errors import UserError

OTHER = "0123456789abcdef"  # a fingerprint of other data


def config_of(file):
    return DataConfig(source="files", files=(str(file),), validation_fraction=0.2, test_fraction=0.2, vocab_size=300)


@pytest.fixture
def text(corpus_file, tmp_path):
    return shutil.copy(corpus_file, tmp_path / "it's my $(text).txt")


def test_a_touched_or_deleted_file_leaves_what_was_prepared_of_it(text, tmp_path):
    prepared = prepare(config_of(text), tmp_path / "data")
    os.utime(text, (0, 0))
    assert prepare(config_of(text), tmp_path / "data").folder == prepared.folder
    text.unlink()
    assert prepare(config_of(text), tmp_path / "data").folder == prepared.folder


def test_a_changed_file_is_prepared_anew_though_its_size_and_time_are_the_same(text, tmp_path):
    times = (text.stat().st_atime_ns, text.stat().st_mtime_ns)
    before = prepare(config_of(text), tmp_path / "data")
    text.write_text(text.read_text().replace("mask", "ZZZZ"))
    os.utime(text, ns=times)
    assert prepare(config_of(text), tmp_path / "data").folder != before.folder


def test_a_damaged_record_of_a_file_has_it_read_again(text, tmp_path):
    prepared = prepare(config_of(text), tmp_path / "data")
    (record,) = (tmp_path / "data" / "sources").iterdir()
    for damage in ("", "[" * 5000, "[1]", '{"version": 1}'):
        record.write_text(damage)
        assert prepare(config_of(text), tmp_path / "data").folder == prepared.folder


def test_a_full_disk_while_tokens_are_written_is_one_line_and_leaves_nothing(text, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(building, "_write_segment", full)
    with pytest.raises(UserError, match="data cannot be written: No space left on device; allowed: .*with space"):
        prepare(config_of(text), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_a_living_one_has_is_not(text, tmp_path):
    data = tmp_path / "data"
    dead, living = (data / f".{OTHER}-{letters}" for letters in ("dead_one", "alive_12"))
    for folder in (dead, living):
        folder.mkdir(parents=True)
        (folder / "train.bin").write_bytes(b"x")
    holder = os.open(living, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    prepared = prepare(config_of(text), data)
    os.close(holder)
    assert {path.name for path in data.iterdir()} == {living.name, prepared.folder.name, "sources"}


def test_hidden_folders_that_are_not_ours_stay(text, tmp_path):
    """Data may be kept at home, beside settings of other programs."""
    others = [".oh-my-zsh", ".vscode-server", f".{OTHER}-longer-name", f".{OTHER}"]
    for name in others:
        (tmp_path / name / "inner").mkdir(parents=True)
    prepare(config_of(text), tmp_path)
    assert all((tmp_path / name / "inner").is_dir() for name in others)


def test_progress_towards_what_was_made_meanwhile_is_removed(text, tmp_path):
    data = tmp_path / "data"
    prepared = prepare(config_of(text), data)
    dead, other = (data / f".{name}-dead_one" for name in (prepared.folder.name, OTHER))
    for folder in (dead, other):
        folder.mkdir()
        (folder / "progress.json").write_text("{}")
    anew = prepare(replace(config_of(text), vocab_size=301), data)
    assert {path.name for path in data.iterdir()} == {prepared.folder.name, anew.folder.name, other.name, "sources"}
