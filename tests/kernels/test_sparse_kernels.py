"""The C kernels against float64 products: every kind of processor at hand, precision, shape and density."""

import itertools
import shutil

import pytest
import torch
from kernel_cases import expected

from replication.config.profiles import load_config
from replication.kernels import library
from replication.model.gpt2 import HEAD, matrix_shapes

needs_kernels = pytest.mark.skipif(library.library() is None, reason="the kernels were not built")
KINDS = range(library.processor_kind() + 1) if library.library() else []


def products(mask, weight, x, d, out_first=False, **options):
    """(Y, dX, dW) by the kernels."""
    sparse = library.SparseWeight(mask, out_first, **options)
    sparse.pack(weight)
    dtype = torch.bfloat16 if options.get("bf16") else torch.float32
    y, x_tiles = sparse.forward(x, dtype)
    dx, d_tiles = sparse.backward(d, torch.float32)
    return y, dx, sparse.scatter(sparse.gradient(x_tiles, d_tiles, len(x)))


def check(mask, n, bf16, out_first=False, dtype=torch.float32, **options):
    n_out, n_in = mask.shape if out_first else mask.shape[::-1]
    x, d = torch.randn(n, n_in + 3)[:, 1 : n_in + 1].to(dtype), torch.randn(n_out, n).T.to(dtype)  # neither contiguous
    weight = torch.randn(mask.shape) * mask
    found = products(mask, weight, x, d, out_first, bf16=bf16, **options)
    for (value, size), ours, ulp in zip(
        expected(mask, weight, x, d, out_first, bf16), found, (2**-8, 2**-20, 2**-20) if bf16 else (2**-20,) * 3
    ):
        assert ours.dtype == (torch.bfloat16 if ulp == 2**-8 else torch.float32)
        # where nothing is summed: exactly 0
        assert ((ours - value).abs() <= ulp * size).all(), (mask.shape, n, bf16, options)
    assert (found[2][~mask] == 0).all()


def blocks(shape, block_shape, density):
    """A random mask [n_in, n_out] of whole blocks [outputs, inputs]."""
    rows, cols = shape[0] // block_shape[1], shape[1] // block_shape[0]
    return (torch.rand(rows, cols) < density).repeat_interleave(block_shape[1], 0).repeat_interleave(block_shape[0], 1)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_that_are_built_wherever_there_is_a_compiler():
    assert library.library() is not None or not shutil.which("cc")


@needs_kernels
def test_by_hand():
    mask = torch.tensor([[True, False], [False, False], [True, True]])  # [n_in, n_out]
    weight = torch.tensor([[2.0, 0.0], [0.0, 0.0], [3.0, -1.0]])
    y, dx, dw = products(mask, weight, torch.tensor([[1.0, 5.0, 10.0]]), torch.tensor([[1.0, 2.0]]))
    assert y.tolist() == [[32.0, -10.0]]
    assert dx.tolist() == [[2.0, 0.0, 1.0]]
    assert dw.tolist() == [[1.0, 0.0], [0.0, 0.0], [10.0, 20.0]]


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "n, n_in, n_out", [(1, 1, 1), (64, 64, 64), (65, 63, 70), (7, 400, 18), (130, 98, 600), (300, 129, 1030)]
)
def test_shapes_densities_and_blocks(kind, bf16, n, n_in, n_out):
    for density, block_shape, out_first in itertools.product(
        (0, 0.1, 0.5, 1), ((1, 1), (1, 2), (2, 1), (2, 2)), (False, True)
    ):
        if n_out % block_shape[0] == 0 and n_in % block_shape[1] == 0:
            mask = blocks((n_in, n_out), block_shape, density)
            check(mask.T if out_first else mask, n, bf16, out_first, block_shape=block_shape, kind=kind)


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_either_precision_of_activations(kind, dtype):
    for bf16 in (False, True):
        check(blocks((100, 90), (1, 1), 0.2), 70, bf16, dtype=dtype, kind=kind)


@needs_kernels
def test_empty_rows_and_columns():
    mask = blocks((96, 80), (1, 1), 0.3)
    mask[10:60], mask[:, 5:70] = False, False
    check(mask, 100, False)
    check(mask, 100, True)


@needs_kernels
def test_shapes_of_every_profile(profile):
    for shape, name in {shape: name for name, shape in matrix_shapes(load_config(profile, "mst")).items()}.items():
        mask = torch.rand(shape) < 0.1
        check(mask, 20, True, out_first=name == HEAD)
        if mask.numel() < 1e7:  # the paper's head takes seconds
            check(mask, 20, False, out_first=name == HEAD)


@needs_kernels
@pytest.mark.parametrize("bf16", [False, True])
def test_threads_change_nothing(bf16):
    mask, weight, x, d = (
        blocks((200, 1500), (1, 1), 0.2),
        torch.randn(200, 1500),
        torch.randn(500, 200),
        torch.randn(500, 1500),
    )
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(products(mask, weight, x, d, bf16=bf16))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


@needs_kernels
@pytest.mark.parametrize("bf16", [False, True])
def test_not_a_number_and_infinity_pass_through(bf16):
    mask = torch.ones(4, 4, dtype=torch.bool)
    x = torch.tensor([[float("nan"), 0, 0, 0], [float("inf"), 0, 0, 0]])
    y, _, _ = products(mask, torch.ones(4, 4), x, torch.zeros(2, 4), bf16=bf16)
    assert y[0].isnan().all() and y[1].isinf().all()


@needs_kernels
def test_a_mask_of_odd_size_in_blocks_is_refused():
    with pytest.raises(ValueError, match=r"mask of \(3, 4\)"):
        library.SparseWeight(torch.ones(3, 4, dtype=torch.bool), block_shape=(1, 2))


@needs_kernels
def test_what_the_kernels_would_misread_is_refused():
    sparse = library.SparseWeight(torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="weight is torch.bfloat16"):
        sparse.pack(torch.ones(3, 4).bfloat16())
    with pytest.raises(ValueError, match="weight is torch.float32, \\(4, 3\\)"):
        sparse.pack(torch.ones(4, 3))
    with pytest.raises(ValueError, match="activations are torch.float64"):
        sparse.forward(torch.ones(2, 3).double(), torch.float32)
    with pytest.raises(ValueError, match=r"allowed: float32 or bfloat16, \[n, 4\]"):
        sparse.backward(torch.ones(2, 3), torch.float32)
