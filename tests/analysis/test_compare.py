"""Comparing two sets of runs: planted regressions are found, honest reruns raise no alarm, bad input is one line."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic_runs import LOSSES, edit_json, without_mean_density, write_run, write_runs

from replication.analysis import statistics
from replication.analysis.compare import compare
from replication.analysis.compare_text import markdown, show
from replication.analysis.judging import BETTER, NOT_JUDGED, SAME, WORSE, judge
from replication.analysis.sides import LOSS, MEMORY, SPEED, Measured
from replication.analysis.statistics import Noise, p_beyond, pool_noise
from replication.cli import main
from replication.runs.folder import RunFolder

ARMS = {arm: (LOSSES | {"set": 4.12})[arm] for arm in ("dense", "static", "set", "rigl", "mst", "mst_dense_head")}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Six arms, three seeds each."""
    folder = tmp_path_factory.mktemp("results")
    noise = np.random.default_rng(0).normal(0, 0.01, (len(ARMS), 3))
    write_runs(folder, {arm: list(loss + row) for (arm, loss), row in zip(ARMS.items(), noise)})
    return folder


@pytest.fixture
def both(results, tmp_path):
    """A reference, and a copy of it."""
    return [Path(shutil.copytree(results, tmp_path / side)) for side in ("old", "new")]


def runs_of(folder, arm="*"):
    return [RunFolder(path) for path in sorted(folder.glob(f"small/{arm}/seed-*"))]


def set_loss(run, factor):
    """As if the run had ended there."""
    edit_json(run.path / "environment.json", "python", "3.11")  # also takes the checksums away
    rows = run.metrics()
    rows[-1]["validation_loss"] *= factor
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def set_everywhere(folder, file, key, change):
    for run in runs_of(folder):
        value = json.loads((run.path / file).read_text())[key]
        edit_json(run.path / file, key, change(value))


def test_counts_that_one_side_lacks_are_not_compared(both, capsys):
    """A reference of a version without `mean_density`, and new runs that have it, in their FLOPs as in all else."""
    for run in runs_of(both[0]):
        without_mean_density(run.path)
    comparison = compare(*both)
    assert not comparison.is_worse()
    rows = [row for row in comparison.rows if row.metric == "FLOPs"]
    assert len(rows) == len(ARMS) and {(row.verdict, row.why) for row in rows} == {(SAME, "")}
    assert main(["compare", *map(str, both)]) == 0
    capsys.readouterr()
    set_everywhere(both[1], "flops.json", "conventions", lambda of: of | {"blocks_only": more(of["blocks_only"])})
    assert all(": blocks_only +7" in row.why for row in compare(*both).of(WORSE)) and compare(*both).is_worse()


def more(count):
    return count | {"flops": count["flops"] + 7}


def found(comparison, verdict=WORSE):
    return {(row.metric, row.arm) for row in comparison.of(verdict)}


def test_noise_is_pooled_by_hand():
    """Variances 2 and 0, pooled 1, which counts as three: (3·1 + 1·2) / 4 and (3·1 + 1·0) / 4."""
    assert pool_noise({"a": [0, 2], "b": [1, 1], "c": [5]}) == {
        "a": Noise(1.25, 2, 2),
        "b": Noise(0.75, 2, 2),
        "c": Noise(1.0, 2, 2),
    }
    assert pool_noise({"a": [1], "b": [2]}) == {}


def test_p_of_one_and_of_two_groups_by_hand():
    """t = 2 at two degrees of freedom; and of two groups half the variance, at twice the freedom unless that is more
    than there is."""
    assert p_beyond(2, [Noise(1, 2, 2)], [1]) == pytest.approx(0.0917517)
    assert p_beyond(3, [Noise(0.5, 2, 2)], [2], margin=1) == pytest.approx(0.0917517)
    assert p_beyond(2**0.5, [Noise(1, 2, 4)] * 2, [1, 1]) == pytest.approx(0.0580583)
    assert p_beyond(2**0.5, [Noise(1, 2, 2)] * 2, [1, 1]) == pytest.approx(0.0917517)
    assert (p_beyond(1, [Noise(0, 2, 2)], [1]), p_beyond(0, [Noise(0, 2, 2)], [1])) == (0, 1)


def test_a_copy_is_the_same_in_everything(both):
    comparison = compare(*both)
    assert {row.verdict for row in comparison.rows} == {SAME}
    assert (comparison.settings, comparison.environment, comparison.missing, comparison.iso) == ({}, {}, [], [])


def test_a_loss_that_is_higher_in_a_repetition_is_found(both):
    set_loss(runs_of(both[1], "mst")[1], 1.02)
    edit_json(runs_of(both[0], "mst")[1].path / "environment.json", "python", "3.11")
    comparison = compare(*both)
    assert found(comparison) == {(LOSS, "mst")} and comparison.environment == {}
    assert "mst/seed-1 +0.08" in next(row.why for row in comparison.of(WORSE))


@pytest.mark.parametrize("factor, verdict", [(1.02, WORSE), (0.98, BETTER)])
def test_a_loss_that_another_commit_changes_is_found_above_the_seeds_noise(factor, verdict, both):
    set_everywhere(both[1], "environment.json", "git", lambda _: "def5678")
    for run in runs_of(both[1], "mst"):
        set_loss(run, factor)
    comparison = compare(*both)
    assert found(comparison, verdict) == {(LOSS, "mst")}
    assert found(comparison, BETTER if verdict == WORSE else WORSE) == set()
    assert comparison.environment["git"] == ("abc1234", "def5678")


def test_a_fifth_less_speed_is_found_on_the_same_machine_alone(both):
    set_everywhere(both[1], "status.json", "tokens_per_second", lambda speed: 0.8 * speed)
    assert found(compare(*both)) == {(SPEED, arm) for arm in (*ARMS, "all arms (6)")}
    set_everywhere(both[1], "environment.json", "threads", lambda _: 4)
    comparison = compare(*both)
    assert found(comparison) == set()
    assert {row.why for row in comparison.rows if row.metric in (SPEED, MEMORY)} == {"another machine: threads"}


def test_one_flop_more_in_one_run_is_found(both):
    run = runs_of(both[1], "rigl")[2]
    edit_json(run.path / "flops.json", "components.head_forward", run.flops()["components"]["head_forward"] + 1)
    (row,) = compare(*both).of(WORSE)
    assert (row.metric, row.arm, row.why) == ("FLOPs", "rigl", "rigl/seed-2: head_forward +1")


def test_a_score_that_falls_is_worse_where_higher_is_better_and_one_that_rises_where_lower_is(both):
    for run in runs_of(both[1], "set"):
        acc = run.evals()["embedded_lastword"]["results"]["embedded_lastword"]["acc,none"]
        edit_json(run.path / "eval" / "embedded_lastword.json", "results.embedded_lastword.acc,none", acc - 0.1)
        edit_json(run.path / "eval" / "embedded_code.json", "results.embedded_code.bits_per_byte,none", 1.7)
    expected = {("embedded_lastword/acc", "set"), ("embedded_code/bits_per_byte", "set")}
    assert found(compare(*both)) == expected


@pytest.mark.parametrize("spread", [0.5, pytest.param(0.0, marks=pytest.mark.slow)])
def test_honest_reruns_raise_no_more_alarms_than_is_said(spread):
    """300 comparisons of draws from one distribution; arms' seeds spread alike, or unlike each other."""
    assert alarms(spread, 300) <= 9  # 3 expected at 1 %; more than 9 have a probability of 0.1 %


@pytest.mark.slow
def test_variances_pooled_alone_would_raise_more(monkeypatch):
    monkeypatch.setattr(statistics, "PRIOR_FREEDOM", 1e9)
    assert alarms(0.5, 300) > 15


def alarms(spread, num):
    """Comparisons, of so many, in which something is worse; log standard deviations of arms spread that much."""
    random = np.random.default_rng(1)
    return sum(any(row.verdict == WORSE for row in judge(draw(random, spread), {})[0]) for _ in range(num))


def draw(random, spread):
    arms = [*ARMS, "rigl_4x", "set_4x"]
    stds = {arm: 0.01 * np.exp(spread * random.standard_normal()) for arm in arms}
    sides = {arm: [{}, {}] for arm in arms}
    for arm, both in sides.items():
        for side in both:
            for seed in range(3):
                loss, score = random.normal(4, stds[arm], 2)
                side[seed] = Measured("small", arm, seed, {LOSS: loss, "task/bits_per_byte": score}, frozenset())
    return {arm: tuple(both) for arm, both in sides.items()}


def test_other_seeds_serve_and_fewer_runs_do_not(both, capsys):
    for run in runs_of(both[1], "mst"):
        seed = int(run.path.name[-1]) + 10
        shutil.rmtree(run.path)
        write_run(run.path.with_name(f"seed-{seed}"), "mst", seed, 4.02)
    command = ["compare", *map(str, both), "--fail-on", "worse"]
    assert main(command) == 0
    shutil.rmtree(runs_of(both[1], "mst")[0].path)
    assert compare(*both).missing == [f"small/mst/seed-{seed}" for seed in range(3)]
    assert main(command) == 1 and main(command[:3]) == 0
    assert "Missing in" in capsys.readouterr().out


def test_an_arm_that_nobody_trained_is_missing_only_where_all_are_asked_for(both, capsys):
    shutil.rmtree(both[1] / "small" / "set")
    command = ["compare", *map(str, both), "--fail-on", "worse"]
    assert (compare(*both).missing, compare(*both).untrained) == ([], ["small/set"])
    assert main(command) == 0 and f"Not trained in {both[1]}: small/set." in capsys.readouterr().out
    assert compare(*both, all_arms=True).missing == [f"small/set/seed-{seed}" for seed in range(3)]
    assert main([*command, "--all"]) == 1 and "Missing in" in capsys.readouterr().out


def test_an_arm_all_of_whose_runs_are_damaged_is_missing(both):
    for run in runs_of(both[1], "set"):
        (run.path / "status.json").write_text("[1]")
    assert compare(*both).missing == [f"small/set/seed-{seed}" for seed in range(3)] and not compare(*both).untrained


def test_seeds_that_the_profile_does_not_ask_for_may_be_missing(both):
    write_run(both[0] / "small" / "set" / "seed-3", "set", 3, 4.12)
    assert compare(*both).missing == []


def test_only_a_result_that_is_worse_counts_where_that_is_asked(both, capsys):
    set_everywhere(both[1], "status.json", "tokens_per_second", lambda speed: 0.5 * speed)
    command = ["compare", *map(str, both), "--fail-on"]
    assert (main([*command, "worse"]), main([*command, "worse-result"])) == (1, 0)
    capsys.readouterr()
    assert main([*command, "worse", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["is_worse"] is True


def test_damaged_unfinished_and_incomplete_runs_are_named_and_left_out(both):
    damaged, unfinished, incomplete, none = runs_of(both[1], "dense") + runs_of(both[1], "mst")[:1]
    with (damaged.path / "metrics.jsonl").open("a") as log:
        log.write("{}\n")
    unfinished.begin(unfinished.config(), unfinished.environment())
    (incomplete.path / "flops.json").unlink()
    (none.path / "status.json").write_text("[1]")
    comparison = compare(*both)
    assert len(comparison.left_out) == 4 and comparison.seeds["mst"] == (3, 2)
    for run, problem in ((damaged, "metrics"), (unfinished, "is running"), (incomplete, "flops"), (none, "status")):
        assert any(str(run.path) in line and problem in line for line in comparison.left_out)
    assert "small/mst/seed-0" in comparison.missing


def test_losses_over_another_text_are_not_judged(both):
    set_everywhere(both[1], "environment.json", "shards", lambda shards: shards | {"validation": "2" * 64})
    comparison = compare(*both)
    assert {row.why for row in comparison.rows if row.metric == LOSS} == {"other validation text"}
    assert "shards.validation 111111111111… → 222222222222…" in markdown(comparison).replace("\n  ", " ")


def test_one_seed_has_no_spread_and_a_value_that_is_not_finite_is_worse(tmp_path):
    write_runs(tmp_path / "old", {"mst": [4.0]})
    write_run(tmp_path / "new" / "small" / "mst" / "seed-1", "mst", 1, 4.1)
    score = runs_of(tmp_path / "new")[0].path / "eval" / "embedded_lastword.json"
    edit_json(score, "results.embedded_lastword.perplexity,none", np.inf)
    rows = {row.metric: row for row in compare(tmp_path / "old", tmp_path / "new").rows}
    assert rows[LOSS].verdict == NOT_JUDGED and rows[LOSS].change == pytest.approx(0.1)
    assert rows["embedded_lastword/perplexity"].verdict == WORSE
    assert "embedded_code/bits_per_byte" in rows and "embedded_code/word_perplexity" not in rows


def test_arms_of_other_methods_are_compared_at_equal_flops_and_at_equal_loss(both):
    comparison = compare(both[0] / "small" / "dense", both[1] / "small" / "mst")
    (row,) = comparison.iso
    assert row.arm == "dense → mst" and comparison.settings["method"] == ("dense", "mst")
    assert row.new_loss < row.reference_loss  # at what MST costs, dense is in the middle of its run
    assert row.new_flops is None and row.loss < row.reference_loss  # MST ends above dense
    assert ("FLOPs", "dense → mst") in found(comparison, BETTER) and (LOSS, "dense → mst") in found(comparison)
    assert markdown(comparison).endswith("not reached |")
    (other,) = compare(both[0] / "small" / "mst", both[1] / "small" / "dense").iso
    assert other.flops == row.flops == pytest.approx(other.reference_flops)
    assert other.flops < other.new_flops < row.reference_flops


def test_a_checkpoints_scores_are_a_side(both):
    """Of a folder that `evaluate --out` wrote; judged by the spread of the seeds on the other side."""
    scores = both[1] / "small" / "mst" / "seed-0" / "eval"
    comparison = compare(both[0] / "small" / "mst", scores)
    assert found(comparison) == set() and comparison.seeds == {"mst → scored": (3, 1)}
    assert LOSS not in {row.metric for row in comparison.rows if row.verdict == SAME}
    edit_json(scores / "embedded_lastword.json", "results.embedded_lastword.perplexity,none", 1e9)
    assert found(compare(both[0] / "small" / "mst", scores)) == {("embedded_lastword/perplexity", "mst → scored")}


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_a_terminal(width, both):
    set_loss(runs_of(both[1], "mst_dense_head")[0], 1.1)
    said = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    show(compare(*both), said)
    text = said.file.getvalue()
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert text.startswith("Worse: validation loss of mst_dense_head +") and "6 arms" in text


@pytest.mark.parametrize(
    "old, new, problem",
    [
        ("nowhere", "small", "is no folder"),
        ("empty", "small", "holds nothing to compare"),
        ("small/mst", "two", "no arm in common"),
        ("broken", "small", "is damaged"),
    ],
)
def test_bad_input_is_one_line(old, new, problem, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_runs(tmp_path, {"mst": [4.0]})
    write_runs(tmp_path / "two", {"set": [4.0], "rigl": [4.0]})
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "task.json").write_text("{")
    assert main(["compare", old, new]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and problem in line
