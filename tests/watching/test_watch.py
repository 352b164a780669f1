"""`watch`: runs are followed from their folders alone, whatever state these are in, and trouble is named."""

import io
import json
import os
import shutil
import time
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console
from synthetic_runs import write_run

from replication.cli import main
from replication.config.profiles import load_config
from replication.runs import finding
from replication.runs.folder import RunFolder
from replication.system.errors import DamagedError
from replication.system.files import write_sealed
from replication.watching import following, monitor
from replication.watching.following import Followed, Log, row_at
from replication.watching.monitor import Monitor


def row(step, loss=4.0, **more):
    """A step whose FLOPs are 40 % of dense's, at ten steps a second."""
    return {
        "step": step,
        "loss": loss,
        "phase": "ultra-sparsification",
        "sparsity": 0.9,
        "flops": {"block_forward": 40 * step},
        "tokens_per_second": 31_234.0,
        "memory_bytes": 705_000_000,
        "seconds": step / 10,
    } | more


def begin(folder, arm="mst", seed=0, rows=(), alive=0.0):
    """A run in progress on another machine, whose last sign of life was `alive` seconds ago."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    run.write_config(load_config("small", arm, seed).to_dict())
    run.append("metrics.jsonl", rows)
    age(run, alive)
    return run


def age(run, seconds):
    seen = datetime.now(UTC) - timedelta(seconds=seconds)
    owner = {"host": "elsewhere", "pid": 1, "alive": seen.isoformat(timespec="milliseconds")}
    status = {"status": "running", "reason": None, "step": 0, "owner": owner, "sha256": {}}
    write_sealed(run.path / "status.json", status)
    return run


def console(width, height=30):
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)


def seen(results, width=120, height=30, shown=None):
    """The lines that are shown now."""
    shown = shown or Monitor(results, console(width, height))
    shown.look()
    shown.console.file = io.StringIO()
    shown.console.print(shown.render(height))
    return [line.rstrip() for line in shown.console.file.getvalue().splitlines()]


def line_of(lines, name):
    (line,) = [line for line in lines if line.split()[:1] == [name]]
    return line.removeprefix(name).split()


@pytest.fixture(autouse=True)
def no_committed_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(finding, "REFERENCE", tmp_path / "reference")
    monkeypatch.setattr(following, "_dense_step", lambda config: 100.0)
    monitor.read_committed_config.cache_clear()


@pytest.fixture
def three(tmp_path):
    """Dense at step 20; MST at 20, diverging after ten lines; RigL, lost at 10."""
    small = tmp_path / "results" / "small"
    begin(small / "dense" / "seed-0", "dense", rows=[row(10, 5.0), row(20, 4.25)])
    begin(
        small / "mst_dense_head" / "seed-0",
        "mst_dense_head",
        rows=[*(row(step, 4.0) for step in range(1, 11)), row(20, 8.0)],
    )
    begin(small / "rigl_dense_head" / "seed-0", "rigl_dense_head", rows=[row(10, 5.5)], alive=300)
    return tmp_path / "results"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_runs_in_progress_are_a_row_each_and_their_alarms_a_line(width, three, monkeypatch):
    """At 80 columns: what decides, and what was saved. Smoothed, 8 after 4 is 4 + 4 / 10."""
    monkeypatch.setattr(monitor, "_free", lambda folder: 1e9)
    lines = seen(three, width)
    assert max(map(len, lines)) <= width
    titles = lines[0].split()
    assert ("saved" in titles) == (width >= 80) and ("sparsity" in titles) == ("MB" in titles) == (width == 120)
    mst = next(line for line in lines if "mst_dense_head/0" in line).split()
    assert mst[1:5] == ["diverging", "20/1650", "8.000", "4.250"]
    assert ("60%" in mst) == (width >= 80) and ("0.900" in mst) == (width == 120)
    assert "2:43" in mst  # 1630 steps at 10 a second
    assert [line for line in lines if line.startswith("!")] == [
        f"! full disk: 1.0 GB free where {three} is"[: width - 1] + ("…" if len(str(three)) + 36 > width else ""),
        "! small/mst_dense_head/0 diverging: smoothed loss 4.400, 0.400 over its lowest"[: width - 1]
        + "…" * (width < 78),
        "! small/rigl_dense_head/0 stalled: no sign of life for 5 min"[:width],
    ]
    assert lines[-1].startswith("3 running in ")


def test_what_is_in_danger_comes_first_and_what_is_old_gives_way(three):
    for seed in range(20):
        write_run(three / "small" / "set" / f"seed-{seed}", "set", seed, 4.0)
        os.utime(three / "small" / "set" / f"seed-{seed}" / "status.json", (1e9, 1e9))
    assert len([line for line in seen(three, height=40) if "small/set/" in line]) == 20
    lines = seen(three, height=12)
    assert len(lines) < 12 and [line.split()[0] for line in lines[1:4]] == [
        "small/mst_dense_head/0",
        "small/rigl_dense_head/0",
        "small/dense/0",
    ]
    assert lines[-1].startswith("20 finished, 3 running") and "20 not shown" in lines[-1]


def test_denses_loss_is_that_of_the_same_step_and_task(tmp_path):
    """Own dense where it has the step, else the committed one; never one of another seed, size or length."""
    committed = tmp_path / "reference" / "small" / "dense" / "seed-0"
    write_run(committed, "dense", 0, 3.9)
    config = RunFolder(committed).config()
    RunFolder(committed).write_config(config | {"model": config["model"] | {"n_positions": 32}})
    results = tmp_path / "results"
    dense = begin(results / "small" / "dense" / "seed-0", "dense", rows=[row(10, 5.0), row(20, 4.25), row(30, 4.0)])
    run = begin(results / "small" / "mst" / "seed-0", rows=[row(20, 4.5)])
    other = begin(results / "small" / "mst" / "seed-1", seed=1, rows=[row(20, 4.5)])
    shown = Monitor(results, console(120))
    assert line_of(seen(results, shown=shown), "small/mst/0")[2:4] == ["4.500", "4.250"]
    assert line_of(seen(results, shown=shown), "small/mst/1")[2:4] == ["4.500", "0.900"]  # no dense: sparsity follows
    run.append("metrics.jsonl", [row(25, 4.4)])
    other.append("metrics.jsonl", [row(25, 4.4)])
    assert line_of(seen(results, shown=shown), "small/mst/0")[2:4] == ["4.400", "0.900"]
    dense.append("metrics.jsonl", [row(40, 3.75)])
    run.append("metrics.jsonl", [row(40, 4.3)])
    assert line_of(seen(results, shown=shown), "small/mst/0")[2:4] == ["4.300", "3.750"]
    shutil.rmtree(dense.path)
    lost = [line["loss"] for line in RunFolder(committed).metrics() if line["step"] == 50]
    run.append("metrics.jsonl", [row(50, 4.2)])
    # The committed run of these tests has another context, so that it says nothing of this one ...
    assert line_of(seen(results, shown=shown), "small/mst/0")[2:4] == ["4.200", "0.900"]
    RunFolder(committed).write_config(load_config("small", "dense", 0).to_dict())
    monitor.read_committed_config.cache_clear()
    assert line_of(seen(results, shown=shown), "small/mst/0")[2:4] == [
        "4.200",
        f"{lost[0]:.3f}",
    ]  # ... until it has not


def test_a_log_is_read_once_and_anew_where_it_is_another(tmp_path):
    run = RunFolder(tmp_path)
    log = Log(tmp_path / "metrics.jsonl")
    steps = lambda: [line["step"] for line in log.read()[0]]  # noqa: E731
    run.append("metrics.jsonl", [row(10), row(20), row(30)])
    assert (steps(), steps()) == ([10, 20, 30], [])
    with log.file.open("a") as file:
        file.write(json.dumps(row(40))[:50])  # being written
    assert steps() == []
    with log.file.open("a") as file:
        file.write(json.dumps(row(40))[50:] + "\n")
    assert steps() == [40]
    os.truncate(log.file, len(json.dumps(row(10))) + 1)
    assert log.read() == ([row(10)], True)  # as a run that resumes leaves it
    run.append("metrics.jsonl", [row(20, 3.0), row(30, 3.0), row(40, 3.0)])
    assert log.read() == ([row(20, 3.0), row(30, 3.0), row(40, 3.0)], False)
    log.file.write_text("".join(json.dumps(row(step, 2.5)) + "\n" for step in range(5, 60, 5)))  # longer than before
    assert log.read() == ([row(step, 2.5) for step in range(5, 60, 5)], True)


def test_of_a_long_log_the_end_is_read_and_any_step_is_found(tmp_path):
    """100 000 lines, of which the first look takes the end, and a search a few blocks."""
    file = tmp_path / "metrics.jsonl"
    with file.open("w") as lines:
        lines.writelines(json.dumps(row(step, step / 8)) + "\n" for step in range(10, 1_000_010, 10))
    log = Log(file)
    read, is_new = log.read()
    assert not is_new and read[-1]["step"] == 1_000_000 and log.read() == ([], False)
    assert following.TAIL - 1000 < sum(len(json.dumps(line)) + 1 for line in read) <= following.TAIL
    for step in (10, 20, 54_320, 999_990, 1_000_000):
        assert row_at(file, step)["loss"] == step / 8
    assert [row_at(file, step) for step in (5, 54_321, 1_000_001)] == [None] * 3


def followed(run):
    found = Followed(run, "run")
    found.look()
    return found


def test_divergence_is_a_smoothed_loss_well_above_its_lowest(tmp_path):
    """Noise of 1 nat is none; a lasting rise of 0.5 is seen once 0.3 of it has passed the smoothing: 10 lines."""
    run = begin(tmp_path / "run", rows=[row(step, 4 + step % 2) for step in range(40)])
    assert followed(run).alarm() is None
    found = followed(begin(tmp_path / "rising", rows=[row(step, 4.0) for step in range(10)]))
    for step in range(10, 30):
        found.folder.append("metrics.jsonl", [row(step, 4.5)])
        found.look()
        # 0.5 (1 - 0.9^n) > 0.3 from n = 9 on
        assert (found.alarm() is not None) == (step >= 18)
    run.append("metrics.jsonl", [row(41, float("nan"))])
    assert followed(run).alarm() == ("diverging", "the loss is nan")


def test_a_run_is_stalled_without_signs_of_life_or_lines(tmp_path, monkeypatch):
    """Signs of life count from when they were seen to change: the clock of another machine may be an hour off."""
    found = followed(begin(tmp_path / "run", rows=[row(step * 10) for step in range(1, 6)], alive=3600))
    assert found.alarm() == ("stalled", "no sign of life for 1 h")
    age(found.folder, 3590)
    found.look()
    assert found.alarm() is None
    clock = time.time()
    monkeypatch.setattr(following.time, "time", lambda: clock + 50)
    assert found.alarm() is None
    monkeypatch.setattr(following.time, "time", lambda: clock + 70)
    age(found.folder, 3520)
    found.look()
    assert found.alarm() == ("stalled", "no logged line for 1 min, one in 1 s is usual")
    found.folder.append("metrics.jsonl", [row(60)])
    found.look()
    assert found.alarm() is None


def test_folders_in_any_state_are_shown_as_such(tmp_path):
    RunFolder(tmp_path / "starting").write_status("running")
    begin(tmp_path / "vanishing", rows=[row(10)])
    begin(tmp_path / "unreadable", rows=[row(10)])
    begin(tmp_path / "nonsense", rows=[row(10)]).append("metrics.jsonl", [{"what": 1}])
    begin(tmp_path / "other_version", rows=[row(10)]).write_config({"profile": "small", "arm": "mst", "new": {}})
    failed = begin(tmp_path / "failed", rows=[row(10)])
    failed.write_status("failed", reason="loss is nan", step=10)
    (tmp_path / "unreadable" / "status.json").write_text('{"status": "runn')
    shown = Monitor(tmp_path, console(160))
    seen(tmp_path, shown=shown)
    shutil.rmtree(tmp_path / "vanishing")
    lines = seen(tmp_path, shown=shown)
    states = {name: line_of(lines, name)[0] for name in ("starting", "vanishing", "unreadable", "nonsense", "failed")}
    assert states == {
        "starting": "starting",
        "vanishing": "gone",
        "unreadable": "damaged",
        "nonsense": "damaged",
        "failed": "failed",
    }
    assert line_of(lines, "other_version")[:3] == ["ultra-sparsification", "10/?", "4.000"]
    assert "! failed failed: loss is nan" in lines
    assert any("nonsense damaged" in line and "no logged step" in line for line in lines)
    assert line_of(seen(tmp_path, shown=shown), "nonsense")[0] == "damaged"  # it stays so
    begin(tmp_path / "vanishing", rows=[row(20)])
    assert line_of(seen(tmp_path, shown=shown), "vanishing")[1] == "20/1650"


def test_a_damaged_log_names_its_file(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = [
        '{"step": 1, "loss"',
        "[]",
        '{"step": 1, "loss": "x", "seconds": 1}',
        '{"step": NaN, "loss": 1, "seconds": 1}',
    ]
    lines += ['{"step": 1, "loss": 1, "seconds": Infinity}', '{"step": 1, "loss": 1, "seconds": 1, "flops": 3}']
    for line in lines:
        file.write_text(line + "\n")
        with pytest.raises(DamagedError, match="metrics.jsonl is damaged"):
            Log(file).read()


def test_without_a_terminal_one_table_is_printed(three, capsys):
    write_run(three.parent / "reference" / "small" / "set" / "seed-0", "set", 0, 4.0)
    assert main(["runs", "watch", str(three)]) == 0
    text = capsys.readouterr().out
    assert "small/mst_dense_head/0" in text and "3 running" in text and "set" not in text and "\x1b" not in text
    (three / "empty").mkdir()
    assert main(["runs", "watch", str(three / "empty"), "--once"]) == 0
    assert "no runs below" in capsys.readouterr().out
    assert main(["runs", "watch", str(three / "nowhere")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "nowhere is no folder" in line


def test_ctrl_c_ends_it_well(three, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(monitor, "is_terminal", lambda _: True)
    monkeypatch.setattr(monitor.time, "sleep", interrupt)
    assert main(["runs", "watch", str(three)]) == 0
