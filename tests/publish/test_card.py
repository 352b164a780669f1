"""A checkpoint's card and masks: what they say is so, and no seal minds a card that is written anew."""

import json
import re
import shutil

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from replication.cli import main
from replication.data import write_evaluation_sets
from replication.publish.card import _count_by_part, write_cards
from replication.runs.folder import RunFolder
from replication.system.errors import DamagedError
from replication.system.files import sha256, write_sealed


@pytest.fixture
def run(with_snapshot, tmp_path):
    return RunFolder(shutil.copytree(with_snapshot["mst"].path, tmp_path / "smoke" / "mst" / "seed-0"))


def text_of(folder):
    return (folder / "README.md").read_text(encoding="utf-8")


def front_matter(folder):
    return yaml.safe_load(text_of(folder).split("---\n")[1])


def snippets(folder):
    return re.findall(r"^```python\n(.*?)^```", text_of(folder), flags=re.DOTALL | re.MULTILINE)


def score(run, task="a_task", **metrics):
    results = {"alias": task, **{f"{name},none": value for name, value in metrics.items()}, "acc_stderr,none": "N/A"}
    weights = sha256(run.checkpoint / "model.safetensors")
    write_sealed(run.path / "eval" / f"{task}.json", {"results": {task: results}, "checkpoint": weights})


def test_weights_are_counted_by_what_they_are_in_a_block():
    """Q, K and V lie side by side; two layers of a part count as one."""
    fused = np.array([[1, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]], dtype=bool)
    masks = {f"transformer.h.{layer}.attn.c_attn.weight": fused for layer in (0, 11)}
    masks["transformer.wte.weight"] = np.array([[True, False]])
    assert list(_count_by_part(masks)) == [
        ("attn.c_attn, Q", 8, 6),
        ("attn.c_attn, K", 8, 0),
        ("attn.c_attn, V", 8, 2),
        ("token embedding and LM head", 2, 1),
    ]


def test_masks_lie_beside_the_weights_under_their_names(with_snapshot):
    weights, masks = (load_file(with_snapshot["mst"].checkpoint / f"{name}.safetensors") for name in ("model", "masks"))
    logged = with_snapshot["mst"].masks()
    assert masks.keys() == logged.keys() and masks.keys() <= weights.keys()
    assert all(mask.dtype == bool and (mask == logged[name]).all() for name, mask in masks.items())
    assert not (with_snapshot["dense"].checkpoint / "masks.safetensors").exists()
    half_way = load_file(with_snapshot["mst"].path / "at" / "step-000010" / "masks.safetensors")
    assert any((half_way[name] != mask).any() for name, mask in masks.items())


def test_front_matter_is_what_the_hub_asks_for(with_snapshot):
    told = front_matter(with_snapshot["mst"].checkpoint)
    assert (told["library_name"], told["pipeline_tag"]) == ("transformers", "text-generation")
    assert not {"license", "language"} & told.keys()  # which nobody gave
    assert "mst" in told["tags"] and "model-index" not in told


@pytest.mark.parametrize("method", ["dense", "mst"])
def test_the_card_says_what_the_run_logged(method, with_snapshot):
    run = with_snapshot[method]
    card, row, flops = text_of(run.checkpoint), run.metrics()[-1], run.flops()
    count = flops["conventions"]["head_counted_causal"]
    assert f"Validation loss {row['validation_loss']:.4f} nats per token after {row['tokens']:,} tokens" in card
    causal = f"| `head_counted_causal` | {count['flops']:.4g} | {count['dense_flops']:.4g} | {count['reduction']:.2f} |"
    assert causal in card and all(digest in card for digest in run.environment()["shards"].values())
    assert "| corpus.txt |" in card and str(run.config()["data"]["files"][0]) not in card  # no folder of a machine
    assert ("## Masks" in card) == (method == "mst")
    if method == "mst":
        (overall,) = re.findall(r"^\| all masked matrices \|.* ([\d.]+) \|$", card, flags=re.MULTILINE)
        assert overall == f"{flops['final_sparsity']:.4f}"


def test_a_snapshots_card_is_of_its_step(with_snapshot):
    run = with_snapshot["mst"]
    card, row = text_of(run.path / "at" / "step-000010"), run.metrics()[9]
    own, dense = row["full_validation_loss_own"], row["full_validation_loss_dense"]
    assert row["step"] == 10 and f"Validation loss {dense:.4f} nats per token after {row['tokens']:,}" in card
    assert f"under its own attention (sparse) {own:.4f} nats" in card
    assert "this is the model after step 10" in card and "dense training" not in card
    (overall,) = re.findall(r"^\| all masked matrices \|.* ([\d.]+) \|$", card, flags=re.MULTILINE)
    assert overall == f"{row['sparsity']:.4f}"


def test_what_it_shows_in_python_runs_and_finds_a_masked_weight_that_is_not_zero(run, monkeypatch, capsys):
    use, check = snippets(run.checkpoint)
    monkeypatch.chdir(run.checkpoint)
    exec(use, {})
    assert capsys.readouterr().out.startswith("The model")
    exec(check, {})
    weights, masks = load_file("model.safetensors"), load_file("masks.safetensors")
    name, mask = next(iter(masks.items()))
    weights[name][tuple(np.argwhere(~mask)[0])] = 1e-30
    save_file(weights, "model.safetensors")
    with pytest.raises(AssertionError):
        exec(check, {})


def test_scores_come_in_without_another_file_being_touched(run, tiny):
    others = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file() and file.name != "README.md"}
    assert "Not scored yet" in text_of(run.checkpoint)
    score(run, acc=0.25, perplexity=12.345678)
    write_cards(run)
    card, (told,) = text_of(run.checkpoint), front_matter(run.checkpoint)["model-index"]
    assert "| a_task | dense | acc | 0.25 |" in card and "| a_task | dense | perplexity | 12.35 |" in card
    assert [metric["value"] for metric in told["results"][0]["metrics"]] == [0.25, 12.345678]
    assert "stderr" not in card and "Not scored yet" in text_of(run.path / "at" / "step-000010")
    assert {file: file.read_bytes() for file in others} == others
    run.verify()
    assert run.is_trained(tiny("mst", "eval.at=[0.5]"))


def test_the_card_is_under_no_seal_and_the_masks_are(run, tiny):
    sealed = run.status()["sha256"]
    assert "checkpoint/masks.safetensors" in sealed and "checkpoint/README.md" not in sealed
    (run.checkpoint / "README.md").unlink()
    assert run.is_trained(tiny("mst", "eval.at=[0.5]"))
    file = run.checkpoint / "masks.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\2")
    with pytest.raises(DamagedError, match="masks.safetensors is damaged"):
        run.verify()


def test_a_checkpoint_from_before_there_were_cards_stays_valid_and_gets_one(run, tiny):
    for name in ("README.md", "masks.safetensors"):
        (run.checkpoint / name).unlink()
    status = json.loads((run.path / "status.json").read_text())
    del status["sha256"]["checkpoint/masks.safetensors"], status["seal"]
    write_sealed(run.path / "status.json", status)
    assert run.is_trained(tiny("mst", "eval.at=[0.5]"))
    write_cards(run)
    assert "| attn.c_attn, Q |" in text_of(run.checkpoint) and len(snippets(run.checkpoint)) == 1
    run.verify()


@pytest.mark.slow
def test_evaluate_adds_its_scores_and_not_those_that_go_elsewhere(run, data_dir, tiny, tmp_path, capsys):
    write_evaluation_sets(tiny("mst").data, data_dir)
    command = ["evaluate", str(run.checkpoint), "--tasks", "embedded_prose", "--data-dir", str(data_dir)]
    assert main([*command, "--out", str(tmp_path / "elsewhere")]) == 0
    assert "Not scored yet" in text_of(run.checkpoint)
    assert main(command) == 0
    value = run.evals()["embedded_prose"]["results"]["embedded_prose"]["bits_per_byte,none"]
    assert f"| embedded_prose | dense | bits_per_byte | {value:.4g} |" in text_of(run.checkpoint)
