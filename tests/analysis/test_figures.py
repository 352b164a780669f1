"""Every figure: its title is what its data say, it has a caption and an alternative text, and a phone can show it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text
from synthetic_runs import write_run, write_runs, write_table_of_runs

from replication.analysis import charts, drawing, figures, inside, tables, titles
from replication.analysis.ablations import ablations
from replication.analysis.arms import group_by_arm, head_of, table1_runs
from replication.analysis.palette import METHODS
from replication.analysis.topology import read
from replication.runs.finding import REFERENCE, find_runs
from replication.runs.folder import RunFolder

CONVENTION = "head_counted_full"
FINDINGS = Path(__file__).parents[2] / "docs" / "findings.md"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    write_table_of_runs(folder)
    write_run(folder / "small" / "mst_random_growth" / "seed-0", "mst_random_growth", 0, 4.5)
    return folder


@pytest.fixture(scope="module")
def drawn(found):
    """Every figure of the notebooks, of made-up runs."""
    of_table = table1_runs(found, "small")
    runs, counts = group_by_arm(of_table), figures.counts_of(group_by_arm(of_table))
    return {
        "against_dense": charts.against_dense(
            tables.table1(of_table), {"masked": CONVENTION, "dense": "head_excluded_causal"}
        ),
        "ablations": charts.ablations(ablations(group_by_arm(find_runs(found, "small")), "small")),
        "tuning": charts.tuning(pd.read_csv(found / "small" / "tuning.csv")),
        "conventions": figures.conventions({"one": counts, "other": counts}),
        "flops_by_phase": figures.flops_by_phase(counts, CONVENTION, "As run"),
        "flops_by_component": figures.flops_by_component(counts, CONVENTION, "As run"),
        "flops_by_step": figures.flops_by_step(runs, CONVENTION),
        "loss_by_step": figures.loss_by_step(runs),
        "loss_by_flops": figures.loss_by_flops(runs, CONVENTION),
        "quality_against_cost": figures.quality_against_cost(runs),
        "schedules": inside.schedules(runs),
        "attention_patterns": inside.attention_patterns(runs["dense"][0].config()),
        "topology_by_arm": inside.topology_by_arm(runs),
        "topology_by_layer": inside.topology_by_layer("rigl", runs["rigl"]),
        "masks": inside.masks(runs["rigl"][0]),
    }


def test_a_figure_has_its_words(drawn):
    for name, one in drawn.items():
        assert one.alt.startswith(one.title) and len(one.alt) > len(one.title) + 20 and len(one.caption) > 20, name
        assert one.figure.get_suptitle().replace("\n", " ") == one.title, name
        assert len(one.data) and len(one.data.columns) > 1, name


@pytest.mark.slow
def test_a_phone_can_show_it(drawn):
    """Of a column of 400 pixels: as wide as one, nothing cut off, no text below 9.5 pixels."""
    for name, one in drawn.items():
        figure = one.figure
        assert figure.get_figwidth() <= drawing.WIDTH, name
        figure.draw_without_rendering()
        for text in figure.findobj(Text):
            if text.get_text().strip() and text.get_visible():
                assert text.get_fontsize() * 400 / 72 / drawing.WIDTH > 9.5, (name, text.get_text())
        box = figure.get_tightbbox()
        assert box.x0 > -0.02 and box.x1 < figure.get_figwidth() + 0.02, (name, box)


@pytest.mark.slow
def test_the_same_figure_is_the_same_bytes(found):
    runs = group_by_arm(table1_runs(found, "small"))
    for picture in (drawing.png, drawing.svg):
        first, again = (picture(inside.schedules(runs).figure) for _ in range(2))
        assert first == again


def test_titles_are_of_the_data(tmp_path):
    """Two tables whose findings are opposite."""
    said = {}
    for name, losses in {
        "worse": {"dense": [3.9, 3.91, 3.89], "rigl": [4.2, 4.21, 4.19], "mst": [4.5, 4.51, 4.49]},
        "better": {"dense": [3.9, 3.91, 3.89], "rigl": [4.2, 4.21, 4.19], "mst": [3.7, 3.71, 3.69]},
    }.items():
        write_runs(tmp_path / name, losses)
        of_table = table1_runs(tmp_path / name, "small")
        runs = group_by_arm(of_table)
        said[name] = [
            titles.against_dense(tables.table1(of_table)),
            titles.quality(runs),
            titles.loss_by_step(runs),
            titles.loss_by_flops(runs, CONVENTION),
        ]
    assert said["worse"][0].endswith("0 of 2 with the head masked") and said["better"][0].endswith(
        "1 of 2 with the head masked"
    )
    assert "+0.60 at" in said["worse"][1] and "-0.20 at" in said["better"][1]
    assert said["worse"][2] == "After the same text lowest: dense, at 3.900 nats; dense ends at 3.900"
    assert said["better"][2] == "After the same text lowest: MST, at 3.700 nats; dense ends at 3.900"
    assert "MST ends at 4.500" in said["worse"][3] and "MST ends at 3.700" in said["better"][3]


def test_titles_of_costs_are_of_the_counts():
    """Of counts by hand: 60 of 100 FLOPs, 40 of them in restoration; then 20, half of them in warm-up."""
    for phases, told in (
        ({"warm-up": 20, "restoration": 40}, "here: MST costs 60% of dense; 67% of that is restoration"),
        ({"warm-up": 10, "restoration": 10}, "here: MST costs 20% of dense; 50% of that is warm-up"),
    ):
        total = sum(phases.values())
        counted = {"blocks_only": {"flops": total, "dense_flops": 100, "reduction": 100 / total}}
        mst = {"phases": {name: {"block_forward": flops} for name, flops in phases.items()}, "conventions": counted}
        assert titles.title_phases({"mst": mst}, "blocks_only", "here") == told
        other = titles.title_phases({"mst_dense_head": mst}, "blocks_only", "here", "mst_dense_head")
        assert other == told.replace("MST", "MST with a dense head")
        assert f"{100 / total:.1f}×" in titles.conventions({"here": {"mst": mst}})
    assert titles.attention_patterns({"local": 0.3, "strided": 0.1, "sparse": 0.4, "fixed": 0.05, "dense": 1.0}) == (
        "MST's sparse pattern keeps 40% of causal pairs; fixed keeps least, 5%"
    )
    assert (
        titles.masks("rigl", {"q": 0.25, "k": 0.5, "v": 0.1})
        == "RigL: active at the end are 25% of Q, 50% of K, 10% of V"
    )


def test_the_cells_of_heat_are_the_counts(drawn, found):
    counts = figures.counts_of(group_by_arm(table1_runs(found, "small")))
    table, wanted = (
        figures.reductions(counts),
        [count["conventions"] for arm, count in counts.items() if arm != "dense"],
    )
    assert table.to_numpy().tolist() == [[of["reduction"] for of in row.values()] for row in wanted]
    for axes in drawn["conventions"].figure.axes:
        cells = [text.get_text() for text in axes.texts]
        assert cells == [f"{of['reduction']:.2f}×" for row in wanted for of in row.values()]
        bold = [text.get_fontweight() == "bold" for text in axes.texts]
        assert bold == [of["reduction"] >= 3.95 for row in wanted for of in row.values()] and any(bold)


def made_up_ablations():
    rows = [
        ("dense", "", np.nan, np.nan, 5),
        ("mst_random_growth", "growth=random", 0.004, 0.01, 3),
        ("mst_gradient_growth", "growth=gradient", 0.2, 0.02, 3),
        ("mst_dense_attention", "hybrid_attention=false", -0.03, np.nan, 1),
        ("mst_mine", "learning_rate=0.1", 0.01, np.nan, 1),
    ]
    frame = pd.DataFrame(rows, columns=["arm", "changes", "minus_base", "half", "minus_base_n"])
    ends = {
        "minus_base_low": frame["minus_base"] - frame["half"],
        "minus_base_high": frame["minus_base"] + frame["half"],
    }
    spread = [0.005] + [np.nan] * 4
    return frame.assign(label=frame["arm"], validation_loss_std=spread, **ends, **{f"reduction ({CONVENTION})": 2.0})


def test_ablations_are_grouped_by_question_and_sorted():
    groups = {question: list(rows["arm"]) for question, rows in charts.group_by_question(made_up_ablations())}
    assert groups == {
        "Where do connections grow?": ["mst_gradient_growth", "mst_random_growth"],
        "Which attention?": ["mst_dense_attention"],
        "What else?": ["mst_mine"],
    }


def test_ablations_stand_against_dense_s_own_noise():
    one = charts.ablations(made_up_ablations())
    assert [axes.get_title("left") for axes in one.figure.axes] == [
        "Where do connections grow?",
        "Which attention?",
        "What else?",
    ]
    band = one.figure.axes[0].patches[0].get_extents().transformed(one.figure.axes[0].transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((-0.01, 0.01))  # twice 0.005, either side
    assert one.title.startswith(
        "2 of 4 changes move the loss beyond dense's own noise; most: mst_gradient_growth, +0.200"
    )
    texts = [text.get_text() for text in one.figure.axes[0].texts]
    assert texts == ["mst_gradient_growth", "+0.200, 2.00×, n = 3", "mst_random_growth", "+0.004, 2.00×, n = 3"]
    calm = made_up_ablations().assign(minus_base=[np.nan, 0.001, 0.002, -0.003, 0.004])
    assert charts.ablations(calm).title.startswith("0 of 4")
    unknown = charts.ablations(made_up_ablations().assign(validation_loss_std=np.nan))
    assert unknown.title.startswith("Of 4 changes the largest") and "Grey" not in unknown.caption


def test_seeds_are_all_there(drawn, found):
    """In the figures of loss a dot per seed and evaluation; in that of topology a line per seed."""
    for axes in drawn["topology_by_arm"].figure.axes:
        lines = [line for line in axes.lines if line.get_color() == METHODS["rigl"] and len(line.get_xdata()) > 1]
        assert len(lines) == 4  # three seeds and their mean
    masked = drawn["quality_against_cost"].figure.axes[0]
    dots = [line for line in masked.lines if line.get_marker() == "."]
    runs = group_by_arm(table1_runs(found, "small"))
    shown = [len(seeds) for arm, seeds in runs.items() if head_of(arm) != "dense"]  # dense models are in both panels
    assert sum(len(line.get_xdata()) for line in dots) == sum(shown)


def test_loss_starts_where_the_log_does_and_sparse_attention_is_said(drawn):
    one = drawn["loss_by_step"]
    for axes in one.figure.axes:
        assert axes.get_xlim()[0] == 0
        assert min(line.get_xdata()[0] for line in axes.lines if len(line.get_xdata()) > 20) == 5  # first logged step
        assert "2: MST, sparse attention" in [text.get_text() for text in axes.texts]
    assert "sparse in MST's phase 2" in one.caption


def test_q_k_and_v_are_marked_with_their_densities(tmp_path):
    write_run(tmp_path / "small" / "rigl" / "seed-0", "rigl", 0, 4.0)
    run = RunFolder(tmp_path / "small" / "rigl" / "seed-0")
    mask = np.array([[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]], bool)  # [in, out]: all of Q, half of K, none of V
    run.write_masks({"transformer.h.0.attn.c_attn.weight": mask})
    run.write_status("finished", step=400, seconds=1.0, tokens_per_second=1.0)
    one = inside.masks(run)
    assert one.title == "RigL: active at the end are 100% of Q, 50% of K, 0% of V"
    axes = one.figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["Q 100%", "K 50%", "V 0%"]
    assert [line.get_xdata()[0] for line in axes.lines] == pytest.approx([1.5, 3.5])  # between pixels 1 and 2, 3 and 4


def test_the_findings_tell_how_dense_q_k_and_v_are():
    text = " ".join(FINDINGS.read_text(encoding="utf-8").split())
    for arm, name in (("rigl", "RigL"), ("mst", "MST")):
        parts = read(REFERENCE / "small" / arm / "seed-0").parts
        assert f"in {name} {100 * parts['q']:.0f} %, {100 * parts['k']:.0f} % and {100 * parts['v']:.0f} %" in text


@pytest.mark.parametrize(
    ("places", "gap", "moved"),
    [
        ([], 0.1, []),
        ([0.2, 0.5], 0.1, [0.2, 0.5]),
        ([0.2, 0.2, 0.25], 0.1, [0.2, 0.3, 0.4]),
        ([0.9, 0.95, 1.0], 0.1, [0.8, 0.9, 1.0]),
    ],
)
def test_names_make_room_for_each_other(places, gap, moved):
    assert drawing.spread_out(places, gap) == pytest.approx(moved)


def test_runs_without_updates_are_drawn_and_said(tmp_path):
    write_run(tmp_path / "small" / "static" / "seed-0", "static", 0, 4.0)  # its masks never move
    one = inside.topology_by_layer("static", {0: RunFolder(tmp_path / "small" / "static" / "seed-0")})
    assert one == drawing.NotDrawn("static: no update is logged.")
