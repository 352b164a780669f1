"""Saving a run: the trainer's whole state, to go on from bit for bit, and the finished model as a Hugging Face folder."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_state(folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, algorithm: Any, facts: dict[str, Any]) -> None:
    """Write `folder/step-<n>/` and then remove the older ones: at any moment one complete state is there.

    Args:
        facts: what is no tensor, as JSON.
    """
    tensors = {f"model.{name}": param.detach() for name, param in model.named_parameters()}
    for name, param in model.named_parameters():
        tensors |= {f"{key}.{name}": value for key, value in optimizer.state.get(param, {}).items() if key in _MOMENTS}
    tensors |= {f"algorithm.{key}": value for key, value in algorithm.state_dict().items()}
    partial = folder / f".partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, partial / "state.safetensors")
    (partial / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
    older = [path for path in folder.iterdir() if path != partial]
    target = folder / f"step-{step:08d}"
    shutil.rmtree(target, ignore_errors=True)
    os.replace(partial, target)
    for path in older:
        shutil.rmtree(path, ignore_errors=True)


def saved_state(folder: Path) -> Path | None:
    """The newest complete state in `folder`, if there is one."""
    return max(folder.glob("step-*"), default=None)


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, algorithm: Any) -> dict[str, Any]:
    """Restore what `save_state` wrote, in place; returns its facts."""
    tensors = load_file(path / "state.safetensors")
    for name, param in model.named_parameters():
        param.data.copy_(tensors[f"model.{name}"])
        moments = {key: tensors[f"{key}.{name}"].to(_moment_device(key, param)) for key in _MOMENTS if f"{key}.{name}" in tensors}
        if moments:
            optimizer.state[param] = moments
    prefix = "algorithm."
    algorithm.load_state_dict({name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)})
    return json.loads((path / "facts.json").read_text(encoding="utf-8"))


def save_checkpoint(folder: Path, model: nn.Module, tokenizer_folder: Path) -> None:
    """The finished model: a plain Hugging Face folder that `AutoModelForCausalLM` loads with no code of ours."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    for file in tokenizer_folder.iterdir():
        shutil.copy(file, partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _moment_device(key: str, param: Tensor) -> torch.device:
    return param.device if key != "step" or param.is_cuda else torch.device("cpu")


def remove_states(folder: Path) -> None:
    """Remove what `save_state` wrote, once the run is finished."""
    shutil.rmtree(folder, ignore_errors=True)
