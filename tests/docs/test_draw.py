"""The pictures of the README: drawn from the committed runs, and saying what the tables say."""

import importlib.util
from pathlib import Path

import pytest
from synthetic_runs import write_table_of_runs

from replication.analysis import titles
from replication.analysis.arms import group_by_arm, table1_runs
from replication.runs.finding import REFERENCE

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs():
    return group_by_arm(table1_runs(REFERENCE, "small"))


def test_the_finding_is_the_notebook_s_figure_with_a_count_a_panel(draw, tmp_path):
    write_table_of_runs(tmp_path)
    runs = group_by_arm(table1_runs(tmp_path, "small"))
    figure = draw.finding(runs)
    assert figure.get_suptitle().replace("\n", " ") == titles.quality(runs)
    counts = ["head_counted_full", "head_excluded_causal", "head_counted_full"]
    assert all(count in axes.get_xlabel() for count, axes in zip(counts, figure.axes, strict=True))


def test_the_phases_are_those_that_the_profile_plans(draw, runs):
    above, below = draw.phases(runs).axes
    texts = [text.get_text() for text in above.texts]
    assert [text for text in texts if text[0] in "123"] == ["1 warm-up", "2 ultra-sparsification", "3 restoration"]
    assert [round(bar.get_width()) for bar in below.patches] == [190, 1040, 420]
    reached = next(line for line in above.lines if line.get_label() == "reached").get_ydata()
    assert max(reached) == pytest.approx(0.893, abs=5e-4) and reached[-1] == pytest.approx(0.6, abs=5e-4)


@pytest.mark.slow
def test_they_are_written_as_pngs(draw, tmp_path):
    draw.main(tmp_path)
    assert all((tmp_path / file).read_bytes()[1:4] == b"PNG" for file in ("finding.png", "phases.png"))
