"""The learning rate of every step by hand, and what a step at a learning rate of 0 does."""

import pytest
import torch

from replication.config.fields import TrainConfig
from replication.config.profiles import load_config
from replication.data import prepare
from replication.runs.folder import RunFolder
from replication.system.errors import UserError
from replication.training import trainer
from replication.training.optimizer import learning_rate
from replication.training.world import join

SHORT = TrainConfig(num_steps=8, learning_rate=1.0, min_learning_rate=0.0, warmup_steps=4)
COSINE = [1.0, 0.8535533905932737, 0.5, 0.1464466094067262]  # (1 + cos(π · k/4)) / 2


@pytest.mark.parametrize(
    ("warmup_from", "rises"), [("above_zero", [0.2, 0.4, 0.6, 0.8]), ("zero", [0.0, 0.25, 0.5, 0.75])]
)
def test_warmup_and_cosine_by_hand(warmup_from, rises):
    config = TrainConfig(**{**vars(SHORT), "warmup_from": warmup_from})
    assert [learning_rate(step, config) for step in range(8)] == pytest.approx([*rises, *COSINE])


@pytest.mark.parametrize("warmup_from", ["above_zero", "zero"])
def test_without_a_warmup_both_begin_at_the_peak(warmup_from):
    config = TrainConfig(**{**vars(SHORT), "warmup_steps": 0, "warmup_from": warmup_from})
    assert learning_rate(0, config) == 1.0


def test_the_paper_profile_begins_at_zero_and_no_other_does():
    train = load_config("paper", "mst").train  # PAPER `code`: 6e-4 · t / 2000
    rates = [learning_rate(step, train) for step in (0, 1, 1000, 1999, 2000)]
    assert rates == pytest.approx([0.0, 3e-7, 3e-4, 5.997e-4, 6e-4])
    assert {load_config(profile, "mst").train.warmup_from for profile in ("smoke", "small", "text")} == {"above_zero"}


@pytest.mark.parametrize("arm", ["dense", "mst"])
def test_a_step_at_a_rate_of_zero_moves_no_weight_and_counts_for_adam(arm, tiny, data_dir, tmp_path):
    config = tiny(arm, "train.warmup_from=zero", "train.warmup_steps=4")
    state = trainer.setup(config, RunFolder(tmp_path), join(), prepare(config.data, data_dir))
    before = {name: param.detach().clone() for name, param in state.model.named_parameters()}
    assert trainer.train_step(state, state.model.transformer)["lr"] == 0
    assert all(torch.equal(before[name], param) for name, param in state.model.named_parameters())
    moments = [state.optimizer.state[param] for param in state.trained]
    assert all(moment["step"] == 1 and moment["exp_avg_sq"].any() for moment in moments)
    assert trainer.train_step(state, state.model.transformer)["lr"] == pytest.approx(config.train.learning_rate / 4)
    assert any(not torch.equal(before[name], param) for name, param in state.model.named_parameters())


def test_an_unknown_beginning_is_one_line():
    with pytest.raises(UserError, match="train.warmup_from is 'first'; allowed: 'above_zero' or 'zero'"):
        load_config("smoke", "dense", 0, ["train.warmup_from=first"])
