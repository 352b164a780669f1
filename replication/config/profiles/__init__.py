"""Profiles, shipped (the *.yaml here) or given by path; and the way from a profile's arm to a run's configuration."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from replication.config.keys import check_known, flatten, nearest
from replication.config.run_config import IDENTITY, RunConfig, build_config, config_keys, sections
from replication.system.errors import UserError
from replication.system.files import real_path

DEFAULT_SEEDS = 3  # of an arm
TABLES = ("arms", "ablations", "tuned")  # arm -> dotted key -> value, beside the sections of a configuration
SETS_NO_FIELD = (*TABLES, "seeds", "extends")
RESERVED = "reference"  # no profile's name: its runs would lie where the committed ones do
RESERVED_ARM = "tuning"  # the same of the runs of `search tune`
_files: dict[str, Path] = {}  # of profiles that were given by path, by name

Values = dict[str, Any]
Layers = list[tuple[str, Mapping[str, Any]]]  # (where from, dotted key -> value), each over those before it


def profile_names() -> list[str]:
    """The shipped ones."""
    names = (file.name for file in resources.files("replication.config").joinpath("profiles").iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def resolve_name(profile: str) -> str:
    """The name of a profile that is given by name or by the path of its file, which from then on has that name.

    Raises:
        UserError: no such file, or one whose name is taken.
    """
    if not profile.endswith((".yaml", ".yml")):
        return profile
    file = real_path(profile)
    if not file.is_file():
        raise UserError(f"profile is {profile!r}, which is no file; allowed: {', '.join(profile_names())}, or a file")
    if file.stem in (*profile_names(), RESERVED):
        raise UserError(f"profile is {profile!r}, whose name is taken; allowed: a file with a name of its own")
    _files[file.stem] = file
    _load_known.cache_clear()  # it may have changed since
    return file.stem


def find_given_file(profile: str) -> Path | None:
    """The file of a profile that was given by path; None: of a shipped one."""
    return _files.get(profile)


def show_as_given(profile: str) -> str:
    """A profile's name, or of one that was given by path its file's: for commands that logs tell of."""
    return _files[profile].name if profile in _files else profile


def load_profile(profile: str) -> Values:
    """What a profile holds, by name or path: sections, `arms` and, in some, `ablations`, `tuned` and `seeds`.

    Where it `extends` another, that one's values hold wherever it says nothing; an arm that it sets to null is left
    out.

    Raises:
        UserError: no such profile; a file that is none, in one line that names file and key.
    """
    return copy.deepcopy(_values(profile))


def _values(profile: str) -> Values:
    """The same, to be read: all who ask share it."""
    return _load_known(resolve_name(profile))[0]


@cache
def _load_known(name: str) -> tuple[Values, Layers]:
    if name not in _files:
        check_known("profile", name, profile_names(), ", or a .yaml file's path")
    return _load(_files.get(name) or _find_shipped(name), ())


def _find_shipped(name: str) -> Any:
    return resources.files("replication.config").joinpath("profiles", f"{name}.yaml")


def _load(file: Any, below: tuple[Any, ...]) -> tuple[Values, Layers]:
    """A profile's values over those that it extends, and what of its sections is from where; `below` are the files
    that extend this one."""
    own = values = _read(file)
    layers: Layers = []
    base = values.get("extends")
    if base is not None:
        is_path = isinstance(base, str) and base.endswith((".yaml", ".yml"))
        source = real_path(Path(str(file)).parent / base) if is_path else base
        if is_path and (not source.is_file() or source in (*below, file)):
            raise UserError(f"{file}: extends is {base!r}; allowed: a profile's name or file, not in a circle")
        if not is_path:
            check_known(f"{file}: extends", str(base), profile_names(), ", or a .yaml file's path")
            source = _find_shipped(base)
        inherited, layers = _load(source, (*below, file))
        values = _merge(inherited, own)
    whole = _check(values, file)
    keys = {key: value for key, value in own.items() if key not in SETS_NO_FIELD}
    return whole, [*layers, (f"profile {Path(str(file)).stem}", flatten(keys))]


def _read(file: Any) -> Values:
    """The mapping of a profile's file. Raises UserError where it holds none."""
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise UserError(f"{file} is no profile: {problem}; allowed: YAML, as in replication/config/profiles") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} is no profile: it holds no keys; allowed: YAML, as in replication/config/profiles")
    return values


def _merge(base: Values, own: Values) -> Values:
    """`own` over `base`, section by section; of the tables, arm by arm. What is like a left-out arm goes too."""
    arms = own.get("arms")
    left_out = {arm for arm, changes in arms.items() if changes is None} if isinstance(arms, dict) else set()
    base = base | {
        table: {arm: changes for arm, changes in base[table].items() if {arm, changes.get("like")}.isdisjoint(left_out)}
        for table in TABLES
    }
    base["seeds"] = {arm: count for arm, count in base["seeds"].items() if arm not in left_out}
    both = {**base, **own}
    for key in base.keys() & own.keys():
        if isinstance(base[key], dict) and isinstance(own[key], dict):
            both[key] = {**base[key], **own[key]}
    return both


def _check(values: Values, file: Any) -> Values:
    """A profile whose tables hold what they should; sections are checked with a run.

    Raises:
        UserError: they don't.
    """

    def check(condition: bool, key: str, value: Any, allowed: str) -> None:
        if not condition:
            raise UserError(f"{file}: {key} is {value!r}; allowed: {allowed}")

    for key in values:
        check(key in (*sections(), *SETS_NO_FIELD), str(key), values[key], ", ".join((*sections(), *SETS_NO_FIELD)))
    for section in sections().keys() & values.keys():
        check(isinstance(values[section], dict), section, values[section], "a mapping of its keys")
    for table in (*TABLES, "seeds"):
        check(isinstance(values.get(table, {}), dict), table, values.get(table), "a mapping from arms")
        values[table] = {arm: entry for arm, entry in values.get(table, {}).items() if entry is not None}
    for table in TABLES:
        for arm, changes in values[table].items():
            check(isinstance(changes, dict), f"{table}.{arm}", changes, "a mapping from dotted keys, as in {}")
            is_keyed = all(isinstance(key, str) for key in changes)
            check(is_keyed, f"{table}.{arm}", changes, "a mapping from dotted keys, as in {train.num_steps: 100}")
            values[table][arm] = flatten(changes)
    arms = values["arms"] | values["ablations"]
    check(bool(values["arms"]), "arms", values["arms"], "at least one arm, as in dense: {}")
    for table in TABLES:
        for arm, changes in values[table].items():
            check(
                isinstance(arm, str) and arm.isidentifier() and arm != RESERVED_ARM,
                f"{table}: an arm",
                arm,
                "a name of letters, digits and _, not tuning",
            )
            like = changes.get("like", arm)
            is_whole = isinstance(like, str) and (like == arm or (like in arms and "like" not in arms[like]))
            check(is_whole, f"{table}.{arm}: like", like, "an arm that is like no other")
    for arm in (*values["seeds"], *values["tuned"]):
        check(arm in arms, "an arm of seeds or tuned", arm, ", ".join(arms))
    for arm, count in values["seeds"].items():
        check(type(count) is int and count >= 1, f"seeds.{arm}", count, "1 or more")
    return values


def arm_names(profile: str, table: str = "arms") -> list[str]:
    """A table's arms in its order: Table 1's (`arms`) or those that only the `ablations` have.

    Raises:
        UserError: no such profile, or it has none of these.
    """
    arms = _values(profile)[table]
    if not arms:
        raise UserError(f"profile is {profile}; allowed: one with {table}")
    return list(arms)


def profile_arms(profile: str) -> dict[str, Values]:
    """Arm -> its changes to the profile: Table 1's arms, then those that only the ablations have.

    An arm that is `like` another has that one's changes too.
    """
    arms = _arms(profile)
    resolved = {}
    for arm, changes in arms.items():
        whole = {"method": changes.get("like", arm)} | arms.get(changes.get("like", ""), {}) | changes
        resolved[arm] = {key: value for key, value in whole.items() if key != "like"}
    return resolved


def base_arm(profile: str, arm: str) -> str:
    """The arm that this one is `like`; empty: it stands for itself."""
    return _arms(profile)[arm].get("like", "")


def default_seeds(profile: str, arm: str) -> list[int]:
    """Seeds of an arm where none are given: 0, 1 and 2, or as many as the profile's `seeds` says of it."""
    return list(range(_values(profile)["seeds"].get(arm, DEFAULT_SEEDS)))


def read_tuned_settings(profile: str, arm: str) -> Values:
    """What `search tune` chose for an arm, or the one that it is `like`, beside the changes that make it this arm."""
    tuned = _values(profile)["tuned"]
    return dict(tuned.get(arm, tuned.get(base_arm(profile, arm), {})))


def load_config(
    profile: str, arm: str, seed: int = 0, overrides: Iterable[str] = (), with_tuned: bool = True
) -> RunConfig:
    """A run's configuration: profile, then what was tuned for the arm (unless it is left out), then the arm's changes,
    then `key=value` overrides.

    Raises:
        UserError: an unknown profile, arm or key, a wrong type, a value out of range; an override of what says which
            run it is, or of what the arm itself sets.
    """
    values: Values = {"profile": resolve_name(profile), "arm": arm, "seed": seed}
    for _, changes in layers(profile, arm, overrides, with_tuned):
        for key, value in changes.items():
            _set(values, key, value)
    config = build_config(values)
    shape = {**sections()["model"]} | _values(profile).get("model", {})
    changed = [key.removeprefix("model.") for key in profile_arms(profile)[arm] if key.startswith("model.")]
    if not changed:
        return config
    return replace(config, reference=replace(config.model, **{name: shape[name] for name in changed}))


def layers(profile: str, arm: str, overrides: Iterable[str] = (), with_tuned: bool = True) -> Layers:
    """Where the values of a run's configuration are from, the strongest last; the errors of `load_config`."""
    check_known("method", arm, list(profile_arms(profile)))
    own = profile_arms(profile)[arm]
    found = list(_load_known(resolve_name(profile))[1])
    if with_tuned:
        found.append((f"tuned for {arm}", read_tuned_settings(profile, arm)))
    return [*found, (f"arm {arm}", own), ("--set", dict(_overrides(overrides, arm, own)))]


def _overrides(overrides: Iterable[str], arm: str, own: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Key and value of each override that may be one."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise _refuse(override, "key=value, as in train.learning_rate=1e-3")
        if key in IDENTITY:
            others = f"keys other than {', '.join(IDENTITY)}, which say which run it is and have options of their own"
            raise _refuse(override, others)
        if key in sections():
            raise _refuse(override, f"one key of the section, as in {key}.{next(iter(sections()[key]), 'name')}=…")
        if key in own:
            this = f"keys that arm {arm} does not set itself ({key}={own[key]}); leave this arm out, or this key"
            raise _refuse(override, this)
        yield key, _parse(key, value)


def _refuse(override: str, allowed: str) -> UserError:
    return UserError(f"--set is {override}; allowed: {allowed}")


def _parse(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(
            f"{key} is {text!r}; "
            "allowed: a YAML value; names with brackets, commas or colons in quotes, as in ['a[1].txt']"
        ) from None


def _set(values: Values, key: str, value: Any) -> None:
    *outer, last = key.split(".")
    if (outer or [last])[0] not in (*sections(), "method"):
        raise UserError(f"unknown configuration key {key!r}; {nearest(key, config_keys())}")
    for section in outer:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"{key} is not a key; {section} has no keys below it")
    values[last] = value


def _arms(profile: str) -> dict[str, Values]:
    values = _values(profile)
    return values["arms"] | values["ablations"]
