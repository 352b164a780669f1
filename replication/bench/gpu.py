"""What is measured on a GPU: training steps, attention under a pattern, and products of block-sparse matrices."""

import dataclasses
import gc
import itertools
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from replication.bench.flex import block_mask, tiles_kept
from replication.bench.steps import ULTRA
from replication.config.fields import AttentionConfig
from replication.config.profiles import load_config
from replication.flops.ledger import total
from replication.model.patterns import num_pairs, pattern_mask
from replication.runs.folder import RunFolder
from replication.sparsity.grid import from_blocks
from replication.training import trainer
from replication.training.resources import measure_peak
from replication.training.steps import State
from replication.training.world import join

SEQUENCES = 32  # of 1024 tokens, a step: they take some 20 GB
WARMUP, STEPS = 3, 20
TOKENS = 16384  # of an attention or a product, as of 16 sequences
LENGTHS, PATTERNS = (1024, 2048, 4096, 8192), ("local", "sparse")
HEADS, HEAD_SIZE = 12, 64  # GPT-2 small's
SHAPES = ((768, 3072), (3072, 768), (768, 768))  # and its matrices, [n_in, n_out]
SPARSITIES = (0.5, 0.8, 0.9, 0.95)
TOLERANCE = 0.01  # ‖difference‖ ÷ ‖reference‖ of what is computed in bfloat16
Row = dict[str, Any]

CONTENDERS: dict[str, tuple[str, tuple[str, ...]]] = {  # name -> method and settings, of profile paper
    "dense": ("dense", ()),
    "MST ultra, masked": ("mst", ULTRA),
    "MST ultra, masked, dense attention": ("mst", (*ULTRA, "mst.hybrid_attention=false")),
    "dense, compiled": ("dense", ("train.compile=true",)),
    "MST ultra, masked, compiled": ("mst", (*ULTRA, "train.compile=true")),
}


@dataclasses.dataclass(frozen=True)
class RandomTokens:
    """In the place of prepared data: what a step costs does not depend on its text."""

    tokens: np.ndarray
    manifest: dict[str, int]
    tokenizer_folder: Path = Path("none")
    shards: tuple[str, ...] = ()

    def parts(self, validation_part: str) -> tuple[np.ndarray, np.ndarray]:
        return self.tokens, self.tokens


def measure_steps() -> Iterator[Row]:
    """A row for each of `CONTENDERS`: seconds of every step of GPT-2 small in bf16, FLOPs, shares of the peak, memory.

    `mfu` counts the method's own FLOPs, `dense_mfu` dense training's, both with attention counted causally. No step
    updates the topology.
    """
    tokens = np.random.default_rng(0).integers(0, 50257, 2**20, dtype=np.uint16)
    data = RandomTokens(tokens, {"end_of_text_id": 50256})
    for name, (method, settings) in CONTENDERS.items():
        batch = (f"train.batch_size={SEQUENCES}", f"train.micro_batch_size={SEQUENCES}")
        config = load_config("paper", method, 0, [*batch, "sparsity.update_start_step=1000", *settings])
        state = trainer.setup(config, RunFolder(Path("unused")), join(), data)  # type: ignore[arg-type]
        torch.cuda.reset_peak_memory_stats()
        seconds = _steps(state)
        own = total(state.ledger.step(state.algorithm.nnz, state.pattern, False), "head_counted_causal")
        dense = total(state.ledger.dense_step, "head_counted_causal")
        memory, num_tokens = torch.cuda.max_memory_allocated(), state.ledger.tokens_per_step
        peak = measure_peak(state.world.device, state.precision, torch.get_num_threads())
        possible = peak * median(seconds)
        yield {
            "contender": name,
            "tokens": num_tokens,
            "precision": state.precision,
            "sparsity": state.algorithm.sparsity(),
            "tokens_per_second": num_tokens / median(seconds),
            "mfu": own / possible,
            "dense_mfu": dense / possible,
            "peak_flops": peak,
            "peak_memory_bytes": memory,
            "seconds": seconds,
        }
        del state
        gc.collect()
        torch.cuda.empty_cache()


def _steps(state: State) -> list[float]:
    """Of training steps, each of which ends when the GPU has."""
    transformer, seconds = state.model.transformer, []
    forward = torch.compile(transformer) if state.config.train.compile else transformer
    for _ in range(WARMUP + STEPS):
        began = time.perf_counter()
        trainer.train_step(state, forward)
        seconds.append(time.perf_counter() - began)
    return seconds[WARMUP:]


def measure_attention() -> Iterator[Row]:
    """A row for each length, pattern and contender: seconds of attention forward and backward, bf16, by their median.

    `SDPA` attends to all causal pairs, `SDPA, masked` is how training executes a pattern. `tiles` are those that
    FlexAttention computes, as a share of the causal ones; `pairs` likewise.
    """
    torch.use_deterministic_algorithms(False)
    for length in LENGTHS:
        torch.compiler.reset()  # else the compiler would stop at its eighth version of FlexAttention
        inputs = tuple(_random(TOKENS // length, HEADS, length, HEAD_SIZE).requires_grad_() for _ in range(3))
        dense = {"length": length, "pattern": "dense", "contender": "SDPA", "tiles": 1.0, "pairs": 1.0}
        yield dense | _forward_and_backward(partial(F.scaled_dot_product_attention, is_causal=True), inputs)
        for pattern in PATTERNS:
            yield from _under_pattern(pattern, length, inputs)


def _under_pattern(pattern: str, length: int, inputs: tuple[Tensor, ...]) -> Iterator[Row]:
    spans = AttentionConfig().spans(length)
    kept = torch.from_numpy(pattern_mask(pattern, length, *spans)).cuda()
    blocks = block_mask(pattern, length, *spans, device=kept.device)
    flex = torch.compile(flex_attention, dynamic=False)
    contenders: dict[str, Callable[..., Any]] = {
        "SDPA, masked": partial(F.scaled_dot_product_attention, attn_mask=kept),
        "FlexAttention": partial(flex, block_mask=blocks),
    }
    check_close(*(contenders[name](*inputs) for name in ("FlexAttention", "SDPA, masked")))
    side = -(-length // 128)
    facts = {
        "length": length,
        "pattern": pattern,
        "tiles": tiles_kept(blocks) / (side * (side + 1) // 2),
        "pairs": num_pairs(pattern, length, *spans) / (length * (length + 1) // 2),
    }
    for name, attend in contenders.items():
        yield facts | {"contender": name} | _forward_and_backward(attend, inputs)


def _forward_and_backward(attend: Callable[..., Any], inputs: tuple[Tensor, ...]) -> Row:
    gradient = _random(*inputs[0].shape)
    return {"seconds": _seconds(lambda: torch.autograd.grad(attend(*inputs), inputs, gradient))}


def measure_blocks() -> Iterator[Row]:
    """A row for each shape and product of torch's dense bf16, and of ours for each block and sparsity.

    Ours are first compared with the masked product in float32.
    """
    from replication.bench.triton_blocks import BLOCKS

    torch.use_deterministic_algorithms(False)
    for n_in, n_out in SHAPES:
        x, d, weight = _random(TOKENS, n_in), _random(TOKENS, n_out), _random(n_in, n_out)
        shape = {"n_in": n_in, "n_out": n_out, "tokens": TOKENS}
        for product, work in _dense(x, d, weight).items():
            yield shape | {"contender": "dense", "sparsity": 0.0, "product": product, "seconds": _seconds(work)}
        for block, sparsity in itertools.product(BLOCKS, SPARSITIES):
            facts = shape | {"contender": f"{block}×{block}", "sparsity": sparsity}
            for product, work in _check(x, d, weight, block, sparsity).items():
                yield facts | {"product": product, "seconds": _seconds(work)}


Products = dict[str, Callable[[], Tensor]]


def _dense(x: Tensor, d: Tensor, weight: Tensor) -> Products:
    return {"forward": lambda: x @ weight, "dX": lambda: d @ weight.T, "dW": lambda: x.T @ d}


def _check(x: Tensor, d: Tensor, weight: Tensor, block: int, sparsity: float) -> Products:
    """Our products of the weight under a random mask, each found to be right."""
    from replication.bench.triton_blocks import BlockLayout

    size = (weight.shape[0] // block, weight.shape[1] // block)
    order = torch.randperm(math.prod(size), device=x.device).view(size)
    mask = from_blocks(order >= round(sparsity * order.numel()), (block, block))
    masked, layout = weight * mask, BlockLayout(mask, block)
    products: Products = {
        "forward": lambda: layout.forward(x, masked),
        "dX": lambda: layout.backward(d, masked),
        "dW": lambda: layout.gradient(x, d),
    }
    outcomes = {name: work() for name, work in products.items()}
    for name, work in _dense(x.float(), d.float(), masked.float()).items():
        check_close(outcomes[name], work() * mask if name == "dW" else work())
    return products


def check_close(found: Tensor, wanted: Tensor) -> None:
    """Raises ArithmeticError where they differ by more than bfloat16 explains."""
    error = float((found.float() - wanted.float()).norm() / wanted.float().norm())
    if not error < TOLERANCE:
        raise ArithmeticError(f"relative error {error:.2g}; at most {TOLERANCE} is rounding")


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def _seconds(work: Callable[[], Any]) -> float:
    """The median of a tenth of a second's repetitions, between events, each with cold caches."""
    from triton.testing import do_bench

    return do_bench(work, warmup=25, rep=100, return_mode="median") / 1e3
