"""The study: tunings and runs of a queue, worked off in its order, under a protocol that was dated before them."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from replication.campaign.pipeline import Job, replicate
from replication.campaign.tune import tune
from replication.config.keys import check_known
from replication.config.profiles import arm_names, find_given_file, load_config, resolve_name
from replication.forecast.predict import load_calibration, predict
from replication.runs.folder import RunFolder
from replication.runs.registration import VARIABLE
from replication.system.errors import DamagedError, UserError
from replication.system.machine import machine
from replication.system.signals import tell

DOCUMENTS = ("protocol.md", "protocol.yaml")  # which a change after the date is an amendment of
TUNE, TRAIN = "tune", "train"
FORM = "a list of {tune or train: PROFILE.yaml, arms: […], seeds: […]}"


@dataclass(frozen=True)
class Entry:
    """One line of the queue: arms of a profile to be tuned, or to be trained, on these seeds."""

    kind: str
    profile: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.kind} {self.profile}: {', '.join(self.arms)}; seeds {', '.join(map(str, self.seeds))}"


@dataclass(frozen=True)
class State:
    """How far an entry is: runs that are done, that have begun, that are left; and the hours that these take."""

    entry: Entry
    done: int
    running: int
    left: int
    hours: float | None  # None: nothing tells


@dataclass(frozen=True)
class Protocol:
    """What protocol.yaml says.

    Attributes:
        accepted: sha256 of these documents, and of those that an amendment replaced.
        points: profile -> parameters, tokens a parameter.
        core: points that decide the hypotheses.
        margin: nats per token.
        level: of the tests.
    """

    sha256: str
    date: date
    accepted: set[str]
    points: dict[str, tuple[float, float]]
    core: list[str]
    margin: float
    level: float


def load_protocol(folder: Path) -> Protocol:
    """Registers the points' profiles, by their names.

    Raises:
        UserError: there is none, or it lacks a key.
    """
    digest, dated = read_protocol(folder)
    values = _read(folder / DOCUMENTS[1])
    try:
        points = {name: (float(size), float(length)) for name, (size, length) in values["points"].items()}
        replaced = {amendment["replaces"] for amendment in values["amendments"]}
        core, margin, level = list(values["core"]), float(values["margin"]), float(values["level"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"{folder / DOCUMENTS[1]} lacks or misstates {error}"
        raise UserError(f"{problem}; allowed: points, core, margin, level and amendments, as in docs/study") from None
    for name in points:
        resolve_name(str(folder / f"{name}.yaml"))
    return Protocol(digest, dated, {digest, *replaced}, points, core, margin, level)


def read_protocol(folder: Path) -> tuple[str, date]:
    """The sha256 of the protocol's documents, and its date.

    Raises:
        UserError: there is none, or it has no date.
    """
    digest = hashlib.sha256()
    for name in DOCUMENTS:
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; allowed: a folder of a study, such as docs/study")
        digest.update((folder / name).read_bytes())
    dated = _read(folder / DOCUMENTS[1])
    if not isinstance(dated, dict) or not isinstance(dated.get("date"), date):
        raise UserError(f"{folder / DOCUMENTS[1]} has no date; allowed: one, as in date: 2026-12-01")
    return digest.hexdigest(), dated["date"]


def read_queue(folder: Path) -> list[Entry]:
    """What is to be done, in this order.

    Raises:
        UserError: the file is no queue, or names a profile or an arm that there is not.
    """
    file = folder / "queue.yaml"
    entries = _read(file) if file.is_file() else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{file} is no queue; allowed: {FORM}")
    return [_read_entry(file, entry) for entry in entries]


def run_study(folder: Path, results: Path, data_dir: Path) -> list[str]:
    """Work off the queue, one run at a time; returns a line for each run that failed.

    An arm waits until its profile has what was tuned for it; a run that was begun on another processor is left for that
    one, as rounding would differ from there on.

    Raises:
        UserError: the protocol or the queue is none, or a table cannot hold its runs.
    """
    os.environ[VARIABLE] = read_protocol(folder)[0]
    failures = []
    for entry in read_queue(folder):
        if entry.kind == TUNE:
            failures += tune(entry.profile, entry.arms, entry.seeds, 1, results, data_dir, knobs=("learning_rate",))[1]
            continue
        if untuned := [arm for arm in entry.arms if arm not in _own_tuned(entry.profile)]:
            tell(f"{entry.profile}: {', '.join(untuned)} wait until their learning rates stand in its `tuned`")
        for seed in entry.seeds:
            jobs = [job for job in _jobs(entry, results, [seed]) if job.config.arm not in untuned]
            arms = [job.config.arm for job in jobs if not (job.is_done() or _is_elsewhere(job))]
            if arms:
                failures += replicate(entry.profile, arms, [seed], 1, results, data_dir)[1]
    return failures


def look_at(folder: Path, results: Path) -> list[State]:
    """How far each entry of the queue is; of what is tuned, the settings that were tried."""
    return [_look(entry, results) for entry in read_queue(folder)]


def render(states: Sequence[State]) -> str:
    """For the terminal: an entry a line, and what is left of all."""
    lines = []
    for state in states:
        hours = "" if not state.left else " (hours unknown)" if state.hours is None else f", {state.hours:.1f} h"
        running = f"{state.running} begun, " if state.running else ""
        lines.append(f"{state.done} done, {running}{state.left} left{hours}: {state.entry}")
    known = sum(state.hours or 0 for state in states)
    unknown = sum(state.left for state in states if state.hours is None)
    rest = f", and {unknown} runs whose hours nothing tells yet" if unknown else ""
    left = sum(state.left for state in states)
    return "\n".join([*lines, f"{sum(state.done for state in states)} done, {left} left: {known:.1f} h{rest}."])


def _read(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())}; allowed: {FORM}") from None


def _read_entry(file: Path, entry: Any) -> Entry:
    kinds = {TUNE, TRAIN} & set(entry) if isinstance(entry, dict) else set()
    if len(kinds) != 1 or set(entry) - {*kinds, "arms", "seeds"}:
        raise UserError(f"{file} has the entry {entry!r}; allowed: {FORM}")
    (kind,) = kinds
    arms, seeds = entry.get("arms"), entry.get("seeds")
    if not isinstance(arms, list) or not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{file} has the entry {entry!r}; allowed: {FORM}")
    profile = resolve_name(str(file.parent / str(entry[kind])))
    for arm in arms:
        check_known(f"{file}: arms", arm, arm_names(profile))
    return Entry(kind, profile, tuple(arms), tuple(seeds))


def _own_tuned(profile: str) -> set[str]:
    """The arms of which the profile's own file says what was tuned: what it inherits is of another point."""
    file = find_given_file(profile)
    return set((_read(file) or {}).get("tuned") or {}) if file else set()


def _jobs(entry: Entry, results: Path, seeds: Iterable[int]) -> list[Job]:
    place = results / entry.profile
    return [
        Job(load_config(entry.profile, arm, seed), RunFolder(place / arm / f"seed-{seed}"))
        for seed in seeds
        for arm in entry.arms
    ]


def _is_elsewhere(job: Job) -> bool:
    """Was it begun on another processor, and is not finished?"""
    begun = job.run.environment().get("processor") if job.run.is_interrupted() else None
    if begun in (None, machine()["processor"]):
        return False
    tell(f"{job.name} was begun on {begun}: it is left for that processor")
    return True


def _look(entry: Entry, results: Path) -> State:
    if entry.kind == TUNE:
        return _look_at_tuning(entry, results)
    jobs = _jobs(entry, results, entry.seeds)
    done = [job for job in jobs if _is_finished(job.run)]
    waiting = [job for job in jobs if job not in done]
    hours = [_hours(job, results) for job in waiting]
    begun = sum(job.run.is_interrupted() for job in waiting)
    whole = None if None in hours else sum(filter(None, hours))
    return State(entry, len(done), begun, len(waiting), whole)


def _look_at_tuning(entry: Entry, results: Path) -> State:
    """Three settings of an arm are the fewest that the search asks for."""
    tried = list((results / entry.profile / "tuning").glob("*/*/seed-*"))
    done = sum(_is_finished(RunFolder(path)) and path.parts[-3] in entry.arms for path in tried)
    is_tuned = (results / entry.profile / "tuning.csv").is_file()
    left = 0 if is_tuned else max(0, 3 * len(entry.arms) * len(entry.seeds) - done)
    hours = [_hours(job, results) for job in _jobs(entry, results, entry.seeds)]
    whole = None if None in hours else sum(filter(None, hours)) / len(hours) * left
    return State(entry, done, 0, left, whole if left else 0.0)


def _is_finished(run: RunFolder) -> bool:
    with suppress(DamagedError):
        return run.is_finished()
    return False


def _hours(job: Job, results: Path) -> float | None:
    """By the tokens per second of its arm's finished runs, else its profile's; else by this machine's calibration."""
    rates = list(_rates(results / job.config.profile, job.config.arm)) or list(
        _rates(results / job.config.profile, "*")
    )
    train = job.config.train
    tokens = train.steps * train.batch_size * job.config.model.n_positions
    if rates:
        return tokens / (sum(rates) / len(rates)) / 3600
    calibration = load_calibration(machine())
    return predict(job.config, calibration).seconds / 3600 if calibration else None


def _rates(folder: Path, arm: str) -> Iterator[float]:
    for path in [*folder.glob(f"{arm}/seed-*"), *folder.glob(f"tuning/{arm}/*/seed-*")]:
        with suppress(DamagedError):
            if rate := RunFolder(path).status().get("tokens_per_second"):
                yield rate
