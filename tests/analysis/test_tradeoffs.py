"""Trade-offs: the front, the dense line, the crossing and the phases by hand; the command, its files and its width."""

import io
import json
import math

import pandas as pd
import pytest
from rich.console import Console
from synthetic_runs import edit_json, write_runs

from replication.analysis import terminal, tradeoffs
from replication.analysis.arms import family, group_by_arm, label
from replication.analysis.curves import first_crossing, loss_at, validation_curve
from replication.analysis.palette import colour
from replication.analysis.tradeoffs import pareto_front, tabulate_snapshots
from replication.cli import main
from replication.runs.finding import REFERENCE, find_runs
from replication.runs.folder import RunFolder
from replication.runs.snapshots import DENSE_LOSS, OWN_LOSS, SHA256
from replication.system.files import write_sealed


@pytest.mark.parametrize(
    ("costs", "losses", "front"),
    [
        ([1, 2, 3], [3, 2, 1], [True, True, True]),
        ([1, 2, 3], [3, 4, 1], [True, False, True]),  # the second costs more than the first and is worse
        ([1, 1], [2, 3], [True, False]),
        ([1, 2], [2, 2], [True, False]),
        ([1, 1], [2, 2], [True, True]),  # neither beats the other
        ([5], [5], [True]),
        ([], [], []),
    ],
)
def test_on_the_front_is_what_no_other_beats(costs, losses, front):
    assert pareto_front(costs, losses) == front


NODES = [(1e10, 5.0), (1e12, 4.0), (1e13, 3.8)]


@pytest.mark.parametrize(
    ("flops", "loss"),
    [(1e10, 5.0), (1e11, 4.5), (1e12, 4.0), (10**12.5, 3.9), (1e13, 3.8), (0.9e10, None), (1.1e13, None)],
)
def test_between_dense_models_the_line_is_straight_in_log_flops(flops, loss):
    assert loss_at(NODES, flops) == (None if loss is None else pytest.approx(loss))


def test_a_line_of_one_model_is_a_point_and_of_none_nothing():
    assert loss_at([(10.0, 3.0)], 10.0) == 3.0 and loss_at([(10.0, 3.0)], 11.0) is None and loss_at([], 1.0) is None


CURVE = [(10, 6.0), (1000, 5.0), (2000, 5.5), (32000, 4.5)]  # it rises on the way


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (6.5, (10, True)),
        (6.0, (10, True)),
        (5.5, (100.0, False)),  # half-way in log FLOPs
        (5.0, (1000.0, False)),  # the first time, not the last
        (4.75, (16000.0, False)),  # three of four doublings
        (4.5, (32000.0, False)),
        (4.4, None),
    ],
)
def test_a_loss_is_reached_where_the_curve_first_crosses_it(loss, found):
    assert first_crossing(CURVE, loss) == (None if found is None else pytest.approx(found))


# ---- made-up runs: dense costs 4800 FLOPs per token, static 0.2 of blocks and head and all of attention


@pytest.fixture
def results(tmp_path):
    losses = {"dense": [3.9, 3.8], "dense_shallow_dense_head": [4.5, 4.6], "static": [4.2, 4.3], "mst": [4.0, 4.2]}
    write_runs(tmp_path, losses)
    whole = RunFolder(tmp_path / "small" / "dense" / "seed-0").flops()["conventions"]["head_counted_full"]["flops"]
    for seed in range(2):
        file = tmp_path / "small" / "dense_shallow_dense_head" / f"seed-{seed}" / "flops.json"
        edit_json(file, "conventions.head_counted_full.flops", whole // 4)
    return tmp_path


@pytest.fixture
def runs(results):
    return group_by_arm(find_runs(results, "small"))


def test_a_curve_counts_as_the_ledger_does(runs):
    curve, flops = validation_curve(runs["mst"][0].metrics()), runs["mst"][0].flops()
    assert len(curve) == 10 and curve[-1] == (flops["conventions"]["head_counted_full"]["flops"], 4.0)
    blocks = validation_curve(runs["mst"][0].metrics(), "blocks_only")
    assert blocks[-1][0] == flops["conventions"]["blocks_only"]["flops"]


def test_arms_against_the_dense_line_by_seed(runs):
    table = tradeoffs.tradeoffs(runs).set_index("arm")
    flops = {
        arm: next(iter(of.values())).flops()["conventions"]["head_counted_full"]["flops"] for arm, of in runs.items()
    }
    narrower, dense = flops["dense_shallow_dense_head"], flops["dense"]
    share = math.log(flops["static"] / narrower) / math.log(dense / narrower)  # of the way up the line
    line = [4.5 + share * (3.9 - 4.5), 4.6 + share * (3.8 - 4.6)]
    static = table.loc["static"]
    assert static["dense_line"] == pytest.approx(sum(line) / 2)
    assert static["minus_dense_line"] == pytest.approx((4.2 - line[0] + 4.3 - line[1]) / 2)
    assert static["minus_dense_line_n"] == 2 and static["minus_dense_line_low"] < static["minus_dense_line"]
    assert table["is_dense"].to_dict() == dict.fromkeys(table.index, False) | {
        "dense": True,
        "dense_shallow_dense_head": True,
    }
    assert static["density"] == pytest.approx(0.2)


def test_where_seeds_change_the_flops_as_phases_that_start_themselves_do_their_mean_counts(tmp_path):
    write_runs(tmp_path, {"mst": [4.0, 4.1]})
    runs = group_by_arm(find_runs(tmp_path, "small"))
    file = tmp_path / "small" / "mst" / "seed-1" / "flops.json"
    count = json.loads(file.read_text())
    flops = count["conventions"]["head_counted_full"]["flops"]
    count["mean_sparsity"] -= 0.1
    count["conventions"]["head_counted_full"]["flops"] += 10
    file.write_text(json.dumps(count))
    row = tradeoffs.tradeoffs(runs).iloc[0]
    assert row["flops"] == flops + 5 and row["density"] == pytest.approx(1 - count["mean_sparsity"] - 0.05)


def test_a_dense_model_that_another_beats_is_not_of_the_line(tmp_path):
    write_runs(tmp_path, {"dense": [3.9], "dense_narrow": [3.8], "static": [4.2]})
    table = tradeoffs.tradeoffs(group_by_arm(find_runs(tmp_path, "small"))).set_index("arm")
    assert table["is_dense"].to_dict() == {"dense": False, "dense_narrow": True, "static": False}
    assert table["on_front"].to_dict() == {"dense": False, "dense_narrow": True, "static": False}
    assert table["dense_line"].isna().tolist() == [True, False, True]  # a point is no line


def test_without_a_dense_model_there_is_no_line_and_no_times(tmp_path):
    write_runs(tmp_path, {"static": [4.2], "mst": [4.0]})
    table = tradeoffs.tradeoffs(group_by_arm(find_runs(tmp_path, "small")))
    assert table[["dense_line", "minus_dense_line", "times_dense"]].isna().all(axis=None) and table["on_front"].any()


def test_the_loss_is_the_best_that_every_run_reaches_or_the_one_given(runs, results, capsys):
    table = tradeoffs.tradeoffs(runs)
    assert table["loss"].unique().tolist() == [pytest.approx(4.6)] and (table["flops_to_loss_n"] == 2).all()
    table = tradeoffs.tradeoffs(runs, 3.85).set_index("arm")
    assert table["flops_to_loss_n"].to_dict() == {"dense": 1, "dense_shallow_dense_head": 0, "static": 0, "mst": 0}
    assert table["times_dense"].isna().tolist() == [True, True, True, True]  # one of dense's two runs reaches it
    curve = validation_curve(runs["dense"][1].metrics())
    assert table.loc["dense", "flops_to_loss_mean"] == first_crossing(curve, 3.85)[0]
    assert main(["report", "tradeoffs", "--results", str(results), "--loss", "1"]) == 2
    assert "--loss is 1; allowed: one that a run here reaches, 3.8 or more" in capsys.readouterr().err


def test_what_does_not_compare_with_dense_has_no_place_and_no_difference(results):
    for seed in (0, 1):
        run = RunFolder(results / "small" / "static" / f"seed-{seed}")
        run.write_config(run.config() | {"train": run.config()["train"] | {"weight_decay": 0.7}})
        edit_json(run.path / "status.json", "status", "finished")
    table = tradeoffs.tradeoffs(group_by_arm(find_runs(results, "small"))).set_index("arm")
    static = table.loc["static"]
    assert "train.weight_decay" in static["not_compared"] and not static["on_front"]
    assert pd.isna(static["dense_line"]) and pd.isna(static["times_dense"]) and static["minus_dense_line_n"] == 0


# ---- on the way


def add_snapshots(run, losses, tasks=True):
    """As the trainer logs them, and lm-eval scores them: step -> (own, dense) loss."""
    rows = run.metrics()
    (run.path / "metrics.jsonl").unlink()
    for row in rows:
        if row["step"] in losses:
            own, dense = losses[row["step"]]
            row |= {OWN_LOSS: own, DENSE_LOSS: dense, SHA256: f"{row['step']}"}
            for pattern in {"dense", row["attention_pattern"]} if tasks else ():
                bits = {"bits_per_byte,none": dense if pattern == "dense" else own}
                score = {"results": {"embedded_code": bits}, "checkpoint": f"{row['step']}"}
                folder = run.path / "at" / f"step-{row['step']:06d}" / "eval" / pattern
                write_sealed(folder / "embedded_code.json", score)
    run.append("metrics.jsonl", rows)
    edit_json(run.path / "status.json", "status", "finished")


@pytest.fixture
def kept(results):
    for seed in (0, 1):
        run = RunFolder(results / "small" / "mst" / f"seed-{seed}")
        add_snapshots(run, {40: (6.0 + seed, 6.0 + seed), 280: (5.0 + seed, 5.5 + seed)})
    return results


def test_quality_by_phase_under_both_attentions(kept):
    phases = tabulate_snapshots(group_by_arm(find_runs(kept, "small")))
    shown = phases[["arm", "step", "phase", "attention", "is_own", "n", "validation_loss_mean"]]
    assert shown.to_numpy().tolist() == [
        ["mst", 40, "warm-up", "dense", True, 2, 6.5],
        ["mst", 280, "ultra-sparsification", "sparse", True, 2, 5.5],
        ["mst", 280, "ultra-sparsification", "dense", False, 2, 6.0],
    ]
    assert phases["embedded_code/bits_per_byte_mean"].tolist() == [6.5, 5.5, 6.0]
    assert phases["validation_loss_std"].tolist() == pytest.approx([math.sqrt(0.5)] * 3)


def test_scores_of_another_snapshot_are_named(kept, capsys):
    folder = kept / "small" / "mst" / "seed-0" / "at"
    copied = (folder / "step-000040" / "eval" / "dense" / "embedded_code.json").read_text()
    (folder / "step-000280" / "eval" / "dense" / "embedded_code.json").write_text(copied)
    assert main(["report", "tradeoffs", "--results", str(kept)]) == 2
    assert (
        "step-000280/eval/dense/embedded_code.json is damaged (it is of another checkpoint)" in capsys.readouterr().err
    )


# ---- the command


def test_the_command_writes_beside_the_runs_and_prints_what_it_wrote(kept, tmp_path, capsys):
    assert main(["report", "tradeoffs", "--results", str(kept)]) == 0
    printed = capsys.readouterr().out
    text = (kept / "small" / "tradeoffs.md").read_text()
    assert text in printed and "The runs in " in printed and "sparse, own" in text
    assert max(map(len, text.splitlines())) <= 150
    table, phases = (pd.read_csv(kept / "small" / f"tradeoffs{part}.csv") for part in ("", "_phases"))
    assert len(table) == 4 and len(phases) == 3
    assert (kept / "small" / "tradeoffs.png").stat().st_size > 20_000
    assert (
        main(
            [
                "report",
                "tradeoffs",
                "--results",
                str(kept),
                "--out",
                str(tmp_path / "out"),
                "--convention",
                "blocks_only",
            ]
        )
        == 0
    )
    assert "under `blocks_only`" in (tmp_path / "out" / "tradeoffs.md").read_text().replace("\n", " ")


@pytest.mark.slow
def test_of_the_committed_runs_nothing_is_kept_but_where_it_is_asked_for(tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in (REFERENCE / "small").iterdir()}
    assert main(["report", "tradeoffs", "--profile", "small", "--results", str(REFERENCE), "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tradeoffs.csv", "tradeoffs.md", "tradeoffs.png"]
    assert "No run here kept the model on its way" in capsys.readouterr().out
    assert main(["report", "tradeoffs", "--profile", "small", "--results", str(REFERENCE)]) == 0
    assert {path: path.stat().st_mtime_ns for path in (REFERENCE / "small").iterdir()} == before
    assert main(["report", "tradeoffs", "--profile", "small", "--out", str(REFERENCE / "small")]) == 2


def test_no_runs_are_one_line(tmp_path, capsys):
    assert main(["report", "tradeoffs", "--results", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "holds no finished run" in line


@pytest.mark.parametrize("width", [80, 120])
def test_it_fits_a_terminal(width, kept):
    runs = group_by_arm(find_runs(kept, "small"))
    said = Console(file=io.StringIO(), width=width)
    terminal.show_tradeoffs(tradeoffs.tradeoffs(runs), tabulate_snapshots(runs), kept / "small", said)
    text = said.file.getvalue()
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert "− dense line (n)" in text and "FLOPs to reach it" in text and "ultra-sparsification" in text
    assert ("embedded_code/bits_per_byte" in text) == (width == 120)


def test_arms_of_a_sweep_look_like_the_arm_that_they_vary():
    assert family("static_dense_head_sparsity_0p9") == "static_dense_head" and family("set_4x") == "set_4x"
    assert family("mst_random_growth") == "mst_random_growth" and family("own_sparsity_0p9") == "own_sparsity_0p9"
    assert colour("static_sparsity_0p9") == colour("static") and label("static_sparsity_0p9") == "static sparsity 0.9"
