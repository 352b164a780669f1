"""Every branch of every verdict, on made-up runs."""

import subprocess
import sys

import pytest
from statsmodels.stats.power import TTestPower
from synthetic_runs import edit_json, write_run, write_runs

from replication.analysis.claims import verdicts
from replication.runs import RunFolder, find_runs

DENSE = [3.88, 3.90, 3.86]
QUARTER = [4.50, 4.55, 4.47]


def judge(results, losses):
    write_runs(results, losses)
    return verdicts(find_runs(results, "small"))


def only(found, claim, naming=""):
    (verdict,) = [verdict for verdict in found if verdict.claim == claim and naming in verdict.statement]
    return verdict


def shifted(values, *shifts):
    return [value + shift for value, shift in zip(values, shifts)]


def test_c1_has_a_verdict_per_convention_from_one_seed(tmp_path):
    found = [verdict for verdict in judge(tmp_path, {"dense": DENSE[:1], "mst": [4.0]}) if verdict.claim == "C1"]
    assert len(found) == 6
    assert {verdict.verdict for verdict in found} == {"reproduced"}
    assert all(verdict.tag == "abstract" for verdict in found)
    assert "4.32×" in found[0].detail


def test_c1_fails_where_a_dense_head_is_counted(tmp_path):
    write_runs(tmp_path, {"dense": DENSE[:1]})
    write_run(tmp_path / "small" / "mst" / "seed-0", "mst", 0, 4.0, head_sparse=False)
    found = verdicts(find_runs(tmp_path, "small"))
    assert only(found, "C1", "head_counted_full").verdict == "not reproduced"
    assert only(found, "C1", "head_excluded_full").verdict == "reproduced"


@pytest.mark.parametrize(("flops", "verdict"), [(395, "reproduced"), (394, "not reproduced")])
def test_c1_asks_for_what_rounds_to_four(tmp_path, flops, verdict):
    write_runs(tmp_path, {"dense": DENSE[:1], "mst": [4.0]})
    for arm, count in (("dense", flops), ("mst", 100)):
        file = tmp_path / "small" / arm / "seed-0" / "flops.json"
        edit_json(file, "conventions.blocks_only", {"dense_flops": flops, "flops": count, "reduction": flops / count})
    assert only(verdicts(find_runs(tmp_path, "small")), "C1", "blocks_only").verdict == verdict


def test_c1_is_inconclusive_where_seeds_disagree(tmp_path):
    write_runs(tmp_path, {"dense": DENSE[:1], "mst": [4.0, 4.1]})
    edit_json(tmp_path / "small" / "mst" / "seed-1" / "flops.json", "conventions.blocks_only.flops", 7)
    verdict = only(verdicts(find_runs(tmp_path, "small")), "C1", "blocks_only")
    assert verdict.verdict == "inconclusive"
    assert "MST 7, " in verdict.detail


@pytest.mark.parametrize("missing", ["dense", "mst"])
def test_c1_without_one_of_its_arms(tmp_path, missing):
    losses = {"dense": DENSE, "mst": DENSE}
    del losses[missing]
    assert only(judge(tmp_path, losses), "C1").verdict == "not tested here"


@pytest.mark.parametrize(
    ("mst", "quarter", "verdict"),
    [
        (shifted(DENSE, 0.01, 0.012, 0.008), QUARTER, "reproduced"),
        (shifted(DENSE, -0.2, -0.21, -0.19), QUARTER, "reproduced"),
        (shifted(DENSE, 0.20, 0.21, 0.19), QUARTER, "not reproduced"),
        (shifted(DENSE, 0.05, 0.01, 0.03), QUARTER, "inconclusive"),
        (
            shifted(DENSE, 0.01, 0.012, 0.008),
            shifted(DENSE, 0.05, 0.03, 0.07),
            "inconclusive",
        ),  # worse than dense, but not by more than the margin
        # Insensitive: the control is no worse, is worse by less than the margin, is worse on average only.
        (shifted(DENSE, 0.01, 0.012, 0.008), DENSE, "inconclusive"),
        (shifted(DENSE, 0.01, 0.012, 0.008), shifted(DENSE, 0.02, 0.021, 0.019), "inconclusive"),
        (shifted(DENSE, 0.01, 0.012, 0.008), shifted(DENSE, 0.9, -0.2, 0.1), "inconclusive"),
        (shifted(DENSE, 0.20, 0.21, 0.19), DENSE, "inconclusive"),
    ],
)
def test_c2(tmp_path, mst, quarter, verdict):
    found = only(judge(tmp_path, {"dense": DENSE, "dense_quarter": quarter, "mst": mst}), "C2")
    assert found.verdict == verdict
    assert "margin of 0.04 (ours, fixed beforehand" in found.detail


def test_holm_corrects_over_the_claims(tmp_path):
    shifts = (-0.09, -0.06, -0.03)  # t = -2√3, so p = 0.037 alone, and twice that beside an equal second claim
    alone = only(judge(tmp_path / "a", {"static_4x": DENSE, "mst": shifted(DENSE, *shifts)}), "C3", "static")
    beside = only(
        judge(tmp_path / "b", {"static_4x": DENSE, "rigl_4x": DENSE, "mst": shifted(DENSE, *shifts)}), "C3", "static"
    )
    assert (alone.verdict, beside.verdict) == ("reproduced", "inconclusive")
    assert "over the 1 tested claim(s) C3" in alone.detail and "over the 2 tested claim(s) C3" in beside.detail
    assert "5 seeds would decide it" in beside.detail


def test_c2_says_that_the_set_up_does_not_separate(tmp_path):
    assert (
        "does not separate"
        in only(judge(tmp_path, {"dense": DENSE, "dense_quarter": DENSE, "mst": DENSE}), "C2").detail
    )


@pytest.mark.parametrize("baseline", ["static_4x", "set_4x", "rigl_4x"])
@pytest.mark.parametrize(
    ("shifts", "verdict"),
    [((-0.1, -0.11, -0.09), "reproduced"), ((0.1, 0.11, 0.09), "not reproduced"), ((0.1, -0.1, 0.02), "inconclusive")],
)
def test_c3(tmp_path, baseline, shifts, verdict):
    found = judge(tmp_path, {baseline: DENSE, "mst": shifted(DENSE, *shifts)})
    assert [other.verdict for other in found if other.claim == "C3"] == [verdict]


def test_c3_is_not_tested_against_rivals_that_spend_more(tmp_path):
    found = judge(tmp_path, {"static": DENSE, "set": DENSE, "rigl": DENSE, "mst": shifted(DENSE, -0.1, -0.11, -0.09)})
    assert only(found, "C3").verdict == "not tested here"


def test_the_families_of_c2_and_c3_are_corrected_apart(tmp_path):
    losses = {"dense": DENSE, "dense_quarter": QUARTER, "static_4x": DENSE, "set_4x": DENSE, "rigl_4x": DENSE}
    found = judge(tmp_path, losses | {"mst": shifted(DENSE, 0.05, 0.01, 0.03)})
    assert (
        "over the 1 tested claim(s) C2" in only(found, "C2").detail
        and "over the 3 tested claim(s) C3" in only(found, "C3", "SET").detail
    )


def test_an_arm_of_the_other_reading_is_not_judged(tmp_path):
    write_runs(tmp_path, {"dense": DENSE, "dense_quarter": QUARTER, "mst": DENSE, "set_4x": DENSE})
    for seed in range(3):
        run = RunFolder(tmp_path / "small" / "mst" / f"seed-{seed}")
        config = run.config()
        run.write_config(config | {"sparsity": config["sparsity"] | {"mask_lm_head": False}})
        facts = {name: run.status()[name] for name in ("step", "seconds", "tokens_per_second")}
        run.write_status("finished", **facts)
    found = verdicts(find_runs(tmp_path, "small"))
    assert {verdict.verdict for verdict in found} == {"not tested here"}
    assert "sparsity.mask_lm_head false, which is not this reading" in only(found, "C2").detail


def test_c1_that_is_not_reached_was_not_attained_by_construction(tmp_path):
    write_runs(tmp_path, {"dense": DENSE[:1]})
    write_run(tmp_path / "small" / "mst" / "seed-0", "mst", 0, 4.0, head_sparse=False)
    verdict = only(verdicts(find_runs(tmp_path, "small")), "C1", "head_counted_full")
    assert verdict.verdict == "not reproduced" and "construction" not in verdict.detail + verdict.measured


def test_each_reading_of_the_head_is_judged_by_its_own_arms(tmp_path):
    losses = {"dense": DENSE, "dense_quarter": QUARTER, "mst": shifted(DENSE, 0.2, 0.21, 0.19)}
    losses |= {"mst_dense_head": shifted(DENSE, 0.01, 0.012, 0.008), "static_4x": DENSE}
    found = judge(tmp_path, losses | {"static_4x_dense_head": shifted(DENSE, 0.3, 0.31, 0.29)})
    assert [verdict.verdict for verdict in found if verdict.claim == "C2"] == ["not reproduced", "reproduced"]
    assert (
        only(found, "C3", "head masked").verdict == "not reproduced"
        and only(found, "C3", "head dense").verdict == "reproduced"
    )
    assert len([verdict for verdict in found if verdict.claim == "C1"]) == 12
    assert "Attainable by construction" in only(found, "C1", "head masked (head_counted_full)").detail
    assert "Attainable by construction" in only(found, "C1", "head dense (head_excluded_causal)").detail
    assert "by construction" not in only(found, "C1", "head dense (head_counted_full)").detail


def test_by_mean_density_an_arm_is_held_against_its_own_dense(tmp_path):
    # 512 tokens, 400 steps, three products: 1000 weights of the blocks, and 400 of the head where it is masked
    found = judge(tmp_path, {"dense": DENSE, "mst": DENSE, "mst_dense_head": DENSE})
    for reading, size in (("head masked", 1400), ("head dense", 1000)):
        verdict = only(found, "C1", f"{reading} (mean_density)")
        count = f"= {3 * size * 512 * 400:.4g} ÷ "
        assert verdict.verdict == "reproduced" and count in verdict.detail
        assert "identical in 3 MST run(s), of what they mask alone" in verdict.detail


@pytest.mark.parametrize(("second", "alpha"), [({}, 0.05), ({"mst_dense_head": DENSE}, 0.025)])
def test_the_power_that_the_seeds_have_is_said(tmp_path, second, alpha):
    # Differences 0.05, 0.01, 0.03: std 0.02, so the margin lies two of them away. Holm leaves one of two claims half
    # of α.
    found = judge(
        tmp_path, {"dense": DENSE, "dense_quarter": QUARTER, "mst": shifted(DENSE, 0.05, 0.01, 0.03)} | second
    )
    power = TTestPower().power(2.0, 3, alpha, alternative="larger")
    assert (
        f"spread as these do (0.0200) show it within the margin with a probability of {power:.2f}."
        in only(found, "C2", "head masked").power
    )


def test_fewer_than_three_common_seeds_test_nothing(tmp_path):
    losses = {"dense": DENSE, "dense_quarter": QUARTER[:2], "static_4x": DENSE[:2], "set_4x": DENSE[:1], "mst": DENSE}
    found = [verdict for verdict in judge(tmp_path, losses) if verdict.claim != "C1"]
    assert [verdict.verdict for verdict in found] == ["not tested here"] * 3
    assert "2 seed(s) in common" in found[0].detail


def test_no_runs_give_no_verdict(tmp_path):
    assert {verdict.verdict for verdict in verdicts([])} == {"not tested here"}


def test_analysis_imports_neither_torch_nor_the_trainer():
    code = (
        "import sys; from replication.analysis import claims, figures, tables, topology_figure; "
        "print([name for name in ('torch', 'transformers', 'replication.training.trainer', 'replication.methods') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
