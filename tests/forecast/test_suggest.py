"""Suggestions, on runs whose losses follow a known law, and of the command."""

import json
import re

import pytest

from replication.bench.calibration import list_steps
from replication.cli import main
from replication.config.profiles import load_config
from replication.config.run_config import build_config
from replication.flops.plan import plan, plan_phases
from replication.forecast import reasons
from replication.forecast.logged import Logged, size
from replication.forecast.loss_model import Law
from replication.forecast.predict import Calibration, Row, predict
from replication.forecast.suggest import apply_changes, suggest
from replication.runs.finding import find_runs, sort_out_runs
from replication.runs.folder import RunFolder
from replication.system.errors import UserError
from replication.system.files import write_json
from replication.system.machine import machine, processor

LAW = Law(100, 0.5, 60, 0.28, 1.5, {})
ARMS = ("dense", "dense_quarter", "static", "set", "rigl", "mst", "set_4x", "mst_dense_head", "mst_block_2x2")
SHIFTS = {"set": -0.05, "mst_block_2x2": 0.25}  # nats, of arms that the law does not tell
RATE = 10_000.0  # tokens per second; twice that with 2x2 blocks


@pytest.fixture(autouse=True)
def uncalibrated(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(results, arm, seed, where, config=None):
    """A finished run: the plan's FLOPs, and the loss that the law has for its size."""
    config = config or load_config("smoke", arm, seed)
    run, flops = RunFolder(results / "smoke" / arm / f"seed-{seed}"), plan(config)
    loss = LAW.loss(*size(flops)) + SHIFTS.get(arm, 0) + 0.001 * (seed - 1)
    rate = RATE * (2 if arm == "mst_block_2x2" else 1)
    run.path.mkdir(parents=True)
    run.write_config(config.to_dict())
    write_json(run.path / "flops.json", flops)
    write_json(run.path / "environment.json", {"processor": where, "threads": 1, "device": "cpu"})
    run.append("metrics.jsonl", [{"step": flops["steps"], "loss": loss, "validation_loss": loss}])
    seconds = flops["tokens"] / rate
    run.write_status("finished", step=flops["steps"], seconds=seconds, tokens_per_second=rate)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for arm in ARMS:
        for seed in range(3):
            write(folder, arm, seed, processor())
    return folder


@pytest.fixture(scope="module")
def logged(results):
    return Logged("smoke", find_runs(results, "smoke"), "head_counted_full")


def cost(arm, **changes):
    return plan(apply_changes(load_config("smoke", arm), changes))["conventions"]["head_counted_full"]["flops"]


def test_mean_active_weights_by_hand():
    config = load_config("smoke", "dense")
    weights, tokens = size(plan(config))
    assert weights == 2 * 12 * 32**2 + 512 * 32 and tokens == 240 * 4 * 64
    sparse = load_config("smoke", "static", overrides=["sparsity.distribution=uniform", "sparsity.sparsity=0.75"])
    assert size(plan(sparse))[0] == weights / 4


def test_within_a_budget_the_lowest_upper_end_comes_first(results):
    budget = cost("set")
    found = suggest("smoke", results, budget=budget).found
    assert [one.expected.high for one in found] == sorted(one.expected.high for one in found)
    assert all(one.flops <= 1.01 * budget for one in found)
    assert "dense" not in [one.arm for one in found if one.seeds]
    trained = {one.arm: one for one in found if one.seeds}
    assert trained["set"].expected.loss == pytest.approx(LAW.loss(*size(plan(load_config("smoke", "set")))) - 0.05)
    assert "law" not in trained["set"].reason and trained["set"].seeds == 3


def test_what_was_not_trained_is_expected_where_the_law_has_it(results):
    found = suggest("smoke", results, budget=cost("mst_dense_head")).found
    predicted = [one for one in found if not one.seeds]
    assert {key for one in predicted for key in one.changes} >= {"sparsity.sparsity", "train.steps_fraction"}
    for one in predicted:
        true = LAW.loss(*size(plan(one.config)))
        assert one.size == size(plan(one.config)) and one.expected.low < true < one.expected.high
        assert one.expected.loss == pytest.approx(true, abs=0.1)
        assert build_config(one.config.to_dict()) == one.config and one.flops == cost(one.arm, **one.changes)


@pytest.mark.slow
def test_a_loss_to_reach_lists_the_cheapest_first(results):
    loss = LAW.loss(*size(plan(load_config("smoke", "static"))))
    found = suggest("smoke", results, loss=loss).found
    assert [one.flops for one in found] == sorted(one.flops for one in found)
    assert all(one.expected.high <= loss for one in found)
    assert "set" in [one.arm for one in found if one.seeds] and "static" not in [one.arm for one in found if one.seeds]


def test_seconds_are_by_the_tokens_per_second_of_the_nearest_run(results):
    quarter = 60 * 4 * 64 / RATE
    found = suggest("smoke", results, hours=1.5 * quarter / 3600).found
    trained = {one.arm: one.seconds for one in found if one.seeds}
    assert trained == {"dense_quarter": pytest.approx((quarter,) * 3)}
    shorter = [one for one in found if not one.seeds]
    assert shorter and all(
        one.seconds[0] <= 1.51 * quarter and "train.steps_fraction" in one.changes for one in shorter
    )


def test_after_a_calibration_it_tells_the_seconds(results):
    rows = [Row(step, step.layers * step.density, step.density, step.density) for step in list_steps()]
    calibration = Calibration(machine(), rows, 7.0, "estimated", 0, 1.0)
    calibration.save()
    suggested = suggest("smoke", results, budget=cost("set"))
    for one in suggested.found:
        known = predict(one.config, calibration)
        assert one.seconds == (known.seconds, known.low, known.high)
    assert any("by this machine's calibration, with" in remark for remark in suggested.remarks)


def test_reasons_are_logged_pairs_by_hand(logged):
    gap = LAW.loss(*size(plan(load_config("smoke", "set")))) - LAW.loss(*size(plan(load_config("smoke", "dense"))))
    ratio = cost("set") / cost("dense")
    said = reasons.explain_logged("set", logged)
    assert said == f"ended {gap - 0.05:.3f} nats higher than dense in 3 of 3 seeds, at {ratio:.2f} of its FLOPs"
    assert (
        reasons.explain_logged("static", logged) == "set costs 1.00 of it, and ended 0.050 nats lower in 3 of 3 seeds"
    )
    assert reasons.explain_logged("mst_block_2x2", logged).startswith("varies mst by sparsity.block_shape=[2, 2]; ")


def test_execution_is_told_by_pairs_on_one_machine(logged):
    (line,) = reasons.execution(logged)
    start, nats = re.fullmatch(r"(.*) and \+(0\.\d+) nats beside it, in 3 seeds\.", line).groups()
    assert start == "sparsity.block_shape=[2, 2]: 2.00× as fast as mst" and float(nats) == pytest.approx(0.25, abs=0.03)


def test_phases_are_those_of_the_plan():
    config = load_config("smoke", "mst")
    (said,) = reasons.explain_plan(config)
    restoration = {phase.name: phase for phase in plan_phases(config)}["warm-up"]
    assert said == f"{restoration.flops_share:.0%} of its planned FLOPs are warm-up, in 20% of the steps"
    coarse = apply_changes(config, {"sparsity.update_freq": 20})
    assert any("has 2 topology updates, fewer than 5" in line for line in reasons.explain_plan(coarse))
    assert reasons.explain_plan(load_config("smoke", "set")) == []


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"budget": 1e15}, r"--budget is 1e\+15 FLOPs, where the logged runs of smoke cost .* factor of 1.25 at most"),
        ({"budget": 1.0}, "--budget is 1 FLOPs"),
        ({"budget": -1.0}, "--budget is -1; allowed: above 0"),
        ({"budget": float("nan")}, "--budget is nan; allowed: above 0"),
        ({"loss": 0.5}, "no configuration is known or expected to have a loss of 0.5 or less; allowed: a loss from"),
        ({"hours": 1e-9}, "no configuration .* at most 1e-09 h of training"),
        ({"budget": 1e9, "convention": "head"}, "--convention"),
    ],
)
def test_what_the_logs_do_not_support_is_refused_in_a_line(results, asked, says):
    with pytest.raises(UserError, match=says) as refusal:
        suggest("smoke", results, **asked)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_few_arms_and_other_machines_are_refused(tmp_path):
    for arm in ARMS[:4]:
        write(tmp_path, arm, 0, "another processor")
    with pytest.raises(UserError, match="of 3 arms that differ in size or length; allowed: 6 or more"):
        suggest("smoke", tmp_path, budget=1e9)
    for arm in ARMS[4:]:
        write(tmp_path, arm, 0, "another processor")
    with pytest.raises(
        UserError, match=r"--hours is 1, and no logged run is of this processor .*; allowed: after `plan --cal"
    ):
        suggest("smoke", tmp_path, hours=1)
    assert all(one.seconds is None for one in suggest("smoke", tmp_path, budget=cost("set")).found)


def test_the_command_prints_markdown_and_json(results, capsys):
    command = ["plan", "suggest", "--profile", "smoke", "--results", str(results), "--budget", str(cost("set"))]
    assert main(command) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"For at most {cost('set'):.3g} FLOPs") and "\n|  1 | " in text and "\n1. " in text
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["found"]
    assert found[0]["loss_low"] < found[0]["loss"] < found[0]["loss_high"]
    assert build_config(found[0]["config"]).profile == "smoke"


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_on_a_terminal_it_fits(results, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("replication.forecast.suggest_text.is_terminal", lambda stream: True)
    assert main(["plan", "suggest", "--profile", "smoke", "--results", str(results), "--budget", str(cost("set"))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns and any("val. loss" in line for line in lines)


def test_bad_options_are_one_line(results, capsys):
    for options, says in (
        (["--budget", "1e15"], "--budget is 1e+15 FLOPs"),
        (["--budget", "1e9", "--search", "-1"], "trials is -1; allowed: 0 or more"),
        (["--budget", "1e9", "--jobs", "0"], "--jobs is 0; allowed: 1 or more"),
    ):
        assert main(["plan", "suggest", "--profile", "smoke", "--results", str(results), *options]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "suggest", "--budget", "1e9", "--loss", "3"])


def test_a_damaged_run_is_left_out_and_said(tmp_path):
    for arm in ARMS:
        for seed in range(2):
            write(tmp_path, arm, seed, processor())
    file = tmp_path / "smoke" / "set" / "seed-1" / "metrics.jsonl"
    file.write_text(file.read_text() + "{}\n")
    assert len(sort_out_runs(tmp_path, "smoke")[1]) == 1
    remarks = suggest("smoke", tmp_path, budget=cost("set")).remarks
    assert any(remark.startswith("Left out: set/seed-1") for remark in remarks)
