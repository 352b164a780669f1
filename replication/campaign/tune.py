"""Tuning: every arm's settings by one rule, on seeds that no table has and text that none is scored on (ours).

One knob after the other, each at the best of those before it: the learning rate; for methods whose topology evolves
also the drop fraction, then the interval of updates at the same share of connections dropped per step; then the
learning rate again, in half steps. A knob starts at three values; where the best of them is an end, the next value is
tried too, until it is not. All this on the first seed; then the three best settings are trained on the other seeds
too, and the best mean is chosen, once the half steps of its own learning rate have been tried as well.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from replication.analysis.arms import label
from replication.analysis.tuned import count_tries
from replication.campaign.pipeline import Job, run_all
from replication.config.keys import check_known, flatten
from replication.config.profiles import base_arm, default_seeds, load_config, load_profile, profile_arms, show_as_given
from replication.config.run_config import RunConfig
from replication.data import prepare
from replication.flops.plan import check_schedule, plan, plan_phases
from replication.methods import method
from replication.plugins import plugins
from replication.runs.folder import RunFolder
from replication.runs.ownership import locked
from replication.system.errors import UserError
from replication.system.files import explain_damage, write_atomically

SEEDS = (1000, 1001, 1002)  # of the tuning runs
FINALISTS = 3  # settings that are trained on every seed
RUNGS = range(-4, 5)  # of a knob, from its starting value: as far as it is widened
RAMP_UPDATES = 10  # the fewest of a ramp
LARGEST_CUT = 1 / 3  # of a layer's active weights, by one update
MOST_FLOPS = 1.01  # of the arm's own
_DIVERGED = "NonFiniteError"
_OWN = ("train.validation_part=tuning", "eval.tasks=[]")  # what all tuning runs set

Setting = tuple[tuple[str, float], ...]  # (dotted key, value) pairs
Losses = Mapping[Setting, float]


@dataclass(frozen=True)
class Knob:
    """What is varied: at rung k each of its keys has its value times its factor to the power of k."""

    factors: Mapping[str, float]

    def at(self, setting: Setting, rung: int) -> Setting:
        return tuple((key, _round(value * self.factors.get(key, 1) ** rung)) for key, value in setting)


KNOBS = {
    "learning_rate": Knob({"train.learning_rate": 2}),
    "drop_fraction": Knob({"sparsity.drop_fraction": 3}),
    "update_freq": Knob({"sparsity.update_freq": 2, "sparsity.drop_fraction": 2}),
    "fine_learning_rate": Knob({"train.learning_rate": 2**0.5}),
}


def same(setting: Setting, other: Setting) -> bool:
    """Are they equal but for rounding? Two half steps up are written 0.0479, a whole one 0.048."""
    return all(math.isclose(a, b, rel_tol=0.01) for (_, a), (_, b) in zip(setting, other, strict=True))


def search(
    start: Setting, knobs: Sequence[Knob], is_allowed: Callable[[Setting], bool], losses: Losses
) -> tuple[list[Setting], Setting]:
    """Settings that are to be tried next, none where the search has ended; and the best so far.

    Args:
        start: the first knob's middle.
        knobs: in the order in which they are turned.
        is_allowed: may a setting be trained at all?
        losses: of what was tried; infinite where it diverged.
    """
    best = start
    for knob in knobs:
        rungs = [rung for rung in (-1, 0, 1) if rung == 0 or is_allowed(knob.at(best, rung))]
        while True:
            missing = [setting for rung in rungs if (setting := knob.at(best, rung)) not in losses]
            if missing:
                return missing, best
            top = min(rungs, key=lambda rung: losses[knob.at(best, rung)])
            beyond = {rungs[0]: top - 1, rungs[-1]: top + 1}.get(top, top)
            if beyond in rungs or beyond not in RUNGS or not is_allowed(knob.at(best, beyond)):
                break
            rungs = sorted([*rungs, beyond])
        best = knob.at(best, top)
    return [], best


@dataclass(frozen=True)
class _Arm:
    """One arm's search."""

    name: str
    profile: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    names: tuple[str, ...]  # of knobs
    folder: Path

    def config(self, setting: Setting, seed: int) -> RunConfig:
        pairs = [f"{key}={value}" for key, value in setting]
        return load_config(self.profile, self.name, seed, [*self.overrides, *pairs, *_OWN], with_tuned=False)

    @property
    def start(self) -> Setting:
        """The profile's values of what is varied, but for what makes this arm what it is."""
        config = load_config(self.profile, self.name, 0, self.overrides, with_tuned=False)
        is_dynamic = method(config.method).is_dynamic
        keys = dict.fromkeys(key for name in self.names for key in KNOBS[name].factors)
        keys = [key for key in keys if is_dynamic or not key.startswith("sparsity.")]
        values, own = flatten(config.to_dict()), profile_arms(self.profile)[self.name]
        return tuple((key, values[key]) for key in keys if key not in own)

    @property
    def knobs(self) -> list[Knob]:
        keys = dict(self.start).keys()
        return [KNOBS[name] for name in self.names if KNOBS[name].factors.keys() <= keys]

    def is_allowed(self, setting: Setting) -> bool:
        """Does it train, evolve as finely as asked, and cost no more than the arm does?"""
        start = dict(self.start)
        try:
            config, own = self.config(setting, 0), self.config(self.start, 0)
            if all(value == start[key] for key, value in setting if key.startswith("sparsity.")):
                return True  # the learning rate changes no schedule
            if check_schedule(config):
                return False
        except UserError:
            return False
        ramps = [phase for phase in plan_phases(config) if phase.is_ramp]
        is_fine = all(phase.num_updates >= RAMP_UPDATES and phase.largest_cut <= LARGEST_CUT for phase in ramps)
        return (
            is_fine
            and dict(setting).get("sparsity.drop_fraction", 0) <= LARGEST_CUT
            and count_planned_flops(config) <= MOST_FLOPS * count_planned_flops(own)
        )

    def job(self, setting: Setting, seed: int) -> Job:
        name = ",".join(f"{key.partition('.')[2]}={value:g}" for key, value in setting)
        return Job(self.config(setting, seed), RunFolder(self.folder / self.name / name / f"seed-{seed}"), name)

    def losses(self, tried: Sequence[Setting]) -> dict[Setting, float]:
        """Final loss on the tuning part, of the first seed."""
        return {setting: final_loss(self.job(setting, self.seeds[0])) for setting in tried}

    def means(self, tried: Sequence[Setting]) -> dict[Setting, float]:
        """Setting -> mean over all seeds, of the finalists alone."""
        losses = self.losses(tried)
        finalists = sorted(tried, key=losses.__getitem__)[:FINALISTS]
        return {
            setting: sum(final_loss(self.job(setting, seed)) for seed in self.seeds) / len(self.seeds)
            for setting in finalists
        }

    def wanted(self, tried: list[Setting]) -> list[Job]:
        """What is to be trained next, once `tried` is known on the first seed; adds to it what that is."""
        while missing := self._missing(tried):
            tried += missing
            if waiting := list_untried(self.job(setting, self.seeds[0]) for setting in missing):
                return waiting
        return self._unfinished(tried)

    def _missing(self, tried: Sequence[Setting]) -> list[Setting]:
        """What the search asks for; after it, the half steps around the best mean, as other seeds may have moved it."""
        missing = search(self.start, self.knobs, self.is_allowed, self.losses(tried))[0]
        if missing or "fine_learning_rate" not in self.names or self._unfinished(tried):
            return missing
        means = self.means(tried)
        around = [KNOBS["fine_learning_rate"].at(min(means, key=means.__getitem__), rung) for rung in (-1, 1)]
        return [one for one in around if not any(same(one, other) for other in tried) and self.is_allowed(one)]

    def _unfinished(self, tried: Sequence[Setting]) -> list[Job]:
        return list_untried(self.job(setting, seed) for setting in self.means(tried) for seed in self.seeds[1:])


def tune(
    profile: str,
    arms: Sequence[str],
    seeds: Sequence[int] | None,
    num_jobs: int,
    results: Path,
    data_dir: Path,
    overrides: Sequence[str] = (),
    knobs: Sequence[str] = tuple(KNOBS),
) -> tuple[str, list[str]]:
    """Train what the search asks for, as far as it is not there, and write `<results>/<profile>/tuning.csv`.

    Args:
        arms: of `tunable_arms`.
        seeds: of the tuning runs: none that a table uses; None: `SEEDS`.
        num_jobs: runs at a time.
        knobs: of `KNOBS`, those that are turned, in this order.

    Returns:
        What was found, to print; and a line for each run that could not be trained. Runs that diverge are outcomes.

    Raises:
        UserError: bad configuration, or a profile that does not say what is varied; before anything is trained.
    """
    for arm in arms:
        check_known("method", arm, tunable_arms(profile))
    for name in knobs:
        check_known("--knobs", name, list(KNOBS))
    seeds, folder, file = seeds or SEEDS, results / profile / "tuning", results / profile / "tuning.csv"
    used = sorted({seed for arm in arms for seed in default_seeds(profile, arm)} & set(seeds))
    if used:
        raise UserError(f"seeds are {used}, which Table 1 has; allowed: others, such as {', '.join(map(str, SEEDS))}")
    _others(file, arms)  # that it is one
    searched = [_Arm(arm, profile, tuple(overrides), tuple(seeds), tuple(knobs), folder) for arm in arms]
    for arm in searched:
        if not arm.knobs:
            raise UserError(
                f"--knobs is {','.join(knobs)!r}, of which {arm.name} has none; allowed: {', '.join(KNOBS)}"
            )
    for config in {arm.config(arm.start, 0).data for arm in searched}:
        prepare(config, data_dir)
    tried: dict[str, list[Setting]] = {arm.name: [] for arm in searched}
    while waiting := [job for arm in searched for job in arm.wanted(tried[arm.name])]:
        if failures := train_all(waiting, num_jobs, data_dir):
            return "", failures
    table = pd.DataFrame([row for arm in searched for row in _rows(arm, tried[arm.name])])
    diverged = [f"{arm}: every setting diverged" for arm in arms if arm not in read_chosen_settings(table)]
    varied = "" if tuple(knobs) == tuple(KNOBS) else f" --knobs {','.join(knobs)}"
    given = "" if tuple(seeds) == SEEDS else f" --seeds {','.join(map(str, seeds))}"
    sets = "".join(f" --set '{pair}'" for pair in overrides)
    plugged = "".join(f" --plugin {Path(plugin).name}" for plugin in plugins())
    table["command"] = (
        f"python -m replication search tune --profile {show_as_given(profile)}{varied}{given}{sets}{plugged}"
    )
    _add(table, file, tunable_arms(profile))
    return render(table), diverged


def _add(table: pd.DataFrame, file: Path, order: Sequence[str]) -> None:
    """To what `tuning.csv` says of other arms by now, which another process may have tuned meanwhile."""
    with locked(file):
        whole = pd.concat([table, _others(file, list(table["arm"]))], ignore_index=True).sort_values(
            "arm",
            key=lambda arms: arms.map(lambda arm: order.index(arm) if arm in order else len(order)),
            kind="stable",
        )
        write_atomically(file, whole[_columns(whole)].to_csv(index=False))


def _others(file: Path, arms: Sequence[str]) -> pd.DataFrame:
    """What a `tuning.csv` says of other arms than these.

    Raises:
        DamagedError: it is no such file.
    """
    if not file.exists():
        return pd.DataFrame()
    try:
        table = pd.read_csv(file)
        return table[~table["arm"].isin(arms) & table["chosen"].isin([True, False])]
    except (ValueError, KeyError) as error:
        raise explain_damage(file, str(error).partition("\n")[0]) from None


def _columns(table: pd.DataFrame) -> list[str]:
    """The settings first, after the arm's names, whatever arm came first."""
    keys = [column for column in table.columns if "." in column]
    return ["arm", "label", *keys, *(column for column in table.columns[2:] if column not in keys)]


def tunable_arms(profile: str) -> list[str]:
    """Those that have settings of their own: one that is `like` another has the other's, if it was not tuned itself."""
    tuned = load_profile(profile)["tuned"]
    return [arm for arm in profile_arms(profile) if not base_arm(profile, arm) or arm in tuned]


def read_chosen_settings(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Arm -> dotted key -> value, of a `tuning.csv`: what the profile's `tuned` holds."""
    rows = table[table["chosen"]].set_index("arm")
    keys = [column for column in table.columns if "." in column]
    return {arm: {key: _round(row[key]) for key in keys if not pd.isna(row[key])} for arm, row in rows.iterrows()}


def render(table: pd.DataFrame) -> str:
    """For the terminal: the cost of all, and the profile's `tuned` as it should be."""
    flops, seconds = (
        f"{table['flops'].sum():.3g} FLOPs (head_counted_full)",
        f"{table['seconds'].sum():.0f} s of training",
    )
    lines = [f"# {len(table)} settings, {flops}, {seconds}", f"tuned: # {table['command'].iloc[0]}"]
    for arm, settings in read_chosen_settings(table).items():
        lines.append(f"  {arm}: {{{', '.join(f'{key}: {value:g}' for key, value in settings.items())}}}")
    return "\n".join([*lines, *_ends(table)])


def _ends(table: pd.DataFrame) -> list[str]:
    """A line for each chosen value that is the lowest or highest tried for its arm."""
    return [
        f"# {arm}: {key} {read_chosen_settings(rows)[arm][key]:g} is the lowest or highest value tried; "
        "a better one may lie beyond it"
        for arm, rows in table.groupby("arm", sort=False)
        for key in count_tries(rows).at_end
    ]


def _rows(arm: _Arm, tried: Sequence[Setting]) -> list[dict[str, object]]:
    """`first_seed` is the loss that the search went by, `validation_loss` the finalists' mean over all seeds."""
    losses, means, rows = arm.losses(tried), arm.means(tried), []
    best = min(means, key=means.__getitem__)
    for setting in tried:
        jobs = [arm.job(setting, seed) for seed in (arm.seeds if setting in means else arm.seeds[:1])]
        row: dict[str, object] = {"arm": arm.name, "label": label(arm.name), **dict(setting), "seeds": len(jobs)}
        row |= {"first_seed": losses[setting], "validation_loss": means.get(setting)}
        row |= {"flops": len(jobs) * count_planned_flops(jobs[0].config)}
        seconds = sum(job.run.status().get("seconds", 0) for job in jobs)
        is_chosen = setting == best and math.isfinite(means[best])
        rows.append(row | {"seconds": seconds, "chosen": is_chosen})
    return rows


def train_all(jobs: Sequence[Job], num_jobs: int, data_dir: Path) -> list[str]:
    """A line for each run that could not be trained: one that diverged was."""
    failures = run_all(jobs, num_jobs, data_dir)
    untrained = {job.name for job in list_untried(jobs)}
    return [line for line in failures if line.partition(" failed:")[0] in untrained]


def list_untried(jobs: Iterable[Job]) -> list[Job]:
    """Those that have neither ended nor diverged."""
    return [job for job in jobs if not (job.is_done() or _has_diverged(job))]


def _has_diverged(job: Job) -> bool:
    status = job.run.status()  # from before the kind was recorded: whatever had failed
    return status.get("status") == "failed" and status.get("kind", _DIVERGED) == _DIVERGED


def final_loss(job: Job) -> float:
    return job.run.metrics()[-1]["validation_loss"] if job.run.is_finished() else math.inf


def count_planned_flops(config: RunConfig) -> int:
    """Of a run (head_counted_full)."""
    return plan(config)["conventions"]["head_counted_full"]["flops"]


def _round(value: float) -> float:
    """To three digits; whole where it is whole."""
    value = float(f"{value:.3g}")
    return int(value) if value.is_integer() else value
