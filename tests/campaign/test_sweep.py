"""`search grid`: the arms of a grid, the profile that has them, and what is refused."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

from replication.campaign.sweep import arm_name, sweep
from replication.cli import main
from replication.config.profiles import arm_names, load_config, load_profile, read_tuned_settings, resolve_name
from replication.methods import METHODS, Method
from replication.runs.finding import find_runs
from replication.system.errors import UserError


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ({"sparsity.sparsity": 0.9}, "a_sparsity_0p9"),
        ({"sparsity.sparsity": 0.5, "sparsity.update_freq": 4}, "a_sparsity_0p5_update_freq_4"),
        ({"train.learning_rate": 1e-05}, "a_learning_rate_1em05"),
        ({"sparsity.block_shape": [2, 4]}, "a_block_shape_2_4"),
        ({"mst.hybrid_attention": False}, "a_hybrid_attention_false"),
        ({"mst.growth": "mixed"}, "a_growth_mixed"),
    ],
)
def test_an_arms_name_says_its_setting_and_is_an_identifier(setting, name):
    assert arm_name("a", setting) == name and name.isidentifier()


def test_an_arm_is_its_base_with_its_tuned_values_and_the_swept_one(tmp_path):
    profile, arms = sweep("small", ["static_dense_head"], ["sparsity.sparsity=0.5,0.9"], tmp_path)
    assert (profile, arms) == ("small_sweep", ["static_dense_head_sparsity_0p5", "static_dense_head_sparsity_0p9"])
    written = yaml.safe_load((tmp_path / "small_sweep.yaml").read_text())
    assert written["extends"] == "small"
    assert written["arms"][arms[1]] == {"method": "static", "sparsity.mask_lm_head": False, "sparsity.sparsity": 0.9}
    assert read_tuned_settings(profile, arms[1]) == {"train.learning_rate": 0.024}
    ours, base = load_config(profile, arms[1]), load_config("small", "static_dense_head")
    assert ours.sparsity.sparsity == 0.9 and ours.train == base.train and not ours.sparsity.mask_lm_head


@pytest.mark.parametrize("swept", ["sparsity.update_freq=4,100000", "options.x=1,2"])
def test_a_value_with_which_an_arm_cannot_be_trained_leaves_no_file(swept, tmp_path):
    with pytest.raises(UserError, match="update_freq is 100000|options.x is 1"):
        sweep("smoke", ["set"], [swept], tmp_path)
    assert not list(tmp_path.iterdir())


def test_several_keys_make_a_grid(tmp_path):
    _, arms = sweep("smoke", ["set"], ["sparsity.sparsity=0.5,0.9", "sparsity.drop_fraction=0.1,0.3"], tmp_path)
    assert arms == [f"set_sparsity_{s}_drop_fraction_{d}" for s in ("0p5", "0p9") for d in ("0p1", "0p3")]


def test_a_swept_value_takes_the_place_of_the_tuned_one(tmp_path):
    profile, (low, _) = sweep("small", ["static"], ["train.learning_rate=0.001,0.002"], tmp_path)
    assert load_config(profile, low).train.learning_rate == 0.001 and low not in load_profile(profile)["tuned"]


def test_a_second_sweep_adds_to_the_first_by_either_name(tmp_path):
    sweep("smoke", ["static"], ["sparsity.sparsity=0.5,0.9"], tmp_path)
    sweep("smoke", ["static", "set"], ["sparsity.sparsity=0.9,0.95"], tmp_path)
    _, arms = sweep("smoke_sweep", ["static_sparsity_0p5"], ["train.learning_rate=0.001,0.002"], tmp_path)
    assert arm_names(str(tmp_path / "smoke_sweep.yaml"))[-7:] == [
        "static_sparsity_0p5",
        "static_sparsity_0p9",
        "static_sparsity_0p95",
        "set_sparsity_0p9",
        "set_sparsity_0p95",
        *arms,
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["smoke_sweep.yaml"]


def test_a_profile_of_ones_own_is_extended_by_its_path(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: smoke\narms: {own: {method: set, sparsity.update_freq: 5}}\n")
    load_profile(str(tmp_path / "mine.yaml"))
    profile, (first, _) = sweep("mine", ["own"], ["sparsity.sparsity=0.5,0.9"], tmp_path / "results")
    assert yaml.safe_load((tmp_path / "results" / "mine_sweep.yaml").read_text())["extends"] == "../mine.yaml"
    config = load_config(profile, first)
    assert (config.profile, config.sparsity.update_freq, config.sparsity.sparsity) == ("mine_sweep", 5, 0.5)


def test_arms_that_do_not_read_the_key_are_left_out_with_a_word(tmp_path, capsys):
    _, arms = sweep("smoke", ["dense", "static", "mst"], ["sparsity.sparsity=0.5,0.9"], tmp_path)
    assert arms == ["static_sparsity_0p5", "static_sparsity_0p9"]
    (said,) = capsys.readouterr().err.splitlines()
    assert "left out" in said and "dense, mst" in said and "smoke_sweep.yaml --methods dense,mst" in said


REFUSED = {
    "sparsity.sparsity": "key=value,value",
    "sparsity.sparsity=0.9": "two values or more",
    "sparsity.sparsity=0.9,0.90": "two values or more, which differ",
    "sparsity.sparsty=0.5,0.9": "nearest valid one is 'sparsity.sparsity'",
    "sparsity=0.5,0.9": "a key of the grid is 'sparsity'",
    "seed=0,1": "a key of the grid is 'seed'",
    "train.log_freq=1,2": "a key that changes a run's result",
    "sparsity.sparsity=0.5,1": "sparsity.sparsity is 1.0; allowed: 0 <= sparsity < 1",
    "sparsity.distribution=er,uniforn": "sparsity.distribution is 'uniforn'",
    "sparsity.sparsity=[0.5,0.9": "YAML values",
    "mst.growth=mixed,random": "keys that one of the arms reads; set do not",
}


@pytest.mark.parametrize(("given", "says"), REFUSED.items(), ids=list(REFUSED))
def test_what_is_no_sweep_is_one_line_and_writes_nothing(given, says, tmp_path, capsys):
    assert main(["search", "grid", given, "--profile", "smoke", "--methods", "set", "--results", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line and not list(tmp_path.iterdir())


def test_a_key_that_an_arm_sets_itself_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="arm set_4x does not set itself \\(sparsity.sparsity=0.9\\)"):
        sweep("smoke", ["set", "set_4x"], ["sparsity.sparsity=0.5,0.9"], tmp_path)


def test_an_arm_that_is_there_with_other_settings_is_left_as_it_is(tmp_path):
    file = tmp_path / "smoke_sweep.yaml"
    file.write_text("extends: smoke\narms: {static_sparsity_0p9: {method: set, sparsity.sparsity: 0.9}}\n")
    before = file.read_text()
    with pytest.raises(UserError, match="arms.static_sparsity_0p9 is .*'set'.* which here would be .*'static'"):
        sweep("smoke", ["static"], ["sparsity.sparsity=0.5,0.9"], tmp_path)
    file.write_text("extends: small\narms: {own: {method: set}}\n")
    with pytest.raises(UserError, match="extends 'small'; allowed: 'smoke'"):
        sweep("smoke", ["static"], ["sparsity.sparsity=0.5,0.9"], tmp_path)
    assert before.startswith("extends: smoke") and "own" in file.read_text()


@pytest.mark.slow
def test_a_sweep_is_trained_and_tabulated_and_known_afterwards(overrides, data_dir, tmp_path, capsys):
    settings = [part for pair in [*overrides, "eval.tasks=[]"] for part in ("--set", pair)]
    places = ["--results", str(tmp_path), "--data-dir", str(data_dir), "--seeds", "0", "--jobs", "1"]
    grid = ["sparsity.sparsity=0.5,0.9", "--methods", "dense,static"]
    assert main(["search", "grid", "--profile", "smoke", *grid, *places, *settings]) == 0
    table = capsys.readouterr().out
    assert "| static sparsity 0.5 " in table and "| static sparsity 0.9 " in table
    runs = {run.path.parent.name: run for run in find_runs(tmp_path, "smoke_sweep")}
    assert {arm: round(run.flops()["mean_sparsity"], 2) for arm, run in runs.items()} == {
        "static_sparsity_0p5": 0.5,
        "static_sparsity_0p9": 0.9,
    }
    later = ["replicate", "--profile", str(tmp_path / "smoke_sweep.yaml"), "--methods", "dense,static_sparsity_0p9"]
    assert main([*later, *places, *settings]) == 0
    assert "| dense " in capsys.readouterr().out


@pytest.mark.parametrize("swept", ["train.learning_rate=1e-3,0.001", "sparsity.update_freq=4,4.0"])
def test_two_ways_to_write_one_value_are_one(swept, tmp_path):
    with pytest.raises(UserError, match="values that differ; .* is among them twice|two values or more, which differ"):
        sweep("smoke", ["set"], [swept], tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_value_is_kept_as_it_is_trained_however_it_is_written(tmp_path):
    _, arms = sweep("smoke", ["set"], ["train.learning_rate=1e-3,2e-3"], tmp_path)
    assert arms == ["set_learning_rate_0p001", "set_learning_rate_0p002"]
    assert sweep("smoke", ["set"], ["train.learning_rate=0.001,0.002"], tmp_path)[1] == arms
    written = yaml.safe_load((tmp_path / "smoke_sweep.yaml").read_text())
    assert written["arms"][arms[0]]["train.learning_rate"] == 0.001


class Every(METHODS["set"].algorithm):
    def __init__(self, *args, every, **kwargs):
        super().__init__(*args, **kwargs)


def test_arms_without_a_swept_option_are_left_out_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "mine", Method(Every, defaults={"every": 2}))
    (tmp_path / "mine.yaml").write_text("extends: smoke\narms: {mine: {}}\n")
    results = tmp_path / "results"
    profile = resolve_name(str(tmp_path / "mine.yaml"))
    _, arms = sweep(profile, ["dense", "mine"], ["options.every=1,2.0"], results)
    assert arms == ["mine_every_1", "mine_every_2"]
    assert "left out, as their method does not read it: dense;" in capsys.readouterr().err
    with pytest.raises(
        UserError, match="options.evry is 1, which mine does not have; the nearest valid one is 'every'"
    ):
        sweep(profile, ["mine"], ["options.evry=1,2"], results)


def test_two_sweeps_at_once_both_stay(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        made = [
            pool.submit(sweep, "smoke", [arm], ["sparsity.sparsity=0.5,0.9"], tmp_path) for arm in ("static", "set")
        ]
        names = [name for one in made for name in one.result()[1]]
    assert len(names) == 4 and set(names) <= set(arm_names(str(tmp_path / "smoke_sweep.yaml")))
    assert [file.name for file in tmp_path.iterdir()] == ["smoke_sweep.yaml"]
