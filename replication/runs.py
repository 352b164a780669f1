"""The run folder: what is in it, reading, writing and locking it. Imports no torch."""

import json
import os
import shlex
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from replication.config import NO_RESULT, RunConfig, build_config, without_removed
from replication.errors import DamagedError, UserError
from replication.files import (
    PACKED,
    PARTIAL,
    Json,
    check_sha256,
    damaged,
    open_log,
    open_regular,
    parse_json,
    read_json,
    read_masks,
    read_text,
    real_path,
    sha256,
    stored,
    unpack_log,
    write_atomically,
    write_masks,
    write_sealed,
    writing,
)
from replication.keys import differing_keys
from replication.ownership import owned, this_process, write_lock
from replication.profiles import arm_names, default_seeds, named

if TYPE_CHECKING:
    from replication.frames import Run

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where there is one: a table reads hundreds of files
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
REFERENCE = Path(__file__).resolve().parents[1] / "results" / "reference"  # the runs that we committed
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
            raise damaged(file, str(error).partition("\n")[0]) from None
        if not isinstance(config, dict):
            raise damaged(file, "it holds no keys")
        return without_removed(config)

    def status(self) -> Json:
        """`{}` if there is no run, else `status` (running | finished | failed), `reason`, `step`, `seconds`,
        `tokens_per_second` (finished), `sha256` by file, and `owner` (running): host, pid and the last sign of life of
        the process that trains it."""
        status = self._json("status.json") or {}
        if status and not (status.get("status") in STATES and isinstance(status.get("sha256", {}), dict)):
            raise damaged(self.path / "status.json", "it is not a run's")
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
        differing = differing_keys(config.to_dict(), self.configuration().to_dict())
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
                raise damaged(self.path / "status.json", f"it is missing, beside {min(left)}")
            return False
        self.verify(without=() if self.checkpoint.exists() else ["checkpoint/*"])
        if not self.environment() and self.is_interrupted():
            raise damaged(self.path / "environment.json", "it is missing")
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
        file, opener = (stored(self.path / name), open_log) if name in LOGS else (self.path / name, open_regular)
        check_sha256(file, expected, size, opener)

    def _json(self, name: str) -> Any:
        file = self.path / name
        value = read_json(file) if file.exists() else None
        if value is not None and not isinstance(value, dict):
            raise damaged(file, "it holds no object")
        return value

    def _lines(self, name: str) -> list[Json]:
        file = stored(self.path / name)
        text = read_text(file, open_log) if file.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # not a last line that is still being written
        rows = [parse_json(file, line) for line in whole.splitlines()]
        if not all(isinstance(row, dict) and row.keys() >= LOGS[name] for row in rows):
            raise damaged(file, "a line of it is no row of a run's")
        return rows


def scores_in(folder: Path, weights: str | None) -> dict[str, Json]:
    """Task name -> lm-eval's own output, of a checkpoint whose weights have this sha256 (None: it was not recorded)."""
    try:
        scores = {file.stem: read_json(file) for file in sorted(folder.glob("*.json"))}
        for task, score in scores.items():
            results = score.get("results") if isinstance(score, dict) else None
            if not (isinstance(results, dict) and all(isinstance(result, dict) for result in results.values())):
                raise damaged(folder / f"{task}.json", "it is not lm-eval's")
            if weights and score.get("checkpoint", weights) != weights:
                raise damaged(folder / f"{task}.json", "it is of another checkpoint")
        return scores
    except DamagedError as error:
        raise DamagedError(f"{error}; remove it to have its task scored anew") from None


def find_runs(results: Path | str, profile: str) -> list[RunFolder]:
    """The finished runs of a profile, by arm and seed; a warning names those that are left out, and why."""
    runs, left_out = examine(results, profile)
    for problem in left_out:
        warnings.warn(f"left out: {problem}", stacklevel=2)
    return runs


def examine(results: Path | str, profile: str) -> tuple[list[RunFolder], list[str]]:
    """The finished runs of a profile, by arm and seed; and a line for each that is damaged or in another's place."""
    profile, runs, left_out = named(profile), [], []
    for run in _all_runs(results, profile):
        try:
            if not run.status():
                raise damaged(run.path / "status.json", "it is missing")
            if run.is_finished():
                _check_readable(run, profile)
                runs.append(run)
        except DamagedError as error:
            left_out.append(f"{run.name}: {error}")
    return runs, left_out


def chosen(results: Path | str | None, profile: str) -> tuple[Path, str]:
    """The folder whose runs of a profile are shown: the one that is asked for; else a user's own runs, where Table 1
    is complete, and the committed ones where it is not.

    Returns:
        That folder, and a line that says which it is and why.

    Raises:
        UserError: the folder that is asked for holds no finished run of the profile.
    """
    profile = named(profile)
    if results:
        runs, left_out = examine(results, profile)
        if not runs:
            why = f" ({left_out[0]})" if left_out else ""
            raise UserError(
                f"{Path(results) / profile} holds no finished run of profile {profile}{why}; "
                "allowed: a folder of results that has one"
            )
        return Path(results), f"The runs in {Path(results) / profile}."
    own = REFERENCE.parent if REFERENCE.is_dir() else Path("results")
    wanted = {(arm, seed) for arm in arm_names(profile) for seed in default_seeds(profile, arm)}
    found = {_arm_and_seed(run) for run in examine(own, profile)[0]} & wanted
    count = f"results/{profile} holds {len(found)} of the {len(wanted)} runs of Table 1"
    if found == wanted or not (REFERENCE / profile).is_dir():
        return own, f"Your own runs: {count}."
    return REFERENCE, f"The committed runs, results/reference/{profile}: {count}."


def is_reference(folder: Path) -> bool:
    """Is it where the committed runs are, or in it?"""
    return REFERENCE in (path := real_path(folder), *path.parents)


def is_finished(folder: Path) -> bool:
    """Does it hold a finished run, as far as its status can be read?"""
    with suppress(DamagedError):
        return RunFolder(folder).is_finished()
    return False


def check_not_reference(folder: Path) -> None:
    """Raises UserError where a command would write among the committed runs."""
    if is_reference(folder):
        raise UserError(f"{folder} is where the committed runs are, which no command changes; allowed: another folder")


def check_whole(run: RunFolder) -> None:
    """Raises DamagedError unless a finished run's logs are there, and as they were written."""
    run.verify(without=["checkpoint/*"])
    rows, flops = run.metrics(), run.flops()
    if not rows or "validation_loss" not in rows[-1]:
        raise damaged(stored(run.path / "metrics.jsonl"), "it ends before the last step")
    if not flops or not isinstance(flops.get("conventions"), dict):
        raise damaged(run.path / "flops.json", "it counts nothing")
    if not {"seconds", "tokens_per_second"} <= run.status().keys():
        raise damaged(run.path / "status.json", "it has no time")
    run.environment(), run.topology(), run.evals()


def _check_readable(run: RunFolder, profile: str) -> None:
    """Raises DamagedError unless the run's logs are whole and its own, and it is the run that its place says."""
    check_whole(run)
    config, place = run.config(), (profile, *_arm_and_seed(run))
    own = tuple(config.get(key) for key in ("profile", "arm", "seed"))
    if own != place or run.path.name != f"seed-{place[-1]}":
        raise damaged(
            run.path / "config.yaml", f"it is profile, arm and seed {own}, in the place of {place}: copied or moved"
        )


def _all_runs(results: Path | str, profile: str) -> Iterator[RunFolder]:
    """Whatever holds a run, or should."""
    runs = [RunFolder(path) for path in Path(results).joinpath(profile).glob("*/seed-*") if path.is_dir()]
    seeds = [run for run in runs if run.path.name.isascii() and run.path.name.removeprefix("seed-").isdecimal()]
    return iter(sorted((run for run in seeds if run.entries()), key=_arm_and_seed))


def _arm_and_seed(run: RunFolder) -> tuple[str, int]:
    return run.path.parent.name, int(run.path.name.removeprefix("seed-"))


def load(path: Path | str) -> "Run":
    """The run in a folder, as data frames: `frames.load`."""
    from replication import frames

    return frames.load(path)
