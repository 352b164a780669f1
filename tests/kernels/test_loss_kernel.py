"""Cross-entropy by the kernels against torch's in double precision."""

import math

import pytest
import torch
import torch.nn.functional as F

from replication.kernels import library
from replication.kernels.library import cross_entropy_

pytestmark = pytest.mark.skipif(library.library() is None, reason="the kernels were not built")


def test_by_hand():
    logits = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])
    losses = cross_entropy_(logits, torch.tensor([1, 0]))
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])
    assert logits.flatten().tolist() == pytest.approx([0.25, -0.25, -0.5, 0.5])


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("dtype, absolute", [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (40, 1000), (5, 50304)])
def test_losses_and_gradient(kind, dtype, absolute, shape):
    if kind > library.processor_kind():
        pytest.skip("not on this processor")
    torch.manual_seed(0)
    logits, targets = (5 * torch.randn(shape)).to(dtype), torch.randint(shape[1], shape[:1])
    exact = logits.double().requires_grad_()
    wanted = F.cross_entropy(exact, targets, reduction="none")
    (gradient,) = torch.autograd.grad(wanted.sum(), exact)
    found = cross_entropy_(logits, targets, kind)
    torch.testing.assert_close(found.double(), wanted.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.double(), gradient, rtol=0, atol=absolute)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("column", [0, 20, 38])
def test_what_is_no_number_shows_in_the_loss_of_its_row(bad, column):
    logits = torch.zeros(2, 39)
    logits[1, column] = bad
    assert cross_entropy_(logits, torch.tensor([3, 3])).isfinite().tolist() == [True, False]


def test_a_logit_of_minus_infinity_has_no_probability():
    logits = torch.tensor([[0.0, -math.inf, 0.0]])
    assert cross_entropy_(logits, torch.tensor([0])).tolist() == pytest.approx([math.log(2)])
    assert logits.flatten().tolist() == pytest.approx([-0.5, 0.0, 0.5])


@pytest.mark.parametrize("target", [-100, 3])
def test_a_target_out_of_the_vocabulary_is_refused(target):
    with pytest.raises(ValueError, match="allowed: 0 to 2"):
        cross_entropy_(torch.zeros(1, 3), torch.tensor([target]))
