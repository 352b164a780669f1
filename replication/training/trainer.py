"""The one trainer of every method: setup -> fit -> validate -> save."""

import contextlib
import json
import math
import sys
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from replication.config import NO_RESULT, RunConfig
from replication.data import Batches, PreparedData, prepare
from replication.errors import NonFiniteError, UserError
from replication.files import damaged, write_json
from replication.flops import Ledger, total
from replication.kernels.engine import Engine, keep_memory
from replication.kernels.linear import linear_cross_entropy
from replication.keys import flattened
from replication.machine import peak_memory
from replication.methods import build_algorithm
from replication.model.attention import set_attention_pattern
from replication.model.gpt2 import HEAD, build_model, masked_shapes
from replication.ownership import lock_file
from replication.planning.plan import build_ledger, check_schedule
from replication.runs import RunFolder
from replication.sparsity.algorithm import SparsityAlgorithm
from replication.training import checkpoint
from replication.training.circumstances import changes_since, described, environment, precision_of
from replication.training.optimizer import build_optimizer, learning_rate
from replication.training.world import World, join


@dataclass
class State:
    """A run in memory: what it is made of, and how far it has come."""

    config: RunConfig
    run: RunFolder
    world: World
    model: nn.Module
    optimizer: torch.optim.Optimizer
    algorithm: SparsityAlgorithm
    engine: Engine
    ledger: Ledger
    train_batches: Batches
    validation_batches: Batches
    precision: str
    environment: dict[str, Any]  # what its numbers depend on beside its configuration
    step: int = 0  # completed steps
    seconds: float = 0.0  # training only: evaluation and saving excluded
    pattern: str = "dense"
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"metrics.jsonl": [], "topology.jsonl": []})

    @cached_property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that are not fixed, in the model's order; listed once, as that takes a millisecond."""
        return [param for param in self.model.parameters() if param.requires_grad]


def train(
    config: RunConfig,
    out: Path,
    data_dir: Path,
    resume: bool = False,
    progress: bool = True,
    wait: bool = False,
) -> RunFolder:
    """Train one run to its end, in the folder `out`. A finished run is left as it is.

    Args:
        config: the whole configuration.
        out: the run folder; new, empty, or one of this configuration.
        data_dir: where prepared data is, or goes.
        resume: go on with an interrupted or failed run.
        progress: show a bar.
        wait: until another process that trains in `out` has ended.

    Raises:
        UserError: `out` holds something else, an interrupted run without `resume`, or is another process's; unusable
            data; a schedule that trains another method than its name says.
        DamagedError: a file of the run or of its data is not as it was written.
        NonFiniteError: the loss diverged; the run's status is `failed` and its last good state is kept.
    """
    run = RunFolder(out)
    _check_folder(run)
    if run.is_trained(config):
        _tidy(run)
        return run
    remarks = check_schedule(config)
    transformers_logging.disable_progress_bar()
    world = join()
    data = prepare(config.data, data_dir)
    with contextlib.ExitStack() as ownership:
        problem = None
        try:
            if world.is_main:
                ownership.enter_context(run.owned(wait))
        except UserError as error:
            problem = error
        world.agree(problem)
        if not run.is_trained(config):  # by the process that was waited for
            _check_interrupted(run, resume)
            for remark in remarks if world.is_main else ():
                print(f"{run.path}: {remark}", file=sys.stderr)
            _train(config, run, world, data, progress)
    return run


def _train(config: RunConfig, run: RunFolder, world: World, data: PreparedData, progress: bool) -> None:
    """Train in a folder that is this process's own."""
    state = setup(config, run, world, data)
    changes = changes_since(run, state.environment) if run.is_interrupted() else {}
    path, problems = (
        (None, [])
        if run.is_finished()
        else checkpoint.sound_state(run.resume, lambda facts: _check_state(state, facts))
    )
    world.wait()  # every process has read the folder before one writes in it
    if path:
        _load(state, path, problems, changes)
    elif world.is_main:
        _start(state)
    fit(state, progress and world.is_main)
    if world.is_main:
        _finish(state, data)
    world.wait()


def setup(config: RunConfig, run: RunFolder, world: World, data: PreparedData) -> State:
    """Model, method, optimizer, ledger and batches of a run at step 0."""
    if config.train.batch_size % world.size:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}; allowed: a multiple of the {world.size} processes"
        )
    keep_memory()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs a tenth of the time
    model = build_model(config, data.manifest["end_of_text_id"]).to(world.device)
    algorithm = build_algorithm(config)
    masked = masked_shapes(config)
    algorithm.apply(model, lambda name, _: name in masked)
    size, micro, context = config.train.batch_size, config.train.micro_batch_size, config.model.n_positions
    precision = precision_of(run, config.train.precision, world.device)
    engine = Engine(model, algorithm, config.train.kernels, precision == "bf16", HEAD)
    train_tokens, validation_tokens = data.parts(config.train.validation_part)
    return State(
        config=config,
        run=run,
        world=world,
        model=model,
        optimizer=build_optimizer(model, config.train),
        algorithm=algorithm,
        engine=engine,
        ledger=build_ledger(config),
        train_batches=Batches(train_tokens, "train", config.seed, size, context),
        validation_batches=Batches(validation_tokens, "validation", config.seed, micro or size, context),
        precision=precision,
        environment=environment(world, precision, engine.kernels, data),
    )


def fit(state: State, progress: bool) -> None:
    """Train to the last step, logging, validating and saving on the way."""
    config = state.config.train
    transformer = state.model.transformer
    forward = torch.compile(transformer) if config.compile else transformer
    with tqdm(total=config.steps, initial=state.step, disable=not progress, unit="step", dynamic_ncols=True) as bar:
        while state.step < config.steps:
            began = time.perf_counter()
            try:
                row = train_step(state, forward)
                state.seconds += time.perf_counter() - began
                _log(state, row, bar)
            except NonFiniteError as error:
                _fail(state, str(error))
                raise
            if state.step % config.checkpoint_freq == 0 and state.step < config.steps:
                _save(state)


def train_step(state: State, forward: nn.Module) -> dict[str, Any]:
    """One step: gradient, then the weights' update, the topology's, or both; returns what it did."""
    step, algorithm, schedules = state.step, state.algorithm, state.algorithm.schedules
    _use_pattern(state, schedules.attention.pattern_at(step))
    update = algorithm.is_update(step)
    trains_weights = not (update and algorithm.update_replaces_step)
    lr = learning_rate(step, state.config.train)
    trained_nnz = dict(algorithm.nnz)
    reads_gradient = algorithm.reads_gradient(step)
    growth = state.config.sparsity.growth_gradient if reads_gradient else "mean"
    state.engine.prepare(dense_gradient=reads_gradient or state.config.sparsity.clip_norm == "dense")
    loss, magnitudes = accumulate_gradient(state, forward, growth)
    if reads_gradient and algorithm.growth_steps > 1:
        algorithm.gather(magnitudes or {name: param.grad for name, param in algorithm.parameters.items()})
    gradients = [param.grad for param in state.trained if param.grad is not None]
    if update:
        _check_finite(step, loss, get_total_norm(gradients).item())
        state.rows["topology.jsonl"] += algorithm.update(step, state.optimizer, magnitudes)
        state.engine.topology_changed()
    dense_norm = get_total_norm(gradients) if state.config.sparsity.clip_norm == "dense" else None
    algorithm.mask_gradients()
    norm = get_total_norm(gradients) if dense_norm is None else dense_norm
    _check_finite(step, loss, norm.item())
    if trains_weights:
        clip_grads_with_norm_(state.trained, state.config.train.grad_clip, norm)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.step()
        algorithm.mask_weights()
    state.optimizer.zero_grad(set_to_none=True)
    state.ledger.charge(schedules.phases.phase(step), trained_nnz, state.pattern, reads_gradient)
    state.step += 1
    return {
        "loss": loss,
        "lr": lr,
        "grad_norm": norm.item(),
        "sparsity_target": schedules.sparsity.sparsity(step),
        "drop_fraction": schedules.drop_fraction.drop_fraction(step),
        "attention_pattern": state.pattern,
        "phase": schedules.phases.phase(step),
    }


def accumulate_gradient(
    state: State, forward: nn.Module, growth: str = "mean"
) -> tuple[float, dict[str, Tensor] | None]:
    """Dense gradient of the step's batch, averaged with its sign over micro-steps and processes.

    Args:
        growth: what growth reads: `mean` this gradient; `process_magnitudes` the mean over processes of each one's |mean
            over its micro-steps| (PAPER `code`); `magnitudes` the mean over micro-steps and processes of each one's |gradient|.

    Returns:
        The loss; and by masked layer what growth reads, None where that is the gradient itself.
    """
    batch = torch.from_numpy(state.train_batches.train_batch(state.step))
    local = batch[state.world.rank :: state.world.size]
    micro_batches = local.split(state.config.train.micro_batch_size or len(local))
    losses, masked = [], state.algorithm.parameters
    sums = {name: torch.zeros_like(param) for name, param in masked.items()} if growth == "magnitudes" else {}
    for micro in micro_batches:
        before = {name: param.grad.clone() for name, param in masked.items() if param.grad is not None} if sums else {}
        loss = _loss(state, forward, micro) * (len(micro) / len(local))
        loss.backward()
        losses.append(loss.detach())
        for name in sums:
            sums[name] += (masked[name].grad - before.get(name, 0)).abs()
    if growth == "process_magnitudes":
        sums = {name: param.grad.abs() for name, param in masked.items()}
    mean = torch.stack(losses).sum()
    state.world.average_([mean, *(param.grad for param in state.trained if param.grad is not None), *sums.values()])
    return mean.item(), sums or None


@torch.no_grad()
def validate(state: State, pattern: str, num_batches: int | None) -> float:
    """Validation loss in nats per token, under an attention pattern, over the same batches at every step, seed and method:
    `num_batches` that are evenly spaced, or the whole split."""
    _use_pattern(state, pattern)
    state.engine.prepare()
    state.model.eval()
    batches = state.validation_batches.evaluation_batches(num_batches)
    sums = torch.zeros(2, device=state.world.device, dtype=torch.float64)
    for index, batch in enumerate(batches):
        if index % state.world.size == state.world.rank:
            loss = _loss(state, state.model.transformer, torch.from_numpy(batch)).item()
            sums += torch.tensor([loss * len(batch), len(batch)], device=sums.device)
    state.world.average_([sums])
    state.model.train()
    return (sums[0] / sums[1]).item()


def _loss(state: State, forward: nn.Module, batch: Tensor) -> Tensor:
    batch = batch.to(state.world.device)
    autocast = (
        torch.autocast(state.world.device.type, torch.bfloat16)
        if state.precision == "bf16"
        else contextlib.nullcontext()
    )
    with autocast:
        hidden = forward(input_ids=batch[:, :-1], use_cache=False).last_hidden_state
        return linear_cross_entropy(hidden, state.model.transformer.wte.weight, batch[:, 1:], state.engine.head)


def _use_pattern(state: State, pattern: str) -> None:
    if pattern != state.pattern:
        set_attention_pattern(state.model, pattern, state.config.attention)
        state.pattern = pattern


def _check_finite(step: int, *values: float) -> None:
    if not all(map(math.isfinite, values)):
        raise NonFiniteError(f"loss or gradient is not finite at step {step}: {', '.join(map(str, values))}")


def _log(state: State, row: dict[str, Any], bar: tqdm) -> None:
    config, last = state.config.train, state.step == state.config.train.steps
    evaluates = state.step % config.eval_freq == 0 or last
    spent = state.ledger.components()
    row = {
        "step": state.step,
        "tokens": state.step * state.ledger.tokens_per_step,
        **row,
        "sparsity": state.algorithm.sparsity(),
        "flops": spent,
    }
    if evaluates:
        row["validation_loss"] = (
            validate(state, "dense", None) if last else validate(state, state.pattern, config.eval_batches)
        )
        _check_finite(state.step, row["validation_loss"])
    row |= {
        "tokens_per_second": row["tokens"] / state.seconds,
        "memory_bytes": peak_memory(state.world.device),
        "seconds": state.seconds,
    }
    if evaluates or state.step % config.log_freq == 0:
        state.rows["metrics.jsonl"].append(row)
        _flush(state)
        bar.set_postfix_str(_progress_line(state, row), refresh=False)
    bar.update()


def _progress_line(state: State, row: dict[str, Any]) -> str:
    dense = total(state.ledger.dense_components(), "head_counted_full") * state.step / state.config.train.num_steps
    saved = 1 - total(row["flops"], "head_counted_full") / dense
    return f"{row['phase']}, loss {row['loss']:.3f}, sparsity {row['sparsity']:.2f}, FLOPs saved {saved:.0%}, {row['tokens_per_second']:,.0f} tokens/s"


def _flush(state: State) -> None:
    for log, rows in state.rows.items():
        if state.world.is_main:
            state.run.append(log, rows)
        rows.clear()


def _check_folder(run: RunFolder) -> None:
    """Raises UserError where the folder holds something, but no run."""
    names = run.entries()
    is_other = names and not names & {"config.yaml", "status.json"}
    if is_other or (run.path.exists() and not run.path.is_dir()):
        raise UserError(f"{run.path} is there and holds no run; allowed: a new or empty folder, or one of this run")


def _tidy(run: RunFolder) -> None:
    """Remove what a process left that died between finishing the run and its own end."""
    if run.resume.exists() or lock_file(run.path).exists():
        with contextlib.suppress(UserError), run.owned():  # unless it lives, or the folder is read-only
            checkpoint.remove_states(run.resume)


def _check_interrupted(run: RunFolder, resume: bool) -> None:
    """Raises UserError where the folder holds a part of a run that is not to be resumed; its owner has ended."""
    if run.is_interrupted() and not resume:
        status = run.status()
        raise UserError(
            f"{run.path} holds a {status['status']} run at step {status['step']}, whose process has ended; --resume goes on with it"
        )


def _start(state: State) -> None:
    state.run.begin(state.config.to_dict(), state.environment)


def _save(state: State) -> None:
    if state.world.is_main:
        _flush(state)
        facts = {"step": state.step, "seconds": state.seconds, "ledger": state.ledger.state()}
        facts |= {"run": _identity(state), "logs": state.run.log_sizes()}
        checkpoint.save_state(state.run.resume, state.step, state.model, state.optimizer, state.algorithm, facts)
        state.run.write_status("running", step=state.step, seconds=state.seconds)
    state.world.wait()


def _identity(state: State) -> dict[str, Any]:
    """What says whose state a saved one is."""
    settings = {key: value for key, value in flattened(state.config.to_dict()).items() if key not in NO_RESULT}
    return {"settings": settings, "shards": state.environment["shards"]}


def _check_state(state: State, facts: dict[str, Any]) -> None:
    """Raises DamagedError where a saved state is another run's, or does not agree with this one's logs."""
    if facts.get("run") != json.loads(json.dumps(_identity(state))):
        raise damaged(state.run.resume / f"step-{facts.get('step', 0):08d}", "it is the state of another run")
    state.run.check_logs(facts["logs"])


def _load(state: State, path: Path, problems: list[str], changes: dict[str, list[Any]]) -> None:
    """Go on from a saved state, under changed circumstances; `problems` are those of newer states, which are passed over."""
    run = state.run
    facts = checkpoint.load_state(path, state.model, state.optimizer, state.algorithm)
    state.step, state.seconds = facts["step"], facts["seconds"]
    state.ledger.load_state(facts["ledger"])
    if state.world.is_main:
        run.truncate_logs(facts["logs"])
        for line in (*problems, *described(changes)):
            print(f"{run.path}: {line}; going on from step {state.step}, and recorded", file=sys.stderr)
        if changes or problems:
            run.append_environment(state.step, changes | ({"damaged": problems} if problems else {}))
        run.write_status("running", step=state.step, seconds=state.seconds)
    state.world.wait()


def _fail(state: State, reason: str) -> None:
    if state.world.is_main:
        _flush(state)
        state.run.write_status("failed", reason=reason, step=state.step, seconds=state.seconds)


def _finish(state: State, data: PreparedData) -> None:
    run = state.run
    write_json(run.path / "flops.json", state.ledger.report(state.algorithm.nnz))
    if state.algorithm.masks:
        run.write_masks({name: mask.cpu().numpy() for name, mask in state.algorithm.masks.items()})
    checkpoint.save_checkpoint(run.checkpoint, state.model, data.tokenizer_folder)
    tokens = state.step * state.ledger.tokens_per_step
    run.write_status("finished", step=state.step, seconds=state.seconds, tokens_per_second=tokens / state.seconds)
    checkpoint.remove_states(run.resume)
