"""An interrupted run goes on: bit for bit, from an undamaged state, under the same circumstances, or not at all."""

import json
import shutil

import pytest
import torch
from training_runs import Stop, outcome, resume, train_to

from replication.runs.folder import RunFolder
from replication.system.errors import DamagedError, UserError
from replication.system.files import read_json, write_sealed
from replication.system.instructions import HELD
from replication.training import circumstances, trainer


@pytest.fixture(scope="module")
def config(tiny):
    return tiny("mst", "train.checkpoint_freq=5")


@pytest.fixture(scope="module")
def whole(config, data_dir, tmp_path_factory):
    return outcome(trainer.train(config, tmp_path_factory.mktemp("whole") / "run", data_dir, progress=False))


@pytest.fixture(scope="module")
def stopped(config, data_dir, tmp_path_factory):
    return train_to(18, config, tmp_path_factory.mktemp("stopped") / "run", data_dir).path


@pytest.fixture
def run(stopped, tmp_path):
    """Interrupted at step 18 of 20, with states of steps 10 and 15."""
    return RunFolder(shutil.copytree(stopped, tmp_path / "run"))


def flip(file, place=0.5):
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 8
    file.write_bytes(data)


def test_the_last_two_states_are_kept(run):
    assert sorted(path.name for path in run.resume.iterdir()) == ["step-00000010", "step-00000015"]


DAMAGE = {
    "a bit of the tensors": lambda state: flip(state / "state.safetensors", 0.9),
    "a bit of the facts": lambda state: flip(state / "facts.json"),
    "half the tensors": lambda state: (state / "state.safetensors").write_bytes(
        (state / "state.safetensors").read_bytes()[:999]
    ),
    "no tensors": lambda state: (state / "state.safetensors").unlink(),
    "no facts": lambda state: (state / "facts.json").unlink(),
    "a file in its place": lambda state: (shutil.rmtree(state), state.write_text("x")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_falls_back_to_the_one_before_and_says_so(damage, config, run, data_dir, whole, capsys):
    damage(run.resume / "step-00000015")
    assert outcome(resume(config, run, data_dir)) == whole
    said = capsys.readouterr().err
    assert "step-00000015" in said and "is damaged" in said and "going on from step 10" in said
    (record,) = run.environment()["resumed"]
    assert record["step"] == 10 and "step-00000015" in record["damaged"][0]


def test_without_an_undamaged_state_it_is_refused_and_left_as_it_is(config, run, data_dir):
    for step in (10, 15):
        flip(run.resume / f"step-000000{step}" / "state.safetensors")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(
        DamagedError, match="step-00000015.*step-00000010.*remove .*resume to train the run anew"
    ) as error:
        resume(config, run, data_dir)
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("log", ["metrics.jsonl", "topology.jsonl"])
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:200]), "it has 200 bytes of the"),
        (lambda file: file.unlink(), "No such file"),
        (lambda file: flip(file, 0.1), "its sha256"),
    ],
    ids=["shortened", "gone", "a bit"],
)
def test_a_log_that_is_not_as_it_was_at_the_save_is_refused(log, damage, says, config, run, data_dir):
    damage(run.path / log)
    with pytest.raises(DamagedError, match=f"{log} is damaged \\({says}"):
        resume(config, run, data_dir)
    assert run.status()["status"] == "running"


def test_a_log_that_lost_its_end_fits_the_state_before(config, run, data_dir, whole, capsys):
    """As after a loss of power: a state whole, and the log's last lines gone."""
    sizes = read_json(run.resume / "step-00000010" / "facts.json")["logs"]["metrics.jsonl"]
    file = run.path / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[: sizes["bytes"] + 5])
    assert outcome(resume(config, run, data_dir)) == whole
    assert "metrics.jsonl is damaged" in capsys.readouterr().err


def test_what_was_logged_after_the_save_may_be_anything(config, run, data_dir, whole):
    with (run.path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 17, "lo')
    assert outcome(resume(config, run, data_dir)) == whole


@pytest.mark.parametrize("file", ["config.yaml", "status.json", "environment.json"])
@pytest.mark.parametrize(
    "damage", [flip, lambda file: file.write_text(""), lambda file: file.unlink()], ids=["a bit", "empty", "gone"]
)
def test_a_damaged_file_of_an_interrupted_run_is_refused_by_name(file, damage, config, run, data_dir):
    damage(run.path / file)
    with pytest.raises(DamagedError, match=f"{file} is damaged") as error:
        resume(config, run, data_dir)
    assert "\n" not in str(error.value)


def test_the_state_of_another_run_is_not_taken_up(tiny, data_dir, tmp_path):
    """Not even where nothing was logged before it, by which it would be told."""
    settings = ("train.checkpoint_freq=5", "train.log_freq=20", "train.eval_freq=20")
    runs = [train_to(8, tiny("dense", *settings, seed=seed), tmp_path / f"{seed}", data_dir) for seed in (0, 1)]
    shutil.rmtree(runs[0].resume)
    shutil.copytree(runs[1].resume, runs[0].resume)
    with pytest.raises(DamagedError, match="step-00000005 is damaged \\(it is the state of another run\\)"):
        trainer.train(tiny("dense", *settings), runs[0].path, data_dir, resume=True, progress=False)


@pytest.mark.parametrize(
    "override",
    [
        "train.checkpoint_freq=7",
        "train.log_freq=3",
        "train.eval_freq=4",
        "eval.tasks=[embedded_code]",
        "eval.at=[phases,0.4]",
    ],
)
def test_what_changes_no_result_makes_no_other_run(override, tiny, run, data_dir, whole):
    other = tiny("mst", "train.checkpoint_freq=5", override)
    resumed = outcome(resume(other, run, data_dir))
    assert {key: resumed[key] for key in ("weights", "masks", "flops")} == {
        key: whole[key] for key in ("weights", "masks", "flops")
    }
    assert run.is_trained(other)


# ---- circumstances


def edit_environment(run, **changes):
    environment = run.environment()
    write_sealed(run.path / "environment.json", environment | changes)


@pytest.mark.parametrize(
    ("key", "value"),
    [("processes", 2), ("device", "NVIDIA H100"), ("shards", {"train": "0" * 64, "validation": "1" * 64})],
)
def test_what_makes_it_another_run_is_refused(key, value, config, run, data_dir):
    edit_environment(run, **{key: value})
    with pytest.raises(UserError, match=f"was trained with {key} .*, and here it is .*; allowed: what it began with"):
        resume(config, run, data_dir)
    assert run.status()["step"] == 15


def test_other_threads_processor_versions_and_commit_are_recorded(config, run, data_dir, whole, capsys):
    edit_environment(run, threads=64, processor="Zilog Z80", git="0000000")
    assert outcome(resume(config, run, data_dir)) == whole
    assert "threads was 64, and is" in capsys.readouterr().err
    (record,) = run.environment()["resumed"]
    assert record["step"] == 15 and record["threads"] == [64, torch.get_num_threads()]
    assert (
        record["processor"][0] == "Zilog Z80"
        and record["git"][0] == "0000000"
        and set(record) == {"step", "threads", "processor", "git"}
    )


def test_each_change_is_recorded_once_against_the_last(run):
    edit_environment(run, threads=4, resumed=[{"step": 5, "threads": [4, 2]}])
    now = {key: value for key, value in run.environment().items() if key != "resumed"}
    assert circumstances.changes_since(run, now | {"threads": 2}) == {}
    assert circumstances.changes_since(run, now | {"threads": 4}) == {"threads": [2, 4]}


def test_an_automatic_precision_stays_what_it_was_when_the_run_began(tiny, data_dir, tmp_path, monkeypatch, capsys):
    config = tiny("rigl", "train.precision=auto", "train.checkpoint_freq=5")
    monkeypatch.delenv(HELD, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    run = train_to(8, config, tmp_path / "run", data_dir)
    assert run.environment()["precision"] == "bf16"
    expected = outcome(trainer.train(config, tmp_path / "whole", data_dir, progress=False))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert outcome(resume(config, run, data_dir)) == expected
    assert "goes on in bf16, as it began, where train.precision=auto would be fp32" in capsys.readouterr().err


def test_another_text_since_the_interruption_is_refused(tiny, corpus_file, data_dir, tmp_path):
    corpus = tmp_path / "corpus.txt"
    shutil.copy(corpus_file, corpus)
    config = tiny("set", f"data.files=[{corpus}]", "train.checkpoint_freq=5")
    run = train_to(8, config, tmp_path / "run", data_dir)
    corpus.write_text(corpus.read_text().replace("sparse", "dense"))
    with pytest.raises(UserError, match="was trained with shards .*, and here it is"):
        resume(config, run, data_dir)
    assert json.loads((run.path / "status.json").read_text())["step"] == 5


# ---- beginning and end


def test_a_run_that_died_while_it_began_begins_anew_without_being_told_to(config, data_dir, tmp_path, whole):
    run = RunFolder(tmp_path / "run")
    run.write_status("running")
    assert outcome(trainer.train(config, run.path, data_dir, progress=False)) == whole


def test_a_run_that_died_while_it_wrote_its_first_file_leaves_nothing(config, data_dir, tmp_path):
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    (run.path / ".status.json.123.partial").write_text("")
    trainer.train(config, run.path, data_dir, progress=False)
    assert run.is_finished() and not [path.name for path in run.path.iterdir() if path.name.startswith(".")]


def test_a_run_that_died_after_it_was_finished_is_finished(config, data_dir, tmp_path, monkeypatch, whole):
    monkeypatch.setattr(trainer.checkpoint, "remove_states", lambda folder: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        trainer.train(config, tmp_path / "run", data_dir, progress=False)
    run = RunFolder(tmp_path / "run")
    assert run.is_trained(config) and outcome(run) == whole and run.resume.exists()
    monkeypatch.undo()
    trainer.train(config, run.path, data_dir, progress=False)
    assert not run.resume.exists() and outcome(run) == whole


def test_status_names_the_owner_and_its_files(run):
    status = read_json(run.path / "status.json")
    assert set(status["owner"]) == {"host", "pid", "alive"} and set(status["sha256"]) == {"config.yaml"}
