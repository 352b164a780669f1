"""Profile x arms x seeds -> runs -> scores -> table; skips what is done and resumes what is not."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from replication.config import RunConfig, arm_names, load_config
from replication.runs import RunFolder, write_json

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """One run to train and to score."""

    config: RunConfig
    run: RunFolder

    @property
    def name(self) -> str:
        return f"{self.config.arm} seed {self.config.seed}"

    def is_done(self) -> bool:
        return self.run.is_trained(self.config) and not self.missing_tasks()

    def missing_tasks(self) -> list[str]:
        """Tasks that have not scored the checkpoint yet."""
        return [task for task in self.config.eval.tasks if not (self.run.path / "eval" / f"{task}.json").exists()]


def replicate(profile: str, arms: Sequence[str], seeds: Sequence[int], num_jobs: int, results: Path, data_dir: Path, overrides: Sequence[str] = (), ablations: bool = False) -> tuple[str, list[str]]:
    """Train and score every arm and seed that is not done yet, then write the profile's Table 1, or its ablations.

    Args:
        num_jobs: runs at a time; the cores are shared out evenly among them.

    Returns:
        The table and verdicts, to print; and a line for each run that failed.

    Raises:
        UserError: bad configuration, or a run folder of another configuration; before anything is trained.
    """
    from replication.analysis.ablations import write_ablations
    from replication.analysis.tables import write_table1

    jobs = [Job(load_config(profile, arm, seed, overrides), RunFolder(results / profile / arm / f"seed-{seed}")) for seed in seeds for arm in arms]
    waiting = [job for job in jobs if not job.is_done()]
    failures = []
    if waiting:
        from eval.zero_shot import check_tasks
        from replication.data import prepare, write_evaluation_sets

        check_tasks(waiting[0].config.eval.tasks)
        prepare(waiting[0].config.data, data_dir)
        write_evaluation_sets(waiting[0].config.data, data_dir)
        failures = _run_all(waiting, num_jobs, data_dir)
    write_paper_plan(results)
    return (write_ablations if ablations else write_table1)(results, profile), failures


def write_paper_plan(results: Path) -> None:
    """What every arm costs at the paper's scale, for the figures: `results/paper/plan.json`."""
    from replication.plan import plan

    write_json(results / "paper" / "plan.json", {arm: plan(load_config("paper", arm)) for arm in arm_names("paper")})


def _run_all(jobs: Sequence[Job], num_jobs: int, data_dir: Path) -> list[str]:
    # Tiny models run best with a thread each; set before the workers import torch.
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // num_jobs))
    with ProcessPoolExecutor(min(num_jobs, len(jobs)), multiprocessing.get_context("spawn"), initializer=_end_with_parent) as pool:
        futures = {pool.submit(_train_and_score, job, data_dir): job for job in jobs}
        try:
            return _watch(futures)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _end_with_parent() -> None:
    """In a worker: end when the pipeline does, however it ends; the run resumes from its last save."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the pipeline's to handle

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _train_and_score(job: Job, data_dir: Path) -> str:
    """In a worker: train what is not trained, score what is not scored; returns a line on how it went."""
    import logging

    from eval.zero_shot import score
    from replication.trainer import train

    logging.getLogger("transformers").setLevel(logging.ERROR)
    began = time.perf_counter()
    run = train(job.config, job.run.path, data_dir, resume=True, progress=False)
    trained = time.perf_counter()
    score(run.checkpoint, job.missing_tasks(), run.path / "eval")
    loss = run.metrics()[-1]["validation_loss"]
    return f"validation loss {loss:.4f}, trained in {trained - began:.0f} s, scored in {time.perf_counter() - trained:.0f} s"


def _watch(futures: dict[Future, Job]) -> list[str]:
    """Show the progress of all runs as one bar, and a line for each that ends; returns the failures."""
    failures, pending = [], dict(futures)
    with tqdm(total=sum(job.config.train.steps for job in pending.values()), unit="step", dynamic_ncols=True) as bar:
        while pending:
            for future in [future for future in pending if future.done()]:
                job = pending.pop(future)
                error = future.exception()
                if error:
                    failures.append(f"{job.name} failed: {error}")
                bar.write(failures[-1] if error else f"{job.name}: {future.result()}", file=sys.stderr)
            running = [job for job in pending.values() if job.run.status().get("status") == "running"]
            bar.n = sum(_steps_done(job) for future, job in futures.items() if job in running or future.done())
            bar.set_postfix_str(", ".join(job.name for job in running))
            time.sleep(POLL_SECONDS if pending else 0)
    return failures


def _steps_done(job: Job) -> int:
    rows = job.run.metrics()
    return rows[-1]["step"] if rows else 0
