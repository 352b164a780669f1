"""The run folder: what is in it, and reading and writing it. Imports no torch."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from replication.config import RunConfig, build_config, differing_keys
from replication.errors import UserError

Json = dict[str, Any]


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=1) + "\n")


class RunFolder:
    """`<results>/<profile>/<arm>/seed-<n>/`; each method reads or writes one of its files."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def checkpoint(self) -> Path:
        """The finished model, a plain Hugging Face folder."""
        return self.path / "checkpoint"

    @property
    def resume(self) -> Path:
        """The trainer's state, as of the last save."""
        return self.path / "resume"

    def config(self) -> Json:
        return yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))

    def status(self) -> Json:
        """`{"status": "running" | "finished" | "failed", "reason", "step", "seconds", "tokens_per_second"}`; `{}` if there is no run."""
        return self._json("status.json") or {}

    def environment(self) -> Json:
        """Machine, versions and execution; `{}` if they were not kept."""
        return self._json("environment.json") or {}

    def metrics(self) -> list[Json]:
        """One mapping per logged step, in order."""
        return self._lines("metrics.jsonl")

    def topology(self) -> list[Json]:
        """One mapping per topology update and layer, in order."""
        return self._lines("topology.jsonl")

    def flops(self) -> Json:
        return self._json("flops.json")

    def evals(self) -> dict[str, Json]:
        """Task name -> lm-eval's own output."""
        return {file.stem: _parse(file, file.read_text(encoding="utf-8")) for file in sorted((self.path / "eval").glob("*.json"))}

    def masks(self) -> dict[str, np.ndarray]:
        """Layer name -> the final boolean mask, in the weight's shape; `{}` for a dense run."""
        file = self.path / "masks.npz"
        if not file.exists():
            return {}
        with np.load(file) as packed:
            names = [name for name in packed.files if not name.endswith(".shape")]
            return {name: _unpack(packed[name], packed[f"{name}.shape"]) for name in names}

    def is_finished(self) -> bool:
        return self.status().get("status") == "finished"

    def is_trained(self, config: RunConfig) -> bool:
        """Is this very run finished, with its checkpoint? (Committed runs are logs only.)

        Raises:
            UserError: the folder holds a run of another configuration; the line names the differing keys.
        """
        if not (self.path / "config.yaml").exists():
            return False
        keys = differing_keys(config.to_dict(), build_config(self.config()).to_dict())  # a key added since then has its default
        if keys:
            raise UserError(f"{self.path} holds a run of another configuration: {', '.join(keys)} differ; give another folder, or remove this one")
        return self.is_finished() and (self.checkpoint / "model.safetensors").exists()

    def write_config(self, config: Mapping[str, Any]) -> None:
        write_atomically(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))

    def write_status(self, status: str, **facts: Any) -> None:
        write_json(self.path / "status.json", {"status": status, "reason": None, **facts})

    def write_masks(self, masks: Mapping[str, np.ndarray]) -> None:
        arrays = {name: np.packbits(mask) for name, mask in masks.items()}
        shapes = {f"{name}.shape": np.array(mask.shape) for name, mask in masks.items()}
        np.savez(self.path / "masks.npz", **arrays, **shapes)

    def clear(self) -> None:
        """Remove what an earlier training of this run left, so that nothing of it is taken for the new one's."""
        for folder in ("checkpoint", "resume", "eval"):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for file in ("metrics.jsonl", "topology.jsonl", "flops.json", "masks.npz"):
            (self.path / file).unlink(missing_ok=True)

    def log_sizes(self) -> dict[str, int]:
        """Bytes in each log now; `truncate_logs` goes back to them, so that a resumed run doubles no line."""
        return {name: file.stat().st_size if (file := self.path / name).exists() else 0 for name in ("metrics.jsonl", "topology.jsonl")}

    def truncate_logs(self, sizes: Mapping[str, int]) -> None:
        for name, size in sizes.items():
            if (file := self.path / name).exists():
                os.truncate(file, size)

    def append(self, log: str, rows: Iterable[Json]) -> None:
        with (self.path / log).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def _json(self, name: str) -> Any:
        file = self.path / name
        return _parse(file, file.read_text(encoding="utf-8")) if file.exists() else None

    def _lines(self, name: str) -> list[Json]:
        file = self.path / name
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # not a last line that is still being written
        return [_parse(file, line) for line in whole.splitlines()]


def find_runs(results: Path | str, profile: str) -> list[RunFolder]:
    """The finished runs of a profile, by arm and seed."""
    statuses = Path(results).joinpath(profile).glob("*/seed-*/status.json")
    runs = [RunFolder(file.parent) for file in statuses if file.parent.name.removeprefix("seed-").isdecimal()]
    return sorted((run for run in runs if run.is_finished()), key=_arm_and_seed)


def _parse(file: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is damaged ({error}); allowed: a run folder as it was written; remove it to train the run anew") from None


def _arm_and_seed(run: RunFolder) -> tuple[str, int]:
    return run.path.parent.name, int(run.path.name.removeprefix("seed-"))


def _unpack(bits: np.ndarray, shape: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits, count=int(np.prod(shape))).astype(bool).reshape(shape)
