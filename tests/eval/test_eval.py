"""Scoring: the tasks' forms, the driver against lm-eval's own command, and every bad input."""

import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from replication.config.fields import EvalConfig
from replication.eval import zero_shot
from replication.eval.tasks.utils import HUB
from replication.eval.zero_shot import TASKS_FOLDER, _fits, available_tasks, evaluation_set, score
from replication.system.errors import DamagedError, UserError
from replication.system.files import read_json

REPOSITORY = Path(__file__).parents[2]
TEXTS = {
    "embedded_lastword": [
        "The name of the file that holds the text of the module",
        "Return the sum of both and raise an error where the type of either is not a number",
    ],
    "embedded_code": ["def f(x):\n    return x\n" * 12, "import os\n"],
    "embedded_prose": ["Return the sum of both.\n\nRaise an error otherwise.\n"],
    "embedded_dependencies": ["An array of numbers, café.\n"],
}


@pytest.fixture
def data(tmp_path, monkeypatch):
    (tmp_path / "eval").mkdir()
    for task, texts in TEXTS.items():
        (tmp_path / "eval" / f"{task}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8"
        )
    monkeypatch.setenv("REPLICATION_DATA", str(tmp_path))
    return tmp_path


def likelihood(checkpoint, context, target):
    """Sum of log-probabilities of `target`'s tokens after `<|endoftext|>` and `context`; and is each the likeliest?"""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
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
    bits = -sum(value for value, _ in likelihoods) / math.log(2)
    expected["bits_per_byte,none"] = bits / sum(len(f" {word}".encode()) for *_, word in items)
    assert scores["embedded_lastword"] == pytest.approx(expected, rel=1e-4)

    (text,) = TEXTS["embedded_dependencies"]
    total, _ = likelihood(checkpoint, "", text)
    size, words = len(text.encode()), len(re.split(r"\s+", text))
    expected = {
        "word_perplexity,none": math.exp(-total / words),
        "byte_perplexity,none": math.exp(-total / size),
        "bits_per_byte,none": -total / size / math.log(2),
    }
    assert scores["embedded_dependencies"] == pytest.approx(expected, rel=1e-4)


def test_raw_output_is_kept_per_task_and_names_no_folder_of_ours(checkpoint, data):
    scores = score(checkpoint, ["embedded_prose", "embedded_lastword"], data / "out", batch_size=1)
    assert sorted(file.name for file in (data / "out").iterdir()) == ["embedded_lastword.json", "embedded_prose.json"]
    for task, values in scores.items():
        text = (data / "out" / f"{task}.json").read_text(encoding="utf-8")
        raw = json.loads(text)
        assert raw["results"].keys() == raw["configs"].keys() == {task} and raw["lm_eval_version"]
        assert {name: raw["results"][task][name] for name in values} == values
        assert str(REPOSITORY) not in text and str(checkpoint.parent) not in text


@pytest.mark.slow
def test_checkpoints_with_the_same_tokenizer_share_it_as_its_cache_is_never_freed(checkpoint, data, tmp_path):
    copy, other = (shutil.copytree(checkpoint, tmp_path / name) for name in ("copy", "other"))
    first = zero_shot._tokenizer(str(checkpoint))
    assert zero_shot._tokenizer(str(copy)) is first
    settings = other / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": 7}))
    assert zero_shot._tokenizer(str(other)).model_max_length == 7 and first.model_max_length != 7
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    assert zero_shot._tokenizer(str(copy)) is not first  # transformers may read it in another way
    (copy / "config.json").write_text(json.dumps(config))
    (other / "tokenizer.json").unlink()
    assert zero_shot._tokenizer(str(other)) is None
    known = len(zero_shot._tokenizers)
    assert score(copy, ["embedded_lastword"]) == score(checkpoint, ["embedded_lastword"])
    assert len(zero_shot._tokenizers) == known


def test_batch_size_changes_nothing_but_rounding(checkpoint, data):
    one, many = (score(checkpoint, ["embedded_code", "embedded_lastword"], batch_size=size) for size in (1, 16))
    for task in one:
        assert one[task] == pytest.approx(many[task], rel=1e-4)


@pytest.mark.slow
def test_lm_evals_own_command_gives_the_same_numbers(checkpoint, data):
    tasks = ["embedded_lastword", "embedded_code"]
    command = [
        sys.executable,
        "-m",
        "lm_eval",
        "--model",
        "hf",
        "--model_args",
        f"pretrained={checkpoint}",
        "--include_path",
        "eval/tasks",
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [*command, "--tasks", ",".join(tasks), "--device", "cpu", "--output_path", str(data / "stock")],
        check=True,
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
    )
    (file,) = (data / "stock").rglob("results_*.json")
    stock = json.loads(file.read_text())["results"]
    for task, values in score(checkpoint, tasks).items():
        assert values == pytest.approx({name: stock[task][name] for name in values}, rel=1e-4)


def test_lastword_has_the_form_of_lambada_openai():
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    theirs = load_yaml(Path(lm_eval.tasks.__file__).parent / "lambada/lambada_openai.yaml")
    ours = load_yaml(TASKS_FOLDER / "embedded_lastword.yaml")
    for key in ("output_type", "doc_to_text", "doc_to_target"):
        assert ours[key] == theirs[key]
    *metrics, bits_per_byte = ours["metric_list"]
    assert metrics == theirs["metric_list"] and bits_per_byte["metric"] == "bits_per_byte"


def test_every_task_is_named_as_its_file_and_configured():
    for task in available_tasks():
        text = (TASKS_FOLDER / f"{task}.yaml").read_text()
        assert f"\ntask: {task}\n" in text and f"\ndataset_kwargs:\n  name: {task}\n" in text
    assert {task for task in available_tasks() if task.startswith("embedded_")} == set(EvalConfig().tasks)
    assert {task for task in available_tasks() if task.startswith("paper_")} == set(HUB)


def test_the_trainer_is_out_of_sight():
    code = (
        "import sys, replication.eval.zero_shot; "
        "assert not {'torch', 'replication.training.trainer', 'replication.methods'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize("files", [None, {}, {"config.json": "{}"}, {"model.safetensors": ""}])
def test_a_folder_that_is_no_checkpoint(tmp_path, files):
    folder = tmp_path / "checkpoint"
    for name, text in (files or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    with pytest.raises(
        UserError, match=f"checkpoint {folder} is not one; allowed: .*config.json and model.safetensors"
    ):
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


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_tensors(folder, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def other_tokenizer(folder, vocab_size):
    from replication.config.fields import DataConfig
    from replication.data.tokenizer import make_tokenizer, save_tokenizer

    save_tokenizer(make_tokenizer(DataConfig(vocab_size=vocab_size), ["".join(map(chr, range(32, 999))) * 3]), folder)


C_ATTN = "transformer.h.0.attn.c_attn.weight"
NOT_WHOLE = {
    "no tokenizer": (
        lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
        "its tokenizer has 1 entries, and its model 320",
    ),
    "a larger tokenizer": (lambda f: other_tokenizer(f, 400), "its tokenizer has 400 entries, and its model 320"),
    "a renamed tensor": (
        lambda f: edit_tensors(f, lambda t: t.update({"x": t.pop(C_ATTN)})),
        f"1 tensors, such as {C_ATTN}, are missing",
    ),
    "a tensor too many": (
        lambda f: edit_tensors(f, lambda t: t.update({"x": t[C_ATTN].clone()})),
        "1 tensors, such as x, are not of config.json's model",
    ),
    "a tensor less": (lambda f: edit_tensors(f, lambda t: t.pop(C_ATTN)), f"1 tensors, such as {C_ATTN}, are missing"),
    "a tensor of another shape": (
        lambda f: edit_tensors(f, lambda t: t.update({C_ATTN: t[C_ATTN][:3].clone()})),
        "of another shape",
    ),
    "more layers": (lambda f: edit(f, n_layer=8), "84 tensors, such as transformer.h.1.attn.c_attn.bias, are missing"),
    "a million layers": (
        lambda f: edit(f, n_layer=1_000_000),
        "config.json asks for 1000000 layers, and the weights are 16 tensors",
    ),
    "no layers": (lambda f: edit(f, n_layer=0), "are not of config.json's model"),
    "another width": (lambda f: edit(f, n_embd=32), "are of another shape"),
    "a width beyond all memory": (lambda f: edit(f, n_embd=10**7), "are of another shape"),
    "a longer context": (
        lambda f: edit(f, n_positions=64),
        "1 tensors, such as transformer.wpe.weight, are of another shape",
    ),
    "another vocabulary": (
        lambda f: edit(f, vocab_size=384),
        "1 tensors, such as transformer.wte.weight, are of another shape",
    ),
    "another model": (lambda f: edit(f, model_type="llama", num_hidden_layers=1), "are missing"),
    "an encoder": (lambda f: edit(f, model_type="t5"), "are missing"),
    "no model at all": (lambda f: edit(f, model_type="nothing"), "`nothing`"),
    "heads that do not divide": (lambda f: edit(f, n_head=3), "divisible"),
    "no heads": (lambda f: edit(f, n_head=0), "division"),
    "a configuration that is a list": (lambda f: (f / "config.json").write_text("[]"), ""),
    "half the weights": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:9999]),
        "",
    ),
    "a header of an exabyte": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x0f" + b"{}"), ""),
    "weights that are no numbers": (
        lambda f: edit_tensors(f, lambda t: t[C_ATTN].mul_(float("nan"))),
        f"{C_ATTN} holds values that are not finite",
    ),
    "an index without its shards": (
        lambda f: (
            (f / "model.safetensors").rename(f / "x")
            and (f / "model.safetensors.index.json").write_text(
                '{"metadata": {}, "weight_map": {"a": "b.safetensors"}}'
            )
        ),
        "",
    ),
}


@pytest.mark.parametrize(("change", "says"), NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_what_is_not_a_whole_checkpoint_is_not_scored(change, says, checkpoint, data):
    folder = data / "checkpoint"
    shutil.copytree(checkpoint, folder)
    change(folder)
    with pytest.raises(
        UserError, match=f"^checkpoint {folder} cannot be loaded: .*; allowed: a complete Hugging Face folder"
    ) as error:
        score(folder, ["embedded_code"], data / "out")
    assert says in str(error.value) and "\n" not in str(error.value) and not (data / "out").exists()


def test_weights_that_run_code_when_they_are_read_are_not_read(checkpoint, data):
    import torch

    folder = data / "checkpoint"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(
        UserError, match="is not one; allowed: a Hugging Face folder with config.json and model.safetensors"
    ):
        score(folder, ["embedded_code"])


@pytest.mark.slow
def test_openais_own_form_is_whole(checkpoint, data):
    """Without the prefix `transformer.`, and with the buffers of attention's mask."""
    import torch

    def as_openai(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors |= {"h.0.attn.bias": torch.ones(1, 1, 32, 32), "h.0.attn.masked_bias": torch.tensor(-1e4)}

    folder = data / "checkpoint"
    shutil.copytree(checkpoint, folder)
    edit_tensors(folder, as_openai)
    assert score(folder, ["embedded_code"]) == score(checkpoint, ["embedded_code"])


@pytest.mark.parametrize(
    ("entries", "rows", "fits"),
    [
        (50257, 50257, True),
        (50257, 50304, True),
        (50295, 51200, True),
        (300, 320, True),
        (262145, 262144, True),
        (50270, 50257, False),
        (512, 1024, False),
        (1, 64, False),
        (0, 64, False),
    ],
)
def test_a_tokenizer_fits_an_embedding_that_is_padded_a_little(entries, rows, fits):
    assert _fits(entries, rows) is fits


def test_scores_name_the_text_that_they_are_of(checkpoint, data):
    score(checkpoint, ["embedded_code"], data / "out")
    raw = read_json(data / "out" / "embedded_code.json")
    rows = {"test": [{"text": text} for text in TEXTS["embedded_code"]]}
    assert (
        raw["evaluation_set"]
        == hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        == evaluation_set("embedded_code")
    )
    text = (data / "out" / "embedded_code.json").read_text()
    (data / "out" / "embedded_code.json").write_text(
        text.replace('word_perplexity,none": 1', 'word_perplexity,none": 2').replace("9", "8")
    )
    with pytest.raises(DamagedError, match="differs from its seal"):
        read_json(data / "out" / "embedded_code.json")


def test_where_scores_could_not_be_written_nothing_is_scored(checkpoint, data):
    (data / "file").touch()
    with pytest.raises(UserError, match="file/out cannot be written; allowed: a folder that can"):
        score(checkpoint, ["embedded_code"], data / "file" / "out")


def test_an_unknown_task_names_the_nearest(checkpoint, data):
    with pytest.raises(
        UserError,
        match="task is 'embedded_lastwrod'; the nearest valid one is 'embedded_lastword'; allowed: blimp_pairs, ",
    ) as error:
        score(checkpoint, ["embedded_code", "embedded_lastwrod"], data / "out")
    assert "\n" not in str(error.value) and not (data / "out").exists()


def test_missing_evaluation_sets_name_the_command(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("REPLICATION_DATA", str(tmp_path / "nowhere"))
    file, command = "nowhere/eval/embedded_prose.jsonl", "python -m replication data"
    with pytest.raises(UserError, match=f"^embedded_prose has no evaluation set .*{file}; run `{command}`"):
        score(checkpoint, ["embedded_prose"], tmp_path / "out")
