"""Packed logs: read as plain ones are, under the same seals; how our own runs are packed; and the size of the tree."""

import gzip
import importlib.util
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from synthetic_runs import TUNING, write_run, write_runs

from replication.analysis.compare import compare
from replication.analysis.judging import SAME
from replication.config.profiles import load_config
from replication.runs.finding import sort_out_runs
from replication.runs.folder import LOGS, RunFolder
from replication.system import files
from replication.system.errors import DamagedError, UserError
from replication.system.files import PACKED, pack_log
from replication.watching import following
from replication.watching.following import Log, row_at
from replication.watching.listing import list_runs

ROOT = Path(__file__).parents[2]
METRICS, TOPOLOGY = "metrics.jsonl", "topology.jsonl"
BYTES = 30e6  # of all tracked files


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("pack", ROOT / "scripts" / "pack.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def plain(tmp_path):
    write_run(tmp_path / "small" / "mst" / "seed-0", "mst", 0, 4.0)
    return RunFolder(tmp_path / "small" / "mst" / "seed-0")


@pytest.fixture
def packed(plain):
    """The same run, packed where it is."""
    for name in LOGS:
        pack_log(plain.path / name, plain.path / f"{name}{PACKED}")
        (plain.path / name).unlink()
    return plain


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_packed_log_has_no_time_no_name_and_the_same_bytes_each_time(tmp_path):
    log, once, again = (tmp_path / name for name in ("a", "b.gz", "c.gz"))
    log.write_bytes(b'{"step": 1}\n')
    pack_log(log, once)
    os.utime(log, (1, 1))
    pack_log(log.rename(tmp_path / "d"), again)
    assert once.read_bytes() == again.read_bytes() and gzip.decompress(once.read_bytes()) == b'{"step": 1}\n'
    assert once.read_bytes()[:10] == b"\x1f\x8b\x08\x00" + b"\0\0\0\0" + b"\x02\xff"  # RFC 1952: no flags, no time


def test_a_packed_run_is_read_as_the_plain_one_under_the_same_seals(plain, tmp_path, monkeypatch, request):
    other = RunFolder(shutil.copytree(plain.path, tmp_path / "plain" / "mst" / "seed-0"))
    packed = request.getfixturevalue("packed")
    assert not packed.entries() & set(LOGS) and packed.status() == other.status()
    assert packed.metrics() == other.metrics() and packed.topology() == other.topology() != []
    packed.verify()
    assert sort_out_runs(tmp_path, "small")[1] == [] and len(sort_out_runs(tmp_path, "small")[0]) == 1
    assert list_runs(tmp_path / "small").splitlines()[-1] == list_runs(tmp_path / "plain").splitlines()[-1]
    assert {row.verdict for row in compare(packed.path, other.path).rows} == {SAME}
    monkeypatch.setattr(following, "BLOCK", 2**11)  # so that these short logs are searched, and not read whole
    monkeypatch.setattr(following, "TAIL", 2**12)
    logs = [Log(run.path / METRICS) for run in (packed, other)]
    first, _ = read = logs[0].read()
    assert read == logs[1].read() and 1 < len(first) < 10 and logs[0].read() == ([], False)
    for step in (4, 5, 200, 395, 400, 401):
        assert row_at(logs[0].file, step) == row_at(logs[1].file, step)
    assert row_at(logs[0].file, 200)["step"] == 200


DAMAGE = {
    "half": (lambda data: data[: len(data) // 2], "end-of-stream"),
    "a bit": (lambda data: data[:-6] + bytes([data[-6] ^ 8]) + data[-5:], "CRC check failed"),
    "a bit of its middle": (lambda data: data[:500] + bytes([data[500] ^ 8]) + data[501:], ""),
    "nothing left": (lambda data: b"", ""),
    "not packed": (gzip.decompress, "Not a gzipped file"),
    "appended": (lambda data: data + b"x", "Not a gzipped file"),
    "another row": (lambda data: gzip.compress(gzip.decompress(data).replace(b"1", b"2")), "sha256 is not the one"),
    "too large": (lambda data: gzip.compress(bytes(2**20)), "more than 262144 bytes"),
}


@pytest.mark.parametrize(("damage", "says"), DAMAGE.values(), ids=DAMAGE)
@pytest.mark.parametrize("name", LOGS)
def test_a_damaged_packed_log_is_told_in_one_line_by_name(name, damage, says, packed, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_UNPACKED", 2**18)
    file = packed.path / f"{name}{PACKED}"
    file.write_bytes(damage(file.read_bytes()))
    found, (line,) = sort_out_runs(tmp_path, "small")
    assert not found and line.startswith(f"mst/seed-0: {file} is damaged (") and says in line and "\n" not in line
    if name == METRICS and "sha256" not in says:
        for read in (lambda: row_at(packed.path / METRICS, 5), Log(packed.path / METRICS).read, packed.metrics):
            with pytest.raises(DamagedError, match="metrics.jsonl"):
                read()
        assert "damaged" in list_runs(tmp_path / "small").splitlines()[-1]


@pytest.mark.parametrize("name", [METRICS, f"{METRICS}{PACKED}"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_log_that_is_no_regular_file_is_not_read(name, make, plain):
    (plain.path / METRICS).unlink()
    make(plain.path / name)
    for read in (plain.metrics, plain.verify, Log(plain.path / METRICS).read):
        with pytest.raises(DamagedError, match=rf"{name} is damaged \(it is no regular file\)"):
            read()


def test_a_log_that_is_there_in_both_forms_is_refused(plain, tmp_path):
    pack_log(plain.path / METRICS, plain.path / f"{METRICS}{PACKED}")
    for read in (plain.metrics, plain.verify, Log(plain.path / METRICS).read, lambda: row_at(plain.path / METRICS, 5)):
        with pytest.raises(DamagedError, match=f"{METRICS} and {METRICS}{PACKED} are both there; allowed: one of them"):
            read()
    assert "both there" in sort_out_runs(tmp_path, "small")[1][0]


def test_what_is_trained_on_lies_plain(packed):
    """Of an interrupted run that was packed by hand: what it logged is kept, up to what its state recorded."""
    rows = packed.metrics()
    size = len(json.dumps(rows[0])) + 1
    start = gzip.decompress((packed.path / f"{METRICS}{PACKED}").read_bytes())[:size]
    sizes = {METRICS: {"bytes": size, "sha256": files.hashlib.sha256(start).hexdigest()}}
    packed.check_logs(sizes)
    with pytest.raises(DamagedError, match=f"{METRICS}{PACKED} is damaged"):
        packed.check_logs({METRICS: sizes[METRICS] | {"bytes": size + 1}})
    packed.truncate_logs(sizes)
    packed.append(METRICS, rows[1:3])
    assert packed.metrics() == rows[:3] and packed.topology() == []
    assert packed.entries() >= set(LOGS) and not any(name.endswith(PACKED) for name in packed.entries())


def test_a_finished_run_stays_as_it_is_and_a_new_one_begins_without_its_logs(packed, tmp_path):
    from replication.training import trainer

    config = load_config("small", "mst", 0)
    packed.checkpoint.mkdir()
    (packed.checkpoint / "model.safetensors").write_bytes(b"weights")
    before = content(packed.path)
    assert trainer.train(config, packed.path, tmp_path / "no data", resume=True).path == packed.path
    assert content(packed.path) == before
    packed.begin(config.to_dict(), {})
    assert packed.metrics() == [] and not any(name.endswith(PACKED) for name in packed.entries())


@pytest.fixture
def results(tmp_path):
    """Two arms, tables, and much that is not for the tree."""
    write_runs(tmp_path, {"dense": [3.9], "mst": [4.0, 4.1]})
    folder = tmp_path / "small"
    (folder / "tuning.csv").write_text(TUNING)
    (folder / "claims.json").write_text("{}")
    (folder / ".x.lock").write_text("")
    run = folder / "mst" / "seed-0"
    for name in ("checkpoint/model.safetensors", "resume/step-1/facts.json", "tensorboard/x", "at/step-000005/x.bin"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("large")
    scores = run / "at" / "step-000005" / "eval" / "dense" / "embedded_code.json"
    shutil.copytree(run / "eval", scores.parent)
    RunFolder(folder / "rigl" / "seed-0").write_status("failed", reason="loss is nan", step=10)
    return folder


def test_finished_runs_are_packed_with_their_scores_and_tables_and_nothing_else(script, results, tmp_path, capsys):
    before, copy = content(results), tmp_path / "reference" / "small"
    assert script.main([str(results), str(copy)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{copy}: 3 runs, ") and said.endswith("left out, not finished: rigl/seed-0\n")
    assert content(results) == before and [path.name for path in copy.parent.iterdir()] == ["small"]
    kept = content(copy)
    unpacked = {name.removesuffix(PACKED): gzip.decompress(kept.pop(name)) for name in [*kept] if name.endswith(PACKED)}
    assert set(unpacked) == {name for name in before if name.endswith(".jsonl")}
    assert {name: before[name] for name in (kept | unpacked)} == kept | unpacked
    left = {name for name in before.keys() - kept.keys() - unpacked.keys() if not name.startswith("rigl")}
    one = "mst/seed-0"
    assert left == {".x.lock", f"{one}/checkpoint/model.safetensors", f"{one}/resume/step-1/facts.json"} | {
        f"{one}/tensorboard/x",
        f"{one}/at/step-000005/x.bin",
    }
    assert {row.verdict for row in compare(results, copy).rows} == {SAME}
    again = tmp_path / "again" / "small"
    assert script.main([str(copy), str(again)]) == 0 and content(again) == content(copy)


def test_what_cannot_be_packed_is_refused_in_one_line_and_nothing_is_written(script, results, tmp_path, capsys):
    copy = tmp_path / "reference" / "small"
    (full := tmp_path / "full" / "small").mkdir(parents=True)
    (full / "x").write_text("")
    cases = [
        (results, full, "is there already"),
        (results, results, "is there already"),
        (results, tmp_path / "reference" / "text", "of another name"),
        (results / "none", copy, "is no folder"),
        (full, copy, "holds no finished run"),
    ]
    for seed in (0, 1):
        with (results / "mst" / f"seed-{seed}" / TOPOLOGY).open("a") as log:
            log.write("{}\n")
    cases.append((results, copy, "mst/seed-0: "))
    cases.append((results, copy, "; mst/seed-1: "))
    for source, destination, says in cases:
        assert script.main([str(source), str(destination)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and says in line
    assert not copy.parent.exists() and list(content(full)) == ["x"]
    with pytest.raises(UserError, match="is damaged"):
        script.pack(results, copy)


@pytest.fixture(scope="module")
def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    return listed.stdout.split("\0")[:-1] or pytest.skip("no clone")


def test_the_tracked_tree_travels(tracked):
    sizes = {name: (ROOT / name).stat().st_size for name in tracked if (ROOT / name).is_file()}
    largest = sorted(sizes, key=sizes.get)[-5:]
    assert sum(sizes.values()) < BYTES, f"the largest: {largest}"


def test_committed_logs_are_packed_and_no_weights_are_there(tracked):
    ours = [Path(name) for name in tracked if name.startswith("results/reference/")]
    assert any(path.name == f"{METRICS}{PACKED}" for path in ours)
    assert [path for path in ours if path.name in LOGS or path.suffix in (".safetensors", ".bin")] == []
