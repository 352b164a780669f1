"""GPT-2 as the paper trains it, and the names and shapes of its matrices."""

from typing import Any

import torch

from replication.config.run_config import RunConfig
from replication.data.tokenizer import entries_asked_for, pad_vocab_size
from replication.model.layout import HEAD, layout
from replication.sparsity.grid import Grid
from replication.system.errors import UserError

GPT2 = Any  # transformers' GPT2LMHeadModel, of whose parts torch's types know nothing
BLOCKS = "transformer.h."  # how the names of the blocks' parameters begin


def vocab_size(config: RunConfig) -> int:
    """Rows of the embedding: the tokenizer's entries, padded to a multiple of 64 (PAPER `code`)."""
    return pad_vocab_size(config.entries or entries_asked_for(config.data))


def matrix_shapes(config: RunConfig) -> dict[str, tuple[int, int]]:
    """Parameter name -> shape of every matrix that multiplies a token.

    [n_in, n_out] in the blocks, [V, C] for the head.
    """
    width = config.model.n_embd
    block = {
        "attn.c_attn": (width, 3 * width),
        "attn.c_proj": (width, width),
        "mlp.c_fc": (width, 4 * width),
        "mlp.c_proj": (4 * width, width),
    }
    shapes = {
        f"transformer.h.{layer}.{name}.weight": shape
        for layer in range(config.model.n_layer)
        for name, shape in block.items()
    }
    return shapes | {HEAD: (vocab_size(config), width)}


def select_masked_shapes(config: RunConfig) -> dict[str, tuple[int, int]]:
    """The matrices that sparse methods mask: all of `matrix_shapes`, or all but the head."""
    return {
        name: shape for name, shape in matrix_shapes(config).items() if name != HEAD or config.sparsity.mask_lm_head
    }


def mask_grids(config: RunConfig) -> dict[str, Grid]:
    """Masked parameter -> on what its mask is decided: blocks, in the order in which it is stored; of the fused matrix
    Q, K and V apart, if so wanted.

    Raises:
        UserError: blocks that do not divide a matrix.
    """
    n_out, n_in = config.sparsity.block_shape
    blocks = {name: (n_out, n_in) if name == HEAD else (n_in, n_out) for name in select_masked_shapes(config)}
    for name, (rows, columns) in select_masked_shapes(config).items():
        if rows % blocks[name][0] or columns % blocks[name][1]:
            order = "[out, in]" if name == HEAD else "[in, out]"
            raise UserError(
                f"sparsity.block_shape is {[n_out, n_in]}; "
                f"allowed: one that divides {name} {(rows, columns)}, stored {order}"
            )
    parts = {name: len(layout(name).parts) or 1 if config.sparsity.split_qkv else 1 for name in blocks}
    return {name: Grid(block, parts[name]) for name, block in blocks.items()}


def build_model(config: RunConfig, end_of_text: int) -> GPT2:
    """A freshly initialised GPT2LMHeadModel, float32, on the CPU: a function of `config.seed` and its shape alone.

    No dropout; every bias stays in the format but is fixed at zero (PAPER `readme`, `code`: the paper trains without).

    Args:
        end_of_text: id of `<|endoftext|>`.
    """
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.pytorch_utils import Conv1D

    from replication.kernels.activation import GELU
    from replication.kernels.linear import MaskedLinear
    from replication.model.attention import IMPLEMENTATION

    shape = config.model
    gpt2 = GPT2Config(  # type: ignore[call-arg]  # takes more than its types say
        vocab_size=vocab_size(config),
        n_positions=shape.n_positions,
        n_embd=shape.n_embd,
        n_layer=shape.n_layer,
        n_head=shape.n_head,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
        attn_implementation=IMPLEMENTATION,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model: GPT2 = GPT2LMHeadModel(gpt2)
    for module in model.modules():
        if isinstance(module, Conv1D):
            module.__class__ = MaskedLinear  # the same parameters under the same names
    for block in model.transformer.h:
        block.mlp.act = GELU()
    for name, param in model.named_parameters():
        if name.endswith(".bias"):
            param.data.zero_()
            param.requires_grad_(False)
    return model
