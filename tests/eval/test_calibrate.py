"""Calibration of a local model folder against references, within and outside their tolerance."""

import pytest

from replication import paper
from replication.cli import main
from replication.eval.local_files import import_file
from replication.eval.zero_shot import score


@pytest.fixture
def data(tmp_path):
    (tmp_path / "lambada.jsonl").write_text('{"text": "the mask grows and the layer grows"}\n', encoding="utf-8")
    import_file("paper_lambada", tmp_path / "lambada.jsonl", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("off_by", "code", "verdict"), [(0.4, 0, "within tolerance"), (0.6, 1, "outside tolerance")])
def test_within_or_outside(off_by, code, verdict, checkpoint, data, monkeypatch, capsys):
    monkeypatch.setenv("REPLICATION_DATA", str(data))
    perplexity = score(checkpoint, ["paper_lambada"])["paper_lambada"]["perplexity,none"]
    entry = {
        "model": "gpt2",
        "task": "paper_lambada",
        "metric": "perplexity",
        "value": perplexity + off_by,
        "tolerance": 0.5,
        "source": "this test",
    }
    monkeypatch.setattr(paper, "load", lambda: {"references": [entry]})
    assert main(["evaluate", str(checkpoint), "--reference", "gpt2", "--data-dir", str(data)]) == code
    printed = capsys.readouterr().out
    assert verdict in printed and f"{perplexity:.6g}, reference {perplexity + off_by:g} ± 0.5 (this test)" in printed


def test_the_shipped_references_are_gpt2s_on_lambada():
    found = {entry["metric"]: (entry["model"], entry["task"], entry["value"]) for entry in paper.load()["references"]}
    assert found == {"acc": ("gpt2", "paper_lambada", 0.3256), "perplexity": ("gpt2", "paper_lambada", 40.06)}


@pytest.mark.parametrize(
    ("model", "reference", "problem"),
    [
        ("gpt2", "gpt3", "--reference is 'gpt3'; the nearest valid one is 'gpt2'"),
        ("nowhere/gpt2", "gpt2", "nowhere/gpt2 cannot be loaded"),
        (".", "gpt2", "checkpoint . is not one"),
    ],
)
def test_bad_input_is_one_line(model, reference, problem, data, capsys):
    assert main(["evaluate", model, "--reference", reference, "--data-dir", str(data)]) == 2
    error = capsys.readouterr().err
    assert problem in error and error.count("\n") == 1
