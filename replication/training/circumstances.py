"""What a run's numbers depend on beside its configuration; and what of it may change while the run lasts."""

import shlex
from dataclasses import replace
from typing import Any

import torch

from replication.config.run_config import RunConfig
from replication.data import PreparedData
from replication.data.tokenizer import entries_asked_for
from replication.kernels.choice import Limits, limits
from replication.kernels.engine import Engine
from replication.runs.folder import RunFolder
from replication.system.errors import UserError
from replication.system.files import Json
from replication.system.machine import cpu_precision, machine
from replication.system.signals import tell
from replication.training.world import World

# What may not change in a run that goes on; anything else changes rounding at most, and is recorded.
FIXED = ("precision", "processes", "shards", "device")
FINAL_LOSS_OVER = "whole split"  # runs from before this was recorded: over train.eval_batches


def environment(world: World, precision: str, engine: Engine, data: PreparedData, code: dict[str, str]) -> Json:
    """Machine, versions, execution, and the sha256 of the tokens and of the code from outside (`methods.code_of`): a
    run's `environment.json`."""
    device = torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu"
    execution = {"device": device, "processes": world.size, "precision": precision}
    execution |= {"kernels": engine.kernels, "sparse_up_to": engine.limits if engine.kernels == "auto" else {}}
    return machine() | execution | {"shards": data.shards, "code": code, "final_loss_over": FINAL_LOSS_OVER}


def resolve_precision(precision: str, device: torch.device) -> str:
    """`bf16` or `fp32`: `auto` is bf16 where the device multiplies in it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return cpu_precision()


def precision_of(run: RunFolder, configured: str, device: torch.device) -> str:
    """`bf16` or `fp32`: of a run that goes on, what it began with, wherever it goes on; else `resolve_precision`'s."""
    here = resolve_precision(configured, device)
    begun = run.environment().get("precision", here) if run.is_interrupted() else here
    if begun != here:
        tell(f"{run.path}: goes on in {begun}, as it began, where train.precision=auto would be {here}")
    return begun


def fit_entries(config: RunConfig, run: RunFolder, data: PreparedData) -> RunConfig:
    """With as many entries as the tokenizer has, where these are fewer than were asked for; a run that goes on keeps
    the model that it began with."""
    if run.is_interrupted():
        return replace(config, entries=run.configuration().entries)
    entries = data.vocab_size
    return replace(config, entries=entries if entries < entries_asked_for(config.data) else None)


def limits_of(run: RunFolder) -> Limits:
    """By which kernels are chosen: in a run that goes on those that it began with, so that it ends as it would have.

    Of a run from before they were recorded, or that chose none, those of the first time that it went on with some.
    """
    begun = run.environment() if run.is_interrupted() else {}
    changed = (record["sparse_up_to"][1] for record in begun.get("resumed", []) if "sparse_up_to" in record)
    return next(filter(None, [begun.get("sparse_up_to"), *changed]), None) or limits()


def check_code(run: RunFolder, code: dict[str, str], whole: bool = False) -> None:
    """Raises UserError where the run was trained by another version of what is not this package's code.

    Args:
        code: what -> sha256 (`methods.code_of`).
        whole: what was not there is another version too; but for metrics, which change no weight.
    """
    recorded = run.environment().get("code")
    if recorded is None:  # from before it was recorded
        return
    either = {what for what in recorded.keys() | code.keys() if whole and not what.startswith("metric ")}
    for what in sorted(either | (recorded.keys() & code.keys())):
        theirs, ours = (versions.get(what, "none")[:12] for versions in (recorded, code))
        if theirs != ours:
            raise UserError(
                f"{run.path} was trained by another version of {what} (sha256 {theirs}…, here {ours}…); "
                "allowed: that one, another folder (--out or --results DIR, make RESULTS=DIR), or none "
                f"(rm -r {shlex.quote(str(run.path))})"
            )


def changes_since(run: RunFolder, now: Json) -> dict[str, list[Any]]:
    """Key -> [before, now] of what differs from when the run was last trained.

    Raises:
        UserError: something has changed that makes it another run.
    """
    check_code(run, now["code"], whole=True)
    before = {"code": now["code"]} | run.environment()
    for record in before.pop("resumed", []):
        before |= {key: change[1] for key, change in record.items() if key in now}
    changes = {key: [before.get(key), now[key]] for key in now if before.get(key) != now[key]}
    for key in FIXED:
        if key in changes and (key != "device" or "cpu" in changes[key]):  # one GPU may give way to another
            raise UserError(
                f"{run.path} was trained with {key} {before.get(key)}, and here it is {now[key]}; "
                "allowed: what it began with, or another folder"
            )
    return changes


def describe_changes(changes: dict[str, list[Any]]) -> list[str]:
    """For the terminal."""
    return [f"{key} was {before}, and is {now}" for key, (before, now) in changes.items()]
