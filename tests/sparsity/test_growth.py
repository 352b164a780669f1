"""What growth by gradient may read beside one batch's gradient: balanced, Q, K and V apart. All ours."""

import pytest
import torch
from training_runs import outcome

from replication.config.profiles import load_config
from replication.flops.plan import plan
from replication.methods import build_algorithm
from replication.model.gpt2 import build_model, select_masked_shapes
from replication.sparsity.topology import balance
from replication.system.errors import UserError
from replication.training import trainer

QKV = "transformer.h.0.attn.c_attn.weight"


def algorithm_of(config):
    algorithm, names = build_algorithm(config), select_masked_shapes(config)
    algorithm.apply(build_model(config, 0), lambda name, _: name in names)
    return algorithm


def test_balanced_by_hand():
    # Mean squares: of the rows 12.5 and 50, of the columns 22.5 and 40.
    scores = balance(torch.tensor([[3.0, -4.0], [6.0, 8.0]]))
    expected = [3 / (12.5 * 22.5) ** 0.5, 4 / (12.5 * 40) ** 0.5, 6 / (50 * 22.5) ** 0.5, 8 / (50 * 40) ** 0.5]
    assert scores.flatten().tolist() == pytest.approx(expected)


def test_balanced_leaves_empty_rows_and_columns_at_0():
    # The row's and the column's mean square is 2, so that the one entry is 2 / √2 / √2.
    assert balance(torch.tensor([[0.0, 0.0], [0.0, 2.0]])).flatten().tolist() == [0, 0, 0, pytest.approx(1)]


def test_balanced_growth_does_not_crowd_into_the_loudest_column():
    gradient = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) + 0.5
    gradient[:, :4] *= 100
    by = {
        name: score.flatten().topk(256).indices % 64
        for name, score in (("gradient", gradient), ("balanced", balance(gradient)))
    }
    assert (by["gradient"] < 4).all()
    assert len(by["balanced"].unique()) > 60


def test_the_gradient_is_read_at_an_update(tiny):
    assert [step for step in range(8) if build_algorithm(tiny("rigl")).reads_gradient(step)] == [3, 6]
    assert not any(map(build_algorithm(tiny("set")).reads_gradient, range(20)))


@pytest.mark.parametrize("override", ["sparsity.growth_score=balanced", "sparsity.split_qkv=true"])
def test_the_options_change_a_run_and_cost_what_is_planned(override, tiny, data_dir, tmp_path):
    plain, changed = (
        trainer.train(config, tmp_path / config.sparsity.growth_score / str(place), data_dir, progress=False)
        for place, config in enumerate((tiny("mst"), tiny("mst", override)))
    )
    assert changed.flops() == plan(tiny("mst", override))
    assert outcome(changed) != outcome(plain)


@pytest.mark.parametrize("arm", ["static", "rigl"])
def test_q_k_and_v_apart_keep_a_third_each(arm, tiny, data_dir, tmp_path):
    config = tiny(arm, "sparsity.split_qkv=true")
    masks = trainer.train(config, tmp_path / "run", data_dir, progress=False).masks()
    counts = [part.sum() for part in torch.from_numpy(masks[QKV]).chunk(3, 1)]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == algorithm_of(tiny(arm)).nnz[QKV]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["sparsity.growth_steps=2"], "unknown configuration key 'sparsity.growth_steps'"),
        (["sparsity.growth_score=loud"], "sparsity.growth_score is 'loud'; allowed: .*'gradient' or 'balanced'"),
    ],
)
def test_bad_options_are_one_line(overrides, says):
    with pytest.raises(UserError, match=says):
        build_algorithm(load_config("smoke", "rigl", 0, ["sparsity.update_freq=4", *overrides]))
