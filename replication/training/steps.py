"""One step of training, and validation: what is computed, with nothing written."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from replication.config.run_config import RunConfig
from replication.data import Batches
from replication.flops.ledger import Ledger
from replication.kernels.engine import Engine
from replication.kernels.linear import linear_cross_entropy
from replication.model.attention import set_attention_pattern
from replication.model.gpt2 import GPT2
from replication.plugins import blaming
from replication.runs.folder import RunFolder
from replication.sparsity.algorithm import SparsityAlgorithm, check_counts
from replication.system.errors import NonFiniteError
from replication.training.optimizer import learning_rate
from replication.training.resources import Resources
from replication.training.world import World

Forward = Callable[..., Any]  # the transformer, or what DDP or the compiler made of it


@dataclass
class State:
    """A run in memory: what it is made of, and how far it has come."""

    config: RunConfig
    run: RunFolder
    world: World
    model: GPT2
    optimizer: torch.optim.Optimizer
    algorithm: SparsityAlgorithm
    engine: Engine
    ledger: Ledger
    train_batches: Batches
    validation_batches: Batches
    precision: str
    environment: dict[str, Any]  # what its numbers depend on beside its configuration
    resources: Resources
    tokenizer_folder: Path
    snapshot_steps: frozenset[int]  # after which the model is kept and judged (`eval.at`)
    step: int = 0  # completed steps
    seconds: float = 0.0  # training only: evaluation and saving excluded
    pattern: str = "dense"
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"metrics.jsonl": [], "topology.jsonl": []})

    @cached_property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that are not fixed, in the model's order; listed once, as that takes a millisecond."""
        return [param for param in self.model.parameters() if param.requires_grad]


def parallel_forward(state: State) -> Forward:
    """The transformer as it is trained: by DDP under torchrun, and compiled if so wanted."""
    config, world, transformer = state.config.train, state.world, state.world.parallel(state.model.transformer)
    forward = torch.compile(transformer) if config.compile else transformer
    if transformer is not state.model.transformer:
        # DDP puts its buckets in the order of the first gradients. Three processes and more round by a gradient's place
        # in its bucket: ordered here, a resumed run has the buckets of one that was not interrupted.
        state.engine.prepare()
        batch = torch.from_numpy(state.train_batches.train_batch(0))[world.rank :: world.size]
        loss_of(state, forward, batch[: config.micro_batch_size]).backward()
        state.optimizer.zero_grad(set_to_none=True)
    return forward


def train_step(state: State, forward: Forward) -> dict[str, Any]:
    """One step: gradient, then the weights' update, the topology's, or both; returns what it did."""
    step, algorithm, schedules = state.step, state.algorithm, state.algorithm.schedules
    state.resources.enter(schedules.phases.phase(step))
    use_pattern(state, schedules.attention.pattern_at(step))
    update = algorithm.is_update(step)
    trains_weights = not (update and algorithm.update_replaces_step)
    lr = learning_rate(step, state.config.train)
    trained_nnz = dict(algorithm.nnz)
    reads_gradient = algorithm.reads_gradient(step)
    growth = state.config.sparsity.growth_gradient if reads_gradient else "mean"
    state.engine.prepare(dense_gradient=reads_gradient or state.config.sparsity.clip_norm == "dense")
    loss, magnitudes = accumulate_gradient(state, forward, growth)
    gradients = [param.grad for param in state.trained if param.grad is not None]
    if update:
        with state.resources.part("topology"):
            check_finite(step, loss, get_total_norm(gradients).item())
            with state.world.agreeing(), blaming():
                rows = algorithm.update(step, state.optimizer, magnitudes)
                check_counts(algorithm, step)
            state.rows["topology.jsonl"] += rows
            state.engine.topology_changed()
            state.world.check_equal(f"masks after step {step}", algorithm.masks.values())
    with state.resources.part("optimizer"):
        norm = _update_weights(state, gradients, lr if trains_weights else None)
    check_finite(step, loss, norm)
    state.ledger.charge(schedules.phases.phase(step), trained_nnz, state.pattern, reads_gradient)
    state.step += 1
    return {
        "loss": loss,
        "lr": lr,
        "grad_norm": norm,
        "sparsity_target": schedules.sparsity_at(step),
        "drop_fraction": schedules.drop_fraction_at(step),
        "attention_pattern": state.pattern,
        "phase": schedules.phases.phase(step),
    }


def _update_weights(state: State, gradients: list[Tensor], lr: float | None) -> float:
    """Mask and clip the gradients, and let the optimizer take its step; none without a learning rate, or where the
    gradient is not finite. Returns the gradient's norm before clipping."""
    dense_norm = get_total_norm(gradients) if state.config.sparsity.clip_norm == "dense" else None
    state.algorithm.mask_gradients()
    norm = get_total_norm(gradients) if dense_norm is None else dense_norm
    if lr is not None and math.isfinite(norm.item()):
        clip_grads_with_norm_(state.trained, state.config.train.grad_clip, norm)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.step()
        state.algorithm.mask_weights()
    # DDP's gradients are its buckets: others beside them would take their memory once more
    state.optimizer.zero_grad(set_to_none=state.world.size == 1)
    return norm.item()


def accumulate_gradient(state: State, forward: Forward, growth: str = "mean") -> tuple[float, dict[str, Tensor] | None]:
    """Dense gradient of the step's batch, averaged with its sign over micro-steps and processes.

    Args:
        growth: what growth reads: `mean` this gradient; `process_magnitudes` the mean over processes of each one's
            |mean over its micro-steps| (PAPER `code`); `magnitudes` the mean over micro-steps and processes of each
            one's |gradient|.

    Returns:
        The loss; and by masked layer what growth reads, None where that is the gradient itself.
    """
    part = state.resources.part
    with part("data"):
        batch = torch.from_numpy(state.train_batches.train_batch(state.step))
    local = batch[state.world.rank :: state.world.size]
    micro_batches = local.split(state.config.train.micro_batch_size or len(local))
    losses, masked = [], state.algorithm.parameters
    sums = {name: torch.zeros_like(param) for name, param in masked.items()} if growth == "magnitudes" else {}
    apart = getattr(forward, "no_sync", contextlib.nullcontext)
    # DDP averages in the last backward pass; what growth reads of each process must be taken before
    overlaps = growth == "mean" and hasattr(forward, "no_sync")
    for left, micro in zip(reversed(range(len(micro_batches))), micro_batches):
        before = {name: param.grad.clone() for name, param in masked.items() if param.grad is not None} if sums else {}
        with contextlib.nullcontext() if overlaps and not left else apart():
            with part("forward"):
                loss = loss_of(state, forward, micro) * (len(micro) / len(local))
            with part("backward"):
                loss.backward()
        losses.append(loss.detach())
        for name in sums:
            sums[name] += (_gradient(masked[name]) - before.get(name, 0)).abs()
    if growth == "process_magnitudes":
        sums = {name: _gradient(param).abs() for name, param in masked.items()}
    mean = torch.stack(losses).sum()
    gradients = [] if overlaps else [param.grad for param in state.trained if param.grad is not None]
    with part("communication"):
        state.world.average_([mean, *gradients, *sums.values()])
    return mean.item(), sums or None


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "a backward pass comes before"
    return parameter.grad


@torch.no_grad()
def validate(state: State, pattern: str, num_batches: int | None) -> float:
    """Validation loss in nats per token, under an attention pattern.

    Over the same batches at every step, seed and method: `num_batches` that are evenly spaced, or the whole split.
    """
    use_pattern(state, pattern)
    state.engine.prepare()
    state.model.eval()
    batches = state.validation_batches.evaluation_batches(num_batches)
    sums = torch.zeros(2, device=state.world.device, dtype=torch.float64)
    for index, batch in enumerate(batches):
        if index % state.world.size == state.world.rank:
            loss = loss_of(state, state.model.transformer, torch.from_numpy(batch)).item()
            sums += torch.tensor([loss * len(batch), len(batch)], device=sums.device)
    state.world.average_([sums])
    state.model.train()
    return (sums[0] / sums[1]).item()


def loss_of(state: State, forward: Forward, batch: Tensor) -> Tensor:
    batch = batch.to(state.world.device)
    autocast = (
        torch.autocast(state.world.device.type, torch.bfloat16)
        if state.precision == "bf16"
        else contextlib.nullcontext()
    )
    with autocast:
        hidden = forward(input_ids=batch[:, :-1], use_cache=False).last_hidden_state
        return linear_cross_entropy(hidden, state.model.transformer.wte.weight, batch[:, 1:], state.engine.head)


def use_pattern(state: State, pattern: str) -> None:
    if pattern != state.pattern:
        set_attention_pattern(state.model, pattern, state.config.attention)
        state.pattern = pattern


def check_finite(step: int, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise NonFiniteError(f"loss or gradient is not finite at step {step}: {', '.join(map(str, values))}")
