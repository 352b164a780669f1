"""The run folder: what is in it, reading, writing and locking it. Imports no torch."""

import json
import os
import shlex
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from replication.config.keys import find_differing_keys
from replication.config.run_config import NO_RESULT, RunConfig, build_config, without_removed
from replication.runs.ownership import owned, this_process, write_lock
from replication.system.errors import DamagedError, UserError
from replication.system.files import (
    PACKED,
    PARTIAL,
    Json,
    check_sha256,
    explain_damage,
    find_stored,
    open_log,
    open_regular,
    parse_json,
    read_json,
    read_masks,
    read_text,
    sha256,
    unpack_log,
    write_atomically,
    write_masks,
    write_sealed,
    writing,
)

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where there is one: a table reads hundreds of files
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
STATES = ("running", "finished", "failed")
LOGS = {  # and what each of their rows has; they may lie packed, with `PACKED` after their names
    "metrics.jsonl": {"step", "loss"},
    "topology.jsonl": {"step", "layer", "size", "nnz", "dropped", "grown", "overlap_first", "ever_active"},
}
SNAPSHOTS = "at"  # where the model is, as it was on the way: `snapshots`
STARTED = ("config.yaml",)  # as it is from a run's start on
CARD = "README.md"  # of a checkpoint: it tells of scores too, so it is written anew, and under no seal
FINISHED = (*STARTED, "environment.json", *LOGS, "flops.json", "resources.json", "masks.npz", "checkpoint/*")
# What files raise that are JSON, but not a run's.
UNREADABLE = (KeyError, TypeError, AttributeError, ValueError, OverflowError)


class RunFolder:
    """`<results>/<profile>/<arm>/seed-<n>/`; each method reads or writes one of its files.

    Reading raises DamagedError, naming the file, where it is not as it was written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def name(self) -> str:
        """`<arm>/seed-<n>`."""
        return f"{self.path.parent.name}/{self.path.name}"

    @property
    def checkpoint(self) -> Path:
        """The finished model, a plain Hugging Face folder."""
        return self.path / "checkpoint"

    @property
    def resume(self) -> Path:
        """The trainer's state, as of the last saves."""
        return self.path / "resume"

    def entries(self) -> set[str]:
        """Names of what is in the folder, but for files that were being written; empty where there is no folder."""
        if not self.path.is_dir():
            return set()
        return {path.name for path in self.path.iterdir() if not path.name.endswith(PARTIAL)}

    def config(self) -> Json:
        file = self.path / "config.yaml"
        try:
            config = yaml.load(read_text(file), LOADER)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise explain_damage(file, str(error).partition("\n")[0]) from None
        if not isinstance(config, dict):
            raise explain_damage(file, "it holds no keys")
        return without_removed(config)

    def status(self) -> Json:
        """`{}` if there is no run, else `status` (running | finished | failed), `reason`, `step`, `seconds`,
        `tokens_per_second` (finished), `sha256` by file, and `owner` (running): host, pid and the last sign of life of
        the process that trains it."""
        status = self._json("status.json") or {}
        if status and not (status.get("status") in STATES and isinstance(status.get("sha256", {}), dict)):
            raise explain_damage(self.path / "status.json", "it is not a run's")
        return status

    def environment(self) -> Json:
        """Machine, versions, execution and text; `{}` if they were not kept."""
        return self._json("environment.json") or {}

    def metrics(self) -> list[Json]:
        """One mapping per logged step, in order."""
        return self._lines("metrics.jsonl")

    def topology(self) -> list[Json]:
        """One mapping per topology update and layer, in order."""
        return self._lines("topology.jsonl")

    def flops(self) -> Json:
        return self._json("flops.json")

    def resources(self) -> Json:
        """What its phases used (`training.resources`); None: it is from before this was kept, or not finished."""
        return self._json("resources.json")

    def evals(self) -> dict[str, Json]:
        """Task name -> lm-eval's own output, which is of this run's checkpoint."""
        return scores_in(self.path / "eval", self.status().get("sha256", {}).get("checkpoint/model.safetensors"))

    def masks(self) -> dict[str, np.ndarray]:
        """Layer name -> the final boolean mask, in the weight's shape; `{}` for a dense run."""
        file = self.path / "masks.npz"
        return read_masks(file) if file.exists() else {}

    def is_finished(self) -> bool:
        return self.status().get("status") == "finished"

    def is_interrupted(self) -> bool:
        """Did a training begin here that has not finished?"""
        status = self.status()
        return "step" in status and status["status"] != "finished"

    def is_trained(self, config: RunConfig) -> bool:
        """Is this very run finished, with its checkpoint? (Committed runs are logs only.)

        Raises:
            UserError: the folder holds a run of another configuration; the line names the differing keys.
            DamagedError: a file of the run is not as it was written.
        """
        try:
            begun = self._is_begun()
        except DamagedError as error:
            raise DamagedError(
                f"{error}; another folder, or this one removed ({self.path}), has the run trained anew"
            ) from None
        if not begun:
            return False
        # A key added since then has its default.
        differing = find_differing_keys(config.to_dict(), self.configuration().to_dict())
        keys = [key for key in differing if key not in NO_RESULT]
        if keys:
            raise UserError(
                f"{self.path} holds a run of another configuration: {', '.join(keys)} differ; "
                "give another folder (--out or --results DIR, make RESULTS=DIR), or remove this one "
                f"(rm -r {shlex.quote(str(self.path))})"
            )
        return self.is_finished() and (self.checkpoint / "model.safetensors").exists()

    def verify(self, without: Iterable[str] = ()) -> None:
        """Raises DamagedError unless every file has the sha256 that the status records; runs from before it did pass.

        Args:
            without: files of `FINISHED` that are not looked at.
        """
        for name, expected in self.status().get("sha256", {}).items():
            if not any(Path(name).match(pattern) for pattern in without):
                self._check(name, expected)

    def owned(self, wait: bool = False) -> AbstractContextManager[None]:
        """The right to write here, which one process at a time has: `ownership.owned`."""
        return owned(self.path, wait)

    def write_config(self, config: Mapping[str, Any]) -> None:
        write_atomically(self.path / "config.yaml", yaml.dump(dict(config), Dumper=DUMPER, sort_keys=False))

    def write_status(self, status: str, **facts: Any) -> None:
        """With this process as the owner of what is running, and the sha256 of each file that changes no more."""
        fixed = FINISHED if status == "finished" else STARTED if "step" in facts else ()
        files = sorted(
            file for pattern in fixed for file in self.path.glob(pattern) if file.is_file() and file.name != CARD
        )
        sums = {file.relative_to(self.path).as_posix(): sha256(file) for file in files}
        owner = {"owner": this_process()} if status == "running" else {}
        told = {"status": status, "reason": None, **facts, **owner, "sha256": sums}
        with write_lock:
            write_sealed(self.path / "status.json", told)

    def write_masks(self, masks: Mapping[str, np.ndarray]) -> None:
        write_masks(self.path / "masks.npz", masks)

    def begin(self, config: Mapping[str, Any], environment: Json) -> None:
        """Make this the folder of a new run at step 0; nothing that an earlier training left is taken for its own."""
        self.write_status("running")  # from here on an interruption leaves a run that starts anew
        for folder in ("checkpoint", "resume", "eval", "tensorboard", SNAPSHOTS):
            shutil.rmtree(self.path / folder, ignore_errors=True)
        for file in (*LOGS, *(log + PACKED for log in LOGS), "flops.json", "resources.json", "masks.npz"):
            (self.path / file).unlink(missing_ok=True)
        self.write_config(config)
        write_sealed(self.path / "environment.json", environment)
        self.write_status("running", step=0)

    def append_environment(self, step: int, changes: Json) -> None:
        """Record under `resumed` that the run went on from `step` with these changes, key -> [before, now]."""
        environment = self.environment()
        resumed = [*environment.get("resumed", []), {"step": step, **changes}]
        write_sealed(self.path / "environment.json", environment | {"resumed": resumed})

    def log_sizes(self) -> dict[str, Json]:
        """Bytes in each log now, and their sha256; a resumed run goes back to them, so that it doubles no line."""
        sizes = {name: file.stat().st_size if (file := self.path / name).exists() else 0 for name in LOGS}
        return {name: {"bytes": size, "sha256": sha256(self.path / name, size)} for name, size in sizes.items() if size}

    def check_logs(self, sizes: Mapping[str, Json]) -> None:
        """Raises DamagedError where a log is not as it was up to the recorded size."""
        for name, log in sizes.items():
            self._check(name, log["sha256"], log["bytes"])

    def truncate_logs(self, sizes: Mapping[str, Json]) -> None:
        """Cut each log to its recorded size; one that lay packed lies plain from here on, as `append` needs it."""
        for name in LOGS:
            unpack_log(self.path / name)
            if (file := self.path / name).exists():
                os.truncate(file, sizes.get(name, {"bytes": 0})["bytes"])

    def append(self, log: str, rows: Iterable[Json]) -> None:
        """Raises UserError: the log cannot be written."""
        with writing(self.path / log), (self.path / log).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def _is_begun(self) -> bool:
        """Does the folder hold a run, or a part of one? Raises DamagedError: it is not as it was written."""
        if not self.status():
            if left := self.entries():
                raise explain_damage(self.path / "status.json", f"it is missing, beside {min(left)}")
            return False
        self.verify(without=() if self.checkpoint.exists() else ["checkpoint/*"])
        if not self.environment() and self.is_interrupted():
            raise explain_damage(self.path / "environment.json", "it is missing")
        return (self.path / "config.yaml").exists()  # else its first moments were its last

    def configuration(self) -> RunConfig:
        """`config.yaml`, typed. Raises UserError where it is none of this version's."""
        try:
            return build_config(self.config())
        except DamagedError:
            raise
        except UserError as error:
            raise UserError(f"{self.path / 'config.yaml'}: {error}") from None

    def _check(self, name: str, expected: str, size: int | None = None) -> None:
        """Raises DamagedError unless a file has this sha256; a packed log's is that of its content."""
        file, opener = (find_stored(self.path / name), open_log) if name in LOGS else (self.path / name, open_regular)
        check_sha256(file, expected, size, opener)

    def _json(self, name: str) -> Any:
        file = self.path / name
        value = read_json(file) if file.exists() else None
        if value is not None and not isinstance(value, dict):
            raise explain_damage(file, "it holds no object")
        return value

    def _lines(self, name: str) -> list[Json]:
        file = find_stored(self.path / name)
        text = read_text(file, open_log) if file.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # not a last line that is still being written
        rows = [parse_json(file, line) for line in whole.splitlines()]
        if not all(isinstance(row, dict) and row.keys() >= LOGS[name] for row in rows):
            raise explain_damage(file, "a line of it is no row of a run's")
        return rows


def scores_in(folder: Path, weights: str | None) -> dict[str, Json]:
    """Task name -> lm-eval's own output, of a checkpoint whose weights have this sha256 (None: it was not recorded)."""
    try:
        scores = {file.stem: read_json(file) for file in sorted(folder.glob("*.json"))}
        for task, score in scores.items():
            results = score.get("results") if isinstance(score, dict) else None
            if not (isinstance(results, dict) and all(isinstance(result, dict) for result in results.values())):
                raise explain_damage(folder / f"{task}.json", "it is not lm-eval's")
            if weights and score.get("checkpoint", weights) != weights:
                raise explain_damage(folder / f"{task}.json", "it is of another checkpoint")
        return scores
    except DamagedError as error:
        raise DamagedError(f"{error}; remove it to have its task scored anew") from None
