"""The model on its way (`eval.at`): when it is kept, what is logged and scored of it, and that nothing else changes."""

import json
import shutil

import pytest
from training_runs import Stop, outcome, set_up, train_to

from replication.campaign import pipeline
from replication.campaign.pipeline import Job
from replication.cli import main
from replication.config.fields import AttentionConfig
from replication.eval.zero_shot import score
from replication.flops.plan import snapshot_steps
from replication.runs.folder import RunFolder
from replication.runs.snapshots import DENSE_LOSS, OWN_LOSS, SHA256, snapshots_of
from replication.system.errors import DamagedError
from replication.system.files import read_json
from replication.training import trainer

AT = ("eval.at=[phases,0.6]", "train.checkpoint_freq=5", "train.log_freq=10", "eval.tasks=[embedded_prose]")
LOGGED = {OWN_LOSS, DENSE_LOSS, SHA256}


@pytest.mark.parametrize(
    ("method", "at", "steps"),
    [
        ("mst", "[phases]", [2, 16, 20]),  # warm-up to 0.1, ultra-sparsification to 0.8, and the end
        ("mst", "[phases, 0.25, 0.8]", [2, 5, 16, 20]),
        ("mst", "[0.5]", [10]),
        ("dense", "[phases]", [20]),
        ("dense", "[0.001, 0.25]", [1, 5]),
        ("rigl", "[]", []),
    ],
)
def test_moments_are_steps(method, at, steps, tiny):
    assert snapshot_steps(tiny(method, f"eval.at={at}")) == steps


@pytest.mark.parametrize("at", ["[1]", "[0]", "[phase]", "[-0.5]", "[true]"])
def test_what_is_no_moment_is_one_line(at, tmp_path, capsys):
    assert (
        main(["train", "--profile", "smoke", "--method", "mst", "--out", str(tmp_path), "--set", f"eval.at={at}"]) == 2
    )
    (line,) = capsys.readouterr().err.splitlines()
    assert "eval.at is [" in line and "a list of phases and of fractions of training, above 0, below 1" in line


@pytest.fixture(scope="module")
def config(tiny):
    return tiny("mst", *AT)


@pytest.fixture(scope="module")
def trained(config, data_dir, tmp_path_factory):
    return trainer.train(config, tmp_path_factory.mktemp("snapshots") / "run", data_dir, progress=False)


@pytest.fixture
def run(trained, tmp_path):
    return RunFolder(shutil.copytree(trained.path, tmp_path / "smoke" / "mst" / "seed-0"))


def weights(run):
    return {path.parent.name: path.read_bytes() for path in sorted((run.path / "at").glob("step-*/model.safetensors"))}


def test_they_change_nothing_else(trained, tiny, data_dir, tmp_path):
    without = outcome(trainer.train(tiny("mst", *AT, "eval.at=[]"), tmp_path / "run", data_dir, progress=False))
    found = outcome(trained)
    rows = [{key: value for key, value in row.items() if key not in LOGGED} for row in found.pop("metrics")]
    assert [row["step"] for row in rows] == [2, 10, 12, 16, 20]
    assert [row for row in rows if row["step"] in (10, 20)] == without.pop("metrics") and found == without


def test_each_is_a_model_whose_losses_are_those_that_are_logged(trained, config, data_dir, tmp_path):
    from safetensors.torch import load_model

    assert [(found.step, found.patterns, found.is_last) for found in snapshots_of(trained)] == [
        (2, ["dense"], False),
        (12, ["dense", "sparse"], False),
        (16, ["dense", "sparse"], False),
        (20, ["dense"], True),
    ]
    state = set_up(config, data_dir, tmp_path)
    for found in snapshots_of(trained):
        load_model(state.model, found.weights / "model.safetensors", strict=False)  # tied: one name of two is stored
        state.engine.topology_changed()
        losses = {pattern: trainer.validate(state, pattern, None) for pattern in ("dense", found.patterns[-1])}
        assert losses["dense"] == pytest.approx(found.row[DENSE_LOSS], abs=1e-5)
        assert losses[found.patterns[-1]] == pytest.approx(found.row[OWN_LOSS], abs=1e-5)
    row = snapshots_of(trained)[2].row
    assert row[OWN_LOSS] != row[DENSE_LOSS]
    assert trained.metrics()[-1][DENSE_LOSS] == trained.metrics()[-1]["validation_loss"]


def test_a_killed_run_goes_on_to_the_same_ones(trained, config, data_dir, tmp_path):
    run = train_to(18, config, tmp_path / "run", data_dir)
    (run.path / "at" / "step-000016" / "config.json").write_text(
        "half"
    )  # of a step after the state that it goes on from
    trainer.train(config, run.path, data_dir, resume=True, progress=False)
    assert outcome(run) == outcome(trained) and weights(run) == weights(trained)
    assert json.loads((run.path / "at" / "step-000016" / "config.json").read_text())["n_layer"] == 2


def test_one_that_is_not_asked_for_any_more_goes_with_the_steps_that_are_done_again(tiny, config, data_dir, tmp_path):
    run = train_to(18, config, tmp_path / "run", data_dir)
    trainer.train(tiny("mst", *AT, "eval.at=[]"), run.path, data_dir, resume=True, progress=False)
    assert list(weights(run)) == ["step-000002", "step-000012"]
    assert [found.step for found in snapshots_of(run)] == [2, 12]


def test_a_run_that_begins_anew_has_none(run, config):
    run.begin(config.to_dict(), {})
    assert not (run.path / "at").exists()


@pytest.mark.slow
def test_attention_that_keeps_every_pair_scores_as_dense_and_less_does_not(checkpoint, evaluation):
    def perplexity(**how):
        return score(checkpoint, ["embedded_prose"], **how)["embedded_prose"]["word_perplexity,none"]

    every = AttentionConfig(window=32, stride=1)  # of a context of 32
    assert perplexity(pattern="local", attention=every) == pytest.approx(perplexity(), rel=1e-5)
    assert perplexity(pattern="local", attention=AttentionConfig(window=1)) != pytest.approx(perplexity(), rel=1e-3)


# ---- scoring


@pytest.fixture
def evaluation(tmp_path, monkeypatch):
    """One short text in place of the held-out sets."""
    (tmp_path / "data" / "eval").mkdir(parents=True)
    for task in ("embedded_prose", "embedded_code"):
        text = {"text": "the sparse mask grows slowly again and again."}
        (tmp_path / "data" / "eval" / f"{task}.jsonl").write_text(json.dumps(text) + "\n")
    monkeypatch.setenv("REPLICATION_DATA", str(tmp_path / "data"))


def scored(run):
    return sorted(
        file.relative_to(run.path / "at").as_posix() for file in (run.path / "at").rglob("*") if file.is_file()
    )


SCORED = [
    "step-000002/eval/dense/embedded_prose.json",
    "step-000012/eval/dense/embedded_prose.json",
    "step-000012/eval/sparse/embedded_prose.json",
    "step-000016/eval/dense/embedded_prose.json",
    "step-000016/eval/sparse/embedded_prose.json",
]


@pytest.mark.slow
def test_they_are_scored_once_under_both_attentions_and_then_leave_nothing_else(
    run, config, tiny, data_dir, evaluation, monkeypatch
):
    job = Job(config, run)
    assert not job.is_done()
    pipeline._train_and_score(job, data_dir)
    assert scored(run) == SCORED and job.is_done() and not job.lacks()
    sparse = read_json(run.path / "at" / SCORED[2])
    assert sparse["attention_pattern"] == "sparse" and sparse["checkpoint"] == run.metrics()[2][SHA256]
    dense = read_json(run.path / "at" / SCORED[1])
    assert dense["results"]["embedded_prose"] != sparse["results"]["embedded_prose"]
    monkeypatch.setattr("replication.eval.zero_shot.score", lambda *_, **__: pytest.fail("it was scored already"))
    pipeline._train_and_score(job, data_dir)
    assert Job(tiny("mst", *AT, "eval.tasks=[embedded_prose,embedded_code]"), run).lacks()  # its weights are gone


@pytest.mark.slow
@pytest.mark.parametrize("when", ["now", "when it was trained"])
def test_weights_that_are_to_be_kept_are(when, run, config, tiny, data_dir, evaluation):
    keeps = tiny("mst", *AT, "eval.keep_weights=true")
    if when != "now":
        run.write_config(keeps.to_dict())
        run.write_status(**{key: value for key, value in run.status().items() if key not in ("sha256", "reason")})
    before = weights(run)
    job = Job(keeps if when == "now" else config, run)
    pipeline._train_and_score(job, data_dir)
    assert weights(run) == before and len(before) == 3 and job.is_done()
    assert set(SCORED) < set(scored(run))


def test_one_that_was_not_asked_for_is_left_alone(run, tiny, data_dir, evaluation):
    before = scored(run)
    pipeline._train_and_score(Job(tiny("mst", *AT, "eval.at=[]"), run), data_dir)
    assert scored(run) == before


def test_a_damaged_one_is_named_and_not_scored(run, config, data_dir, evaluation):
    file = run.path / "at" / "step-000012" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError, match="at/step-000012/model.safetensors is damaged"):
        pipeline._train_and_score(Job(config, run), data_dir)


@pytest.mark.slow
def test_scores_of_another_model_are_no_scores_of_this_one(run, config, data_dir, evaluation):
    pipeline._train_and_score(Job(config, run), data_dir)
    shutil.copy(run.path / "at" / SCORED[1], run.path / "at" / SCORED[3])
    with pytest.raises(DamagedError, match="step-000016/eval/dense/embedded_prose.json .*of another checkpoint"):
        snapshots_of(run)[2].evals("dense")


@pytest.mark.slow
def test_a_finished_run_without_them_is_accepted_with_one_line(tiny, run, data_dir, overrides, capsys):
    settings = [*overrides, *AT, "eval.tasks=[]", "eval.at=[phases,0.3,0.6]"]
    command = ["replicate", "--profile", "smoke", "--methods", "mst", "--seeds", "0", "--jobs", "1"]
    places = ["--results", str(run.path.parents[2]), "--data-dir", str(data_dir)]
    for path in (run.path / "at").iterdir():
        shutil.rmtree(path)
    before = run.status()
    assert main([*command, *places, *(part for pair in settings for part in ("--set", pair))]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "eval.at" in line]
    assert line.startswith("mst seed 0: finished without some of the snapshots that eval.at asks for")
    assert run.status() == before
    train = ["train", "--profile", "smoke", "--method", "mst", "--out", str(run.path), "--data-dir", str(data_dir)]
    assert main([*train, *(part for pair in settings for part in ("--set", pair))]) == 0
    assert f"{run.path}: finished without some of the snapshots" in capsys.readouterr().err


def test_death_while_one_is_written_leaves_none_half(config, data_dir, tmp_path, monkeypatch, trained):
    real = trainer.checkpoint.shutil.copy
    monkeypatch.setattr(trainer.checkpoint.shutil, "copy", lambda *_: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        trainer.train(config, tmp_path / "run", data_dir, progress=False)
    assert not weights(RunFolder(tmp_path / "run"))
    monkeypatch.setattr(trainer.checkpoint.shutil, "copy", real)
    run = trainer.train(config, tmp_path / "run", data_dir, resume=True, progress=False)
    assert weights(run) == weights(trained) and outcome(run) == outcome(trained)
    assert not [path for path in (run.path / "at").iterdir() if path.name.startswith(".")]
