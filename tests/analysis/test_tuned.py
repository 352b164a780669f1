"""What stands beside a row: an arm's settings, and by how many tries they were found."""

import pandas as pd
import pytest
from synthetic_runs import edit_json, write_runs

from replication.analysis.tables import main_columns, table1
from replication.analysis.tuned import Tries, count_tries, settings_of, tries
from replication.analysis.tuned import tuning as tuning_of
from replication.campaign.tune import render
from replication.config.profiles import load_profile
from replication.runs.finding import REFERENCE, find_runs
from replication.runs.folder import RunFolder

RATE, DROP = "train.learning_rate", "sparsity.drop_fraction"


def tuning(*rows, arm="mst"):
    """(rate, drop fraction, chosen) each."""
    return pd.DataFrame(rows, columns=[RATE, DROP, "chosen"]).assign(arm=arm, flops=1, seconds=1.0, command="tune")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(1, 0.03, False), (2, 0.03, True), (4, 0.03, False)], Tries(3)),  # one drop fraction is no end
        ([(1, 0.03, False), (2, 0.03, True)], Tries(2, (RATE,))),
        ([(1, 0.03, True), (2, 0.03, False), (1, 0.09, False)], Tries(3, (RATE, DROP))),
        ([(1, None, False), (2, None, True), (4, None, False)], Tries(3)),  # nothing that moves
        ([(1, 0.03, False), (2, 0.03, False)], Tries(2)),  # every one diverged
        ([(0.024, 0.03, False), (0.0479, 0.03, False), (0.048, 0.03, False), (0.0339, 0.03, True)], Tries(3)),
    ],
)
def test_tries_are_counted_and_the_last_of_its_kind_is_marked(rows, expected):
    assert count_tries(tuning(*rows)) == expected
    assert str(expected) == f"{expected.num}{'*' * bool(expected.at_end)}"


def test_tuning_says_where_a_better_value_may_lie_beyond():
    text = render(tuning((1, 0.03, False), (2, 0.03, True), (2, 0.01, False)))
    assert text.splitlines()[-2:] == [
        "# mst: train.learning_rate 2 is the lowest or highest value tried; a better one may lie beyond it",
        "# mst: sparsity.drop_fraction 0.03 is the lowest or highest value tried; a better one may lie beyond it",
    ]
    assert "beyond" not in render(tuning((1, 0.03, False), (2, 0.03, True), (4, 0.03, False)))


def test_only_what_was_tuned_has_tries():
    assert tries("smoke", "mst") is None and tries("elsewhere", "mst") is None and tries("small", "mine") is None
    table = pd.read_csv(REFERENCE / "small" / "tuning.csv")
    for arm in load_profile("small")["tuned"]:
        assert 2 < tries("small", arm).num <= (table["arm"] == arm).sum()
    assert tries("small", "mst_random_growth") is None  # it has the settings of the arm that it is like


def test_columns_are_of_what_a_method_reads(tmp_path):
    write_runs(tmp_path, {"dense": [3.9], "static": [4.0], "rigl": [4.1]})
    shown = main_columns(table1(find_runs(tmp_path, "small"))).set_index("arm")
    assert list(shown["LM head"]) == ["", "masked", "masked"]
    assert [*shown["drop"]][:2] == [*shown["every"]][:2] == ["", ""] and shown.loc["RigL", "every"] == "10"


def test_a_method_of_ones_own_shows_what_it_dropped(tmp_path):
    write_runs(tmp_path, {"mine": [4.0]})
    run = RunFolder(tmp_path / "small" / "mine" / "seed-0")
    run.write_config(run.config() | {"method": "mine"})
    edit_json(run.path / "status.json", "status", "finished")
    assert settings_of(run) | {"learning_rate": 0} == {
        "head": "masked",
        "learning_rate": 0,
        "drop_fraction": None,  # its schedule drops nothing
        "update_freq": None,
        "tries": "",
    }


def test_what_was_tried_is_beside_the_runs_or_where_the_profiles_settings_are_from(tmp_path):
    own = tuning_of(tmp_path, "small")
    assert own.equals(pd.read_csv(REFERENCE / "small" / "tuning.csv")) and tuning_of(tmp_path, "mine") is None
    (tmp_path / "small").mkdir()
    tuning((1, 0.03, True)).to_csv(tmp_path / "small" / "tuning.csv", index=False)
    assert len(tuning_of(tmp_path, "small")) == 1
