"""GELU by the kernels against torch's in double precision."""

import platform

import pytest
import torch
import torch.nn.functional as F

from replication.kernels import library
from replication.kernels.activation import GELU

pytestmark = pytest.mark.skipif(library.library() is None, reason="the kernels were not built")


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("dtype, absolute", [(torch.float32, 1e-6), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("shape", [(1,), (7, 13), (3, 5, 64)])
def test_values_and_gradient(kind, dtype, absolute, shape, monkeypatch):
    if kind > library.processor_kind():
        pytest.skip("not on this processor")
    monkeypatch.setattr(library, "processor_kind", lambda: kind)
    monkeypatch.setattr(library, "gains", lambda: True)
    torch.manual_seed(0)
    x, d = (4 * torch.randn(shape)).to(dtype).requires_grad_(), torch.randn(shape).to(dtype)
    exact = x.detach().double().requires_grad_()
    y, wanted = GELU()(x), F.gelu(exact, approximate="tanh")
    (gradient,), (exact_gradient,) = torch.autograd.grad(y, x, d), torch.autograd.grad(wanted, exact, d.double())
    for a, b in ((y, wanted), (gradient, exact_gradient)):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=0 if dtype == torch.float32 else 8e-3, atol=absolute)


def test_by_hand():
    x = torch.tensor([0.0, 1.0, -1.0, 300.0, -300.0], requires_grad=True)
    y = GELU()(x)
    assert y.tolist() == pytest.approx([0, 0.841192, -0.158808, 300, 0], abs=1e-6)
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == pytest.approx([0.5, 1.082964, -0.082964, 1, 0], abs=1e-6)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="only there the kernels do")
def test_what_is_too_small_for_a_normal_float_is_0_in_the_kernels_alone():
    x = torch.tensor([1e-40, 1.0, -14.0])  # gelu(-14) is about -1e-42
    d = torch.tensor([1.0, 1e-40, 1.0])
    assert library.gelu(x).tolist() == pytest.approx([0, 0.841192, 0], abs=1e-6)
    assert library.gelu(x).count_nonzero() == 1 and library.gelu(x, d).tolist()[1:] == [0, 0]
    assert (x[:1] * 0.5).item() > 0


def test_of_a_transposed_input():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).T
    torch.testing.assert_close(GELU()(x), F.gelu(x, approximate="tanh"))
