"""Short trials around a suggestion: Optuna varies its learning rate, and its sparsity at equal FLOPs (ours).

A trial trains a share of the steps: those that its FLOPs allow at its sparsity. It is judged as in tuning, on a seed
and text that no table has; the best and the suggestion's own values then on seeds that chose neither. The run folders
are all that is kept: the sampler's draws follow from its seed and the losses, so the same command goes through the
same trials, and trains what is not there.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from replication.analysis.statistics import t_interval
from replication.campaign.pipeline import Job
from replication.campaign.tune import SEEDS, count_planned_flops, final_loss, list_untried, train_all
from replication.config.run_config import RunConfig
from replication.data import prepare
from replication.flops.plan import check_schedule
from replication.forecast.suggest import Changes, Suggestion, apply_changes
from replication.runs.folder import RunFolder
from replication.system.errors import UserError

SCALE = 0.25  # of the suggestion's FLOPs, that a trial has
TOGETHER = (
    4  # trials that are drawn before any of them is judged: whatever --jobs is, so that draws do not depend on it
)
ROUNDS = 4  # in which the steps of a trial are found: FLOPs are not quite proportional to them
JUDGES = tuple(SEEDS[0] + number for number in (1, 2, 3))  # seeds
FACTORS = {"train.learning_rate": (0.25, 4.0), "density": (0.5, 2.0)}  # within which they are varied
OWN = {"train.validation_part": "tuning", "eval.tasks": []}  # what all trials set


def search(
    suggestion: Suggestion, num_trials: int, num_jobs: int, results: Path, data_dir: Path
) -> tuple[str, list[str]]:
    """Train `num_trials` trials, the first with the suggestion's own values; then the best and these on the judges.

    Runs are in `<results>/<profile>/tuning/search-<arm>/<setting>/seed-<n>`.

    Args:
        num_jobs: runs at a time.

    Returns:
        What was found, to print; and a line for each run that could not be trained. One that diverges is an outcome.

    Raises:
        UserError: Optuna is not installed; or the suggestion cannot be trained at this scale.
    """
    optuna = _optuna()
    start = _starting(suggestion.config)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.enqueue_trial(start)
    folder = results / suggestion.config.profile / "tuning" / f"search-{suggestion.arm}"
    _job(suggestion.config, start, SEEDS[0], folder)  # refused here if it cannot be trained
    prepare(apply_changes(suggestion.config, OWN).data, data_dir)
    tried: list[tuple[dict[str, float], float]] = []
    while len(tried) < num_trials:
        trials = [study.ask(_space(optuna, start)) for _ in range(min(TOGETHER, num_trials - len(tried)))]
        jobs = [_job_or_none(suggestion.config, trial.params, SEEDS[0], folder) for trial in trials]
        if failures := train_all(list_untried(job for job in jobs if job), num_jobs, data_dir):
            return "", failures
        for trial, job in zip(trials, jobs):
            loss = final_loss(job) if job else math.inf
            is_loss = math.isfinite(loss)
            study.tell(trial, loss if is_loss else None, None if is_loss else optuna.trial.TrialState.FAIL)
            tried.append((trial.params, loss))
    best, loss = min(tried, key=lambda one: one[1])
    if not math.isfinite(loss):
        return "", [f"{suggestion.arm}: every trial diverged"]
    if best == start:
        own = _job(suggestion.config, start, SEEDS[0], folder).setting
        return f"{_head(suggestion, num_trials)}\nNone ended lower than its own setting, {own}: {loss:.4f} nats.", []
    final = [[_job(suggestion.config, params, seed, folder) for seed in JUDGES] for params in (best, start)]
    waiting = {job.run.path: job for jobs in final for job in jobs}
    if failures := train_all(list_untried(waiting.values()), num_jobs, data_dir):
        return "", failures
    return f"{_head(suggestion, num_trials)}\n{_describe(*final)}", []


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise UserError(
            "--search needs optuna, which is not installed; allowed: without it, or after pip install 'optuna>=4,<6'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _sparsity_key(config: RunConfig) -> str | None:
    return {"dense": None, "mst": "mst.ultra_sparsity"}.get(config.method, "sparsity.sparsity")


def _starting(config: RunConfig) -> dict[str, float]:
    """The suggestion's own values of what is varied; a sparsity as the density that it leaves."""
    key = _sparsity_key(config)
    density = 1 - (config.mst.ultra_sparsity if config.method == "mst" else config.sparsity.sparsity)
    return {"train.learning_rate": config.train.learning_rate} | ({"density": density} if key else {})


def _space(optuna: Any, start: dict[str, float]) -> dict[str, Any]:
    space = {}
    for name, value in start.items():
        low, high = (value * factor for factor in FACTORS[name])
        space[name] = optuna.distributions.FloatDistribution(
            low, min(high, 0.99) if name == "density" else high, log=True
        )
    return space


def _changes(config: RunConfig, params: dict[str, float]) -> Changes:
    """A trial's settings: what is varied, and the steps that it then has for its FLOPs."""
    rate, key = params["train.learning_rate"], _sparsity_key(config)
    changes: Changes = {"train.learning_rate": _round(rate), "train.min_learning_rate": None}
    if key:
        changes[key] = round(1 - params["density"], 4)
    whole, share = config.train.steps_fraction, SCALE * config.train.steps_fraction
    for _ in range(ROUNDS):
        warmup = int(config.train.warmup_steps * share / whole)
        changes |= {"train.steps_fraction": share, "train.warmup_steps": warmup}
        share = min(
            1.0,
            _round(share * SCALE * count_planned_flops(config) / count_planned_flops(apply_changes(config, changes))),
        )
    return changes


def _job(config: RunConfig, params: dict[str, float], seed: int, folder: Path) -> Job:
    changes = _changes(config, params)
    trial = replace(apply_changes(config, {**changes, **OWN}), seed=seed)
    check_schedule(trial)
    shown = {key: value for key, value in changes.items() if value is not None and key != "train.warmup_steps"}
    name = ",".join(f"{key.rpartition('.')[2]}={value:g}" for key, value in shown.items())
    return Job(trial, RunFolder(folder / name / f"seed-{seed}"), name)


def _job_or_none(config: RunConfig, params: dict[str, float], seed: int, folder: Path) -> Job | None:
    """None: what was drawn cannot be trained."""
    try:
        return _job(config, params, seed, folder)
    except UserError:
        return None


def _head(suggestion: Suggestion, num_trials: int) -> str:
    return f"{num_trials} trials of {suggestion.arm} at {SCALE:g} of its FLOPs, on seed {SEEDS[0]}:"


def _describe(best: Sequence[Job], start: Sequence[Job]) -> str:
    """The best of the trials beside the suggestion's own setting, on the judges, and how sure the difference is."""
    losses = [[final_loss(job) for job in jobs] for jobs in (best, start)]
    means = [float(np.mean(own)) for own in losses]
    lines = [f"best  {best[0].setting}: {means[0]:.4f} nats", f"own   {start[0].setting}: {means[1]:.4f} nats"]
    if not np.isfinite(means).all():
        return "\n".join([*lines, f"Not every one of the seeds {JUDGES} was trained to the end: it diverged."])
    gaps = np.subtract(*losses)
    low, high = t_interval(gaps)
    sure = "lower" if high < 0 else "higher" if low > 0 else "it may be chance"
    said = f"{gaps.mean():+.4f} nats, 95 % interval {low:+.4f} to {high:+.4f}, of seeds {JUDGES}: {sure}"
    return "\n".join([*lines, f"The best minus its own: {said}. Nothing is said of a run of the whole length."])


def _round(value: float) -> float:
    return float(f"{value:.3g}")
