"""Sparse execution in training: its gradients, and runs that agree with masked execution to rounding."""

import json

import pytest
import torch
import torch.nn.functional as F

from replication.config.profiles import load_config, profile_names
from replication.kernels import engine, library
from replication.kernels.linear import Execution, linear_cross_entropy, sparse_linear
from replication.model.gpt2 import HEAD, build_model, select_masked_shapes
from replication.system.errors import UserError
from replication.training.trainer import train

needs_kernels = pytest.mark.skipif(library.library() is None, reason="the kernels were not built: no C compiler")


class Reference:
    """The interface of SparseWeight by torch, in any precision; what stands for tiles is the tensor itself."""

    def __init__(self, mask, weight, out_first=False):
        self.mask, self.out_first, self.weight = mask, out_first, (weight * mask).detach()

    def forward(self, x, dtype):
        return x @ (self.weight.T if self.out_first else self.weight), x

    def backward(self, d, dtype):
        return d @ (self.weight if self.out_first else self.weight.T), d

    def gradient(self, x, d, n):
        return d.T @ x if self.out_first else x.T @ d

    def scatter(self, gradient):
        return gradient * self.mask


def execution(sparse, dense_gradient=False):
    made = Execution()
    made.sparse, made.dense_gradient = sparse, dense_gradient
    return made


def leaf(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dense_gradient", [False, True])
def test_gradcheck_of_the_layer(dense_gradient):
    torch.manual_seed(0)
    mask = torch.ones(5, 4, dtype=torch.bool) if dense_gradient else torch.rand(5, 4) < 0.5

    def layer(x, weight):
        return sparse_linear(x, weight, execution(Reference(mask, weight), dense_gradient))

    assert torch.autograd.gradcheck(layer, (leaf(2, 3, 5), leaf(5, 4)))


@pytest.mark.parametrize("sparse", [False, True])
def test_gradcheck_of_the_loss(sparse):
    torch.manual_seed(0)
    mask, targets = torch.rand(7, 5) < 0.5, torch.randint(7, (2, 3))

    def loss(hidden, weight):
        return (
            linear_cross_entropy(hidden, weight, targets, execution(Reference(mask, weight, True) if sparse else None))
            * 3
        )

    assert torch.autograd.gradcheck(loss, (leaf(2, 3, 5), leaf(7, 5)))


@pytest.mark.parametrize("autocast", [False, True])
def test_loss_is_that_of_torch_over_all_parts_of_the_batch(autocast):
    torch.manual_seed(0)
    hidden, weight, targets = (
        leaf(1100, 8, dtype=torch.float32),
        leaf(300, 8, dtype=torch.float32),
        torch.randint(300, (1100,)),
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = linear_cross_entropy(hidden, weight, targets, Execution())
        theirs = F.cross_entropy((hidden @ weight.T).float(), targets)
    found, wanted = torch.autograd.grad(ours, (hidden, weight)), torch.autograd.grad(theirs, (hidden, weight))
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=2e-2 if autocast else 1e-4, atol=1e-5 if autocast else 1e-7)


def test_loss_of_a_token_with_vanishing_probability_is_finite():
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[500.0], [-500.0]])
    assert linear_cross_entropy(hidden, weight, torch.tensor([1]), Execution()).item() == 1000


@needs_kernels
@pytest.mark.parametrize("dense_gradient", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("profile", profile_names())
def test_layer_and_head_agree_with_masked_execution_for_every_shape(profile, bf16, dense_gradient):
    torch.manual_seed(0)
    for (rows, cols), name in {
        shape: name for name, shape in select_masked_shapes(load_config(profile, "mst")).items()
    }.items():
        if rows * cols > 1e7:
            continue  # the kernels' own tests have the paper's head
        mask, found = torch.rand(rows, cols) < 0.1, []
        weight = (torch.randn(rows, cols) * 0.1 * mask).requires_grad_()
        x, targets = leaf(2, 9, cols if name == HEAD else rows, dtype=torch.float32), torch.randint(rows, (2, 9))
        for sparse in (library.SparseWeight(mask, name == HEAD, bf16), None):
            if sparse:
                sparse.pack(weight.detach())
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                if name == HEAD:
                    y = linear_cross_entropy(x, weight, targets, execution(sparse, dense_gradient))
                else:
                    y = sparse_linear(x, weight, execution(sparse, dense_gradient)) if sparse else x @ weight
            found.append((y.detach(), *torch.autograd.grad(y.float().square().sum(), (x, weight))))
        (y, dx, dw), (y_, dx_, dw_) = found
        if not dense_gradient:
            assert (dw[~mask] == 0).all()
            dw_ = dw_ * mask
        for a, b in ((y, y_), (dx, dx_), (dw, dw_)):
            assert (a.float() - b.float()).norm() <= (2e-2 if bf16 else 1e-5) * b.float().norm()


@needs_kernels
@pytest.mark.parametrize("method", ["static", "rigl", "mst"])
@pytest.mark.parametrize(
    "options",
    [
        [],
        pytest.param(["sparsity.clip_norm=dense"], marks=pytest.mark.slow),
        pytest.param(["sparsity.growth_gradient=magnitudes", "train.micro_batch_size=4"], marks=pytest.mark.slow),
        ["model.n_embd=64"],
        ["model.n_embd=64", "train.precision=bf16"],
    ],
    ids=["default", "clip-dense", "magnitudes", "attention-kernels", "bf16"],
)
def test_runs_agree(method, options, tiny, data_dir, tmp_path):
    rows = {}
    for kernels in ("masked", "sparse"):
        config = tiny(method, "train.num_steps=12", "train.warmup_steps=2", f"train.kernels={kernels}", *options)
        run = train(config, tmp_path / kernels, data_dir, progress=False)
        rows[kernels] = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        assert json.loads((run.path / "environment.json").read_text())["kernels"] == kernels
    is_bf16 = "train.precision=bf16" in options
    for masked, sparse in zip(rows["masked"], rows["sparse"], strict=True):
        assert sparse["loss"] == pytest.approx(masked["loss"], rel=2e-3 if is_bf16 else 1e-5)
        assert sparse["grad_norm"] == pytest.approx(masked["grad_norm"], rel=5e-2 if is_bf16 else 1e-3)
        assert sparse["flops"] == masked["flops"]
    assert sparse["validation_loss"] == pytest.approx(masked["validation_loss"], rel=2e-3 if is_bf16 else 1e-5)


def test_without_kernels_masked_execution_serves_and_says_so(monkeypatch):
    monkeypatch.setattr(engine, "library", lambda: None)
    model = build_model(load_config("smoke", "mst"), 0)
    with pytest.warns(UserWarning, match="no sparse kernels: they were not built"):
        assert engine.available("auto", model.device) == "masked"
    assert engine.available("masked", model.device) == "masked"
    with pytest.raises(UserError, match="train.kernels is sparse, but they were not built"):
        engine.available("sparse", model.device)
    with pytest.raises(UserError, match="not on a CPU"):
        engine.available("sparse", torch.device("meta"))
