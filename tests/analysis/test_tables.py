"""Table 1 from made-up runs: its numbers, its text, its files."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from synthetic_runs import CONVENTIONS, edit_json, without_mean_density, write_runs, write_table_of_runs

from replication import paper
from replication.analysis import series
from replication.analysis.origins import origin
from replication.analysis.tables import table1, write_table1, zero_shot_rows
from replication.runs.finding import find_runs
from replication.runs.folder import RunFolder
from replication.system.errors import UserError


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
    assert cells[1:4] == ["dense", "", "1"] and cells[-3:-1] == ["3.900", "+0.000 (1)"]


def test_order_and_unknown_arms_last(tmp_path):
    write_runs(
        tmp_path, {arm: [4.0] for arm in ("mst_no_sv", "mst", "rigl", "set", "static", "dense_quarter", "dense")}
    )
    assert list(table1(find_runs(tmp_path, "small"))["arm"]) == [
        "dense",
        "dense_quarter",
        "static",
        "set",
        "rigl",
        "mst",
        "mst_no_sv",
    ]


def test_a_metric_that_some_runs_lack_carries_its_own_n(tmp_path):
    write_runs(tmp_path, {"dense": [3.8, 3.9], "mst": [4.0]})
    (tmp_path / "small" / "dense" / "seed-1" / "eval" / "embedded_lastword.json").unlink()
    (tmp_path / "small" / "mst" / "seed-0" / "eval" / "embedded_lastword.json").unlink()
    table = table1(find_runs(tmp_path, "small"))
    assert list(table["embedded_lastword/acc_n"]) == [1, 0]
    rows = {row["arm"]: row for row in zero_shot_rows(table).to_dict("records")}
    assert (rows["dense"]["embedded_lastword/acc ↑"], rows["MST"]["embedded_lastword/acc ↑"]) == ("0.2632 (n = 1)", "–")


def test_bits_per_byte_stand_for_what_separates_nothing_with_chance_below(tmp_path):
    write_runs(tmp_path, {"dense": [3.8], "mst": [4.0]})
    rows = zero_shot_rows(table1(find_runs(tmp_path, "small")))
    assert list(rows["arm"]) == ["dense", "MST", "chance"]
    assert list(rows.columns[1:]) == [
        "embedded_code/bits_per_byte ↓",
        "embedded_lastword/acc ↑",
        "embedded_lastword/perplexity ↓",
    ]
    assert (
        list(rows["embedded_code/bits_per_byte ↓"]) == ["1.600", "1.600", "8"]
        and rows["embedded_lastword/acc ↑"].iloc[-1] == "–"
    )


def test_differences_are_paired_with_n_beside_them(tmp_path):
    write_runs(tmp_path, {"dense": [3.9, 3.8], "mst": [4.0, 4.1, 9.9]})
    table = table1(find_runs(tmp_path, "small")).set_index("arm")
    assert table.loc["mst", ["minus_dense", "minus_dense_n"]].tolist() == pytest.approx([0.2, 2])
    line = next(line for line in write_table1(tmp_path, "small").splitlines() if line.startswith("| MST"))
    assert "+0.200 (2)" in line


def test_runs_of_one_place_say_so_in_a_line_and_of_several_in_a_column_too(tmp_path):
    write_runs(tmp_path, {"dense": [3.8], "rigl": [3.9], "mst": [4.0]})
    text = write_table1(tmp_path, "small")
    assert "All runs: commit abc1234, on made up, threads 2, torch 2.13." in text and " from |" not in text
    for key, value in (("git", "fff9999"), ("processor", "another")):
        edit_json(tmp_path / "small" / "mst" / "seed-0" / "environment.json", key, value)
    text = write_table1(tmp_path, "small")
    assert "The runs come from different commits or machines (column `from`):" in text
    assert "- A: commit abc1234, on made up" in text and "- B: commit fff9999, on another" in text
    cells = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("| ")]
    header, *rows = cells[:4]
    assert {row[1]: row[header.index("from")] for row in rows} == {"dense": "A", "RigL": "A", "MST": "B"}


def test_a_run_that_went_on_elsewhere_is_from_both_places(tmp_path):
    write_runs(tmp_path, {"dense": [3.8]})
    run = RunFolder(tmp_path / "small" / "dense" / "seed-0")
    edit_json(run.path / "environment.json", "resumed", [{"step": 9, "git": ["abc1234", "def5678"]}])
    assert origin([run]) == "commit abc1234 and def5678, on made up, threads 2, torch 2.13"


def test_files_and_text(tmp_path):
    write_table_of_runs(tmp_path)
    text = write_table1(tmp_path, "small")
    folder = tmp_path / "small"
    assert (folder / "table1.md").read_text() == text
    claims = json.loads((folder / "claims.json").read_text())
    assert [verdict["claim"] for verdict in claims["verdicts"]] == ["C1"] * 12 + ["C2"] * 2 + ["C3"] * 2 + ["C4"] * 3
    assert claims["paper"] == paper.load()["results"]
    assert any(line.startswith("| MST") and line.endswith(" 4.00× |") for line in text.splitlines())  # the paper's
    assert sorted(file.name for file in folder.iterdir() if file.is_file()) == [
        "claims.json",
        "table1.csv",
        "table1.md",
        "table1.png",
        "table1.tex",
        "tuning.csv",
    ]
    assert all(convention in text for convention in CONVENTIONS)
    assert "embedded_lastword/acc ↑" in text and "embedded_code/bits_per_byte ↓" in text
    assert "| C2, quality is not compromised, head dense" in text
    assert text.index("Power of C2, head masked") < text.index("**C1")
    assert max(map(len, text.splitlines())) <= 176


def test_a_result_of_the_paper_stands_below_ours_where_it_is_known(tmp_path, monkeypatch):
    write_runs(tmp_path, {"dense": [3.8], "mst": [4.0]})
    monkeypatch.setattr(
        paper, "cell", lambda arm, quantity: {("mst", "embedded_lastword/acc"): 0.31}.get((arm, quantity))
    )
    (line,) = [line for line in write_table1(tmp_path, "small").splitlines() if "in the paper" in line]
    assert line.startswith("| MST, in the paper") and "0.31" in line and "–" in line


def test_runs_of_a_version_without_mean_density_show_nothing_for_it(tmp_path):
    write_runs(tmp_path, {"dense": [3.8], "mst": [4.0]})
    now = write_table1(tmp_path, "small")
    without_mean_density(tmp_path / "small" / "mst" / "seed-0")
    mixed = write_table1(tmp_path, "small")
    without_mean_density(tmp_path / "small" / "dense" / "seed-0")
    old = write_table1(tmp_path, "small")
    assert "head masked (mean_density)" in now and "head masked (mean_density)" not in mixed
    rows = [line for line in mixed.splitlines() if line.startswith(("| MST ", "| dense ")) and line.count("×") > 4]
    assert [re.findall(r"[\d.]+×|–", row)[5] for row in rows] == ["1.00×", "–"]
    assert "mean_density" not in old and "blocks_only" in old


@pytest.mark.slow
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
    from replication.flops.ledger import CONVENTIONS as LEDGER
    from replication.flops.ledger import total

    components = {
        name: 3**place for place, name in enumerate(sorted({name for names in LEDGER.values() for name in names}))
    }
    for convention in LEDGER:
        assert sum(series.select_counted(components, convention).values()) == total(components, convention)
