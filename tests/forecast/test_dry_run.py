"""What a run needs, from counts made by hand to the shapes of every GPT-2."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from replication.cli import main
from replication.config.profiles import load_config
from replication.forecast.dry_run import dry_run
from replication.model.gpt2 import build_model


def test_parameters_memory_and_disk_by_hand():
    needs = dry_run(load_config("smoke", "set"), devices=2, tflops=0.001, utilisation=0.5)
    matrices, norms, biases = 512 * 32 + 2 * 12 * 32**2, 5 * 32, 5 * 32 + 2 * (96 + 32 + 128 + 32)
    trained = matrices + 64 * 32 + norms
    assert needs["parameters"] == {
        "stored (with the biases, fixed at zero)": trained + biases,
        "trained": trained,
        "maskable": matrices,
        "active at the end": trained - matrices + round(0.2 * matrices),
    }
    memory = needs["memory_bytes"]
    assert memory["weights"] == needs["checkpoint_bytes"] == 4 * (trained + biases)
    assert (memory["gradients"], memory["moments"], memory["masks"]) == (4 * trained, 8 * trained, 3 * matrices)
    assert memory["gradient of the logits"] == 2 * 64 * 512 * 4  # 2 of the 4 sequences, float32
    assert memory["sum"] == sum(size for use, size in memory.items() if use != "sum")
    assert needs["resume_bytes"] == 4 * (trained + biases) + 8 * trained + 3 * matrices
    assert needs["tokens"] == 240 * 4 * 64
    assert needs["hours"]["masked"] == pytest.approx(
        needs["conventions"]["head_counted_full"]["dense_flops"] / (2 * 1e9 * 0.5) / 3600
    )


def test_activations_are_what_a_real_step_keeps():
    config = load_config("smoke", "dense")
    model, kept = build_model(config, 0), {}
    weights = {param.untyped_storage().data_ptr() for param in model.parameters()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens = torch.zeros(4, 65, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
    real = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
    assert dry_run(config, devices=1)["memory_bytes"]["activations"] == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize(
    ("layers", "heads", "width", "millions"),
    [(12, 12, 768, 124), (24, 16, 1024, 355), (36, 20, 1280, 774), (48, 25, 1600, 1558)],
)
@pytest.mark.parametrize("arm", ["dense", "mst"])
def test_every_gpt2_is_accepted(layers, heads, width, millions, arm):
    shape = [
        f"model.n_layer={layers}",
        f"model.n_head={heads}",
        f"model.n_embd={width}",
        "train.num_steps=600",
        "train.warmup_steps=20",
    ]
    needs = dry_run(load_config("paper", arm, overrides=shape))
    assert needs["parameters"]["trained"] / 1e6 == pytest.approx(millions, rel=0.005)


def test_the_command_prints_all_of_it_and_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--profile", "paper", "--method", "static", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    for what in (
        "124,475,904",
        "294,912,000,000",
        "head_excluded_causal",
        "activations",
        "checkpoint 0.46 GiB",
        "4 device(s) of 312 TFLOP/s at 40%",
    ):
        assert what in printed
    assert not list(tmp_path.iterdir())


def told_of_clusters(start):
    """Rows of docs/cluster.md, as their numbers."""
    text = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text(encoding="utf-8")
    rows = re.findall(rf"^\| {start}.*\|$", text, flags=re.MULTILINE)
    return [
        [float(number) for number in re.findall(r"\d+(?:\.\d+)?", re.sub("[AH]100|GPT-2", "", row))] for row in rows
    ]


@pytest.mark.slow
def test_hours_of_clusters_are_as_told():
    rows = told_of_clusters(r"\d × ")
    assert len(rows) == 4
    for devices, tflops, memory, utilisation, *hours in rows:
        needs = dry_run(load_config("paper", "mst"), int(devices), tflops, utilisation / 100)
        assert round(needs["memory_bytes"]["sum"] / 2**30, 2) == memory
        assert [round(needs["hours"][kind], 1) for kind in ("masked", "counted")] == hours


@pytest.mark.slow
def test_memory_of_every_gpt2_is_as_told():
    rows = told_of_clusters("GPT-2")
    assert len(rows) == 4
    for layers, heads, width, *memory in rows:
        shape = [f"model.n_layer={layers:.0f}", f"model.n_head={heads:.0f}", f"model.n_embd={width:.0f}"]
        for size, told in zip((12, 4, 1), memory):
            needs = dry_run(load_config("paper", "mst", 0, [*shape, f"train.micro_batch_size={size}"]), devices=8)
            assert round(needs["memory_bytes"]["sum"] / 2**30, 2) == told


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--utilisation", "2"], "--utilisation is 2.0; allowed: above 0, at most 1"),
        (["--tflops", "0"], "--tflops is 0.0; allowed: above 0"),
        (["--devices", "7"], "train.batch_size is 480; allowed: a multiple of the 7 devices"),
        (["--out", "run"], "not allowed with argument"),
    ],
)
def test_bad_input_is_one_line(options, line, capsys):
    with pytest.raises(SystemExit) if "--out" in options else pytest.MonkeyPatch.context():
        assert main(["train", "--profile", "paper", "--method", "dense", "--dry-run", *options]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
