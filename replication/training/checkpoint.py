"""Saving a run: its whole state, to go on from bit for bit, and the finished model as a Hugging Face folder."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from replication.data.tokenizer import copy_tokenizer
from replication.runs.snapshots import MASKS
from replication.system.errors import DamagedError
from replication.system.files import Json, check_sha256, read_json, sha256, unwritable, write_sealed

KEPT = 2  # states: should the newest be damaged, the one before it serves
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_TENSORS, _FACTS = "state.safetensors", "facts.json"


def save_state(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, algorithm: Any, facts: Json
) -> None:
    """Write `folder/step-<n>/` under a checksum, and then remove all but the last `KEPT`.

    Args:
        facts: what is no tensor, as JSON.

    Raises:
        UserError: it cannot be written; the states before it are kept.
    """
    tensors = {f"model.{name}": param.detach() for name, param in model.named_parameters()}
    for name, param in model.named_parameters():
        tensors |= {f"{key}.{name}": value for key, value in optimizer.state.get(param, {}).items() if key in _MOMENTS}
    tensors |= {f"algorithm.{key}": value for key, value in algorithm.state_dict().items()}
    partial = folder / f".partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    with _writing(folder, partial):
        partial.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial / _TENSORS)
    write_sealed(partial / _FACTS, facts | {"sha256": sha256(partial / _TENSORS)})
    target = folder / f"step-{step:08d}"
    _remove(target)
    partial.replace(target)
    kept = _states(folder)[-KEPT:]
    for path in folder.iterdir():
        if path not in kept:
            _remove(path)


def sound_state(folder: Path, check: Callable[[Json], None]) -> tuple[Path | None, list[str]]:
    """The newest undamaged state in `folder`, None where none was saved; and what is wrong with those that are newer.

    Args:
        check: raises DamagedError where a state's facts do not agree with the rest of the run.

    Raises:
        DamagedError: there are states, and all are damaged.
    """
    problems: list[str] = []
    for path in reversed(_states(folder)):
        try:
            facts = read_json(path / _FACTS)
            check_sha256(path / _TENSORS, facts["sha256"])
            check(facts)
            return path, problems
        except (DamagedError, KeyError, TypeError) as error:
            problems.append(str(error) if isinstance(error, DamagedError) else f"{path / _FACTS} names no checksum")
    if problems:
        raise DamagedError(f"{'; '.join(problems)}; no state before it is left: remove {folder} to train the run anew")
    return None, []


def _states(folder: Path) -> list[Path]:
    """What has a state's name, the newest last; whatever else lies there is none."""
    return sorted(path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, algorithm: Any) -> Json:
    """Restore what `save_state` wrote, in place; returns its facts."""
    tensors = load_file(path / _TENSORS)
    for name, param in model.named_parameters():
        param.data.copy_(tensors[f"model.{name}"])
        moments = {
            key: tensors[f"{key}.{name}"].to(_moment_device(key, param))
            for key in _MOMENTS
            if f"{key}.{name}" in tensors
        }
        if moments:
            optimizer.state[param] = moments
    prefix = "algorithm."
    algorithm.load_state_dict(
        {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    )
    return read_json(path / _FACTS)


def save_checkpoint(folder: Path, model: Any, masks: Mapping[str, Tensor], tokenizer_folder: Path) -> None:
    """The finished model: a plain Hugging Face folder that `AutoModelForCausalLM` loads with no code of ours.

    Args:
        masks: by the weight's name, boolean and of its shape; kept beside the weights, unless there are none.

    Raises:
        UserError: it cannot be written.
    """
    partial = folder.with_name(f".{folder.name}")  # of this name one is left at most, whatever was interrupted
    shutil.rmtree(partial, ignore_errors=True)
    with _writing(folder, partial):
        model.save_pretrained(partial)
        copy_tokenizer(tokenizer_folder, partial, model.config.n_positions)
        if masks:
            save_file({name: mask.contiguous() for name, mask in masks.items()}, partial / MASKS)
    shutil.rmtree(folder, ignore_errors=True)
    partial.replace(folder)


@contextmanager
def _writing(folder: Path, partial: Path) -> Iterator[None]:
    """Raises UserError where `partial` cannot be written, which is removed then; what was saved before is kept."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise unwritable(folder, error) from None


def _moment_device(key: str, param: Tensor) -> torch.device:
    return param.device if key != "step" or param.is_cuda else torch.device("cpu")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_states(folder: Path) -> None:
    """Remove what `save_state` wrote, once the run is finished."""
    shutil.rmtree(folder, ignore_errors=True)
