"""Wall-clock × from made-up runs: which dense run an arm is compared with."""

import pytest
from synthetic_runs import edit_json, write_runs

from replication.analysis.arms import group_by_arm
from replication.analysis.clock import BEST, SAME, speedups
from replication.analysis.tables import write_table1
from replication.runs.finding import find_runs


@pytest.fixture
def results(tmp_path):
    """Dense in 100 s (fp32) and 40 s (bf16), the latter at ¼ of its steps in 10 s, and MST in 50 s and 30 s (fp32)."""
    write_runs(tmp_path, {"dense": [3.9], "dense_bf16": [3.9], "dense_quarter": [4.5], "mst": [4.0, 4.0]})
    for run, seconds, precision in (
        ("dense/seed-0", 100.0, "fp32"),
        ("dense_bf16/seed-0", 40.0, "bf16"),
        ("dense_quarter/seed-0", 10.0, "bf16"),
        ("mst/seed-0", 50.0, "fp32"),
        ("mst/seed-1", 30.0, "fp32"),
    ):
        edit_json(tmp_path / "small" / run / "status.json", "seconds", seconds)
        edit_json(tmp_path / "small" / run / "environment.json", "precision", precision)
    return tmp_path


def of(results):
    return speedups({arm: list(seeds.values()) for arm, seeds in group_by_arm(find_runs(results, "small")).items()})


def test_by_hand(results):
    assert of(results) == {
        "dense": {SAME: 1.0, BEST: 0.4},
        "dense_bf16": {SAME: 1.0, BEST: 1.0},
        "dense_quarter": {SAME: 4.0, BEST: 4.0},
        "mst": {SAME: 2.5, BEST: 1.0},
    }


def test_another_machine_is_no_comparison(results):
    edit_json(results / "small" / "dense" / "seed-0" / "environment.json", "threads", 1)
    assert of(results)["mst"] == {SAME: None, BEST: 1.0}
    edit_json(results / "small" / "mst" / "seed-1" / "environment.json", "processor", "another")
    assert of(results)["mst"] == {SAME: None, BEST: None}


def test_runs_without_their_environment_are_no_comparison(results):
    for seed in (0, 1):
        (results / "small" / "mst" / f"seed-{seed}" / "environment.json").unlink()
    assert of(results)["mst"] == {SAME: None, BEST: None}


def test_table_shows_them_beside_flops(results):
    """Dense in bf16 is among the ablations, which Table 1 leaves out."""
    text = write_table1(results, "small")
    cells = [
        cell.strip()
        for line in text.splitlines()
        if line.startswith("| MST") and "auto" in line
        for cell in line.split("|")
    ]
    assert (
        cells[1:-1][:4] == ["MST", "fp32", "auto", "40"]
        and cells[-4:-2] == ["2.50×", "2.50×"]
        and cells[-2].endswith("×")
    )
