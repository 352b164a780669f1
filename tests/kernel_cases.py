"""Inputs of kernels, and what in double precision comes of them."""

import torch
import torch.nn.functional as F

from replication.kernels.attention import pattern_attention
from replication.model.patterns import pattern_mask

PATTERNS = ["dense", "local", "strided", "sparse", "fixed"]


SPANS = [
    (96, 32, 32),
    (96, 48, 24),
    (100, 40, 20),
    (64, 80, 32),
    (33, 7, 5),
    (90, 17, 20),
    (70, 3, 100),
    (1, 1, 1),
]  # length, window, stride


def inputs(length, dtype=torch.float32, heads=3, size=32):
    torch.manual_seed(0)
    whole = torch.randn(2, length, 3, heads, size).to(dtype)  # as c_attn gives them
    return [whole[:, :, i].transpose(1, 2).detach().requires_grad_() for i in range(3)]


def kept_pairs(pattern, length, window, stride):
    return (
        torch.ones(length, length).tril().bool()
        if pattern == "dense"
        else torch.from_numpy(pattern_mask(pattern, length, window, stride))
    )


def check(given, pattern, length, window, stride, relative):
    ours = pattern_attention(*given, pattern, window, stride, 0.25)
    exact = [tensor.detach().double().requires_grad_() for tensor in given]
    theirs = F.scaled_dot_product_attention(*exact, attn_mask=kept_pairs(pattern, length, window, stride), scale=0.25)
    d = torch.randn(ours.shape).to(ours.dtype)
    found, wanted = (
        (ours, *torch.autograd.grad(ours, given, d)),
        (theirs, *torch.autograd.grad(theirs, exact, d.double())),
    )
    for a, b in zip(found, wanted):
        assert a.dtype == given[0].dtype and (a.double() - b).norm() <= relative * b.norm() + 1e-5


def expected(mask, weight, x, d, out_first, bf16):
    """(value, sum of magnitudes) of each product, in float64; the latter bounds what rounding can do."""
    weight = (weight * mask).to(torch.bfloat16 if bf16 else torch.float32).double()
    weight, mask = (weight.T, mask.T) if out_first else (weight, mask)
    x, d = (t.to(torch.bfloat16).double() if bf16 else t.double() for t in (x, d))
    pairs = [(f(x) @ f(weight), f(d) @ f(weight).T, f(x).T @ f(d) * mask) for f in (lambda t: t, torch.abs)]
    return [
        (value, size) if index < 2 or not out_first else (value.T, size.T)
        for index, (value, size) in enumerate(zip(*pairs))
    ]
