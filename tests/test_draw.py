"""The pictures of the README: drawn from the committed runs, and saying what the tables say."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from replication.analysis.arms import by_arm, table1_runs
from replication.runs import REFERENCE

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs():
    return by_arm(table1_runs(REFERENCE, "small"))


def test_the_titles_of_the_finding_are_the_numbers_of_c2(draw, runs):
    claims = json.loads((REFERENCE / "small" / "claims.json").read_text())["verdicts"]
    told = [claim["measured"].split()[0] for claim in claims if claim["claim"] == "C2"]
    titles = [axes.get_title(loc="left") for axes in draw.finding(runs).axes]
    shown = [re.search(r"at 4\.0× MST ends (\S+) nats from dense", title)[1] for title in titles]
    assert shown == [f"{float(number):+.2f}" for number in told]


def test_the_phases_are_those_that_the_profile_plans(draw, runs):
    above, below = draw.phases(runs).axes
    texts = [text.get_text() for text in above.texts]
    assert [text for text in texts if text[0] in "123"] == ["1 warm-up", "2 ultra-sparsification", "3 restoration"]
    assert [round(bar.get_width()) for bar in below.patches] == [120, 630, 250]
    reached = next(line for line in above.lines if line.get_label() == "reached").get_ydata()
    assert max(reached) == pytest.approx(0.918, abs=5e-4) and reached[-1] == pytest.approx(0.6, abs=5e-4)


def test_they_are_written_as_pngs(draw, tmp_path):
    draw.main(tmp_path)
    assert all((tmp_path / file).read_bytes()[1:4] == b"PNG" for file in ("finding.png", "phases.png"))
