"""Table 1 from made-up runs: its numbers, its text, its files."""

import json

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import CONVENTIONS, edit_json, write_runs, write_table_of_runs

from replication import paper
from replication.analysis import figures
from replication.analysis.tables import render, table1, write_table1
from replication.errors import UserError
from replication.runs import RunFolder, find_runs


def test_numbers(tmp_path):
    write_runs(tmp_path, {"mst": [4.0, 4.2], "dense": [3.9]})
    table = table1(find_runs(tmp_path, "small")).set_index("arm")
    mst, flops = table.loc["mst"], RunFolder(tmp_path / "small" / "mst" / "seed-0").flops()
    assert mst["n"] == 2
    assert mst["validation_loss_mean"] == pytest.approx(4.1)
    assert mst["validation_loss_std"] == pytest.approx(np.sqrt(0.02))
    assert mst["validation_perplexity_mean"] == pytest.approx((np.exp(4.0) + np.exp(4.2)) / 2)
    assert mst["embedded_lastword/acc_mean"] == pytest.approx((1 / 4.0 + 1 / 4.2) / 2)
    assert (mst["final_sparsity"], mst["mean_sparsity"]) == (flops["final_sparsity"], flops["mean_sparsity"])
    for convention in CONVENTIONS:
        count = flops["conventions"][convention]
        assert mst[f"training_flops ({convention})"] == count["flops"]
        assert mst[f"reduction ({convention})"] == count["dense_flops"] / count["flops"]


def test_one_seed_has_n_1_and_no_std(tmp_path):
    write_runs(tmp_path, {"dense": [3.9]})
    text = write_table1(tmp_path, "small")
    row = pd.read_csv(tmp_path / "small" / "table1.csv").iloc[0]
    assert row["validation_loss_n"] == 1
    assert pd.isna(row["validation_loss_std"])
    cells = [cell.strip() for cell in next(line for line in text.splitlines() if line.startswith("| dense")).split("|")]
    assert cells[2] == "1" and cells[6] == "3.900"


def test_order_and_unknown_arms_last(tmp_path):
    write_runs(tmp_path, {arm: [4.0] for arm in ("mst_no_sv", "mst", "rigl", "set", "static", "dense_quarter", "dense")})
    assert list(table1(find_runs(tmp_path, "small"))["arm"]) == ["dense", "dense_quarter", "static", "set", "rigl", "mst", "mst_no_sv"]


def test_a_metric_that_some_runs_lack_carries_its_own_n(tmp_path):
    write_runs(tmp_path, {"dense": [3.8, 3.9], "mst": [4.0]})
    (tmp_path / "small" / "dense" / "seed-1" / "eval" / "embedded_lastword.json").unlink()
    (tmp_path / "small" / "mst" / "seed-0" / "eval" / "embedded_lastword.json").unlink()
    table = table1(find_runs(tmp_path, "small"))
    assert list(table["embedded_lastword/acc_n"]) == [1, 0]
    line = next(line for line in render(table, [], "small").splitlines() if "lastword/acc ↑" in line)
    assert "0.2632 (n = 1)" in line and "–" in line


def test_files_and_text(tmp_path):
    write_table_of_runs(tmp_path)
    text = write_table1(tmp_path, "small")
    folder = tmp_path / "small"
    assert (folder / "table1.md").read_text() == text
    claims = json.loads((folder / "claims.json").read_text())
    assert [verdict["claim"] for verdict in claims["verdicts"]] == ["C1"] * 5 + ["C2"] + ["C3"] * 3
    assert claims["paper"] == paper.load()["results"]
    assert "| MST" in text and "4.00× |" in next(line for line in text.splitlines() if "× |" in line and line.startswith("| MST"))
    assert sorted(file.name for file in folder.iterdir() if file.is_file()) == ["claims.json", "table1.csv", "table1.md"]
    assert all(convention in text for convention in CONVENTIONS)
    assert "embedded_lastword/acc ↑" in text and "embedded_code/word_perplexity ↓" in text
    assert max(map(len, text.splitlines())) <= 150


def test_a_result_of_the_paper_stands_below_ours_where_it_is_known(tmp_path, monkeypatch):
    write_runs(tmp_path, {"dense": [3.8], "mst": [4.0]})
    monkeypatch.setattr(paper, "cell", lambda arm, quantity: {("mst", "embedded_lastword/acc"): 0.31}.get((arm, quantity)))
    lines = write_table1(tmp_path, "small").splitlines()
    (place,) = [index for index, line in enumerate(lines) if "… in the paper" in line]
    assert "embedded_lastword/acc" in lines[place - 1] and "0.31" in lines[place] and "–" in lines[place]


def test_rebuilding_changes_nothing(tmp_path):
    write_table_of_runs(tmp_path)
    assert write_table1(tmp_path, "small") == write_table1(tmp_path, "small")


def test_unfinished_runs_are_left_out_and_none_at_all_is_an_error(tmp_path):
    write_runs(tmp_path, {"dense": [3.8, 3.9]})
    edit_json(tmp_path / "small" / "dense" / "seed-1" / "status.json", "status", "failed")
    assert table1(find_runs(tmp_path, "small"))["n"].item() == 1
    with pytest.raises(UserError, match="'paper'.*no finished run"):
        write_table1(tmp_path, "paper")


def test_a_damaged_log_is_one_line_and_a_folder_that_is_no_seed_is_none(tmp_path):
    write_runs(tmp_path, {"dense": [3.8]})
    (tmp_path / "small" / "dense" / "seed-0").rename(tmp_path / "small" / "dense" / "seed-x")
    assert find_runs(tmp_path, "small") == []
    (tmp_path / "small" / "dense" / "seed-x").rename(tmp_path / "small" / "dense" / "seed-0")
    edit_json(tmp_path / "small" / "dense" / "seed-0" / "status.json", "seconds", 20.0)
    with (tmp_path / "small" / "dense" / "seed-0" / "metrics.jsonl").open("a") as log:
        log.write('{"step": 4')
    assert "3.800" in write_table1(tmp_path, "small")  # a line that is still being written
    with (tmp_path / "small" / "dense" / "seed-0" / "metrics.jsonl").open("a") as log:
        log.write("\n")
    with pytest.raises(UserError, match="metrics.jsonl is damaged"):
        write_table1(tmp_path, "small")


def test_figures_count_as_the_ledger_does():
    from replication.flops import CONVENTIONS as LEDGER, total

    components = {name: 3**place for place, name in enumerate(sorted({name for names in LEDGER.values() for name in names}))}
    for convention in LEDGER:
        assert sum(figures.counted(components, convention).values()) == total(components, convention)
