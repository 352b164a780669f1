"""The paper's evaluation tasks from local files in their sources' own form, and every wrong file.

They are scored by our driver and by lm-eval.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from replication.cli import main
from replication.eval.local_files import import_file
from replication.eval.tasks import utils
from replication.system.errors import UserError

LAMBADA = '{"text": "the mask grows and the layer grows"}\n{"text": "again the model learns a token"}\n'
WIKITEXT = (
    " \n = Mask = \n \n The mask , a layer . \n\n = = Growth = = \n\n It grows @-@ slowly . \n"
    " = Token = \n \n One token . \n"
)
PTB = " no it was n't <unk> \n mr. smith 's $ N a share \n"
LM1B = "The mask , he said , is n't sparse .\nIt grows .\n"
SST2 = {
    "train.tsv": "sentence\tlabel\n"
    + "".join(f"a dense model {word} \t{label}\n" for word, label in (("learns", 1), ("drops", 0)) for _ in range(4)),
    "dev.tsv": "sentence\tlabel\nthe mask learns \t1\nthe mask drops \t0\n",
}


def written(folder, task, content):
    """Content as a file, or as a folder of files for GLUE."""
    if isinstance(content, str):
        (folder / task).write_text(content, encoding="utf-8")
    else:
        (folder / task).mkdir()
        for name, text in content.items():
            (folder / task / name).write_text(text, encoding="utf-8")
    return folder / task


def rows_of(folder, task, content):
    return utils.read_rows(import_file(task, written(folder, task, content), folder / "data"))


def test_rows_by_hand(tmp_path):
    assert rows_of(tmp_path, "paper_lambada", LAMBADA) == [
        {"text": "the mask grows and the layer grows"},
        {"text": "again the model learns a token"},
    ]
    assert rows_of(tmp_path, "paper_ptb", PTB) == [{"page": "no it was n't <unk>\nmr. smith 's $ N a share"}]
    assert rows_of(tmp_path, "paper_lm1b", LM1B) == [
        {"page": "The mask , he said , is n't sparse ."},
        {"page": "It grows ."},
    ]
    glue = rows_of(tmp_path, "paper_glue_sst2", SST2)
    assert [row["split"] for row in glue] == ["train"] * 8 + ["validation"] * 2
    assert glue[-1] == {"sentence": "the mask drops ", "label": 0, "split": "validation"}


def test_articles_are_cut_at_first_level_headings(tmp_path):
    pages = [row["page"] for row in rows_of(tmp_path, "paper_wikitext2", WIKITEXT)]
    assert [page.strip().splitlines()[0].strip() for page in pages] == ["= Mask =", "= Token ="]
    assert "Growth" in pages[0]
    assert " \n" + "\n".join(pages) == WIKITEXT  # nothing is lost but the blank line before the first heading


def test_the_hubs_glue_rows_as_jsonl(tmp_path):
    line = '{"sentence": "a", "label": 1, "idx": 7}\n'
    rows = rows_of(tmp_path, "paper_glue_sst2", {"train.jsonl": line, "validation.jsonl": line})
    assert rows == [
        {"sentence": "a", "label": 1, "split": "train"},
        {"sentence": "a", "label": 1, "split": "validation"},
    ]


def test_hub_and_local_rows_are_the_same(tmp_path, monkeypatch):
    """A stand-in for `load_dataset` with the hub's fields; the hub itself is not asked."""
    hub = {
        "paper_lambada": {"text": ["the mask grows and the layer grows", "again the model learns a token"]},
        "paper_ptb": {"sentence": ["no it was n't <unk>", "mr. smith 's $ N a share"]},
        "paper_lm1b": {"text": ["The mask , he said , is n't sparse .", "It grows ."]},
        "paper_glue_sst2": {"sentence": ["a ", "b"], "label": [1, 0], "idx": [0, 1]},
        "paper_glue_mnli": {"premise": ["a", "b"], "hypothesis": ["c", "d"], "label": [1, 0], "idx": [0, 1]},
    }
    sst2, mnli = "sentence\tlabel\na \t1\nb\t0\n", "sentence1\tsentence2\tgold_label\na\tc\tneutral\nb\td\tentailment\n"
    local = {
        "paper_lambada": LAMBADA,
        "paper_ptb": PTB,
        "paper_lm1b": LM1B,
        "paper_glue_sst2": {"train.tsv": sst2, "dev.tsv": sst2},
        "paper_glue_mnli": {"train.tsv": mnli, "dev_matched.tsv": mnli},
    }
    monkeypatch.setattr(utils, "_go_offline_if_unreachable", lambda: None)
    for task, content in local.items():
        monkeypatch.setattr(
            utils.datasets, "load_dataset", lambda *_, task=task, **__: utils.datasets.Dataset.from_dict(hub[task])
        )
        monkeypatch.setenv("REPLICATION_DATA", str(tmp_path / "empty"))
        from_hub = {split: rows.to_list() for split, rows in utils.paper_set(task).items()}
        import_file(task, written(tmp_path, task, content), tmp_path / "data")
        monkeypatch.setenv("REPLICATION_DATA", str(tmp_path / "data"))
        assert {split: rows.to_list() for split, rows in utils.paper_set(task).items()} == from_hub


def test_the_prompts_are_lm_evals_own():
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    from replication.eval.zero_shot import TASKS_FOLDER

    theirs = Path(lm_eval.tasks.__file__).parent
    pairs = {
        f"paper_glue_{name}": f"glue/{name}/default"
        for name in ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "wnli")
    } | {"paper_lambada": "lambada/lambada_openai", "paper_wikitext2": "wikitext/wikitext"}
    for task, name in pairs.items():
        ours, stock = load_yaml(TASKS_FOLDER / f"{task}.yaml"), load_yaml(theirs / f"{name}.yaml")
        ours["metric_list"] = [
            metric for metric in ours["metric_list"] if task != "paper_lambada" or metric["metric"] != "bits_per_byte"
        ]
        for key in ("output_type", "doc_to_text", "doc_to_target", "doc_to_choice", "metric_list"):
            mine, other = ours.get(key), stock.get(key)
            assert mine == other or mine.__code__.co_code == other.__code__.co_code, (task, key)
        if "glue" in task:
            assert (ours["num_fewshot"], ours["fewshot_split"]) == (5, "train")


def test_local_data_switch_the_hub_off_before_its_libraries_are_imported(tmp_path):
    """huggingface_hub reads HF_HUB_OFFLINE once, when it is imported."""
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "paper_lambada.jsonl").touch()
    code = """import sys; from replication.eval import zero_shot
local = [zero_shot._is_local(task) for task in ("paper_lambada", "embedded_code", "paper_ptb", "sst2")]
assert local == [True, True, False, False] and not {"datasets", "huggingface_hub"} & set(sys.modules)"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"REPLICATION_DATA": str(tmp_path)},
    )


def test_detokenizers_by_hand():
    assert (
        utils.ptb_detokenizer({"page": "it was n't <unk>\nmr. smith 's $ N a share , # N more"})
        == "it wasn't <unk>\nmr. smith's $1 a share , #1 more"
    )
    assert utils.ptb_detokenizer({"page": "N N N\nrose N\nNovember"}) == "1 1 1\nrose 1\nNovember"
    assert (
        utils.lm1b_detokenizer({"page": "The mask , he said , \" is n't sparse . \" ( It 's $ 5 )"})
        == "The mask, he said, \"isn't sparse.\" (It's $5)"
    )
    assert (
        utils.wikitext_detokenizer({"page": " = A = \n The mask , grows @-@ slowly . \n"})
        == " = A =\nThe mask, grows-slowly.\n"
    )


@pytest.mark.parametrize(
    ("name", "train", "row"),
    [
        ("cola", "gj04\t1\t\tThe mask grows.", {"sentence": "The mask grows.", "label": 1}),
        (
            "mnli",
            "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\ta\tb\tneutral\tcontradiction",
            {"premise": "a", "hypothesis": "b", "label": 2},
        ),
        (
            "mrpc",
            "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\ta\tb",
            {"sentence1": "a", "sentence2": "b", "label": 0},
        ),
        (
            "qnli",
            "index\tquestion\tsentence\tlabel\n0\twhy?\tso.\tnot_entailment",
            {"question": "why?", "sentence": "so.", "label": 1},
        ),
        (
            "qqp",
            "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\ta?\tb?\t1",
            {"question1": "a?", "question2": "b?", "label": 1},
        ),
        (
            "rte",
            'index\tsentence1\tsentence2\tlabel\n0\tsay "a\tb\tentailment',
            {"sentence1": 'say "a', "sentence2": "b", "label": 0},
        ),
        ("wnli", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1", {"sentence1": "a", "sentence2": "b", "label": 1}),
    ],
)
def test_each_glue_file_in_its_own_form(tmp_path, name, train, row):
    rows = rows_of(
        tmp_path, f"paper_glue_{name}", {"train.tsv": train, "dev_matched.tsv" if name == "mnli" else "dev.tsv": train}
    )
    assert rows == [row | {"split": "train"}, row | {"split": "validation"}]


@pytest.mark.parametrize(
    ("task", "content", "problem"),
    [
        ("paper_lambada", "the mask grows\n", "line 1 is no JSON"),
        ("paper_lambada", LAMBADA + '{"txt": "a b"}\n', "line 3 has no text of two words"),
        (
            "paper_lambada",
            '{"text": "the mask "}\n',
            "line 1 has no text of two words or more, the last one at its end",
        ),
        ("paper_lambada", "[1]\n", "line 1 is no JSON object"),
        ("paper_lambada", '{"text": "one"}\n', "line 1 has no text of two words"),
        ("paper_lambada", "\n \n", "it is empty"),
        ("paper_wikitext2", "The mask grows .\n", "it has no heading"),
        ("paper_wikitext103", LM1B, "it has no heading"),
        ("paper_lm1b", "1\tThe mask grows .\n", "line 1 has columns or is JSON"),
        ("paper_lm1b", LM1B + '{"text": "The mask"}\n', "line 3 has columns or is JSON"),
        ("paper_lm1b", '["The mask grows ."]\n', "line 1 has columns or is JSON"),
        ("paper_ptb", "mask\ngrows\n", "no line has two words"),
        ("paper_glue_sst2", LM1B, "it is no folder"),
        ("paper_glue_sst2", {"train.tsv": SST2["train.tsv"]}, "dev.tsv: it does not exist"),
        ("paper_glue_sst2", SST2 | {"dev.tsv": "text\tlabel\na\t1\n"}, "dev.tsv: its header lacks sentence"),
        (
            "paper_glue_sst2",
            SST2 | {"dev.tsv": "sentence\tlabel\na\tb\t1\n"},
            "row 1 has 3 cells; allowed: 2, separated by tabs",
        ),
        (
            "paper_glue_sst2",
            SST2 | {"dev.tsv": "sentence\tlabel\na\tgood\n"},
            "row 1 has the label 'good'; allowed: 0, 1",
        ),
        ("paper_glue_sst2", SST2 | {"dev.tsv": "sentence\tlabel\na\rb\t1\n"}, "row 1 has 1 cells"),
        (
            "paper_glue_sst2",
            {"train.jsonl": '{"sentence": "a", "label": 1}\n', "validation.jsonl": '{"sentence": "a", "label": 2}\n'},
            "validation.jsonl: line 1 has the label 2",
        ),
        (
            "paper_glue_sst2",
            {"train.jsonl": '{"sentence": "a", "label": "1"}\n'},
            "train.jsonl: line 1 lacks a field, or one has another type",
        ),
        ("paper_glue_sst2", SST2 | {"dev.tsv": "sentence\tlabel\n"}, "it has no rows"),
    ],
)
def test_a_file_of_another_shape_is_one_line_and_writes_nothing(tmp_path, capsys, task, content, problem):
    file = written(tmp_path, task, content)
    assert main(["data", "--eval-file", f"{task}={file}", "--data-dir", str(tmp_path / "data")]) == 2
    error = capsys.readouterr().err
    assert (
        f"--eval-file {task}={file}" in error and problem in error and "; allowed: " in error and error.count("\n") == 1
    )
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("pair", "problem"),
    [
        ("paper_lambda=x", "the nearest valid one is 'paper_lambada'"),
        ("paper_ptb=nowhere.txt", "it does not exist"),
        ("paper_ptb", "paper_ptb=.: it does not exist"),
    ],
)
def test_an_unknown_task_or_missing_file_is_one_line(tmp_path, capsys, pair, problem):
    assert main(["data", "--eval-file", pair, "--data-dir", str(tmp_path)]) == 2
    assert problem in capsys.readouterr().err


def test_not_utf8_is_one_line(tmp_path):
    (tmp_path / "latin").write_bytes("né le\n".encode("latin-1"))
    with pytest.raises(UserError, match="it is not UTF-8"):
        import_file("paper_ptb", tmp_path / "latin", tmp_path / "data")


def test_an_unreachable_hub_says_which_file_to_give(checkpoint, tmp_path, capsys):
    assert main(["evaluate", str(checkpoint), "--tasks", "paper_lm1b", "--data-dir", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "billion-word-benchmark/lm1b" in error and "--eval-file paper_lm1b=FILE" in error and error.count("\n") == 1


def test_replicate_asks_for_a_missing_set_before_it_trains(tmp_path, overrides, capsys):
    settings = [part for override in [*overrides, "eval.tasks=[paper_ptb]"] for part in ("--set", override)]
    assert (
        main(
            [
                "replicate",
                "--profile",
                "smoke",
                "--methods",
                "dense,mst",
                "--seeds",
                "0",
                "--results",
                str(tmp_path / "results"),
                "--data-dir",
                str(tmp_path / "data"),
                *settings,
            ]
        )
        == 2
    )
    assert "--eval-file paper_ptb=FILE" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_scores_are_the_models_own_likelihoods(checkpoint, tmp_path, monkeypatch):
    """LAMBADA's and WikiText's metrics worked out from the model's logits, without lm-eval."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from replication.eval.zero_shot import score

    for task, content in (
        ("paper_lambada", LAMBADA),
        ("paper_wikitext2", WIKITEXT),
        ("paper_ptb", PTB),
        ("paper_lm1b", LM1B),
        ("paper_glue_sst2", SST2),
    ):
        import_file(task, written(tmp_path, task, content), tmp_path / "data")
    monkeypatch.setenv("REPLICATION_DATA", str(tmp_path / "data"))
    scores = score(
        checkpoint, ["paper_lambada", "paper_wikitext2", "paper_ptb", "paper_lm1b", "paper_glue_sst2"], tmp_path / "out"
    )
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(checkpoint).eval(),
        AutoTokenizer.from_pretrained(checkpoint),
    )

    def logprob(context, text):
        ids = torch.tensor([context + text])
        with torch.no_grad():
            logprobs = model(ids[:, :-1]).logits.log_softmax(-1)[0]
        return sum(logprobs[place - 1, ids[0, place]].item() for place in range(len(context), ids.shape[1]))

    texts = [json.loads(line)["text"].rsplit(" ", 1) for line in LAMBADA.splitlines()]
    last = [logprob(tokenizer(context)["input_ids"], tokenizer(" " + word)["input_ids"]) for context, word in texts]
    assert scores["paper_lambada"]["perplexity,none"] == pytest.approx(math.exp(-sum(last) / 2), rel=1e-4)
    likelihood = sum(
        logprob([tokenizer.eos_token_id], tokenizer(utils.lm1b_detokenizer({"page": line}))["input_ids"])
        for line in LM1B.splitlines()
    )
    words = 13  # 10 + 3, as tokenised
    assert scores["paper_lm1b"]["word_perplexity,none"] == pytest.approx(math.exp(-likelihood / words), rel=1e-4)
    assert 0 <= scores["paper_glue_sst2"]["acc,none"] <= 1
    raw = json.loads((tmp_path / "out" / "paper_glue_sst2.json").read_text())
    assert raw["n-shot"]["paper_glue_sst2"] == 5 and raw["n-samples"]["paper_glue_sst2"]["effective"] == 2
