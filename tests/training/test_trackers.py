"""What TensorBoard, W&B and Trackio are told of a run: what its logs hold, each step once, and nothing unasked."""

import json
import os
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_runs import train_to

from replication.cli import main
from replication.runs.folder import RunFolder
from replication.system.errors import UserError
from replication.training import trackers, trainer
from replication.training.trackers import scalars
from replication.training.world import World

FAKE = '''
"""Stands in for W&B and Trackio: keeps what it is told in a file."""
import json, os
FILE = os.environ["FAKE_TRACKERS"] + "/" + __name__

def _keep(**told):
    with open(FILE, "a") as file:
        file.write(json.dumps(told) + "\\n")

def init(project, name, group, config, dir=None):
    if os.environ.get("WANDB_MODE") != "offline":
        raise RuntimeError("no API key configured")
    _keep(init=name, group=group, project=project, dir=dir, steps=config["train"]["num_steps"])

def log(scalars, step):
    _keep(step=step, scalars=scalars)

def finish():
    _keep(finish=True)
'''


def read(run):
    """Scalar -> [(step, value)], as TensorBoard shows it."""
    events = EventAccumulator(str(run.path / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.fixture
def log_to(monkeypatch):
    """log_to(names): what `--log-to` leaves in the environment."""
    return lambda names: monkeypatch.setenv(trackers.VARIABLE, names)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Both services, made up; fake(name): what it was told."""
    for name in ("wandb", "trackio"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text(FAKE)
        monkeypatch.setitem(sys.modules, name, None)  # so that it is gone again in the end
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("FAKE_TRACKERS", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    return lambda name: [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]


def test_scalars_of_rows_worked_by_hand():
    """600 of 1000 FLOPs in 4 steps of 250; an update in the third step, whose layers dropped 2 and 4 weights."""
    metrics = {"step": 4, "loss": 3.5, "lr": 0.1, "phase": "warm-up", "memory_bytes": 7, "flops": {"head_forward": 600}}
    layers = [
        {"step": 2, "layer": "a", "dropped": 2, "grown": 1, "ever_active": 0.5, "nnz": 9},
        {"step": 2, "layer": "b", "dropped": 4, "grown": 1, "ever_active": 0.75, "nnz": 9},
    ]
    assert scalars({"metrics.jsonl": [metrics], "topology.jsonl": layers}, 250) == [
        (3, {"topology/dropped": 3, "topology/grown": 1, "topology/ever_active": 0.625}),
        (4, {"loss": 3.5, "lr": 0.1, "memory_bytes": 7, "flops": 600, "flops_saved": pytest.approx(0.4)}),
    ]


def test_tensorboard_has_what_the_logs_have(tiny, data_dir, tmp_path, log_to):
    log_to("tensorboard")
    run = trainer.train(tiny("mst", "train.log_freq=5"), tmp_path / "run", data_dir, progress=False)
    told, rows = read(run), run.metrics()
    assert [row["step"] for row in rows] == [5, 10, 15, 20]
    for name in (*trackers.SCALARS, "validation_loss"):
        logged = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]
        assert told[name] == logged and len(logged) >= 2
    assert told["flops_saved"][-1] == (
        20,
        pytest.approx(1 - 1 / run.flops()["conventions"]["head_counted_full"]["reduction"]),
    )
    layers = [row for row in run.topology() if row["step"] == 3]
    assert dict(told["topology/dropped"])[4] == pytest.approx(sum(row["dropped"] for row in layers) / len(layers))
    assert len(told["topology/grown"]) == len({row["step"] for row in run.topology()})


def test_a_run_is_the_same_and_whole_with_a_tracker(tiny, data_dir, tmp_path, log_to):
    config = tiny("mst")
    log_to("")
    silent = trainer.train(config, tmp_path / "silent", data_dir, progress=False)
    assert not (silent.path / "tensorboard").exists()
    log_to("tensorboard")
    run = trainer.train(config, tmp_path / "run", data_dir, progress=False)
    assert [row["loss"] for row in run.metrics()] == [row["loss"] for row in silent.metrics()]
    run.verify()
    assert run.is_trained(config)  # though its folder holds more


def test_a_resumed_run_has_each_step_once(tiny, data_dir, tmp_path, log_to):
    """It dies at 18 and goes on from 15; steps 16 to 18, and the updates among them, are told twice and shown once."""
    log_to("tensorboard")
    config = tiny("mst", "train.checkpoint_freq=5")
    run = train_to(18, config, tmp_path / "run", data_dir)
    assert [step for step, _ in read(run)["loss"]] == list(range(1, 19))
    trainer.train(config, run.path, data_dir, resume=True, progress=False)
    told = read(run)
    assert [step for step, _ in told["loss"]] == list(range(1, 21))
    updates = sorted({row["step"] + 1 for row in run.topology()})
    assert [step for step, _ in told["topology/dropped"]] == updates and {16, 19} & set(updates)


def test_a_run_that_starts_anew_has_no_events_of_before(tiny, data_dir, tmp_path, log_to):
    log_to("tensorboard")
    config = tiny("mst", "train.checkpoint_freq=20")
    run = train_to(9, config, tmp_path / "run", data_dir)  # nothing is saved
    (run.path / "tensorboard" / "left").touch()
    trainer.train(config, run.path, data_dir, resume=True, progress=False)
    assert [step for step, _ in read(run)["loss"]] == list(range(1, 21))
    assert not (run.path / "tensorboard" / "left").exists()


def test_services_are_told_in_order_and_a_resumed_part_is_a_run_of_its_own(tiny, data_dir, tmp_path, log_to, fake):
    log_to("wandb,trackio")
    config = tiny("mst", "train.checkpoint_freq=5")
    run = train_to(18, config, tmp_path / "run", data_dir)
    trainer.train(config, run.path, data_dir, resume=True, progress=False)
    for name, folder in (("wandb", str(run.path)), ("trackio", None)):
        told = fake(name)
        begun = [line for line in told if "init" in line]
        assert [line["init"] for line in begun] == ["smoke/mst/seed-0", "smoke/mst/seed-0 from step 15"]
        assert {(line["group"], line["dir"], line["steps"]) for line in begun} == {("smoke/mst/seed-0", folder, 20)}
        second = told.index(begun[1])
        for part, steps in ((told[:second], range(1, 19)), (told[second:], range(16, 21))):
            assert [line["step"] for line in part if "step" in line] == list(steps)
            assert part[-1] == {"finish": True}
        assert all("topology/dropped" in line["scalars"] for line in told if line.get("step") == 16)


def test_several_are_told_at_once(tiny, data_dir, tmp_path, log_to, fake):
    log_to("tensorboard,trackio")
    run = trainer.train(tiny("set"), tmp_path / "run", data_dir, progress=False)
    told = fake("trackio")
    assert len(read(run)["loss"]) == len([line for line in told if "loss" in line.get("scalars", {})]) == 20


@pytest.mark.parametrize(("is_main", "names"), [(True, ["tensorboard"]), (False, [])])
def test_they_are_told_by_one_process_only(is_main, names, tiny, data_dir, tmp_path, log_to, monkeypatch):
    class Called(Exception):
        pass

    def observer(course, trackers, progress):
        raise Called(course.steps, trackers)

    log_to("tensorboard")
    monkeypatch.setattr(trainer, "observer", observer)
    monkeypatch.setattr(World, "is_main", property(lambda _: is_main))
    with pytest.raises(Called) as called:
        trainer.train(tiny("set"), tmp_path / "run", data_dir, progress=False)
    assert called.value.args == (20, names)


def test_a_service_that_cannot_begin_is_one_line(tiny, data_dir, tmp_path, log_to, fake, monkeypatch):
    log_to("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match=r"--log-to wandb cannot begin \(RuntimeError: no API key configured\)"):
        trainer.train(tiny("mst"), tmp_path / "run", data_dir, progress=False)


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ("tensorbord", "--log-to is 'tensorbord'; the nearest valid one is 'tensorboard'"),
        ("tensorboard,wandb", "--log-to is 'wandb', which is not installed"),
    ],
)
@pytest.mark.parametrize("command", [["train", "--method", "mst", "--out"], ["replicate", "--results"]])
def test_unknown_or_not_installed_is_said_before_anything_is_made(
    command, names, problem, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(trackers.VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # which W&B leaves where it was used, and Python could import
    assert main([*command, "out", "--profile", "smoke", "--log-to", names]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_runs_of_replicate_are_tracked_where_they_are_trained(overrides, data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv(trackers.VARIABLE, "")
    settings = [part for pair in [*overrides, "eval.tasks=[]"] for part in ("--set", pair)]
    command = ["replicate", "--profile", "smoke", "--methods", "dense", "--seeds", "0", "--log-to", "tensorboard"]
    where = ["--results", str(tmp_path), "--data-dir", str(data_dir), "--jobs", str(os.cpu_count() or 1)]
    assert main([*command, *where, *settings]) == 0
    assert len(read(RunFolder(tmp_path / "smoke" / "dense" / "seed-0"))["loss"]) == 20
