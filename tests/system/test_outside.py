"""What is outside a run ends none, what lm-eval says is believed, and a finished run that was altered is no run."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from replication.analysis.scores import higher_of
from replication.cli import main
from replication.publish import card
from replication.runs import frames
from replication.runs.folder import RunFolder
from replication.runs.frames import numeric
from replication.runs.snapshots import find_unscored
from replication.system.errors import UserError
from replication.system.files import read_json, write_sealed
from replication.training import observers, trackers, trainer
from replication.watching.listing import list_runs
from replication.watching.monitor import Monitor


class Gone:
    """A tracker whose server goes away after the second row, and that cannot be closed."""

    def __init__(self, state):
        self.rows = 0

    def log(self, scalars, step):
        self.rows += 1
        if self.rows > 2:
            raise ConnectionError("the server is gone")

    def close(self):
        raise SystemExit("and so are we")


@pytest.fixture
def copied(with_snapshot, tmp_path):
    """A finished run, to be altered."""
    return RunFolder(shutil.copytree(with_snapshot["mst"].path, tmp_path / "smoke" / "mst" / "seed-0"))


def lines_of(capsys, word):
    return [line for line in capsys.readouterr().err.splitlines() if word in line]


# ---- what is outside a run


def test_a_tracker_that_goes_away_is_said_once_and_the_run_is_finished(tiny, data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(trackers.VARIABLE, "tensorboard")
    monkeypatch.setattr(trackers, "TensorBoard", Gone)
    run = trainer.train(tiny("dense"), tmp_path / "run", data_dir, progress=False)
    assert run.is_finished()
    (line,) = lines_of(capsys, "tensorboard")
    assert "--log-to tensorboard failed (ConnectionError: the server is gone); the run goes on without it" in line


def test_a_display_that_fails_at_any_moment_ends_nothing(capsys):
    class Broken(observers.Observer):
        def step(self, row):
            raise OSError("gone")

    @contextmanager
    def display(at):
        if at == "beginning":
            raise OSError("no terminal")
        yield Broken() if at == "a step" else observers.Observer()
        if at == "the end":
            raise OSError("closed")

    for moment in ("beginning", "a step", "the end"):
        with observers._spared(Path("run"), "the display", display(moment)) as seen:
            seen.step({})
            seen.step({})
        assert len(lines_of(capsys, "the display")) == 1
    with pytest.raises(KeyError), observers._spared(Path("run"), "the display", display("never")):
        raise KeyError  # the run's own failure is not the display's


def test_a_full_disk_at_the_report_and_the_card_leaves_a_finished_run(tiny, data_dir, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trainer, "_resources", full)
    monkeypatch.setattr(card, "write_atomically", full)
    config = tiny("dense")
    run = trainer.train(config, tmp_path / "run", data_dir, progress=False)
    told = capsys.readouterr().err
    assert run.is_trained(config) and run.resources() is None
    assert "resources.json is not written (OSError: [Errno 28]" in told and "a card is not written (OSError" in told


def test_no_loss_is_too_large_for_a_card():
    assert card._perplexity(710.0) == float("inf") and card._perplexity(0.0) == 1


def test_train_says_of_a_finished_run_that_it_was_before(tiny, with_snapshot, overrides, data_dir, capsys):
    pairs = [part for pair in [*overrides, "eval.at=[0.5]"] for part in ("--set", pair)]
    where = ["--out", str(with_snapshot["dense"].path), "--data-dir", str(data_dir)]
    assert main(["train", "--profile", "smoke", "--method", "dense", *where, *pairs]) == 0
    assert "was finished before, and is left as it is; validation loss" in capsys.readouterr().out


# ---- a finished run that was altered


@pytest.mark.parametrize("file", ["metrics.jsonl", "flops.json", "config.yaml"])
def test_an_altered_finished_run_is_damaged_for_ls_and_watch_as_for_show(copied, tmp_path, file, capsys):
    monitor = Monitor(tmp_path, Console(width=200))
    monitor.look()
    assert [run.state for run in monitor.runs.values()] == ["finished"] and "damaged" not in list_runs(tmp_path)
    altered = copied.path / file
    altered.write_text(altered.read_text().replace("1", "2", 1))
    assert "damaged" in list_runs(tmp_path)
    monitor.look()
    for run in (*monitor.runs.values(), *_looked_at_anew(tmp_path)):
        assert run.state == "damaged" and file in run.problem
    assert main(["runs", "show", str(copied.path)]) == 2


def _looked_at_anew(folder):
    monitor = Monitor(folder, Console(width=200))
    monitor.look()
    return monitor.runs.values()


@pytest.mark.parametrize("name", ["status.json", "metrics.jsonl"])
def test_a_pipe_in_the_place_of_a_runs_file_is_not_waited_for(copied, tmp_path, name):
    import os

    (copied.path / name).unlink()
    os.mkfifo(copied.path / name)
    assert "damaged" in list_runs(tmp_path)
    (run,) = _looked_at_anew(tmp_path)
    assert run.state == "damaged" and ("a pipe or a device" in run.problem or "no regular file" in run.problem)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        frames.load(copied.path)


def test_links_in_a_circle_are_one_line(tmp_path, capsys):
    (tmp_path / "round").symlink_to(tmp_path / "round")
    (tmp_path / "p.yaml").symlink_to(tmp_path / "p.yaml")
    train = ["train", "--method", "dense", "--out"]
    for command in (
        [*train, str(tmp_path / "round"), "--profile", "smoke"],
        [*train, str(tmp_path / "x"), "--profile", str(tmp_path / "p.yaml")],
        ["runs", "list", str(tmp_path / "round")],
    ):
        assert main(command) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


# ---- lm-eval's word


def test_higher_is_better_where_lm_eval_says_so():
    results = {"judged": {"mcc,none": 0.1, "brier_score,none": 0.2, "acc,none": 0.5, "acc_stderr,none": 0.1}}
    told = {"judged": {"mcc": True, "brier_score": False, "acc": None}}
    assert higher_of({"results": results, "higher_is_better": told}) == {"judged/mcc", "judged/acc"}
    assert higher_of({"results": results}) == {"judged/mcc", "judged/acc"}


def test_a_tag_is_scored_where_its_tasks_are():
    whole = {"tag": ["one", "two"]}
    scores = {"one": {"asked_as": whole}, "two": {"asked_as": whole}, "three": {}}
    assert find_unscored(["tag", "three", "four"], scores) == ["four"]
    del scores["two"]
    assert find_unscored(["tag", "three"], scores) == ["tag"]


TASK = """
task: {name}
tag: a_tag
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {output}
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
metric_list: [{{metric: {metric}}}]
"""


@pytest.fixture
def own_tasks(tmp_path, monkeypatch):
    """Two tasks of a tag, and one that wants more tokens than a context has."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"the {n}", "answer": "model"}) + "\n" for n in range(2)))
    for name in ("one", "two"):
        text = TASK.format(name=name, rows=rows, output="loglikelihood", metric="perplexity")
        (folder / f"{name}.yaml").write_text(text)
    long = TASK.replace("tag: a_tag\n", "").format(
        name="long", rows=rows, output="generate_until", metric="exact_match"
    )
    (folder / "long.yaml").write_text(long + 'generation_kwargs: {until: ["."], do_sample: false}\n')
    monkeypatch.setenv("REPLICATION_TASKS", str(folder))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_a_tag_is_kept_as_its_tasks_and_lm_evals_own_checks_are_one_line(checkpoint, own_tasks, tmp_path):
    from replication.eval.zero_shot import score

    score(checkpoint, ["a_tag"], tmp_path / "eval")
    scores = {file.stem: read_json(file) for file in (tmp_path / "eval").iterdir()}
    assert scores.keys() == {"one", "two"} and find_unscored(["a_tag"], scores) == []
    with pytest.raises(UserError, match=r"long cannot be scored \(AssertionError"):
        score(checkpoint, ["long"])


def test_a_tokenizer_with_a_number_beyond_the_model_is_refused(checkpoint, tmp_path):
    from replication.eval.zero_shot import _problem

    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    file = folder / "tokenizer.json"
    told = json.loads(file.read_text())
    word = max(told["model"]["vocab"], key=told["model"]["vocab"].get)
    told["model"]["vocab"][word] = 320
    file.write_text(json.dumps(told))
    assert "is number 320, and its model has those below 320" in _problem(str(folder))
    assert _problem(str(checkpoint)) is None


# ---- large counts


def test_counts_beyond_64_bits_are_numbers_in_frames():
    frame = numeric(pd.DataFrame({"a": [1, 2**70], "b": [1, 2], "c": ["x", 2**70], "d": [1, 2**63]}))
    assert frame.dtypes.astype(str).to_dict() == {"a": "float64", "b": "int64", "c": "object", "d": "float64"}
    assert np.allclose(frame["a"], [1, 2.0**70])


def test_a_run_as_large_as_the_papers_can_be_drawn(copied):
    flops = copied.flops()
    for count in flops["conventions"].values():
        count["flops"] *= 10**15
    status = copied.status()
    (copied.path / "flops.json").write_text(json.dumps(flops))
    rows = [row | {"flops": {key: value * 10**15 for key, value in row["flops"].items()}} for row in copied.metrics()]
    (copied.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_sealed(copied.path / "status.json", {key: value for key, value in status.items() if key != "sha256"})
    run = frames.load(copied.path)
    assert run.metrics["flops.block_forward"].dtype == "float64" == run.flops["flops"].dtype
