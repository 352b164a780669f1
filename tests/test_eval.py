"""Scoring: the tasks' forms, the driver against lm-eval's own command, and every bad input."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eval.tasks.utils import HUB
from eval.zero_shot import TASKS_FOLDER, available_tasks, score
from replication.config import EvalConfig
from replication.errors import UserError

REPOSITORY = Path(__file__).parents[1]
TEXTS = {
    "embedded_lastword": ["The name of the file that holds the text of the module", "Return the sum of both and raise an error where the type of either is not a number"],
    "embedded_code": ["def f(x):\n    return x\n" * 12, "import os\n"],
    "embedded_prose": ["Return the sum of both.\n\nRaise an error otherwise.\n"],
    "embedded_dependencies": ["An array of numbers, café.\n"],
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    (tmp_path / "eval").mkdir()
    for task, texts in TEXTS.items():
        (tmp_path / "eval" / f"{task}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    monkeypatch.setenv("REPLICATION_DATA", str(tmp_path))
    return tmp_path


def likelihood(checkpoint, context, target):
    """Sum of log-probabilities of `target`'s tokens after `<|endoftext|>` and `context`, and whether each is the likeliest."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint).eval(), AutoTokenizer.from_pretrained(checkpoint)
    start, ids = len(tokenizer.encode(context)), tokenizer.encode(context + target)
    start, ids = (start, ids) if context else (1, [0, *ids])
    dropped = max(0, len(ids) - 33)  # a context of 32 and the last target
    start, ids = start - dropped, ids[dropped:]
    with torch.no_grad():
        log_probabilities = torch.log_softmax(model(torch.tensor([ids[:-1]])).logits[0], dim=-1)
    predicted = range(start, len(ids))
    greedy = all(log_probabilities[place - 1].argmax() == ids[place] for place in predicted)
    return sum(float(log_probabilities[place - 1, ids[place]]) for place in predicted), greedy


def test_scores_are_what_the_model_says(checkpoint, data):
    scores = score(checkpoint, sorted(TEXTS), data / "out")
    assert list(scores) == sorted(TEXTS)

    items = [text.rpartition(" ") for text in TEXTS["embedded_lastword"]]
    likelihoods = [likelihood(checkpoint, context, f" {word}") for context, _, word in items]
    mean = sum(value for value, _ in likelihoods) / len(items)
    expected = {"perplexity,none": math.exp(-mean), "acc,none": sum(greedy for _, greedy in likelihoods) / len(items)}
    assert scores["embedded_lastword"] == pytest.approx(expected, rel=1e-4)

    (text,) = TEXTS["embedded_dependencies"]
    total, _ = likelihood(checkpoint, "", text)
    size, words = len(text.encode()), len(re.split(r"\s+", text))
    expected = {"word_perplexity,none": math.exp(-total / words), "byte_perplexity,none": math.exp(-total / size), "bits_per_byte,none": -total / size / math.log(2)}
    assert scores["embedded_dependencies"] == pytest.approx(expected, rel=1e-4)


def test_raw_output_is_kept_per_task_and_names_no_folder_of_ours(checkpoint, data):
    scores = score(checkpoint, ["embedded_prose", "embedded_lastword"], data / "out", batch_size=1)
    assert sorted(file.name for file in (data / "out").iterdir()) == ["embedded_lastword.json", "embedded_prose.json"]
    for task, values in scores.items():
        text = (data / "out" / f"{task}.json").read_text(encoding="utf-8")
        raw = json.loads(text)
        assert raw["results"].keys() == raw["configs"].keys() == {task} and raw["lm_eval_version"]
        assert {name: raw["results"][task][name] for name in values} == values
        assert str(REPOSITORY) not in text


def test_batch_size_changes_nothing_but_rounding(checkpoint, data):
    one, many = (score(checkpoint, ["embedded_code", "embedded_lastword"], batch_size=size) for size in (1, 16))
    for task in one:
        assert one[task] == pytest.approx(many[task], rel=1e-4)


@pytest.mark.slow
def test_lm_evals_own_command_gives_the_same_numbers(checkpoint, data):
    tasks = ["embedded_lastword", "embedded_code"]
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={checkpoint}", "--include_path", "eval/tasks"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, "--tasks", ",".join(tasks), "--device", "cpu", "--output_path", str(data / "stock")], check=True, cwd=REPOSITORY, env=environment, capture_output=True)
    (file,) = (data / "stock").rglob("results_*.json")
    stock = json.loads(file.read_text())["results"]
    for task, values in score(checkpoint, tasks).items():
        assert values == pytest.approx({name: stock[task][name] for name in values}, rel=1e-4)


def test_lastword_has_the_form_of_lambada_openai():
    import lm_eval.tasks

    theirs = yaml.safe_load((Path(lm_eval.tasks.__file__).parent / "lambada/lambada_openai.yaml").read_text())
    ours = yaml.safe_load((TASKS_FOLDER / "embedded_lastword.yaml").read_text())
    for key in ("output_type", "doc_to_text", "doc_to_target", "metric_list"):
        assert ours[key] == theirs[key]


def test_every_task_is_named_as_its_file_and_configured():
    for task in available_tasks():
        text = (TASKS_FOLDER / f"{task}.yaml").read_text()
        assert f"\ntask: {task}\n" in text and f"\ndataset_kwargs:\n  name: {task}\n" in text
    assert {task for task in available_tasks() if task.startswith("embedded_")} == set(EvalConfig().tasks)
    assert {task for task in available_tasks() if task.startswith("paper_")} == set(HUB)


def test_the_trainer_is_out_of_sight():
    code = "import sys, eval.zero_shot; assert not {'torch', 'replication.trainer', 'replication.methods'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize("files", [None, {}, {"config.json": "{}"}, {"model.safetensors": ""}])
def test_a_folder_that_is_no_checkpoint(tmp_path, files):
    folder = tmp_path / "checkpoint"
    for name, text in (files or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(UserError, match=f"checkpoint {folder} is not one; allowed: .*config.json and model.safetensors"):
        score(folder, ["embedded_code"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("broken", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_checkpoint_with_a_broken_file(checkpoint, data, broken):
    folder = data / "checkpoint"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(b"{" if file.name == broken else file.read_bytes())
    with pytest.raises(UserError, match=f"checkpoint {folder} cannot be loaded: ") as error:
        score(folder, ["embedded_code"])
    assert "\n" not in str(error.value)


def test_an_unknown_task_names_the_nearest(checkpoint, data):
    with pytest.raises(UserError, match="task is 'embedded_lastwrod'; the nearest valid one is 'embedded_lastword'; allowed: embedded_code, ") as error:
        score(checkpoint, ["embedded_code", "embedded_lastwrod"], data / "out")
    assert "\n" not in str(error.value) and not (data / "out").exists()


def test_missing_evaluation_sets_name_the_command(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("REPLICATION_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="^embedded_prose has no evaluation set .*nowhere/eval/embedded_prose.jsonl; run `python -m replication data`"):
        score(checkpoint, ["embedded_prose"], tmp_path / "out")
