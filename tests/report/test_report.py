"""The page of `report`: what it says is what the tables say, and its figures are the notebooks'."""

import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest
from synthetic_runs import LOSSES, edit_json, write_run, write_runs, write_table_of_runs

from replication.analysis import charts, figures, inside, tables, titles
from replication.analysis.arms import count_planned, group_by_arm, table1_runs
from replication.analysis.drawing import svg
from replication.analysis.frontier import frontier_of
from replication.analysis.series import MOVED, first_seed, parts_of, share_moved
from replication.analysis.tables import write_table1
from replication.cli import main
from replication.config.profiles import default_seeds
from replication.flops.ledger import CONVENTIONS
from replication.report import words
from replication.runs.finding import REFERENCE
from replication.system.files import write_json

FIGURES = {
    *("against_dense", "conventions", "quality_against_cost", "loss_by_step", "loss_by_flops"),
    *(f"flops_by_phase_{scale}{head}" for scale in ("planned", "as_run") for head in ("", "_dense_head")),
    *("flops_by_component_planned", "flops_by_component_as_run", "flops_by_step", "schedules", "attention_patterns"),
    *("topology_by_arm", *(f"topology_by_layer_{arm}" for arm in inside.LAYERS_OF)),
    *(f"masks_{arm}" for arm in inside.MASKS_OF),
}
USED = {"steps": 40.0, "seconds.forward": 1.25, "cpu_seconds": 3.0, "joules": 21.0, "resident_bytes": 5e8, "mfu": 0.125}


class Page(HTMLParser):
    """Elements of a page, as (tag, attributes); and its text."""

    def __init__(self, html):
        super().__init__()
        self.html, self.elements, self.texts, self.open = html, [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "input", "br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def pictures(self):
        """Alternative text -> SVG, in the page's order."""
        images = [attributes for tag, attributes in self.elements if tag == "img"]
        return {image["alt"]: unquote(image["src"].removeprefix("data:image/svg+xml,")) for image in images}

    def csv(self, name):
        (uri,) = [attributes["href"] for _, attributes in self.elements if attributes.get("id") == f"csv-{name}"]
        return pd.read_csv(io.StringIO(unquote(uri.partition(",")[2])))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Made-up runs of Table 1, one of which says what it used."""
    folder = tmp_path_factory.mktemp("results")
    write_table_of_runs(folder)
    account = {key: value for key, value in USED.items() if "." not in key} | {"seconds": {"forward": 1.25}}
    write_json(
        folder / "small" / "mst" / "seed-0" / "resources.json", {"phases": {"warm-up": account}, "energy": "RAPL"}
    )
    return folder


@pytest.fixture(scope="module")
def file(results):
    out = results / "report.html"
    assert main(["report", "--results", str(results), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def page(file):
    return Page(file.read_text(encoding="utf-8"))


def test_a_share_of_what_an_update_moved_is_over_its_layers_together():
    """Layers of 10 and 30 weights: 4 and 8 active after 2 and 0 were dropped, and 1 and 3 grown."""
    rows = [
        {"size": 10, "nnz": 4, "dropped": 2, "grown": 1, "overlap_first": 0.1, "ever_active": 0.5},
        {"size": 30, "nnz": 8, "dropped": 0, "grown": 3, "overlap_first": 0.2, "ever_active": 0.5},
    ]
    assert [share_moved(rows, what) for what in MOVED] == [2 / 10, 4 / 12, 20 / 40, 7 / 40]


def test_numbers_are_those_of_the_table_and_of_the_claims(results, page):
    text = write_table1(results, "small")
    rows = [line for line in text.splitlines() if line.startswith(("| dense ", "| MST, dense head"))]
    for cell in (cell.strip() for cell in rows[0].split("|") + rows[1].split("|")):
        assert cell in page.text
    claims = json.loads((results / "small" / "claims.json").read_text())["verdicts"]
    assert len(claims) > 10
    for verdict in claims:
        assert re.sub(r"\s+", " ", verdict["detail"]) in page.text and verdict["statement"] in page.text
    pd.testing.assert_frame_equal(
        page.csv("table1"), pd.read_csv(results / "small" / "table1.csv"), check_dtype=False, rtol=1e-5
    )


def test_the_titles_of_figures_are_what_the_data_say(results, page):
    runs = group_by_arm(table1_runs(results, "small"))
    for title in (
        titles.quality(runs),
        titles.loss_by_step(runs),
        titles.schedules(runs),
        titles.topology_by_arm(runs),
        titles.masks("mst", parts_of(runs["mst"][0].masks())),
    ):
        assert any(alt.startswith(title) for alt in page.pictures)


@pytest.mark.slow
def test_the_page_s_figures_are_the_notebooks(results, page):
    """Each cell of a notebook, called here as there: the same picture, words and data."""
    runs = group_by_arm(table1_runs(results, "small"))
    plan, as_run = count_planned(results), figures.counts_of(runs)
    own = {"masked": "head_counted_full", "dense": "head_excluded_causal"}
    shown = {
        "against_dense": charts.against_dense(tables.table1(table1_runs(results, "small")), own),
        "conventions": figures.conventions({"Planned, GPT-2 small": plan, "As run, profile small": as_run}),
        "quality_against_cost": figures.quality_against_cost(runs),
        "loss_by_flops": figures.loss_by_flops(runs, "head_counted_full"),
        "flops_by_phase_planned": figures.flops_by_phase(plan, "head_counted_full", "Planned, GPT-2 small"),
        "attention_patterns": inside.attention_patterns(first_seed(runs["dense"]).config()),
        "masks_rigl": inside.masks(first_seed(runs["rigl"])),
    }
    for name, drawn in shown.items():
        assert page.pictures[drawn.alt] == svg(drawn.figure), name
        at = page.html[page.html.index(f'id="figure-{name}"') :]
        assert Page(at[: at.index("</figure>")]).text.strip().startswith(drawn.caption)
        assert page.csv(name).columns.tolist() == drawn.data.columns.tolist() and len(page.csv(name)) == len(drawn.data)


def test_every_picture_has_its_words_and_none_of_ours_is_drawn_by_a_script(page):
    shown = re.findall(r'<figure id="figure-(\w+)">\s*<img alt="', page.html)
    assert set(shown) == FIGURES and len(page.pictures) == len(FIGURES)
    for alt, picture in page.pictures.items():
        assert len(alt) > 60 and picture.startswith("<?xml") and picture.endswith("</svg>")
        assert not re.search(r"<script|<dc:date|href=\"http", picture)
        assert "<text" in picture and picture.count("'DejaVu Sans'") == picture.count("'DejaVu Sans', sans-serif")
    assert "createElementNS" not in page.html and "<canvas" not in page.html


@pytest.mark.slow
def test_the_page_is_the_same_bytes_for_the_same_runs(results, file, tmp_path):
    assert main(["report", "--results", str(results), "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == file.read_bytes()


def test_the_finding_is_four_sentences_with_the_numbers_of_the_claims(results, page):
    write_table1(results, "small")
    claims = json.loads((results / "small" / "claims.json").read_text())["verdicts"]
    finding = page.html[page.html.index('id="finding"') : page.html.index('id="table1"')]
    assert finding.count('<p class="finding">') == 4
    measured = [verdict["measured"].partition(" ")[0] for verdict in claims if verdict["measured"]]
    assert len(measured) >= 3 and all(number in finding for number in measured)


def test_a_verdict_stands_under_its_own_count(page):
    """What the finding says of an arm, its verdict says too; C1 under other counts is folded, below."""
    section = page.html[page.html.index('id="verdicts"') : page.html.index('id="figures"')]
    own, others = section.split('id="other-counts"')
    counted = [re.findall(r"<h3>C1: [^<]*\((\w+)\)</h3>", part) for part in (own, others)]
    assert counted[0] == ["head_counted_full", "head_excluded_causal"] and len(counted[1]) == 2 * (len(CONVENTIONS) - 1)
    finding = page.html[page.html.index('id="finding"') : page.html.index('id="table1"')]
    words_of = [words.CONVENTIONS[name] for name in counted[0]]
    said = re.findall(r"\(counted: ([^)]*)\), <strong class=\"verdict\"\s*data-verdict=\"([^\"]*)\"", finding)
    judged = re.findall(r"<h3>C1[^\n]*\n<p>\n<strong class=\"verdict\" data-verdict=\"([^\"]*)\"", own)
    assert said[:2] == list(zip(words_of, judged, strict=True))
    assert [count for count, _ in said[2:]] == [*words_of, words_of[0]]  # C4's, which has two counts of a dense head


def test_table_1_has_each_reading_s_own_count_and_all_of_them_folded(results, page):
    times = tables.reduction_columns(tables.table1(table1_runs(results, "small")))
    heads = re.findall(r'<th scope="col"[^>]*><button type="button">([^<]*)<', page.html)
    assert heads[:2] == ["arm", "FLOPs saved"] and heads[4] == "no head, causal"
    rows = re.findall(r'<tr data-head="[^"]*" data-place.*?</tr>', page.html, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>([^<]*)</td>", row) for row in rows]
    assert [row[0] for row in cells] == list(times["head_counted_full"])
    assert [row[3] for row in cells] == list(times["head_excluded_causal"])
    folded = page.html[page.html.index("under every counting convention") :]
    assert all(f'<th scope="col">{name}</th>' in folded[: folded.index("</details>")] for name in CONVENTIONS)


def test_every_figure_has_its_data_as_csv(results, page):
    runs = group_by_arm(table1_runs(results, "small"))
    run = first_seed(runs["mst"])
    for name in FIGURES:
        assert len(page.csv(name)), name
    ends = page.csv("flops_by_step").groupby("arm")["so_far"].last()
    for arm, seeds in runs.items():
        count = first_seed(seeds).flops()["conventions"]["head_counted_full"]
        assert ends[arm] == pytest.approx(count["flops"] / count["dense_flops"], rel=1e-4)
    bars = page.csv("flops_by_component_as_run").set_index("bar").sum(axis=1)
    assert bars["MST"] == pytest.approx(run.flops()["conventions"]["head_counted_full"]["flops"])
    curve = page.csv("loss_by_step").dropna(subset="validation_loss").query("arm == 'dense'")
    losses = [seed.metrics()[-1]["validation_loss"] for seed in runs["dense"].values()]
    assert curve.groupby("seed")["validation_loss"].last().tolist() == pytest.approx(losses, abs=1e-4)
    active = [mask.mean() for mask in run.masks().values()]
    assert page.csv("masks_mst")["active"].tolist() == pytest.approx(active, rel=1e-4)
    rows = page.csv("quality_against_cost")
    assert set(rows[rows["fewer_steps"]]["arm"]) == {"dense_nine_tenths"}
    for convention, own in rows.groupby("convention"):
        means = own.drop_duplicates("arm").set_index("arm")
        for flops, loss in frontier_of(runs, convention).nodes:
            assert ((means["flops"] - flops).abs() < 1e-5 * flops).any() and (means["mean"] - loss).abs().min() < 1e-4
    decided = page.csv("schedules").query("arm == 'mst'")
    assert decided["phase"].unique().tolist() == ["warm-up", "ultra-sparsification", "restoration"]


def test_the_page_is_whole_and_stands_alone(file, page):
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids)) > 20
    for tag, attributes in page.elements:
        assert attributes.get("src", "data:").startswith("data:")
        if tag == "link":
            assert attributes["href"].startswith("data:")
        if tag == "a" and attributes["href"].startswith("#"):
            assert attributes["href"][1:] in ids
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        assert not attributes.get("aria-labelledby") or attributes["aria-labelledby"] in ids
    assert not re.search(r"@import|url\(\s*['\"]?http|fetch\(|XMLHttpRequest", page.html)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(after <= before + 1 for before, after in pairwise(levels))
    assert file.stat().st_size < 3e6


def test_what_a_run_used_and_where_it_is_from_are_there(page):
    assert "1.25" in page.text and "kJ (RAPL)" in page.text and "12.5%" in page.text
    assert re.search(r"From before resources were kept: dense ?;", page.text)
    assert "0" * 64 in page.text and "abc1234" in page.text and "made up" in page.text
    assert len(page.csv("provenance")) == 3 * len(LOSSES)
    assert "Known (" in page.text and "Derived (" in page.text and "Ours: in no source known to us (" in page.text


@pytest.mark.slow
def test_missing_runs_and_logs_are_said(tmp_path, capsys):
    write_runs(tmp_path, {"dense": [3.9], "static": [4.1], "mst": [4.0]})
    folder = tmp_path / "small" / "mst" / "seed-0"
    (folder / "status.json").unlink()
    (tmp_path / "small" / "static" / "seed-0" / "masks.npz").write_bytes(b"none")
    edit_json(tmp_path / "small" / "static" / "seed-0" / "environment.json", "threads", 1)
    out = tmp_path / "page.html"
    assert main(["report", "--results", str(tmp_path), "--out", str(out)]) == 0
    text = Page(out.read_text(encoding="utf-8")).text
    missing = ", ".join(str(seed) for seed in default_seeds("small", "mst"))
    assert f"MST: no finished run of seed {missing}" in text
    assert "status.json is damaged (it is missing)" in text and "masks.npz is damaged" in text
    assert "No finished run here has a topology log with an update." in text
    assert text.count("masks.npz is damaged") == 2  # at the top, and where they would be
    assert "MST: its phases against dense training need finished runs of both." in text
    assert "It needs finished runs of dense and MST" in text
    assert "page.html" in capsys.readouterr().out


@pytest.mark.slow
def test_a_single_run_makes_a_page(tmp_path):
    write_run(tmp_path / "small" / "own" / "seed-0", "own", 0, 4.0)
    assert main(["report", "--results", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize("place", ["nothing", "folder", "other", "reference"])
def test_bad_input_is_one_line(place, results, tmp_path, capsys):
    (tmp_path / "other").write_text("notes")
    held = tmp_path if place == "nothing" else results
    out = {"folder": tmp_path, "other": tmp_path / "other", "reference": REFERENCE / "x.html"}.get(
        place, tmp_path / "x"
    )
    assert main(["report", "--results", str(held), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and "allowed" in line
    assert (tmp_path / "other").read_text() == "notes" and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_without_results_the_committed_runs_are_read_and_nothing_beside_the_page_is_written(tmp_path):
    before = {path: path.stat().st_mtime_ns for path in REFERENCE.rglob("*")}
    command = [sys.executable, "-m", "replication", "report"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and re.match(r"report\.html: \d\.\d MB\. ", done.stdout), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").stat().st_size < 3e6
    assert {path: path.stat().st_mtime_ns for path in REFERENCE.rglob("*")} == before
