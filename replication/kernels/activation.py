"""GELU in its tanh form by the C kernels, where torch's takes several times as long. Source: ours."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from replication.kernels.library import gelu, takes


class GELU(nn.Module):
    """GPT-2's activation: by the kernels on a CPU in float32 and bfloat16, else by torch, whose compiler fuses it."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not takes(x):
            return F.gelu(x, approximate="tanh")
        return _Gelu.apply(x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x)
        return gelu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, d: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gelu(x, d.contiguous())
