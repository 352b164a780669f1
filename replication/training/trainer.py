"""The one trainer of every method: setup -> fit -> validate -> save."""

import contextlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from replication.config.keys import flatten
from replication.config.run_config import NO_RESULT, RunConfig
from replication.data import Batches, PreparedData, prepare
from replication.flops.automatic_phases import build_trained
from replication.flops.ledger import total
from replication.flops.plan import check_schedule, snapshot_steps
from replication.flops.stretches import build_ledger
from replication.kernels.engine import Engine, keep_memory
from replication.methods import code_of, convert_options
from replication.model.gpt2 import HEAD, build_model, matrix_shapes, select_masked_shapes
from replication.plugins import blaming
from replication.publish.card import offer_cards
from replication.runs.folder import RunFolder
from replication.runs.ownership import lock_file
from replication.runs.registration import record_registration
from replication.runs.snapshots import DENSE_LOSS, OWN_LOSS, SHA256, WEIGHTS, remove_after, snapshot_folder
from replication.sparsity.algorithm import check_counts
from replication.system.errors import TrainingError, UserError, out_of_memory
from replication.system.errors import describe_error as described_error
from replication.system.files import explain_damage, sha256, write_json
from replication.system.machine import check_memory, peak_memory
from replication.system.signals import Interrupted, held, read_signal, tell
from replication.training import checkpoint
from replication.training.circumstances import (
    changes_since,
    check_code,
    describe_changes,
    environment,
    fit_entries,
    limits_of,
    precision_of,
)
from replication.training.observers import Observer, observer
from replication.training.optimizer import build_optimizer
from replication.training.resources import Resources
from replication.training.steps import State, check_finite, parallel_forward, train_step, validate
from replication.training.trackers import Course, read_asked_for
from replication.training.world import World, join, together

PLACES = ("data.files", "data.validation_files", "data.gpt2_folder")  # of a text, which may differ by machine


@blaming()
@together()
def train(
    config: RunConfig, out: Path, data_dir: Path, resume: bool = False, progress: bool = True, wait: bool = False
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
        TrainingError: the loss diverged, or the processes did from each other; the run's status is `failed` and its
            last good state is kept.
        Interrupted: a signal ended it; what was trained is saved.
    """
    run, world = RunFolder(out), join()
    with world.agreeing() as facts:
        config = convert_options(config)
        _check_folder(run)
        facts |= _settings(config) | {"finished": run.is_trained(config)}
        if facts["finished"]:
            check_code(run, code_of(config))
            _tidy(run)
        else:
            remarks = check_schedule(config)
            data = prepare(config.data, data_dir)
            facts |= {f"the {part} shard": digest for part, digest in data.shards.items()}
    if facts["finished"]:
        return run
    transformers_logging.disable_progress_bar()
    with out_of_memory(), contextlib.ExitStack() as ownership:
        with world.agreeing():
            if world.is_main:
                ownership.enter_context(run.owned(wait))
        with world.agreeing() as facts:
            facts["finished"] = run.is_trained(config)  # by the process that was waited for
            if not facts["finished"]:
                _check_interrupted(run, resume)
                config = fit_entries(config, run, data)
        if not facts["finished"]:
            for remark in remarks if world.is_main else ():
                tell(f"{run.path}: {remark}")
            _train(config, run, world, data, progress)
    return run


def _settings(config: RunConfig) -> dict[str, Any]:
    """What of a configuration is the same in all processes: all, but for where a machine has its files."""
    return {key: value for key, value in flatten(config.to_dict()).items() if key not in PLACES}


def _train(config: RunConfig, run: RunFolder, world: World, data: PreparedData, progress: bool) -> None:
    """Train in a folder that is this process's own."""
    with world.agreeing() as facts:  # at its end every process has read the folder before one writes in it
        state = setup(config, run, world, data)
        changes = changes_since(run, state.environment) if run.is_interrupted() else {}
        path, problems = (
            (None, [])
            if run.is_finished()
            else checkpoint.sound_state(run.resume, lambda facts: _check_state(state, facts))
        )
        facts |= {"precision": state.precision, "device": world.device.type, **state.environment["code"]}
        facts["the saved state"] = path and path.name
    with held():
        if path:
            _load(state, path, problems, changes)
        elif world.is_main:
            _start(state)
        fit(state, progress and world.is_main)
        if world.is_main:
            _finish(state)
        world.wait()


def setup(config: RunConfig, run: RunFolder, world: World, data: PreparedData) -> State:
    """Model, method, optimizer, ledger and batches of a run at step 0."""
    if config.train.batch_size % world.size:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}; allowed: a multiple of the {world.size} processes"
        )
    if world.device.type == "cpu":
        matrices = sum(math.prod(shape) for shape in matrix_shapes(config).values())
        check_memory(16 * matrices, "weights, gradient and Adam's moments")
    keep_memory()
    # told only to warn, attention's gradient on a GPU would not be deterministic
    torch.use_deterministic_algorithms(True, warn_only=world.device.type == "cpu")
    # a debugging aid that costs a tenth of the time
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    model = build_model(config, data.manifest["end_of_text_id"]).to(world.device)
    algorithm = build_trained(config)
    masked = select_masked_shapes(config)
    algorithm.apply(model, lambda name, _: name in masked)
    check_counts(algorithm, 0)
    size, micro, context = config.train.batch_size, config.train.micro_batch_size, config.model.n_positions
    precision = precision_of(run, config.train.precision, world.device)
    engine = Engine(model, algorithm, config.train.kernels, precision == "bf16", HEAD, limits_of(run))
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
        environment=environment(world, precision, engine, data, code_of(config)),
        resources=Resources(world.device),
        tokenizer_folder=data.tokenizer_folder,
        snapshot_steps=frozenset(snapshot_steps(config, algorithm.schedules)),
    )


def fit(state: State, progress: bool) -> None:
    """Train to the last step, logging, validating and saving on the way; or to where a signal asks to end.

    Raises:
        Interrupted: by a signal, once the step that it came in is done and saved.
    """
    config = state.config.train
    forward = parallel_forward(state)
    flops = state.ledger.dense_step_flops()
    course = Course(state.run.path, state.config.to_dict(), state.step, config.steps, flops)
    with observer(course, read_asked_for() if state.world.is_main else [], progress) as seen:
        while state.step < config.steps:
            began = time.perf_counter()
            try:
                with blaming():
                    row = train_step(state, forward)
                    state.seconds += time.perf_counter() - began
                    row |= _observe(state, row["loss"])
                    _log(state, row, seen)
            except TrainingError as error:
                _fail(state, error, seen)
                raise
            number = (
                state.world.any(read_signal()) if state.step < config.steps else None
            )  # else it is all but finished
            if number or (state.step % config.checkpoint_freq == 0 and state.step < config.steps):
                with state.resources.part("saving"):
                    _save(state, seen)
            if number:
                raise Interrupted(number, f"{state.run.path} is saved at step {state.step}; --resume goes on with it")


def _observe(state: State, loss: float) -> dict[str, str]:
    """Let the method see the loss; the reason, where it decides something by it."""
    reason = state.algorithm.observe(state.step, loss)
    if not reason:
        return {}
    state.snapshot_steps = frozenset(snapshot_steps(state.config, state.algorithm.schedules))
    if state.world.is_main:
        tell(f"{state.run.path}: step {state.step}: {reason}")
    return {"reason": reason}


def _log(state: State, row: dict[str, Any], seen: Observer) -> None:
    config, last = state.config.train, state.step == state.config.train.steps
    evaluates = state.step % config.eval_freq == 0 or last
    is_snapshot = state.step in state.snapshot_steps
    logs = evaluates or is_snapshot or "reason" in row or state.step % config.log_freq == 0
    spent = state.ledger.components()
    row = {
        "step": state.step,
        "tokens": state.step * state.ledger.tokens_per_step,
        **row,
        "sparsity": state.algorithm.sparsity(),
        "flops": spent,
    }
    if evaluates:
        with state.resources.part("evaluation"):
            row["validation_loss"] = (
                validate(state, "dense", None) if last else validate(state, state.pattern, config.eval_batches)
            )
        check_finite(state.step, row["validation_loss"])
    if is_snapshot:
        with state.resources.part("evaluation"):
            row |= _snapshot(state, row, last)
    row |= {
        "tokens_per_second": row["tokens"] / state.seconds,
        "memory_bytes": peak_memory(state.world.device),
        "seconds": state.seconds,
    }
    if logs:
        row["resources"] = state.resources.take()
        state.rows["metrics.jsonl"].append(row)
        _flush(state, seen)
    for remark in state.algorithm.meter.take_remarks() if state.world.is_main else ():
        tell(f"{state.run.path}: {remark}")
    seen.step(row)


def _snapshot(state: State, row: dict[str, Any], last: bool) -> dict[str, Any]:
    """Judge and keep the model as it is now; what is to be logged of it. After the last step it is the checkpoint."""
    dense = row["validation_loss"] if last else validate(state, "dense", None)
    own = dense if row["attention_pattern"] == "dense" else validate(state, row["attention_pattern"], None)
    check_finite(state.step, own, dense)
    logged = {OWN_LOSS: own, DENSE_LOSS: dense}
    if state.world.is_main and not last:
        folder = snapshot_folder(state.run, state.step)
        checkpoint.save_checkpoint(folder, state.model, state.algorithm.masks, state.tokenizer_folder)
        logged[SHA256] = sha256(folder / WEIGHTS)
    return logged


def _flush(state: State, seen: Observer) -> None:
    if state.world.is_main:
        for log, rows in state.rows.items():
            state.run.append(log, rows)
        seen.logged(state.rows)
    for rows in state.rows.values():
        rows.clear()


def _check_folder(run: RunFolder) -> None:
    """Raises UserError where the folder holds something, but no run."""
    names = run.entries()
    is_other = names and not names & {"config.yaml", "status.json"}
    if is_other or (os.path.lexists(run.path) and not run.path.is_dir()):
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
            f"{run.path} holds a {status['status']} run at step {status['step']}, whose process has ended; "
            "--resume goes on with it"
        )


def _start(state: State) -> None:
    state.run.begin(state.config.to_dict(), state.environment | record_registration())


def _save(state: State, seen: Observer) -> None:
    if state.world.is_main:
        _flush(state, seen)
        facts = {"step": state.step, "seconds": state.seconds, "ledger": state.ledger.state()}
        facts |= {"run": _identity(state), "logs": state.run.log_sizes()}
        facts |= {"resources": state.resources.state()}
        checkpoint.save_state(state.run.resume, state.step, state.model, state.optimizer, state.algorithm, facts)
        state.run.write_status("running", step=state.step, seconds=state.seconds)
    state.world.wait()


def _identity(state: State) -> dict[str, Any]:
    """What says whose state a saved one is."""
    settings = {key: value for key, value in flatten(state.config.to_dict()).items() if key not in NO_RESULT}
    return {"settings": settings, "shards": state.environment["shards"]}


def _check_state(state: State, facts: dict[str, Any]) -> None:
    """Raises DamagedError where a saved state is another run's, or does not agree with this one's logs."""
    if facts.get("run") != json.loads(json.dumps(_identity(state))):
        raise explain_damage(state.run.resume / f"step-{facts.get('step', 0):08d}", "it is the state of another run")
    state.run.check_logs(facts["logs"])


def _load(state: State, path: Path, problems: list[str], changes: dict[str, list[Any]]) -> None:
    """Go on from a saved state, under changed circumstances; `problems` are those of newer ones, passed over."""
    run = state.run
    facts = checkpoint.load_state(path, state.model, state.optimizer, state.algorithm)
    state.step, state.seconds = facts["step"], facts["seconds"]
    state.ledger.load_state(facts["ledger"])
    state.resources.load_state(facts.get("resources", {}))  # a state from before they were kept has none
    state.snapshot_steps = frozenset(snapshot_steps(state.config, state.algorithm.schedules))
    if state.world.is_main:
        run.truncate_logs(facts["logs"])
        remove_after(run, state.step)
        for line in (*problems, *describe_changes(changes)):
            tell(f"{run.path}: {line}; going on from step {state.step}, and recorded")
        if changes or problems:
            run.append_environment(state.step, changes | ({"damaged": problems} if problems else {}))
        run.write_status("running", step=state.step, seconds=state.seconds)
    state.world.wait()


def _fail(state: State, error: TrainingError, seen: Observer) -> None:
    if state.world.is_main:
        _flush(state, seen)
        facts = {"reason": str(error), "kind": type(error).__name__}
        state.run.write_status("failed", **facts, step=state.step, seconds=state.seconds)


def _finish(state: State) -> None:
    run = state.run
    write_json(run.path / "flops.json", state.ledger.report(state.algorithm.nnz))
    _report(state)
    if state.algorithm.masks:
        run.write_masks({name: mask.cpu().numpy() for name, mask in state.algorithm.masks.items()})
    checkpoint.save_checkpoint(run.checkpoint, state.model, state.algorithm.masks, state.tokenizer_folder)
    offer_cards(run)
    tokens = state.step * state.ledger.tokens_per_step
    run.write_status("finished", step=state.step, seconds=state.seconds, tokens_per_second=tokens / state.seconds)
    checkpoint.remove_states(run.resume)


def _report(state: State) -> None:
    """Write what the run used; where that fails, a line says so, and the run is finished without it."""
    file = state.run.path / "resources.json"
    try:
        write_json(file, _resources(state))
    except Exception as error:  # a full disk; a GPU without memory for the product that measures its peak
        tell(f"{file} is not written ({described_error(error)}); the run is finished without it")


def _resources(state: State) -> dict[str, Any]:
    spent = {phase: total(components, "head_counted_causal") for phase, components in state.ledger.phases.items()}
    dense_step = total(state.ledger.dense_step, "head_counted_causal")
    return state.resources.report(spent, dense_step, state.precision, state.world.size)
