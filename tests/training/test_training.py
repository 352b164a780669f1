"""Real training runs of a 2-layer model: the invariants that every method keeps."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_runs import METHODS, outcome, run_steps, set_up

from replication.data import prepare
from replication.flops.plan import plan
from replication.model.gpt2 import select_masked_shapes
from replication.runs.folder import RunFolder
from replication.system.errors import NonFiniteError, UserError
from replication.training import steps, trainer

EVERY_KERNEL = ("mst", "model.n_embd=64", "train.precision=bf16")  # heads of 32, which attention's kernels take
RUNS = {method: (method,) for method in METHODS} | {"mst by every kernel": EVERY_KERNEL}


@pytest.fixture(scope="module")
def finished(tiny, data_dir, tmp_path_factory):
    """Name in `RUNS` -> its finished run, trained once."""
    runs = {}

    def get(name):
        if name not in runs:
            runs[name] = trainer.train(
                tiny(*RUNS[name]), tmp_path_factory.mktemp("runs") / name, data_dir, progress=False
            )
        return runs[name]

    return get


@pytest.mark.parametrize("method", METHODS)
def test_masks_are_exact_and_what_they_mask_is_zero_after_every_step(method, tiny, data_dir, tmp_path):
    config = tiny(method, "train.weight_decay=0.5")
    state = set_up(config, data_dir, tmp_path)
    algorithm, shapes = state.algorithm, select_masked_shapes(config)
    assert set(algorithm.masks) == (set() if method == "dense" else set(shapes))
    expected = algorithm.distribution(shapes, algorithm.schedules.sparsity.sparsity(0))
    for step, _ in enumerate(run_steps(state, config.train.steps)):
        if algorithm.is_update(step):
            expected = algorithm.distribution(shapes, algorithm.schedules.sparsity.sparsity(step))
        for name, mask in algorithm.masks.items():
            param = algorithm.parameters[name]
            assert int(mask.sum()) == expected[name] == algorithm.nnz[name]
            assert not param[~mask].any()
            for key, moment in state.optimizer.state[param].items():
                assert key == "step" or not moment[~mask].any()


@pytest.mark.parametrize("method", METHODS)
def test_biases_are_there_and_stay_zero(method, finished):
    weights = load_file(finished(method).checkpoint / "model.safetensors")
    biases = [tensor for name, tensor in weights.items() if name.endswith(".bias")]
    assert len(biases) == 2 * 6 + 1 and not any(bias.any() for bias in biases)


@pytest.mark.parametrize("name", RUNS)
def test_repeat_is_bit_identical(name, finished, tiny, data_dir, tmp_path):
    again = trainer.train(tiny(*RUNS[name]), tmp_path / "again", data_dir, progress=False)
    assert outcome(again) == outcome(finished(name))


@pytest.mark.parametrize(("name", "interrupted_at"), [*((name, 11) for name in RUNS), ("mst", 3), ("mst", 19)])
def test_interrupted_and_resumed_is_bit_identical(
    name, interrupted_at, finished, tiny, data_dir, tmp_path, monkeypatch
):
    step = trainer.train_step

    def interrupt(state, forward):
        if state.step == interrupted_at:
            raise KeyboardInterrupt
        return step(state, forward)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "train_step", interrupt)
        trainer.train(tiny(*RUNS[name]), tmp_path / "run", data_dir, progress=False)
    with pytest.raises(UserError, match="--resume"):
        trainer.train(tiny(*RUNS[name]), tmp_path / "run", data_dir, progress=False)
    run = trainer.train(tiny(*RUNS[name]), tmp_path / "run", data_dir, resume=True, progress=False)
    assert outcome(run) == outcome(finished(name))


def test_methods_with_a_seed_see_the_same_batches_and_seeds_differ(tiny, data_dir, tmp_path):
    batches = {
        method: set_up(tiny(method), data_dir, tmp_path).train_batches.train_batch(7).tolist() for method in METHODS
    }
    assert all(batch == batches["dense"] for batch in batches.values())
    other = set_up(tiny("dense", seed=1), data_dir, tmp_path).train_batches.train_batch(7)
    assert other.tolist() != batches["dense"]


def test_evaluation_cadence_does_not_change_training(finished, tiny, data_dir, tmp_path):
    run = trainer.train(
        tiny("mst", "train.eval_freq=3", "train.eval_batches=1"), tmp_path / "run", data_dir, progress=False
    )
    assert [row["loss"] for row in run.metrics()] == [row["loss"] for row in finished("mst").metrics()]


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_is_what_the_run_was_charged(method, finished, tiny):
    assert json.loads(json.dumps(plan(tiny(method)))) == finished(method).flops()


def test_mst_goes_through_its_phases_and_ends_dense_in_attention(finished):
    rows = finished("mst").metrics()
    phases = list(dict.fromkeys(row["phase"] for row in rows))
    assert phases == ["warm-up", "ultra-sparsification", "restoration"]
    assert {row["attention_pattern"] for row in rows if row["phase"] == "ultra-sparsification"} == {"sparse"}
    assert {row["attention_pattern"] for row in rows if row["phase"] != "ultra-sparsification"} == {"dense"}
    assert rows[0]["sparsity"] == 0
    # the last update, at step 36, is half the way from 32 to 40
    assert rows[-1]["sparsity"] == pytest.approx((0.979 + 0.8) / 2, abs=1e-4)


def test_the_topology_update_replaces_the_weight_update_or_joins_it(tiny, data_dir, tmp_path):
    for replaces in (True, False):
        state = set_up(
            tiny("rigl", f"sparsity.update_replaces_step={replaces}", "sparsity.drop_fraction=0"), data_dir, tmp_path
        )
        list(run_steps(state, 3))
        before = {name: param.detach().clone() for name, param in state.model.named_parameters()}
        list(run_steps(state, 1))  # step 3 is an update
        same = all(torch.equal(before[name], param) for name, param in state.model.named_parameters())
        assert same is replaces


def test_micro_batches_give_the_gradient_of_the_whole_batch(tiny, data_dir, tmp_path):
    gradients = []
    for micro in ("null", "2"):
        state = set_up(tiny("rigl", f"train.micro_batch_size={micro}"), data_dir, tmp_path)
        steps.accumulate_gradient(state, state.model.transformer)
        gradients.append({name: param.grad for name, param in state.model.named_parameters() if param.grad is not None})
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-4, atol=1e-7)


def test_a_diverged_run_fails_and_keeps_its_last_good_state(tiny, data_dir, tmp_path, monkeypatch):
    loss = steps.loss_of
    monkeypatch.setattr(
        steps,
        "loss_of",
        lambda state, forward, batch: loss(state, forward, batch) * (float("nan") if state.step == 12 else 1),
    )
    with pytest.raises(NonFiniteError, match="step 12"):
        trainer.train(tiny("rigl"), tmp_path / "run", data_dir, progress=False)
    run = RunFolder(tmp_path / "run")
    assert run.status()["status"] == "failed" and "step 12" in run.status()["reason"]
    assert [folder.name for folder in run.resume.iterdir()] == ["step-00000008"]
    monkeypatch.setattr(steps, "loss_of", loss)
    trainer.train(tiny("rigl"), tmp_path / "run", data_dir, resume=True, progress=False)
    assert run.status()["status"] == "finished" and [row["step"] for row in run.metrics()] == list(range(1, 21))


def test_a_validation_loss_that_is_no_number_fails_the_run(tiny, data_dir, tmp_path):
    """As after a last step that took the weights beyond all bounds."""
    config = tiny("dense", "train.learning_rate=1e30", "train.num_steps=1", "train.warmup_steps=0")
    with pytest.raises(NonFiniteError, match="not finite at step 1"):
        trainer.train(config, tmp_path / "run", data_dir, progress=False)
    assert RunFolder(tmp_path / "run").status()["status"] == "failed"


def test_another_configuration_in_the_folder_is_named_and_left_alone(finished, tiny, data_dir):
    run = finished("set")
    before = outcome(run)
    with pytest.raises(UserError, match="train.learning_rate, train.weight_decay differ"):
        trainer.train(tiny("set", "train.learning_rate=1e-3", "train.weight_decay=0"), run.path, data_dir, resume=True)
    assert outcome(run) == before


def test_a_run_from_before_a_key_existed_is_still_that_run(finished, tiny, tmp_path):
    run = RunFolder(shutil.copytree(finished("set").path, tmp_path / "run"))
    config = run.config()
    del config["sparsity"]["reset_moments"]
    run.write_config(config)
    run.write_status("finished")
    assert run.is_trained(tiny("set"))
    with pytest.raises(UserError, match="sparsity.reset_moments differ"):
        run.is_trained(tiny("set", "sparsity.reset_moments=false"))


def test_a_folder_with_something_else_is_left_alone(tiny, data_dir, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    for out in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UserError, match="holds no run"):
            trainer.train(tiny("set"), out, data_dir)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "files",
    [{"config.yaml": "name: mine"}, {"status.json": '{"status": "ok"}'}, {"status.json": "[]", "config.yaml": ""}],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_another_project_with_files_of_the_same_name_is_left_alone(files, resume, tiny, data_dir, tmp_path):
    files = files | {"eval/gold.json": "precious"}
    (tmp_path / "eval").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match="status.json is damaged"):
        trainer.train(tiny("set"), tmp_path, data_dir, resume=resume)
    assert {
        str(file.relative_to(tmp_path)): file.read_text() for file in tmp_path.rglob("*") if file.is_file()
    } == files


def test_checkpoints_are_plain_hugging_face_models(finished, tiny, data_dir, tmp_path):
    """Loaded with no code of ours, each has the validation loss that its run logged."""
    config, runs = tiny("dense"), [finished(method) for method in METHODS]
    data = prepare(config.data, data_dir)
    batches = trainer.Batches(
        data.tokens("validation"), "validation", 0, config.train.batch_size, config.model.n_positions
    )
    np.save(tmp_path / "windows.npy", np.concatenate(list(batches.evaluation_batches())))
    program = """
import sys, numpy, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
windows = torch.from_numpy(numpy.load("windows.npy"))
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|endoftext|>"
    with torch.no_grad():
        every = [model(window[None, :-1]).logits[0] for window in windows]
    losses = [torch.nn.functional.cross_entropy(each, window[1:]).item() for each, window in zip(every, windows)]
    print(sum(losses) / len(losses))
assert not any(name.startswith(("replication", "baselines")) for name in sys.modules)
"""
    command = [sys.executable, "-c", program, *(str(run.checkpoint) for run in runs)]
    losses = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split()
    assert list(map(float, losses)) == pytest.approx([run.metrics()[-1]["validation_loss"] for run in runs], rel=1e-5)
