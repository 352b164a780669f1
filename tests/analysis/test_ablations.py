"""The ablation table from made-up runs: its differences, its order, its files."""

from dataclasses import replace

import pandas as pd
import pytest
from synthetic_runs import write_run, write_runs

from replication.analysis.ablations import ablations, write_ablations
from replication.analysis.arms import group_by_arm, table1_runs
from replication.analysis.tables import write_table1
from replication.config.keys import find_differing_keys
from replication.config.profiles import arm_names, load_config, load_profile
from replication.flops.plan import plan
from replication.runs.finding import find_runs
from replication.system.errors import UserError


@pytest.fixture
def results(tmp_path):
    write_runs(tmp_path, {"dense": [3.9, 3.8], "mst_dense_head": [4.0, 4.1], "mst_block_2x2": [4.5]})
    write_run(tmp_path / "small" / "mst_random_growth" / "seed-1", "mst_random_growth", 1, 4.25)
    return tmp_path


def test_differences_are_paired_by_seed(results):
    table = ablations(group_by_arm(find_runs(results, "small")), "small").set_index("arm")
    assert list(table.index) == ["dense", "mst_dense_head", "mst_random_growth", "mst_block_2x2"]
    columns = ["minus_dense", "minus_dense_low", "minus_dense_high", "minus_dense_n"]
    expected = [0.2, 0.2 - 12.7062 * 0.1, 0.2 + 12.7062 * 0.1, 2]  # t(0.975, 1) = 12.7062, and the standard error 0.1
    assert table.loc["mst_dense_head", columns].tolist() == pytest.approx(expected, abs=1e-4)
    assert table.loc["mst_block_2x2", ["minus_base", "minus_dense", "minus_base_n"]].tolist() == pytest.approx(
        [0.5, 0.6, 1]
    )
    assert table.loc["mst_random_growth", ["minus_base", "minus_dense"]].tolist() == pytest.approx([0.15, 0.45])
    assert pd.isna(table.loc["mst_block_2x2", "minus_base_low"])
    assert table.loc["mst_block_2x2", "changes"] == "block_shape=[2, 2]"


def test_files_and_text(results):
    text = write_ablations(results, "small")
    assert (results / "small" / "ablations.md").read_text() == text
    assert len(pd.read_csv(results / "small" / "ablations.csv")) == 4
    row = next(line for line in text.splitlines() if "MST, random growth" in line)
    assert "growth=random" in row and "+0.150" in row and "+0.450" in row


def test_table_1_leaves_the_ablations_out(results):
    assert list(group_by_arm(table1_runs(results, "small"))) == ["dense", "mst_dense_head"]
    assert "static, 90 %" not in write_table1(results, "small")


def test_no_runs_and_no_ablations_are_one_line(tmp_path):
    with pytest.raises(UserError, match="'small'.*no finished run"):
        write_ablations(tmp_path, "small")
    with pytest.raises(UserError, match="profile is paper; allowed: one with ablations"):
        arm_names("paper", "ablations")


def test_a_smaller_dense_arm_is_counted_against_the_profiles_shape():
    small, dense = (
        plan(load_config("small", arm))["conventions"]["head_counted_full"] for arm in ("dense_narrow", "dense")
    )
    assert small["dense_flops"] == dense["flops"] and small["reduction"] == dense["flops"] / small["flops"]
    config = load_config("small", "dense_narrow")
    wider = plan(replace(config, model=replace(config.model, n_embd=20)))["conventions"]["head_counted_full"]
    assert small["reduction"] > 3.92 > wider["reduction"]  # within 2 % of MST's; 20 is the next width


def test_an_ablation_of_mst_changes_what_its_line_says_and_nothing_else():
    arms = load_profile("small")["ablations"]
    for arm, changes in ((arm, changes) for arm, changes in arms.items() if "like" in changes):
        base = load_config("small", changes["like"]).to_dict()
        assert find_differing_keys(load_config("small", arm).to_dict(), base) == sorted(
            ["arm", *changes.keys() - {"like"}]
        )
