"""What a run uses is counted by part and phase, goes on when it resumes, and is shown."""

import json
import threading
import time
import weakref

import pytest
import torch
from synthetic_runs import write_run
from training_runs import resume, train_to

from replication.analysis.tables import write_table1
from replication.cli import main
from replication.runs.folder import RunFolder
from replication.training import resources, trainer
from replication.training.resources import Resources

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves; and a process that has used as many CPU seconds as it shows."""
    now = [0.0]
    monkeypatch.setattr(resources.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(resources, "RAPL", "nowhere")
    monkeypatch.setattr(resources, "measure_peak", lambda *_: 100.0)
    return now


def spend(used, clock, part, seconds):
    with used.part(part):
        clock[0] += seconds


def test_parts_are_summed_by_phase(clock):
    used = Resources(CPU)
    for phase, seconds in (("warm-up", 1), ("warm-up", 2), ("restoration", 4)):
        used.enter(phase)
        spend(used, clock, "forward", seconds)
    assert used.take()["seconds"] == {"forward": 7}
    spend(used, clock, "evaluation", 8)
    row = used.take()
    assert row["seconds"] == {"forward": 7, "evaluation": 8} and row["energy"] == "estimated" and row["threads"] >= 1
    assert {phase: own["steps"] for phase, own in used.phases.items()} == {"warm-up": 2, "restoration": 1}
    assert used.phases["warm-up"]["seconds.forward"] == 3 and used.phases["restoration"]["seconds.evaluation"] == 8


def test_the_share_of_the_peak_by_hand(clock):
    # 100 FLOPs in 2 s of steps, where 100 a second are possible: a half; a dense step has 50, so 2 of them a half too.
    used = Resources(CPU)
    for part, seconds in (("forward", 1.5), ("evaluation", 9)):
        used.enter("training")
        spend(used, clock, part, seconds)
    spend(used, clock, "optimizer", 0.5)
    used.take()
    report = used.report({"training": 100}, 50, "fp32")
    assert used.report({"training": 100}, 50, "fp32", processes=2)["mfu"] == 0.25  # 200 a second are possible
    assert (
        (report["mfu"], report["dense_mfu"])
        == (0.5, 0.5)
        == tuple(report["phases"]["training"][key] for key in ("mfu", "dense_mfu"))
    )
    assert report["peak_flops"] == 100 and report["phases"]["training"]["seconds"]["evaluation"] == 9


def test_energy_is_the_processors_where_it_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "RAPL", str(tmp_path))
    for package, joules in (("intel-rapl:0", 5), ("intel-rapl:1", 7), ("intel-rapl:0:0", 100)):  # the last is a part
        (tmp_path / package).mkdir()
        (tmp_path / package / "energy_uj").write_text(str(joules * 10**6))
    used = Resources(CPU)
    used.enter("training")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text(str(11 * 10**6))
    row = used.take()
    assert (row["joules"], row["energy"]) == (4, "RAPL")
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("0")  # it began anew
    assert used.take()["joules"] == 4
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("none of your business")
    assert Resources(CPU).energy == "estimated"


def test_only_packages_are_counted_and_what_a_counter_lost_is_added_back(tmp_path, monkeypatch):
    """psys is the whole machine's, its package among it. The package goes from 390 J over its 400 J to 25 J: 35 J."""
    monkeypatch.setattr(resources, "RAPL", str(tmp_path))
    for place, (name, joules) in enumerate((("package-0", 390), ("psys", 500))):
        folder = tmp_path / f"intel-rapl:{place}"
        folder.mkdir()
        values = {"name": name, "energy_uj": joules * 10**6, "max_energy_range_uj": 400 * 10**6}
        for file, value in values.items():
            (folder / file).write_text(f"{value}\n")
    used = Resources(CPU)
    used.enter("training")
    for place, joules in enumerate((25, 900)):
        (tmp_path / f"intel-rapl:{place}" / "energy_uj").write_text(str(joules * 10**6))
    assert used.take()["joules"] == 35


def test_a_counter_is_read_whatever_takes_long(tmp_path, monkeypatch):
    """It begins anew three times before it is asked for, in one part of a step or in none, and is seen each time."""
    monkeypatch.setattr(resources, "RAPL", str(tmp_path))
    monkeypatch.setattr(resources, "LOOKS", 0.001)
    (tmp_path / "intel-rapl:0").mkdir()
    energy = tmp_path / "intel-rapl:0" / "energy_uj"
    (tmp_path / "intel-rapl:0" / "max_energy_range_uj").write_text(str(400 * 10**6))
    energy.write_text(str(300 * 10**6))
    used = Resources(CPU)
    used.enter("training")
    for joules in (200, 100, 50):  # 300 J, 300 J and 350 J on
        partial = tmp_path / "partial"
        partial.write_text(str(joules * 10**6))
        partial.replace(energy)
        while used._meters[0].last != joules * 10**6:
            time.sleep(0.001)
    assert used.take()["joules"] == 950


def test_nobody_reads_a_counter_any_more_once_its_run_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "LOOKS", 0.001)
    (tmp_path / "energy_uj").write_text("0")
    meters = [resources._Package(tmp_path)]
    reader = threading.Thread(target=resources._watch, args=(weakref.WeakSet(meters),))
    reader.start()
    meters.clear()
    reader.join(10)
    assert not reader.is_alive()


def test_a_meter_that_fails_on_the_way_is_said_once_and_ends_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(resources, "RAPL", str(tmp_path))
    (tmp_path / "intel-rapl:0").mkdir()
    energy = tmp_path / "intel-rapl:0" / "energy_uj"
    energy.write_text("0")
    used = Resources(CPU)
    used.enter("training")
    energy.write_text("7000000")
    assert used.take()["joules"] == 7
    energy.unlink()
    monkeypatch.setattr(used.process, "memory_info", lambda: 1 / 0)
    rows = [used.take(), used.take()]
    assert [(row["joules"], row["energy"]) for row in rows] == [(7, "RAPL, until it failed")] * 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "energy cannot be read any more" in lines[0] and "memory" in lines[1]


def test_what_a_run_used_goes_on_when_it_resumes(tiny, data_dir, tmp_path):
    config = tiny("mst", "train.checkpoint_freq=5", "train.log_freq=7")  # steps between a logged row and a save count
    stopped = train_to(18, config, tmp_path / "run", data_dir)
    saved = json.loads((stopped.resume / "step-00000015" / "facts.json").read_text())["resources"]
    run = resume(config, RunFolder(tmp_path / "run"), data_dir)
    used = run.resources()
    assert sum(phase["steps"] for phase in used["phases"].values()) == 20
    assert used["phases"]["warm-up"]["seconds"]["forward"] == saved["warm-up"]["seconds.forward"] > 0
    assert {"data", "forward", "backward", "topology", "optimizer", "evaluation", "saving"} <= {
        part for phase in used["phases"].values() for part in phase["seconds"]
    }
    assert 0 < used["mfu"] < used["dense_mfu"] and used["peak_bytes"] > 0
    last = run.metrics()[-1]["resources"]
    assert last["seconds"]["forward"] == pytest.approx(
        sum(phase["seconds"]["forward"] for phase in used["phases"].values())
    )
    run.verify()  # it is under the run's checksums


def test_show_and_table1_tell_it_where_it_was_kept(tiny, data_dir, tmp_path, capsys):
    run = trainer.train(tiny("static"), tmp_path / "run", data_dir, progress=False)
    assert main(["runs", "show", str(run.path)]) == 0
    printed = capsys.readouterr().out
    assert all(line in printed for line in ("forward, s", "processor time, s", "MFU, %", "of the measured peak"))
    for arm, loss in (("dense", 3.9), ("mst", 4.0)):
        write_run(tmp_path / "small" / arm / "seed-0", arm, 0, loss)
    assert "CPU s" not in write_table1(tmp_path, "small")
    kept = {"mfu": 0.25, "phases": {"training": {"cpu_seconds": 12.4, "joules": 870.0}}}
    (tmp_path / "small" / "mst" / "seed-0" / "resources.json").write_text(json.dumps(kept))
    table = write_table1(tmp_path, "small")
    assert "| CPU s |" in table.replace("   ", " ").replace("  ", " ") and "25.0%" in table and "0.87" in table
    assert "MFU is FLOPs" in table
