"""The study: its queue is worked off in order under the protocol, and its own profiles are what the protocol says."""

import json
import re
import subprocess
from datetime import date
from pathlib import Path

import pytest
import yaml

from replication.campaign import study
from replication.campaign.study import Entry, look_at, read_protocol, read_queue, render, run_study
from replication.cli import main
from replication.config.profiles import arm_names, load_config, resolve_name
from replication.flops.plan import plan
from replication.model.gpt2 import vocab_size
from replication.runs.finding import REFERENCE
from replication.runs.folder import RunFolder
from replication.runs.registration import VARIABLE, is_registered, record_registration
from replication.system.errors import UserError
from replication.system.files import write_sealed

ROOT = Path(__file__).parents[2]
OURS = ROOT / "docs" / "study"
POINTS = yaml.safe_load((OURS / "protocol.yaml").read_text())["points"]


@pytest.fixture
def folder(tmp_path, overrides, monkeypatch):
    """A study of one tiny point, of which dense is tuned and static is not."""
    made = tmp_path / "study"
    made.mkdir()
    values = {"extends": "smoke", "arms": {"dense": {}, "static": {}}, "eval": {"tasks": []}}
    for pair in overrides:
        key, _, value = pair.partition("=")
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = yaml.safe_load(value)
    values["tuned"] = {"static": {"train.learning_rate": 0.01}}  # of another point
    (made / "shorter.yaml").write_text(yaml.safe_dump(values))
    own = {"extends": "shorter.yaml", "tuned": {"dense": {"train.learning_rate": 0.01}}}
    (made / "point.yaml").write_text(yaml.safe_dump(own))
    (made / "protocol.md").write_text("What is asked.\n")
    (made / "protocol.yaml").write_text("date: 2026-01-01\n")
    monkeypatch.setenv(VARIABLE, "")
    return made


def queue(folder, *entries):
    (folder / "queue.yaml").write_text(json.dumps(entries))


def test_the_queue_trains_what_is_tuned_and_says_what_waits(folder, tmp_path, data_dir, capsys):
    queue(folder, {"train": "point.yaml", "arms": ["dense", "static"], "seeds": [0, 1]})
    results = tmp_path / "results"
    assert run_study(folder, results, data_dir) == []
    assert "point: static wait until their learning rates stand in its `tuned`" in capsys.readouterr().err
    (state,) = look_at(folder, results)
    assert (state.done, state.running, state.left) == (2, 0, 2) and state.hours > 0
    assert "2 done, 2 left" in render([state]).splitlines()[-1]
    run = RunFolder(results / "point" / "dense" / "seed-1")
    digest, dated = read_protocol(folder)
    assert run.environment()["protocol"]["sha256"] == digest
    assert is_registered(run, {digest}, dated)
    assert not is_registered(run, {"0" * 64}, dated) and not is_registered(run, {digest}, date(2999, 1, 1))
    before = (run.path / "status.json").read_bytes()
    assert run_study(folder, results, data_dir) == []
    assert (run.path / "status.json").read_bytes() == before


def test_a_run_of_another_command_is_not_registered(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert record_registration() == {}


def test_what_another_processor_began_is_left_for_it(folder, tmp_path, data_dir, capsys, monkeypatch):
    queue(folder, {"train": "point.yaml", "arms": ["dense"], "seeds": [0]})
    results = tmp_path / "results"
    resolve_name(str(folder / "point.yaml"))
    run = RunFolder(results / "point" / "dense" / "seed-0")
    run.path.mkdir(parents=True)
    run.write_config(load_config("point", "dense").to_dict())
    write_sealed(run.path / "environment.json", {"processor": "a PDP-11"})
    run.write_status("running", step=3)
    monkeypatch.setattr(study, "replicate", None)
    assert run_study(folder, results, data_dir) == []
    assert "dense seed 0 was begun on a PDP-11: it is left for that processor" in capsys.readouterr().err


def test_tuning_is_by_the_learning_rate_alone(folder, tmp_path, data_dir, monkeypatch):
    queue(folder, {"tune": "point.yaml", "arms": ["dense"], "seeds": [1000]})
    called = []
    monkeypatch.setattr(study, "tune", lambda *given, **more: (called.append((given, more)), ("", []))[1])
    assert run_study(folder, tmp_path / "results", data_dir) == []
    ((given, more),) = called
    assert given[:4] == ("point", ("dense",), (1000,), 1) and more == {"knobs": ("learning_rate",)}
    (state,) = look_at(folder, tmp_path / "results")
    assert (state.done, state.left) == (0, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "is no queue; allowed: a list of"),
        ("{}", "is no queue; allowed: a list of"),
        ("[1]", "has the entry 1; allowed: a list of"),
        ("[{train: point.yaml, arms: [dense]}]", "has the entry"),
        ("[{train: point.yaml, tune: point.yaml, arms: [dense], seeds: [0]}]", "has the entry"),
        ("[{train: point.yaml, arms: [dense], seeds: [a]}]", "has the entry"),
        ("[{train: point.yaml, arms: [statik], seeds: [0]}]", "arms is 'statik'; the nearest valid one is 'static'"),
        ("[{train: none.yaml, arms: [dense], seeds: [0]}]", "none.yaml', which is no file"),
        ("[", "is no YAML"),
    ],
)
def test_a_queue_that_is_none_is_refused_in_a_line(text, says, folder, capsys):
    (folder / "queue.yaml").write_text(text)
    assert main(["study", "status", "--study", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize("gone", ["protocol.md", "protocol.yaml", "the date"])
def test_no_protocol_no_runs(gone, folder, tmp_path, data_dir):
    queue(folder, {"train": "point.yaml", "arms": ["dense"], "seeds": [0]})
    if gone == "the date":
        (folder / "protocol.yaml").write_text("margin: 0.04\n")
    else:
        (folder / gone).unlink()
    with pytest.raises(UserError, match="has no"):
        run_study(folder, tmp_path / "results", data_dir)
    assert not (tmp_path / "results").exists()


# ---- ours


def test_our_queue_is_one():
    entries = read_queue(OURS)
    assert entries[0] == Entry("tune", "m029_t5", tuple(arm_names("m029_t5")), (1000,))
    assert not {seed for entry in entries if entry.kind == "train" for seed in entry.seeds} & {1000}


@pytest.mark.parametrize("point", POINTS)
def test_a_point_has_its_size_its_length_and_arms_at_four_times_fewer_flops(point):
    profile = resolve_name(str(OURS / f"{point}.yaml"))
    dense = load_config(profile, "dense")
    shape, (size, length) = dense.model, POINTS[point]
    width = shape.n_embd
    weights = 12 * shape.n_layer * width**2 + (vocab_size(dense) + shape.n_positions + 4 * shape.n_layer + 2) * width
    assert weights == size
    tokens = dense.train.steps * dense.train.batch_size * shape.n_positions
    assert tokens == pytest.approx(length * size, rel=0.01)
    assert vocab_size(dense) / (12 * shape.n_layer * width) == pytest.approx(0.46, abs=0.01)
    assert shape.n_positions / (6 * width) == pytest.approx(0.23, abs=0.01)
    assert dense.train.warmup_steps == pytest.approx(0.4 * dense.train.steps, abs=1)


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_its_arms_save_four_times(point):
    profile = resolve_name(str(OURS / f"{point}.yaml"))
    for arm in arm_names(profile)[1:]:
        convention = "head_excluded_causal" if arm.endswith("_dense_head") else "head_counted_full"
        reduction = plan(load_config(profile, arm))["conventions"][convention]["reduction"]
        assert reduction == pytest.approx(4, rel=0.02), arm


def test_the_protocol_came_before_every_registered_run():
    """By the history: the commit that brought it is an ancestor of each run's own."""
    runs = [run for run in (REFERENCE / "study").glob("*/*/seed-*") if "protocol" in RunFolder(run).environment()]
    if not runs or not (ROOT / ".git").exists():
        pytest.skip("no registered run, or no history, is here")
    added = subprocess.run(
        ["git", "log", "--diff-filter=A", "--format=%H", "--", "docs/study/protocol.md"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout.split()[-1]
    for commit in {re.sub(r"-dirty$", "", RunFolder(run).environment()["git"]) for run in runs}:
        subprocess.run(["git", "merge-base", "--is-ancestor", added, commit], cwd=ROOT, check=True)


def test_our_protocol_is_read_whole():
    protocol = study.load_protocol(OURS)
    assert protocol.points.keys() == POINTS.keys() and set(protocol.core) <= protocol.points.keys()
    assert (protocol.margin, protocol.level, protocol.accepted) == (0.04, 0.05, {protocol.sha256})


def test_an_amendment_keeps_what_was_begun_under_the_protocol_before_it(folder):
    before = read_protocol(folder)[0]
    amended = {"date": date(2026, 1, 1), "points": {"point": [1, 5]}, "core": ["point"], "margin": 0.04, "level": 0.05}
    amended["amendments"] = [{"date": date(2026, 1, 2), "replaces": before, "what": "a seed more"}]
    (folder / "protocol.yaml").write_text(yaml.safe_dump(amended))
    protocol = study.load_protocol(folder)
    assert protocol.accepted == {before, protocol.sha256} and protocol.sha256 != before


@pytest.mark.parametrize("key", ["points", "core", "margin", "level", "amendments"])
def test_a_protocol_that_lacks_a_key_is_refused_by_its_name(key, folder):
    values = yaml.safe_load((OURS / "protocol.yaml").read_text())
    del values[key]
    (folder / "protocol.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=f"lacks or misstates '{key}'"):
        study.load_protocol(folder)


def test_the_report_shows_cells_and_verdicts(folder, tmp_path, data_dir, capsys):
    queue(folder, {"train": "point.yaml", "arms": ["dense"], "seeds": [0, 1]})
    values = {"date": date(2026, 1, 1), "points": {"point": [1000, 5]}, "core": [], "margin": 0.04, "level": 0.05}
    (folder / "protocol.yaml").write_text(yaml.safe_dump(values | {"amendments": []}))
    results = tmp_path / "results"
    assert main(["study", "report", "--study", str(folder), "--results", str(results)]) == 0
    assert "No run of the study is finished." in capsys.readouterr().out
    run_study(folder, results, data_dir)
    capsys.readouterr()
    assert main(["study", "report", "--study", str(folder), "--results", str(results)]) == 0
    assert re.search(r"\| point +\| +1,000 +\| +5 +\| +dense +\| +2 +\|", capsys.readouterr().out)
