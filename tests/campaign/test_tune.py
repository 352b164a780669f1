"""Tuning: the search on made-up losses, what it may not try, and a grid that is trained for seconds."""

import math
import re
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from replication.campaign.pipeline import Job
from replication.campaign.tune import (
    KNOBS,
    SEEDS,
    _add,
    _Arm,
    list_untried,
    read_chosen_settings,
    same,
    search,
    tunable_arms,
    tune,
)
from replication.cli import main
from replication.cli.old_words import modernise
from replication.config.profiles import arm_names, load_config, load_profile, profile_names, read_tuned_settings
from replication.runs.folder import RunFolder
from replication.system.errors import UserError
from replication.system.files import write_sealed
from replication.training.trainer import train

LEARNING_RATE, DROP_FRACTION, INTERVAL, FINE = KNOBS.values()
RATE, DROP, FREQ = "train.learning_rate", "sparsity.drop_fraction", "sparsity.update_freq"
START = ((RATE, 0.006), (DROP, 0.03), (FREQ, 10))


def find(loss, knobs=(LEARNING_RATE,), start=START, is_allowed=lambda setting: True):
    """Settings in the order in which they were tried, and the best, where `loss` says how each does."""
    tried, losses = [], {}
    while True:
        wanted, best = search(start, knobs, is_allowed, losses)
        if not wanted:
            return [dict(setting) for setting in tried], dict(best)
        tried += wanted
        losses |= {setting: loss(dict(setting)) for setting in wanted}


def test_three_learning_rates_where_the_middle_is_best():
    tried, best = find(lambda setting: abs(setting[RATE] - 0.006))
    assert [setting[RATE] for setting in tried] == [0.003, 0.006, 0.012] and best == dict(START)


@pytest.mark.parametrize(
    ("wanted", "more", "chosen"),
    [(0.024, [0.024, 0.048], 0.024), (0.001, [0.0015, 0.00075], 0.00075), (0.0015, [0.0015, 0.00075], 0.0015)],
)
def test_the_grid_is_widened_until_the_best_is_inside(wanted, more, chosen):
    tried, best = find(
        lambda setting: abs(setting[RATE] - wanted) if wanted != 0.001 else abs(math.log(setting[RATE] / 0.0009))
    )
    assert [setting[RATE] for setting in tried[3:5]] == more[: len(tried) - 3] and best[RATE] == chosen


def test_it_ends_where_widening_never_helps():
    tried, best = find(lambda setting: -setting[RATE])
    assert max(setting[RATE] for setting in tried) == best[RATE] == 0.096  # four rungs up


def test_what_diverges_is_never_best():
    _, best = find(lambda setting: math.inf if setting[RATE] > 0.004 else -setting[RATE])
    assert best[RATE] == 0.003


def test_knobs_are_turned_one_after_the_other_each_at_the_best_of_those_before():
    def loss(setting):
        return (
            abs(math.log(setting[RATE] / 0.012))
            + abs(math.log(setting[DROP] / setting[FREQ] / 0.001))
            + abs(setting[FREQ] - 20)
        )

    tried, best = find(loss, (LEARNING_RATE, DROP_FRACTION, INTERVAL))
    assert best == {RATE: 0.012, DROP: 0.02, FREQ: 20}  # the drop per step, 0.001, stays when the interval doubles
    assert all(setting[RATE] == 0.012 for setting in tried[4:])
    assert [(setting[DROP], setting[FREQ]) for setting in tried[4:]] == [
        (0.01, 10),
        (0.09, 10),
        (0.00333, 10),
        (0.005, 5),
        (0.02, 20),
        (0.04, 40),
    ]


def test_the_learning_rate_is_turned_again_in_half_steps():
    tried, best = find(lambda setting: abs(math.log(setting[RATE] / 0.0084)), (LEARNING_RATE, FINE))
    assert [setting[RATE] for setting in tried] == [0.003, 0.006, 0.012, 0.00424, 0.00849] and best[RATE] == 0.00849


@pytest.mark.parametrize(("rate", "is_same"), [(0.0479, True), (0.048, True), (0.0339, False), (0.0679, False)])
def test_two_half_steps_are_a_whole_one(rate, is_same):
    assert same(((RATE, rate), (DROP, 0.03)), ((RATE, 0.048), (DROP, 0.03))) is is_same
    assert not same(((RATE, rate), (DROP, 0.01)), ((RATE, 0.048), (DROP, 0.03)))


def test_what_may_not_be_trained_is_not_tried():
    tried, _ = find(
        lambda setting: 1 / setting[DROP], (DROP_FRACTION,), is_allowed=lambda setting: dict(setting)[DROP] < 0.2
    )
    assert sorted(setting[DROP] for setting in tried) == [0.01, 0.03, 0.09]


def arm(name, *overrides, profile="small"):
    return _Arm(name, profile, overrides, SEEDS, tuple(KNOBS), None)


def setting(name, **changes):
    keys = {"rate": RATE, "drop": DROP, "freq": FREQ}
    return tuple((keys[key], value) for key, value in changes.items())


@pytest.mark.parametrize(
    ("name", "changes", "is_allowed"),
    [
        ("mst", {"rate": 0.1, "drop": 0.03, "freq": 10}, True),  # a learning rate changes no schedule
        ("mst", {"rate": 0.006, "drop": 0.09, "freq": 10}, True),
        ("mst", {"rate": 0.006, "drop": 0.06, "freq": 20}, False),  # its ramps would have five updates
        (
            "mst",
            {"rate": 0.006, "drop": 0.015, "freq": 5},
            False,
        ),  # the gradient twice as often would cost more than 1 %
        ("set", {"rate": 0.006, "drop": 0.015, "freq": 5}, True),  # which SET does not read
        ("rigl", {"rate": 0.006, "drop": 0.06, "freq": 20}, True),
        ("set", {"rate": 0.006, "drop": 0.5, "freq": 10}, False),  # more than a third of a layer
        ("set", {"rate": 0.006, "drop": 0.03, "freq": 2000}, False),  # never
    ],
)
def test_a_setting_must_evolve_as_finely_and_cost_no_more(name, changes, is_allowed):
    assert arm(name).is_allowed(setting(name, **changes)) == is_allowed


def test_what_makes_an_arm_what_it_is_is_not_varied(monkeypatch):
    assert dict(arm("dense").start) == {RATE: 0.012} and dict(arm("mst").start) == dict(START) | {RATE: 0.012}
    assert dict(arm("set", "sparsity.update_freq=4").start)[FREQ] == 4


def test_tuning_runs_have_a_seed_and_text_of_their_own():
    config = arm("mst").config(START, SEEDS[0])
    assert config.seed == 1000 and config.train.validation_part == "tuning" and config.eval.tasks == ()
    assert load_config("small", "mst").train.validation_part == "validation"


@pytest.mark.parametrize("profile", [name for name in profile_names() if load_profile(name)["tuned"]])
def test_the_profile_holds_what_its_tuning_found(profile, request):
    file = request.config.rootpath / "results" / "reference" / profile / "tuning.csv"
    table = pd.read_csv(file)
    assert read_chosen_settings(table) == load_profile(profile)["tuned"]
    text = (request.config.rootpath / "replication" / "config" / "profiles" / f"{profile}.yaml").read_text(
        encoding="utf-8"
    )
    start, *words = re.search("tuned: # (python -m replication) (.*)", text).groups()
    told = {" ".join(modernise(command.removeprefix(f"{start} ").split(" "))) for command in table["command"]}
    assert told == set(words)
    tunable = set(tunable_arms(profile))
    assert tunable & set(arm_names(profile)) <= set(table["arm"]) <= tunable  # an ablation may go untuned
    assert all(table.loc[rows["validation_loss"].idxmin(), "chosen"] for _, rows in table.groupby("arm"))


def test_an_ablation_has_the_settings_of_what_it_ablates():
    assert read_tuned_settings("small", "mst_random_growth") == read_tuned_settings("small", "mst_dense_head")


@pytest.mark.slow
def test_a_grid_is_trained_kept_and_taken_up_again(tmp_path, capsys, overrides, data_dir, monkeypatch):
    def run_all(jobs, num_jobs, data_dir):  # without processes, which would take seconds a round
        for job in jobs:
            train(job.config, job.run.path, data_dir, resume=True, progress=False)
        return []

    monkeypatch.setattr("replication.campaign.tune.run_all", run_all)
    command = [
        "tune",
        "--profile",
        "smoke",
        "--methods",
        "dense,set",
        "--seeds",
        "7,8",
        "--knobs",
        "learning_rate",
        "--results",
        str(tmp_path),
        "--data-dir",
        str(data_dir),
        "--jobs",
        "1",
    ]
    command += [part for override in overrides for part in ("--set", override)]
    assert main(command) == 0
    printed, file = capsys.readouterr().out, tmp_path / "smoke" / "tuning.csv"
    table = pd.read_csv(file)
    assert table.groupby("arm")["chosen"].sum().to_dict() == {"dense": 1, "set": 1}
    assert (table["flops"] > 0).all() and (table["seconds"] > 0).all() and table["first_seed"].notna().all()
    for _, rows in table.groupby("arm"):  # three finalists, on both seeds
        assert rows["validation_loss"].notna().sum() == 3 == (rows["seeds"] == 2).sum()
        assert set(rows[rows["seeds"] == 2].index) == set(rows["first_seed"].nsmallest(3).index)
        assert rows.loc[rows["validation_loss"].idxmin(), "chosen"]
    assert (
        "tuned: # python -m replication search tune --profile smoke --knobs learning_rate --seeds 7,8 --set " in printed
        and "  dense: {train.learning_rate: " in printed
    )
    assert main([*command[:4], "set", *command[5:]]) == 0
    capsys.readouterr()
    pd.testing.assert_frame_equal(pd.read_csv(file), table)  # what is known of dense is kept
    with file.open("a") as rows:
        rows.write(file.read_text().splitlines()[1].replace("dense,dense", "gone,gone", 1) + "\n")
    assert main(command) == 0 and capsys.readouterr().out == printed
    assert list(pd.read_csv(file)["arm"].unique()) == ["dense", "set", "gone"]  # of a profile that was edited
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert main(command) == 0
    assert (
        capsys.readouterr().out == printed
        and {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")} == before
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--methods", "mst_random_growth"], "method is 'mst_random_growth'"),
        (["--profile", "smal"], "the nearest valid one is 'small'"),
        (["--jobs", "0"], "--jobs is 0"),
        (["--knobs", "drop"], "--knobs is 'drop'; the nearest valid one is 'drop_fraction'"),
    ],
)
def test_bad_input_is_one_line(options, says, tmp_path, capsys):
    assert main(["search", "tune", "--results", str(tmp_path / "new"), *options]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arms", "seeds", "knobs", "says"),
    [
        (["dense"], None, ["drop_fraction"], "--knobs is 'drop_fraction', of which dense has none"),
        (["set", "dense"], None, [], "--knobs is '', of which set has none"),
        (["dense"], [7, 2, 0], list(KNOBS), "seeds are \\[0, 2\\], which Table 1 has"),
    ],
)
def test_what_could_not_be_tuned_is_refused_before_any_training(arms, seeds, knobs, says, tmp_path):
    with pytest.raises(UserError, match=says):
        tune("smoke", arms, seeds, 1, tmp_path / "results", tmp_path / "data", knobs=knobs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "says"), [("foo", "tuning.csv is damaged"), ("arm,label\ndense,dense\n", "tuning.csv is damaged")]
)
def test_a_damaged_table_of_earlier_tuning_is_named_before_any_training(text, says, tmp_path):
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / "tuning.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        tune("smoke", ["dense"], None, 1, tmp_path, tmp_path)


def test_what_is_not_turned_is_as_in_the_profile_and_not_as_it_was_tuned_before():
    alone = _Arm("set_4x_dense_head", "small", (), SEEDS, ("learning_rate",), None)
    assert load_config("small", "set_4x_dense_head").sparsity.drop_fraction == 0.27  # tuned
    assert alone.config(alone.start, SEEDS[0]).sparsity.drop_fraction == 0.03


def test_a_learning_rate_that_cannot_be_is_not_tried():
    with_end = _Arm("dense", "small", ("train.min_learning_rate=5e-3",), SEEDS, ("learning_rate",), None)
    assert with_end.is_allowed(((RATE, 0.006),)) and not with_end.is_allowed(((RATE, 0.003),))


def test_an_arm_that_is_like_another_is_not_tuned_apart(tmp_path):
    with pytest.raises(UserError, match="dense_bf16"):
        tune("small", ["dense_bf16"], None, 1, tmp_path, tmp_path)


def test_what_another_process_has_tuned_meanwhile_stays(tmp_path):
    file = tmp_path / "tuning.csv"
    rows = [{"arm": arm, "label": arm, RATE: 0.1, "chosen": True} for arm in ("set", "static", "set")]
    for row in rows:
        _add(pd.DataFrame([row]), file, ["static", "set"])
    assert pd.read_csv(file)["arm"].tolist() == ["static", "set"]
    assert [left.name for left in tmp_path.iterdir()] == ["tuning.csv"]


def test_what_is_tuned_is_read_again_under_a_lock(tmp_path):
    file = tmp_path / "tuning.csv"
    row = {"label": "", RATE: 0.1, "chosen": True}
    with ThreadPoolExecutor(8) as pool:
        arms = [f"arm_{number}" for number in range(8)]
        list(pool.map(lambda arm: _add(pd.DataFrame([{"arm": arm} | row]), file, arms), arms))
    assert pd.read_csv(file)["arm"].tolist() == arms


@pytest.mark.parametrize(
    ("status", "is_waiting"),
    [
        ({"status": "failed"}, False),  # from before the kind was recorded
        ({"status": "failed", "kind": "NonFiniteError"}, False),
        ({"status": "failed", "kind": "MethodError"}, True),
        ({"status": "running"}, True),
    ],
)
def test_only_a_loss_that_is_none_is_an_outcome(status, is_waiting, tmp_path):
    job = Job(load_config("smoke", "set"), RunFolder(tmp_path))
    write_sealed(tmp_path / "status.json", status)
    assert list_untried([job]) == ([job] if is_waiting else [])
