"""Trials around a suggestion: equal FLOPs, the same ones again, and what is said without Optuna."""

import sys

import pytest

from replication.campaign import search as searching
from replication.campaign.search import SCALE, _changes, _describe, _starting, search
from replication.config.profiles import load_config
from replication.flops.plan import plan
from replication.forecast.loss_model import Prediction
from replication.forecast.suggest import Suggestion, apply_changes
from replication.system.errors import UserError
from replication.training.trainer import train


def flops(config):
    return plan(config)["conventions"]["head_counted_full"]["flops"]


def suggestion(arm, overrides=()):
    config = load_config("smoke", arm, 0, overrides)
    return Suggestion(arm, {}, config, (1.0, 1), Prediction(3, 2, 4), 3, flops(config), None, "it was asked for")


def test_what_is_varied():
    assert _starting(load_config("smoke", "dense")) == {"train.learning_rate": 0.003}
    assert _starting(load_config("smoke", "set"))["density"] == pytest.approx(0.2)
    assert _starting(load_config("smoke", "mst"))["density"] == pytest.approx(0.06)


@pytest.mark.parametrize(("arm", "density"), [("set", 0.1), ("set", 0.4), ("mst", 0.03), ("mst", 0.12)])
def test_steps_take_up_what_the_density_changes(arm, density):
    config = load_config("smoke", arm)
    changes = _changes(config, {"train.learning_rate": 0.004, "density": density})
    assert flops(apply_changes(config, changes)) == pytest.approx(SCALE * flops(config), rel=0.05)
    key = "mst.ultra_sparsity" if arm == "mst" else "sparsity.sparsity"
    assert changes[key] == 1 - density and changes["train.learning_rate"] == 0.004


def test_without_optuna_it_is_a_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"--search needs optuna, which is not installed; allowed: .* pip install"):
        search(suggestion("dense"), 1, 1, tmp_path, tmp_path)


def test_trials_are_trained_once_and_gone_through_again(tmp_path, data_dir, overrides, monkeypatch):
    pytest.importorskip("optuna")
    monkeypatch.setattr(searching, "SCALE", 0.5)
    trained = []

    def train_here(jobs, num_jobs, data_dir):
        for job in jobs:
            train(job.config, job.run.path, data_dir, progress=False)
            trained.append(job.run.path)
        return []

    monkeypatch.setattr(searching, "train_all", train_here)
    of = suggestion("set", overrides)
    text, failures = search(of, 3, 1, tmp_path, data_dir)
    assert failures == [] and text.startswith(
        "3 trials of set at 0.5 of its FLOPs, on seed 1000:\nbest  learning_rate="
    )
    folder = tmp_path / "smoke" / "tuning" / "search-set"
    assert sorted(run.name for run in trained) == [
        f"seed-{n}" for n in (1000, 1000, 1000, 1001, 1001, 1002, 1002, 1003, 1003)
    ]
    assert {run.parent.parent for run in trained} == {folder}
    done = len(trained)
    assert search(of, 3, 2, tmp_path, data_dir) == (text, []) and len(trained) == done


def test_how_sure_it_is_by_hand(monkeypatch):
    losses = {"a": [3.0, 3.1, 3.2], "b": [3.1, 3.21, 3.29], "c": [3.0, float("inf"), 3.0]}
    monkeypatch.setattr(searching, "final_loss", lambda job: job[1])
    jobs = {name: [Run((name, loss)) for loss in values] for name, values in losses.items()}
    # -0.10, -0.11 and -0.09: mean -0.1, standard error 0.01/sqrt(3), t of 2 degrees 4.303
    assert "-0.1000 nats, 95 % interval -0.1248 to -0.0752, of seeds (1001, 1002, 1003): lower." in _describe(
        jobs["a"], jobs["b"]
    )
    assert "it diverged" in _describe(jobs["c"], jobs["b"])


class Run(tuple):
    """A job's name and loss."""

    setting = property(lambda self: self[0])
