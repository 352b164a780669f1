"""`search grid`: the arms of a grid of settings, as a profile of their own that later commands take too."""

import itertools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from replication.analysis.comparable import reads
from replication.config.keys import check_known, flatten
from replication.config.profiles import (
    find_given_file,
    load_config,
    load_profile,
    profile_arms,
    read_tuned_settings,
    resolve_name,
)
from replication.config.run_config import NO_RESULT, config_keys
from replication.flops.plan import check_schedule
from replication.methods import convert_options, method
from replication.runs.ownership import locked
from replication.system.errors import UserError
from replication.system.files import real_path, write_atomically

SUFFIX = "_sweep"  # of the profile's name
HEADER = "# Written by `search grid`, which adds arms to it: an arm of another profile, and the setting it has here.\n"

Grid = dict[str, list[Any]]  # dotted key -> values
Arms = dict[str, dict[str, Any]]  # arm -> dotted key -> value


def sweep(profile: str, arms: Sequence[str], sweeps: Sequence[str], results: Path) -> tuple[str, list[str]]:
    """Write `<results>/<profile>_sweep.yaml`, or add to it: every arm at every combination of the values.

    Args:
        profile: by name; one that was written so gets the new arms itself.
        arms: that are varied; those whose method does not read the keys are left out, which is said.
        sweeps: `key=value,value`, one a key.

    Returns:
        The name that the profile has from now on, and the arms of this grid.

    Raises:
        UserError: an unknown key, one that an arm sets itself, that changes no result, or that no arm reads; a single
            value; a value that is not allowed, or with which an arm cannot be trained; an arm that is in the file with
            other settings.
    """
    grid = _grid(sweeps)
    file = results / f"{profile.removesuffix(SUFFIX)}{SUFFIX}.yaml"
    varied = _select_varied(profile, arms, list(grid), file)
    made, tuned = {}, {}
    for arm in varied:
        for values in itertools.product(*grid.values()):
            given = [f"{key}={json.dumps(value, default=str)}" for key, value in zip(grid, values)]
            config = convert_options(load_config(profile, arm, 0, given))
            check_schedule(config)  # before the file has an arm that cannot be trained
            setting = {key: flatten(config.to_dict())[key] for key in grid}  # as it is trained: 1e-3 and 0.001 are one
            name = arm_name(arm, setting)
            if name in made:
                both = ", ".join(f"{key}={value}" for key, value in setting.items())
                raise _refuse(" ".join(sweeps), f"values that differ; {both} is among them twice")
            made[name] = profile_arms(profile)[arm] | setting
            tuned[name] = {key: value for key, value in read_tuned_settings(profile, arm).items() if key not in setting}
    _add(file, profile, made, {name: settings for name, settings in tuned.items() if settings})
    return resolve_name(str(file)), list(made)


def arm_name(arm: str, setting: Mapping[str, Any]) -> str:
    """`static_sparsity_0p9` of the arm `static` at sparsity.sparsity=0.9: an identifier."""
    parts = [arm]
    for key, value in setting.items():
        said = str(value).lower().replace(".", "p").replace("-", "m")
        parts += [key.rpartition(".")[2], "_".join(re.findall(r"\w+", said))]
    return "_".join(parts)


def _grid(sweeps: Sequence[str]) -> Grid:
    grid: Grid = {}
    for given in sweeps:
        key, equals, text = given.partition("=")
        if not equals:
            raise _refuse(given, "key=value,value, as in sparsity.sparsity=0.5,0.9")
        if not key.startswith("options."):
            check_known("a key of the grid", key, config_keys())
        if key in NO_RESULT or key in grid:
            raise _refuse(given, "a key that changes a run's result, once")
        try:
            values = yaml.safe_load(f"[{text}]")
        except (yaml.YAMLError, ValueError, RecursionError):
            raise _refuse(given, "YAML values, separated by commas") from None
        names = {arm_name("", {key: value}) for value in values}
        if len(values) < 2 or len(names) < len(values):
            raise _refuse(given, "two values or more, which differ; for one there is --set")
        grid[key] = values
    return grid


def _select_varied(profile: str, arms: Sequence[str], keys: Sequence[str], file: Path) -> list[str]:
    """The arms that read the keys; of the others a line says that they are left out."""
    known = profile_arms(profile)
    for arm in arms:
        check_known("method", arm, list(known))
        if own := [key for key in keys if key in known[arm]]:
            this = (
                f"keys that arm {arm} does not set itself ({own[0]}={known[arm][own[0]]}); --methods without this arm"
            )
            raise _refuse(own[0], this)
    varied = [arm for arm in arms if all(_reads(known[arm]["method"], key) for key in keys)]
    if not varied and any(key.startswith("options.") for key in keys):
        return list(arms)  # a slip in the option's name, which its configuration refuses with the nearest one
    left_out = [arm for arm in arms if arm not in varied]
    if not varied:
        raise _refuse(" ".join(keys), f"keys that one of the arms reads; {', '.join(left_out)} do not")
    if left_out:
        later = f"replicate --profile {file} --methods {','.join(left_out)}"
        print(
            f"left out, as their method does not read it: {', '.join(left_out)}; to train them: {later}",
            file=sys.stderr,
        )
    return varied


def _reads(name: str, key: str) -> bool:
    """Can a dotted key make a difference to a method's runs? Of a method's own options those that it has."""
    option = key.removeprefix("options.")
    return reads(name, key) if option == key else option in method(name).defaults


def _add(file: Path, profile: str, arms: Arms, tuned: Arms) -> None:
    """To what the file has now, which another process may have added to.

    Raises:
        UserError: the file has one of the arms with other settings, or is of another profile.
    """
    with locked(file):
        _merge(file, profile, arms, tuned)


def _merge(file: Path, profile: str, arms: Arms, tuned: Arms) -> None:
    base = find_given_file(profile)
    extends = profile if base is None else os.path.relpath(base, file.parent)
    values: dict[str, Any] = {"extends": extends}
    if file.exists():
        load_profile(str(file))  # that it is one
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        is_itself = base is not None and base == real_path(file)
        if not is_itself and values.get("extends") != extends:
            raise UserError(f"{file} extends {values.get('extends')!r}; allowed: {extends!r}, or another --results")
    there = values.get("arms") or {}
    for table, new in (("arms", arms), ("tuned", tuned)):
        old = values.get(table) or {}
        for arm in there.keys() & arms.keys():
            if old.get(arm) != new.get(arm):
                both = f"{old.get(arm)}, which here would be {new.get(arm)}"
                raise UserError(f"{file}: {table}.{arm} is {both}; allowed: the same; rename that arm, or remove it")
        if merged := old | new:
            values[table] = merged
    write_atomically(file, HEADER + yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120))


def _refuse(given: str, allowed: str) -> UserError:
    return UserError(f"the grid has {given}; allowed: {allowed}")
