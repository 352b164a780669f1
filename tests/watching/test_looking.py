"""What people look at while and after runs train: the live line and table, lists, a run's page, tables that fit."""

import io
import math
import os
import re
import socket
from pathlib import Path

import pytest
from rich.console import Console
from synthetic_runs import LOSSES, write_run, write_runs, write_table_of_runs

from replication.analysis import palette, terminal
from replication.analysis.claims import verdicts
from replication.analysis.tables import write_table1
from replication.cli import main
from replication.runs import finding, frames
from replication.runs.finding import REFERENCE, choose_results, find_runs
from replication.runs.folder import RunFolder
from replication.runs.ownership import lock_file
from replication.system import machine
from replication.system.errors import UserError
from replication.system.files import write_sealed
from replication.training import observers
from replication.training.trackers import Course
from replication.watching.board import Board, Row

COURSE = Course(Path("run"), {}, step=0, steps=1000, dense_step=100)


def console(width=80, height=30):
    return Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)


def logged(step, loss=4.0, **more):
    flops = {"block_forward": 50 * step, "attention_full": 0, "attention_causal": 7 * step}
    row = {"step": step, "loss": loss, "flops": flops, "seconds": step / 10, "tokens_per_second": 31_234.0}
    return row | {"phase": "ultra-sparsification", "sparsity": 0.9} | more


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_line_of_a_run_says_what_decides_in_one_line(width, monkeypatch):
    """At 80 columns: a bar, step, phase, loss, FLOPs saved, speed, time left."""
    said = console(width)
    monkeypatch.setattr(observers, "Screen", lambda **_: said)
    monkeypatch.setattr(observers.time, "monotonic", iter(range(100)).__next__)
    with observers.observer(COURSE, [], progress=True) as seen:
        for step in (1, 500):
            seen.step(logged(step))
    last = [line for line in said.file.getvalue().replace("\r", "\n").split("\n") if "500/1000" in line][-1]
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last)
    assert all(part in last for part in ("ultra-sparsification", "loss 4.000", "saved 50%"))
    assert len(last.rstrip()) <= width and ("━━━━" in last) == ("31.2k tok" in last) == (width > 60)


def test_without_a_terminal_a_run_says_a_line_at_each_evaluation(capsys):
    with observers.observer(COURSE, [], progress=True) as seen:
        seen.step(logged(100))
        seen.step(logged(200, validation_loss=3.9))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("step 200/1000, ultra-sparsification, loss 4.000, sparsity 0.90, FLOPs saved 50%, ")
    assert line.endswith("validation loss 3.900, 80 s left")


def board(width, rows=("dense seed 0", "mst_dense_head seed 0"), height=30):
    return Board([Row(name, 1000, 100.0) for name in rows], console(width, height))


def printed(shown):
    shown.console.print(shown.render())
    return shown.console.file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_many_runs_are_a_row_each_and_never_go_backwards(width):
    shown = board(width)
    row = shown.rows["mst_dense_head seed 0"]
    row.enter("training")
    row.saw(logged(400, validation_loss=4.2))
    row.saw(logged(200))  # as a run that resumes logs again
    text = printed(shown)
    assert all(len(line) <= width for line in text.splitlines())
    (line,) = [line for line in text.splitlines() if line.startswith("mst_dense_head seed 0")]
    assert line.split()[3:8] == ["training", "400/1000", "4.000", "4.200", "50%"]
    assert ("ultra-sparsification" in line) == (width == 120)
    assert "1 training of 2" in text


def test_where_not_all_rows_fit_the_failed_and_the_running_stay():
    shown = board(80, [f"run {place}" for place in range(40)], height=12)
    shown.rows["run 39"].enter("training")
    shown.end("run 38", "its process died", failed=True)
    lines = printed(shown).splitlines()
    assert len(lines) <= 12 and any("run 39" in line for line in lines) and any("run 38" in line for line in lines)


def test_without_a_terminal_each_run_that_ends_is_a_line(capsys):
    shown = Board([Row("dense seed 0", 10, 1.0), Row("mst seed 0", 10, 1.0)], Console(file=io.StringIO()))
    shown.end("dense seed 0", "validation loss 3.9", failed=False)
    shown.end("mst seed 0", "out of luck", failed=True)
    assert capsys.readouterr().err.splitlines() == [
        "[1/2] dense seed 0: validation loss 3.9",
        "[2/2] mst seed 0: failed, as the end says",
    ]


@pytest.mark.parametrize("width", [80, 150])
def test_table1_fits_a_terminal_and_says_where_the_rest_is(width, tmp_path):
    write_table_of_runs(tmp_path)
    write_table1(tmp_path, "small")
    said = console(width)
    terminal.show_table1(tmp_path / "small", said)
    text = said.file.getvalue()
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert "FLOPs saved" in text and "MST, dense head" in text and "table1.md" in text.replace("\n", "")
    assert ("tries" in text) == (width == 150)
    assert (tmp_path / "small" / "table1.tex").read_text().startswith("\\begin{tabular}{lrr")


def test_ls_and_show(tmp_path, capsys):
    write_runs(tmp_path, {"mst": [4.0], "dense": [3.9]})
    assert main(["runs", "list", str(tmp_path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "seed-0" in line]
    assert [row[:4] for row in rows] == [
        ["small/dense/seed-0", "finished", "400", "3.9000"],
        ["small/mst/seed-0", "finished", "400", "4.0000"],
    ]
    assert main(["runs", "show", str(tmp_path / "small" / "mst" / "seed-0")]) == 0
    page = capsys.readouterr().out
    assert "small mst, seed 0" in page and "0 to 40" in page and "head_counted_full" in page and "embedded_code" in page


@pytest.mark.parametrize("command", [["runs", "list", "nowhere"], ["runs", "list", "."], ["runs", "show", "."]])
def test_ls_and_show_of_nothing_are_one_line(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {command[2]} ")


def test_a_run_as_data_frames(tmp_path):
    write_run(tmp_path / "small" / "mst" / "seed-1", "mst", 1, 4.0)
    run = frames.load(tmp_path / "small" / "mst" / "seed-1")
    assert run.metrics.index[-1] == 400 and run.metrics["validation_loss"].iloc[-1] == pytest.approx(4.0)
    assert "flops.block_forward" in run.metrics and {"layer", "dropped", "grown"} <= set(run.topology)
    assert run.flops.loc["blocks_only", "reduction"] > 1
    assert run.scores.loc[("embedded_lastword", "acc,none"), "value"] == pytest.approx(0.25)
    with pytest.raises(UserError, match="holds no run"):
        frames.load(tmp_path)


def test_ones_own_runs_are_shown_where_they_are_complete(tmp_path, monkeypatch):
    reference = tmp_path / "results" / "reference"
    monkeypatch.setattr(finding, "REFERENCE", reference)
    monkeypatch.setattr(finding, "arm_names", lambda profile: list(LOSSES))
    monkeypatch.setattr(finding, "default_seeds", lambda profile, arm: [0, 1, 2])
    write_table_of_runs(reference)
    assert choose_results(None, "small") == (
        reference,
        f"The committed runs, results/reference/small: results/small holds 0 of the {3 * len(LOSSES)} runs of Table 1.",
    )
    write_table_of_runs(tmp_path / "results")
    folder, said = choose_results(None, "small")
    assert folder == tmp_path / "results" and said.startswith("Your own runs")
    with pytest.raises(UserError, match="^elsewhere/small holds no finished run of profile small; allowed: "):
        choose_results("elsewhere", "small")


@pytest.mark.parametrize("command", [["replicate", "--results"], ["train", "--method", "mst", "--out"]])
def test_no_command_writes_where_the_committed_runs_are(command, capsys):
    assert main([*command, str(REFERENCE / "small")]) == 2
    assert "which no command changes" in capsys.readouterr().err


def test_arms_of_any_method_are_judged_and_drawn(tmp_path):
    """An own arm against dense, and against the arm that costs the same."""
    write_runs(tmp_path, {"dense": [3.88, 3.89, 3.87], "rigl": [4.10, 4.11, 4.12], "rigl_own": [4.00, 4.01, 4.00]})
    own = [verdict for verdict in verdicts(find_runs(tmp_path, "small")) if verdict.claim == "own"]
    assert [(verdict.statement.partition(":")[0], verdict.verdict) for verdict in own] == [
        ("rigl own against dense", "higher"),
        ("rigl own against RigL", "lower"),
    ]
    assert palette.colour("soft") == palette.colour("soft_dense_head")
    assert palette.marker("soft") in palette.OTHER_MARKERS
    assert palette.marker("set_4x") == palette.MARKERS["set"]


def test_cores_are_those_of_the_container(tmp_path, monkeypatch):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(machine, "QUOTAS", (str(quota),))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.cores() == 8  # no file
    for text, cores in (("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1)):
        quota.write_text(text)
        assert machine.cores() == cores
    monkeypatch.delattr(machine.os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    quota.write_text("max 100000")
    assert machine.cores() == 4 and math.isinf(machine._quota())


def test_a_folder_of_runs_with_a_damaged_one_is_listed(tmp_path, capsys):
    write_runs(tmp_path, {"mst": [4.0]})
    (RunFolder(tmp_path / "small" / "mst" / "seed-0").path / "status.json").write_text("{")
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("pid", ["a", 2**80, None])
def test_a_run_of_a_process_that_cannot_be_is_listed_as_damaged(pid, tmp_path, capsys):
    run = RunFolder(tmp_path / "run")
    owner = {"host": socket.gethostname(), "pid": pid, "alive": "2026-01-01T00:00:00+00:00"}
    write_sealed(run.path / "status.json", {"status": "running", "step": 1, "owner": owner})
    lock_file(run.path).touch()
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert "damaged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("is_here", "lives", "has_lock", "expected"),
    [
        (True, True, True, "running"),
        (True, True, False, "interrupted"),  # it ended, and removed its lock
        (True, False, True, "interrupted"),  # it was killed
        (False, False, True, "running"),  # as far as can be known here
    ],
)
def test_a_run_whose_process_is_gone_is_listed_as_interrupted(is_here, lives, has_lock, expected, tmp_path, capsys):
    write_runs(tmp_path, {"mst": [4.0]})
    run = RunFolder(tmp_path / "small" / "mst" / "seed-0")
    host, pid = socket.gethostname() if is_here else "elsewhere", os.getpid() if lives else 2**22 + 1
    owner = {"host": host, "pid": pid, "alive": "2026-01-01T00:00:00+00:00"}
    write_sealed(run.path / "status.json", {"status": "running", "step": 1, "owner": owner})
    if has_lock:
        lock_file(run.path).touch()
    assert main(["runs", "list", str(tmp_path)]) == 0
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metrics.jsonl", '{"step": 1, "loss": 2}\n'),
        ("metrics.jsonl", "{}\n"),
        ("flops.json", '{"conventions": 3}'),
        ("resources.json", '{"phases": []}'),
        ("eval/embedded_code.json", "[]"),
        ("eval/embedded_code.json", '{"results": {"embedded_code": 1}}'),
    ],
)
def test_show_of_a_damaged_run_is_one_line_that_names_it(file, content, tmp_path, capsys):
    write_runs(tmp_path, {"mst": [4.0]})
    run = tmp_path / "small" / "mst" / "seed-0"
    (run / file).write_text(content, encoding="utf-8")
    assert main(["runs", "show", str(run)]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert not said.out and str(run) in line and "is damaged" in line
