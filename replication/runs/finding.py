"""Which runs are in a folder: those of a profile, a user's own or the committed ones. Imports no torch."""

import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from replication.config.profiles import arm_names, default_seeds, resolve_name
from replication.runs.folder import RunFolder
from replication.system.errors import DamagedError, UserError
from replication.system.files import explain_damage, find_stored, real_path

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference"  # the runs that we committed


def find_runs(results: Path | str, profile: str) -> list[RunFolder]:
    """The finished runs of a profile, by arm and seed; a warning names those that are left out, and why."""
    runs, left_out = sort_out_runs(results, profile)
    for problem in left_out:
        warnings.warn(f"left out: {problem}", stacklevel=2)
    return runs


def sort_out_runs(results: Path | str, profile: str) -> tuple[list[RunFolder], list[str]]:
    """The finished runs of a profile, by arm and seed; and a line for each that is damaged or in another's place."""
    profile, runs, left_out = resolve_name(profile), [], []
    for run in _all_runs(results, profile):
        try:
            if not run.status():
                raise explain_damage(run.path / "status.json", "it is missing")
            if run.is_finished():
                _check_readable(run, profile)
                runs.append(run)
        except DamagedError as error:
            left_out.append(f"{run.name}: {error}")
    return runs, left_out


def choose_results(results: Path | str | None, profile: str) -> tuple[Path, str]:
    """The folder whose runs of a profile are shown: the one that is asked for; else a user's own runs, where Table 1
    is complete, and the committed ones where it is not.

    Returns:
        That folder, and a line that says which it is and why.

    Raises:
        UserError: the folder that is asked for holds no finished run of the profile.
    """
    profile = resolve_name(profile)
    if results:
        runs, left_out = sort_out_runs(results, profile)
        if not runs:
            why = f" ({left_out[0]})" if left_out else ""
            raise UserError(
                f"{Path(results) / profile} holds no finished run of profile {profile}{why}; "
                "allowed: a folder of results that has one"
            )
        return Path(results), f"The runs in {Path(results) / profile}."
    own = REFERENCE.parent if REFERENCE.is_dir() else Path("results")
    wanted = {(arm, seed) for arm in arm_names(profile) for seed in default_seeds(profile, arm)}
    found = {_arm_and_seed(run) for run in sort_out_runs(own, profile)[0]} & wanted
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
        raise explain_damage(find_stored(run.path / "metrics.jsonl"), "it ends before the last step")
    if not flops or not isinstance(flops.get("conventions"), dict):
        raise explain_damage(run.path / "flops.json", "it counts nothing")
    if not {"seconds", "tokens_per_second"} <= run.status().keys():
        raise explain_damage(run.path / "status.json", "it has no time")
    run.environment(), run.topology(), run.evals()


def _check_readable(run: RunFolder, profile: str) -> None:
    """Raises DamagedError unless the run's logs are whole and its own, and it is the run that its place says."""
    check_whole(run)
    config, place = run.config(), (profile, *_arm_and_seed(run))
    own = tuple(config.get(key) for key in ("profile", "arm", "seed"))
    if own != place or run.path.name != f"seed-{place[-1]}":
        raise explain_damage(
            run.path / "config.yaml", f"it is profile, arm and seed {own}, in the place of {place}: copied or moved"
        )


def _all_runs(results: Path | str, profile: str) -> Iterator[RunFolder]:
    """Whatever holds a run, or should."""
    runs = [RunFolder(path) for path in Path(results).joinpath(profile).glob("*/seed-*") if path.is_dir()]
    seeds = [run for run in runs if run.path.name.isascii() and run.path.name.removeprefix("seed-").isdecimal()]
    return iter(sorted((run for run in seeds if run.entries()), key=_arm_and_seed))


def _arm_and_seed(run: RunFolder) -> tuple[str, int]:
    return run.path.parent.name, int(run.path.name.removeprefix("seed-"))
