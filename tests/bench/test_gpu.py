"""On a GPU: the masks and losses of the CPU, runs that repeat and resume bit for bit, NCCL, scores, and the kernels."""

import os
import subprocess
import sys

import pytest
import torch
from command_lines import train_command
from training_runs import outcome, resume, set_up, train_to

from replication.config.fields import AttentionConfig
from replication.model.attention import set_attention_pattern
from replication.runs.folder import RunFolder
from replication.sparsity.grid import from_blocks
from replication.training import steps, trainer, world

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
METHODS = ("dense", "static", "set", "rigl", "mst")
SPARSE = METHODS[1:]


@pytest.fixture
def on_cpu(monkeypatch):
    """on_cpu(f, ...) -> f(...), as on a machine without a GPU."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(world, "device", lambda: torch.device("cpu"))
            return function(*arguments)

    return call


@pytest.fixture
def finished(data_dir, tmp_path):
    """finished(config, name) -> its finished run."""
    return lambda config, name="run": trainer.train(config, tmp_path / name, data_dir, progress=False)


def losses(state, num):
    return [trainer.train_step(state, state.model.transformer)["loss"] for _ in range(num)]


def same_masks(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours)


@pytest.mark.parametrize("settings", [(), ("sparsity.initial_mask=magnitude",), ("sparsity.block_shape=[2,2]",)])
@pytest.mark.parametrize("method", SPARSE)
def test_first_masks_are_the_cpus(method, settings, tiny, data_dir, tmp_path, on_cpu):
    config = tiny(method, *settings)
    there, here = set_up(config, data_dir, tmp_path), on_cpu(set_up, config, data_dir, tmp_path)
    assert there.world.device.type == "cuda" and here.world.device.type == "cpu"
    assert all(mask.is_cuda for mask in there.algorithm.masks.values())
    assert same_masks(there.algorithm.masks, here.algorithm.masks)


@pytest.mark.parametrize("method", SPARSE)
def test_of_the_same_weights_and_gradients_an_update_makes_the_cpus_masks(method, tiny, data_dir, tmp_path, on_cpu):
    config = tiny(method)
    there, here = set_up(config, data_dir, tmp_path), on_cpu(set_up, config, data_dir, tmp_path)
    for _ in range(3):
        for (name, ours), theirs in zip(here.model.named_parameters(), there.model.parameters()):
            if name in here.algorithm.parameters:
                ours.grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(len(name)))
                theirs.grad = ours.grad.cuda()
        first, second = (state.algorithm.update(3, state.optimizer) for state in (there, here))
        assert first == second  # every metric of the topology too
        assert same_masks(there.algorithm.masks, here.algorithm.masks)


@pytest.mark.parametrize("method", METHODS)
def test_losses_are_the_cpus_up_to_rounding(method, tiny, data_dir, tmp_path, on_cpu):
    """20 steps and six updates in float32: within a thousandth; nearly all connections are the same."""
    config = tiny(method)
    there, here = set_up(config, data_dir, tmp_path), on_cpu(set_up, config, data_dir, tmp_path)
    assert losses(there, 20) == pytest.approx(on_cpu(losses, here, 20), rel=1e-3)
    assert there.algorithm.nnz == here.algorithm.nnz
    for name, mask in there.algorithm.masks.items():
        assert (mask.cpu() == here.algorithm.masks[name]).float().mean() > 0.99
        assert not there.algorithm.parameters[name][~mask].any()


@pytest.mark.parametrize("method", ["dense", "mst"])
def test_losses_in_bf16_are_those_in_float32_up_to_its_rounding(method, tiny, data_dir, tmp_path):
    curves = [
        losses(set_up(tiny(method, f"train.precision={precision}"), data_dir, tmp_path), 12)
        for precision in ("auto", "fp32")
    ]
    assert curves[0] != curves[1] and curves[0] == pytest.approx(curves[1], rel=2e-2)


def test_compiled_training_is_uncompiled_training_up_to_rounding(tiny, data_dir, tmp_path):
    state, other = (set_up(tiny("mst", "train.precision=bf16"), data_dir, tmp_path) for _ in range(2))
    forward = torch.compile(state.model.transformer)
    compiled = [trainer.train_step(state, forward)["loss"] for _ in range(8)]
    assert compiled == pytest.approx(losses(other, 8), rel=2e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", ["dense", "rigl", "mst"])
def test_a_run_that_was_killed_goes_on_bit_for_bit(method, precision, tiny, data_dir, tmp_path, finished):
    config = tiny(method, "train.checkpoint_freq=5", f"train.precision={precision}", "model.n_embd=64")
    killed = train_to(18, config, tmp_path / "killed", data_dir)
    assert killed.status()["step"] == 15
    assert outcome(resume(config, killed, data_dir)) == outcome(finished(config))


def test_the_run_folder_says_which_gpu_and_what_it_used(tiny, finished):
    pytest.importorskip("pynvml")
    run = finished(tiny("mst"))
    used, last = run.path / "resources.json", run.metrics()[-1]["resources"]
    assert run.environment()["device"] == torch.cuda.get_device_name()
    assert last["energy"] == "NVML" and last["joules"] > 0 and last["gpu_bytes"] > 0
    assert 0 <= last["gpu_utilisation"] <= 1 and last["seconds"]["backward"] > 0
    assert '"NVML"' in used.read_text() and run.metrics()[-1]["memory_bytes"] > 0


def test_as_many_processes_as_gpus_train_the_same_run_by_nccl(overrides, tiny, data_dir, tmp_path, finished):
    settings = [part for override in overrides for part in ("--set", override)]
    launch = ["-m", "torch.distributed.run", f"--nproc-per-node={torch.cuda.device_count()}", "--master-port=0"]
    launch += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command = [sys.executable, *launch, "-m", "replication", *train_command("mst", tmp_path / "many", data_dir)]
    environment = os.environ | {"NCCL_DEBUG": "VERSION"}
    done = subprocess.run([*command, *settings], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "NCCL version" in done.stdout + done.stderr
    ours, theirs = finished(tiny("mst")), RunFolder(tmp_path / "many")
    expected = [row["loss"] for row in ours.metrics()]
    assert [row["loss"] for row in theirs.metrics()] == pytest.approx(expected, rel=1e-3)
    assert theirs.flops() == ours.flops()


def test_scores_are_the_cpus(tiny, data_dir, tmp_path, finished, monkeypatch):
    zero_shot = pytest.importorskip("replication.eval.zero_shot")
    (tmp_path / "eval").mkdir()
    text = '{"text": "the sparse mask grows and the dense weight drops slowly again"}\n'
    for task in ("embedded_lastword", "embedded_prose"):
        (tmp_path / "eval" / f"{task}.jsonl").write_text(text * 3)
    monkeypatch.setenv("REPLICATION_DATA", str(tmp_path))
    run = finished(tiny("mst"))
    scores = [
        zero_shot.score(run.checkpoint, ["embedded_lastword", "embedded_prose"], device=device, pattern=pattern)
        for pattern in ("dense", "sparse")
        for device in ("cuda", "cpu")
    ]
    for there, here in (scores[:2], scores[2:]):
        assert there["embedded_lastword"]["acc,none"] == here["embedded_lastword"]["acc,none"]
        assert all(there[task] == pytest.approx(here[task], rel=1e-3) for task in here)


@pytest.mark.parametrize("pattern", ["dense", "local", "strided", "sparse", "fixed"])
def test_attention_under_a_pattern_is_the_cpus(pattern, tiny, data_dir, tmp_path, on_cpu):
    config = tiny("dense", "model.n_embd=64")
    states = [set_up(config, data_dir, tmp_path), on_cpu(set_up, config, data_dir, tmp_path)]
    batch = torch.from_numpy(states[0].train_batches.train_batch(0))
    found = []
    for state in states:
        set_attention_pattern(state.model, pattern, config.attention)
        steps.loss_of(state, state.model.transformer, batch).backward()
        found.append([param.grad.cpu() for param in state.trained])
    for there, here in zip(*found):
        assert (there - here).norm() <= 1e-3 * here.norm()


@pytest.mark.parametrize("pattern", ["local", "sparse"])
def test_flex_attention_is_masked_attention(pattern):
    flex = pytest.importorskip("replication.bench.flex")
    from torch.nn.attention.flex_attention import flex_attention

    from replication.model.patterns import pattern_mask

    spans, generator = AttentionConfig().spans(512), torch.Generator("cuda").manual_seed(0)
    qkv = [torch.randn(2, 2, 512, 64, device="cuda", generator=generator, requires_grad=True) for _ in range(3)]
    blocks = flex.block_mask(pattern, 512, *spans, device=qkv[0].device)
    kept = torch.from_numpy(pattern_mask(pattern, 512, *spans)).cuda()
    ours = torch.compile(flex_attention, dynamic=False)(*qkv, block_mask=blocks)
    theirs = torch.nn.functional.scaled_dot_product_attention(*qkv, attn_mask=kept)
    assert (ours - theirs).norm() < 3e-3 * theirs.norm()  # products in tf32


@pytest.mark.parametrize("block", [32, 64])
@pytest.mark.parametrize("tokens", [77, 1000])
def test_block_sparse_products_are_the_masked_ones(block, tokens):
    kernels = pytest.importorskip("replication.bench.triton_blocks")
    generator = torch.Generator("cuda").manual_seed(block)
    draw = {"device": "cuda", "generator": generator}
    mask = from_blocks(torch.rand(5, 7, **draw) < 0.3, (block, block))
    x, d = (torch.randn(2, tokens, width * block, **draw).bfloat16() for width in (5, 7))
    weight = (torch.randn(5 * block, 7 * block, **draw) * mask).bfloat16()
    found, wanted = [], []
    for into, precision in ((found, torch.bfloat16), (wanted, torch.float64)):
        leaves = [tensor.to(precision, copy=True).requires_grad_() for tensor in (x, weight)]
        y = kernels.block_linear(*leaves, kernels.BlockLayout(mask, block)) if into is found else leaves[0] @ leaves[1]
        y.backward(d.to(precision))
        into += [y.detach(), leaves[0].grad, leaves[1].grad * mask if into is wanted else leaves[1].grad]
    for ours, theirs in zip(found, wanted):
        assert (ours.double() - theirs).norm() < 1e-2 * theirs.norm()
    assert not found[2][~mask].any()
