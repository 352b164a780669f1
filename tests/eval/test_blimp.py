"""BLiMP: pairs by hand, a tie among them; the file's form; and scores that are the model's own likelihoods."""

import gzip
import json

import pytest

from replication.analysis.scores import score_values
from replication.eval.local_files import import_file
from replication.eval.tasks.utils import compare_pair, mean_by_group
from replication.eval.zero_shot import score
from replication.system.errors import UserError
from replication.system.files import read_json


def pair(number, good, bad, paradigm="one", field="syntax"):
    whose = {"UID": paradigm, "linguistics_term": "binding", "field": field, "pairID": str(number)}
    return whose | {"sentence_good": good, "sentence_bad": bad}


PAIRS = [
    pair(0, "the mask grows", "the mask grow"),
    pair(1, "a sparse layer learns slowly", "a sparse layer learn slowly"),
    pair(2, "every head drops a weight", "every heads drops a weight", "two", "syntax/semantics"),
    pair(3, "the same", "the same", "two", "syntax/semantics"),
]


@pytest.mark.parametrize(("good", "bad", "correct"), [(-3.0, -4.0, 1.0), (-4.0, -3.0, 0.0), (-3.0, -3.0, 0.5)])
def test_a_pair_by_hand(good, bad, correct):
    assert compare_pair(PAIRS[0], [(good, False), (bad, False)]) == {
        "acc": correct,
        "by_paradigm": ("one", correct),
        "by_term": ("binding", correct),
        "by_field": ("syntax", correct),
    }


def test_groups_have_their_means():
    assert mean_by_group([("b", 1.0), ("a", 0.5), ("b", 0.0)]) == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("packed", [False, True])
def test_its_file_is_read_packed_or_not_and_a_field_has_one_name(packed, tmp_path):
    file = tmp_path / ("blimp.jsonl.gz" if packed else "blimp.jsonl")
    text = "".join(json.dumps(row) + "\n" for row in PAIRS)
    file.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    rows = [json.loads(line) for line in import_file("blimp_pairs", file, tmp_path).open(encoding="utf-8")]
    assert [row["field"] for row in rows] == ["syntax", "syntax", "syntax_semantics", "syntax_semantics"]
    assert rows[0].keys() == {"UID", "linguistics_term", "field", "sentence_good", "sentence_bad"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"UID": "a"}\n', "line 1 lacks one of them"),
        (json.dumps(PAIRS[0] | {"sentence_bad": 1}).encode(), "line 1 lacks one of them"),
        (b"the mask grows\n", "line 1 is no JSON"),
    ],
)
def test_another_file_is_refused_in_a_line(content, problem, tmp_path):
    (tmp_path / "blimp.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        import_file("blimp_pairs", tmp_path / "blimp.jsonl", tmp_path)
    assert not (tmp_path / "eval").exists()


def test_what_is_not_packed_is_no_gz(tmp_path):
    (tmp_path / "blimp.jsonl.gz").write_bytes(b"{}")
    with pytest.raises(UserError, match="it is no gzip file"):
        import_file("blimp_pairs", tmp_path / "blimp.jsonl.gz", tmp_path)


def test_scores_are_the_models_own_likelihoods(checkpoint, tmp_path, monkeypatch):
    """And those of lm-eval's own task, whose text begins with a space after <|endoftext|>, but for ties."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    (tmp_path / "blimp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    import_file("blimp_pairs", tmp_path / "blimp.jsonl", tmp_path)
    monkeypatch.setenv("REPLICATION_DATA", str(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def likelihood(sentence):
        ids = torch.tensor([[0, *tokenizer.encode(f" {sentence}")]])
        with torch.no_grad():
            return -model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)

    likelihoods = [(likelihood(row["sentence_good"]), likelihood(row["sentence_bad"])) for row in PAIRS]
    expected = [float(good > bad) for good, bad in likelihoods[:3]] + [0.5]
    scores = score(checkpoint, ["blimp_pairs"], tmp_path / "out")
    assert scores["blimp_pairs"]["acc,none"] == pytest.approx(sum(expected) / 4)
    raw = read_json(tmp_path / "out" / "blimp_pairs.json")
    groups = raw["results"]["blimp_pairs"]
    assert groups["by_paradigm,none"] == {"one": sum(expected[:2]) / 2, "two": sum(expected[2:]) / 2}
    assert groups["by_field,none"].keys() == {"syntax", "syntax_semantics"}
    assert [name for name, _ in score_values(raw)] == ["blimp_pairs/acc"]
