"""Profile x arms x seeds -> runs -> scores -> table; skips what is done and resumes what is not."""

import os
import platform
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from replication.analysis.ablations import write_ablations
from replication.analysis.arms import without_ablations
from replication.analysis.comparable import Facts, check_one_table, check_one_text, facts_of
from replication.analysis.tables import write_table1
from replication.campaign.sharing import share
from replication.campaign.workers import TOLD, Worker
from replication.config.profiles import arm_names, default_seeds, load_config
from replication.config.run_config import RunConfig
from replication.flops.plan import check_schedule, plan, snapshot_steps
from replication.flops.stretches import build_ledger
from replication.methods import code_of
from replication.publish.card import offer_cards
from replication.runs.finding import sort_out_runs
from replication.runs.folder import RunFolder
from replication.runs.snapshots import LACKING, Snapshot, find_unscored, lacks, snapshots_of
from replication.system.errors import DamagedError, UserError
from replication.system.files import Json, write_json
from replication.system.machine import cores, machine
from replication.system.signals import Interrupted, held, read_signal, tell, times_asked
from replication.training.circumstances import FINAL_LOSS_OVER, check_code, fit_entries, precision_of
from replication.training.world import device
from replication.watching.board import Row, board
from replication.watching.following import Log

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """One run to train and to score; `setting` tells it from others of its arm and seed."""

    config: RunConfig
    run: RunFolder
    setting: str = ""

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.config.arm, self.setting, f"seed {self.config.seed}")))

    @cached_property
    def log(self) -> Log:
        """What it has logged, as it grows."""
        return Log(self.run.path / "metrics.jsonl")

    def is_done(self) -> bool:
        """Raises UserError where its folder holds another run, or this one by another version of its code."""
        if not self.run.is_trained(self.config):
            return False
        check_code(self.run, code_of(self.config))
        return not self.missing_tasks() and not any(map(self.awaits, self.snapshots()))

    def snapshots(self) -> list[Snapshot]:
        """Those that the run has, of those that are asked for."""
        steps = snapshot_steps(self.config)
        decided = self.config.mst.phases == "auto"  # while it trained: then it has those that were asked for
        return [snapshot for snapshot in snapshots_of(self.run) if decided or snapshot.step in steps]

    def awaits(self, snapshot: Snapshot) -> bool:
        """Is it to be scored yet, or its weights to be removed?"""
        return snapshot.has_weights and bool(snapshot.missing(self.config.eval.tasks) or not self.keeps(snapshot))

    def keeps(self, snapshot: Snapshot) -> bool:
        """Are its weights kept, as is asked for now, or was when it was trained?"""
        configs = (self.config, self.run.configuration())
        return snapshot.is_last or any(config.eval.keep_weights for config in configs)

    def lacks(self) -> bool:
        """Is a snapshot asked for that this run, which is finished, does not have, or not for every task?"""
        return lacks(self.run, snapshot_steps(self.config), self.config.eval.tasks)

    def missing_tasks(self) -> list[str]:
        """Tasks that have not scored the checkpoint yet."""
        return find_unscored(self.config.eval.tasks, self.run.evals())


def replicate(
    profile: str,
    arms: Sequence[str],
    seeds: Sequence[int] | None,
    num_jobs: int | None,
    results: Path,
    data_dir: Path,
    overrides: Sequence[str] = (),
    ablations: bool = False,
) -> tuple[str, list[str]]:
    """Train and score every arm and seed that is not done yet, then write the profile's Table 1, or its ablations.

    Args:
        seeds: of every arm; None: the profile's own.
        num_jobs: runs at a time; the cores are shared out evenly among them. None: as `sharing.share` says.

    Returns:
        The table and verdicts, to print; and a line for each run that failed, which stops no other.

    Raises:
        UserError: bad configuration, a run folder of another configuration, or runs beside these that no table could
            hold together with them; before anything is trained.
    """
    of_arms = {arm: seeds or default_seeds(profile, arm) for arm in arms}
    jobs = [
        Job(load_config(profile, arm, seed, overrides), RunFolder(results / profile / arm / f"seed-{seed}"))
        for seed in dict.fromkeys(seed for own in of_arms.values() for seed in own)
        for arm in arms
        if seed in of_arms[arm]
    ]
    for config in {job.config.arm: job.config for job in jobs}.values():
        check_schedule(config)
    waiting, lacking, failures = _sift(jobs)
    if lacking:
        tell(f"{', '.join(lacking)}: {LACKING}")
    if waiting:
        found = sort_out_runs(results, profile)[0]
        waiting = _prepare(waiting, found if ablations else without_ablations(found, profile), data_dir)
        if num_jobs is None:
            here = machine()
            num_jobs, threads, why = share([job.config for job in jobs], cores(), here, _threads(jobs, here))
            tell(f"{num_jobs} runs at a time, {threads} thread(s) each: {why}")
        failures += run_all(waiting, num_jobs, data_dir)
    try:
        write_paper_plan(results)
        return (write_ablations if ablations else write_table1)(results, profile), failures
    except UserError as error:
        if not failures:
            raise
        return "", [*failures, f"no table: {error}"]


def _sift(jobs: Sequence[Job]) -> tuple[list[Job], list[str], list[str]]:
    """The jobs that are not done; the names of those that are, without all snapshots that are asked for; and a line
    for each whose folder is damaged."""
    waiting, lacking, failures = [], [], []
    for job in jobs:
        try:
            if not job.is_done():
                waiting.append(job)
            elif job.lacks():
                lacking.append(job.name)
        except DamagedError as error:
            failures.append(f"{job.name} failed: {error}")
    return waiting, lacking, failures


def _prepare(jobs: Sequence[Job], found: Sequence[RunFolder], data_dir: Path) -> list[Job]:
    """Tokens and evaluation sets of every job, once, before any worker asks for them; the jobs, with the entries that
    their tokenizers have.

    Raises:
        UserError: they cannot be had, or no table could hold these jobs and the runs that were found.
    """
    from replication.data import prepare, write_evaluation_sets
    from replication.eval.zero_shot import check_tasks, evaluation_set

    if tasks := list(dict.fromkeys(task for job in jobs for task in job.config.eval.tasks)):
        check_tasks(tasks)
    to_be = {job.run.name: job for job in jobs}
    others = [facts_of(run) for run in found if run.name not in to_be]
    planned = {name: _plan(job) for name, job in to_be.items()}
    check_one_table([*others, *(Facts(name, *facts) for name, facts in planned.items())], with_text=False)
    prepared = {config: prepare(config, data_dir) for config in {job.config.data for job in jobs}}
    for config in prepared:
        write_evaluation_sets(config, data_dir)
    sets = {task: digest for task in tasks if (digest := evaluation_set(task))}
    for name, job in to_be.items():
        config, environment = planned[name]
        scored = {task: sets[task] for task in job.missing_tasks() if task in sets}
        others.append(Facts(name, config, environment | {"shards": prepared[job.config.data].shards}, scored))
    check_one_text(others)
    return [replace(job, config=fit_entries(job.config, job.run, prepared[job.config.data])) for job in jobs]


def _plan(job: Job) -> tuple[Json, Json]:
    """Configuration and environment, as far as they are known, of a run that is not trained yet."""
    precision = precision_of(job.run, job.config.train.precision, device())
    known = {"precision": precision, "python": platform.python_version(), "final_loss_over": FINAL_LOSS_OVER}
    return job.config.to_dict(), known | {"code": code_of(job.config)}


def write_paper_plan(results: Path) -> None:
    """What every arm costs at the paper's scale, for the figures: `results/paper/plan.json`."""
    write_json(results / "paper" / "plan.json", _plan_paper())


@cache
def _plan_paper() -> Json:
    return {arm: plan(load_config("paper", arm)) for arm in arm_names("paper")}


def _threads(jobs: Sequence[Job], here: Json) -> int | None:
    """Of the first of these runs that was begun on this processor; None: none was."""
    for job in jobs:
        with suppress(DamagedError):
            environment = job.run.environment()
            if environment.get("processor") == here["processor"]:
                return environment.get("threads")
    return None


def run_all(jobs: Sequence[Job], num_jobs: int, data_dir: Path) -> list[str]:
    """Train and score, `num_jobs` runs at a time, among which cores are shared out evenly; returns the failures."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores() // num_jobs))  # before the workers import torch
    workers = [Worker() for _ in range(min(num_jobs, len(jobs)))]
    with held():
        try:
            return _watch(list(jobs), workers, data_dir)
        except BaseException:
            for worker in workers:
                worker.tell(signal.SIGKILL if times_asked() > 1 else TOLD)
            raise
        finally:
            for worker in workers:
                worker.shutdown()


def _train_and_score(job: Job, data_dir: Path) -> str:
    """In a worker: train what is not trained, score what is not scored; returns a line on how it went."""
    import logging

    from replication.eval.zero_shot import score
    from replication.kernels.choice import hold_limits
    from replication.training.trainer import train

    hold_limits()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    began = time.perf_counter()
    run = train(job.config, job.run.path, data_dir, resume=True, progress=False, wait=True)
    trained = time.perf_counter()
    with run.owned(wait=True):
        if tasks := job.missing_tasks():
            score(run.checkpoint, tasks, run.path / "eval")
        for snapshot in filter(job.awaits, job.snapshots()):
            snapshot.check()
            for pattern, tasks in snapshot.missing(job.config.eval.tasks).items():
                out = snapshot.scores(pattern)
                score(snapshot.weights, tasks, out, pattern=pattern, attention=job.config.attention)
            if not job.keeps(snapshot):
                snapshot.remove_weights()
        offer_cards(run)
    loss = run.metrics()[-1]["validation_loss"]
    scored = time.perf_counter() - trained
    return f"validation loss {loss:.4f}, trained in {trained - began:.0f} s, scored in {scored:.0f} s"


def _watch(waiting: list[Job], workers: list[Worker], data_dir: Path) -> list[str]:
    """Give each worker run after run, and show how far all are; returns the failures.

    Raises:
        Interrupted: by a signal, of which the workers are told; once they have saved what they do, or at a second one.
    """
    jobs, failures, told = list(waiting), [], False
    running: dict[Future, tuple[Job, int]] = {}  # with the worker's place
    with board([_row(job) for job in jobs]) as shown:
        while waiting or running:
            if read_signal() and not told:
                waiting, told = [], True
                for worker in workers:
                    worker.tell()
            if times_asked() > 1:
                raise Interrupted(read_signal() or 0)
            free = set(range(len(workers))) - {place for _, place in running.values()}
            for place in sorted(free)[: len(waiting)]:
                job = waiting.pop(0)
                running[workers[place].submit(_train_and_score, job, data_dir)] = job, place
                shown.rows[job.name].enter("training")
            for future in [future for future in running if future.done()]:
                job, place = running.pop(future)
                _look(job, shown.rows[job.name])
                failure = _failure(future)
                if failure and told:  # as it was
                    continue
                if isinstance(future.exception(), BrokenProcessPool):
                    workers[place].shutdown()
                    workers[place] = Worker()
                failures += [f"{job.name} failed: {failure}"] if failure else []
                shown.end(job.name, failure or future.result(), bool(failure))
            for line in (line for worker in workers for line in worker.said()):
                shown.say(line)
            for job, _ in running.values():
                _look(job, shown.rows[job.name])
            time.sleep(POLL_SECONDS if running else 0)
    return failures


def _row(job: Job) -> Row:
    """As it is shown; what another training left in the folder says nothing of it yet."""
    return Row(job.name, job.config.train.steps, build_ledger(job.config).dense_step_flops())


def _look(job: Job, row: Row) -> None:
    """Note how far a run in progress has come."""
    try:
        status = job.run.status().get("status")
        logged, _ = job.log.read() if status == "running" or row.logged else ([], False)
    except (DamagedError, OSError):  # its worker says so; or it has only begun
        return
    row.saw(logged[-1] if logged else None)
    if status == "finished" and row.logged:
        row.enter("scoring")


def _failure(future: Future) -> str | None:
    """Why a run failed, in one line; None: it did not."""
    error = future.exception()
    if error is None:
        return None
    if isinstance(error, BrokenProcessPool):
        return (
            "its process died without a word (killed, or out of memory); "
            "what was saved is kept, and the same command goes on"
        )
    reason = str(error).strip().partition("\n")[0]
    return reason if isinstance(error, UserError | Interrupted) else f"{type(error).__name__}: {reason}"
