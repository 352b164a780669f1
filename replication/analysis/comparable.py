"""Which runs may stand in one table, and what keeps two arms from being compared: their settings, and their text."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from replication.config.keys import flatten
from replication.config.profiles import load_config, profile_arms, read_tuned_settings
from replication.config.run_config import IDENTITY, NO_RESULT, build_config
from replication.runs.folder import RunFolder
from replication.system.errors import UserError
from replication.system.files import Json

# Beginnings of the keys that a method does not read: two values of them are no difference.
_UPDATES = tuple(f"sparsity.{name}" for name in ("update_", "drop_fraction", "reset_moments", "growth_"))
_UNREAD: dict[str, tuple[str, ...]] = {
    "dense": ("sparsity.", "mst.", "attention."),
    "static": (*_UPDATES, "mst.", "attention."),
    "set": ("sparsity.growth_", "mst.", "attention."),
    "rigl": ("mst.", "attention."),
    "gmp": ("sparsity.growth_", "sparsity.drop_fraction", "mst.", "attention."),
    "mst": ("sparsity.sparsity",),
}


@dataclass(frozen=True)
class Facts:
    """What says whether a run compares with another.

    Attributes:
        name: `<arm>/seed-<n>`.
        config: nested, as in `config.yaml`.
        environment: as in `environment.json`; of it, `shards`, `code`, `python`, `precision` and `final_loss_over` are
            read.
        evaluation_sets: task -> sha256 of what it was scored on, where that is known.
    """

    name: str
    config: Json
    environment: Json = field(default_factory=dict)
    evaluation_sets: dict[str, str] = field(default_factory=dict)

    @property
    def arm(self) -> str:
        return self.name.partition("/")[0]

    @cached_property
    def flat(self) -> dict[str, Any]:
        """Dotted key -> value of the configuration; a key added since then has its default."""
        try:
            return flatten(build_config(self.config).to_dict())
        except UserError:  # of another version
            return flatten(self.config)


def reads(method: str, key: str) -> bool:
    """Can a dotted key make a difference to a method's runs? To one from outside each may."""
    return not key.startswith(_UNREAD.get(method, ()))


def facts_of(run: RunFolder) -> Facts:
    """Of a run that is finished."""
    sets = {task: raw["evaluation_set"] for task, raw in run.evals().items() if raw.get("evaluation_set")}
    return Facts(run.name, run.config(), run.environment(), sets)


def check_one_table(found: Sequence[Facts], with_text: bool = True) -> None:
    """Runs of one table share their text (unless that is looked at elsewhere) and the code of what they share, and each
    arm's seeds their settings.

    Raises:
        UserError: they do not; the line names runs and keys.
    """
    if with_text:
        check_one_text(found)
    _check_one_code(found)
    first: dict[str, Facts] = {}
    for facts in found:
        keys = differences(first.setdefault(facts.arm, facts), facts)
        if keys:
            raise UserError(
                f"{first[facts.arm].name} and {facts.name} are no seeds of one run: they differ in {', '.join(keys)}; "
                "allowed in one table: one configuration an arm; move one of them away, or train it anew"
            )


def _check_one_code(found: Sequence[Facts]) -> None:
    """Raises UserError where runs were trained by different versions of a method or metric from outside."""
    first: dict[str, Facts] = {}
    for facts in found:
        for what, digest in (facts.environment.get("code") or {}).items():
            other = first.setdefault(what, facts)
            version = other.environment["code"][what]
            if version != digest:
                raise UserError(
                    f"{other.name} and {facts.name} were trained by different versions of {what} "
                    f"(sha256 {version[:12]}…; {digest[:12]}…); allowed in one table: one version; "
                    "move the ones or the others away, train them anew, or give --results another folder"
                )


def check_one_text(found: Sequence[Facts]) -> None:
    """Raises UserError where runs were trained, or scored by one task, on different texts."""
    recorded = [facts for facts in found if facts.environment.get("shards")]
    others = [facts for facts in found if not facts.environment.get("shards")]
    for a, b in [
        *((recorded[0], facts) for facts in recorded),
        *((others[0], facts) for facts in others),
        *zip(recorded[:1], others[:1]),
    ]:
        if not _same_text(a, b):
            raise UserError(
                f"{a.name} and {b.name} were trained on different texts ({_text(a)}; {_text(b)}); "
                "allowed in one table: one text; move the ones or the others away, train them anew, "
                "or give --results another folder"
            )
    sets: dict[str, dict[str, str]] = defaultdict(dict)  # task -> sha256 -> a run that was scored on it
    for facts in found:
        for task, digest in facts.evaluation_sets.items():
            sets[task].setdefault(digest, facts.name)
    for task, runs in sets.items():
        if len(runs) > 1:
            raise UserError(
                f"{' and '.join(runs.values())} were scored by {task} on different evaluation sets; "
                f"allowed in one table: one; remove eval/{task}.json of the older ones to have them scored anew"
            )


def differences(a: Facts, b: Facts) -> list[str]:
    """Dotted keys, with both values, in which two runs differ beyond what the profile says of their arms."""
    ours, theirs, same_text = _settings(a), _settings(b), _same_text(a, b)
    own, tuned = (
        {key for facts in (a, b) for key in _read_own_settings(facts, read)}
        for read in (_changes_of_arm, read_tuned_settings)
    )
    unread = (*_unread(ours), *_unread(theirs), *(("data.",) if same_text else ()))
    own |= {key for key in tuned if ours.get(key) != theirs.get(key) and not key.startswith(unread)}
    own = own if a.arm != b.arm else set()
    keys = [
        key
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and key not in {*IDENTITY, *NO_RESULT, *own} and not key.startswith(unread)
    ]
    found = [line for facts in (a, b) for line in _not_as_in_the_profile(facts, own)]
    found += [f"{key} ({ours.get(key)}, {theirs.get(key)})" for key in keys]
    if not same_text and not any(key.startswith("data.") for key in keys):
        found.append(f"their text ({_text(a)}; {_text(b)})")
    return found


def _not_as_in_the_profile(facts: Facts, keys: Iterable[str]) -> list[str]:
    """Of keys that an arm has for its own, those in which a run is not what the profile says of its own arm."""
    configured, wanted = facts.flat, _settings_in_profile(facts, keys)
    return [
        f"{key} ({configured.get(key)} in {facts.name}, {value} in the profile)"
        for key, value in sorted(wanted.items())
        if configured.get(key) != value and not key.startswith(_unread(wanted))
    ]


def changes(facts: Facts, arm: str) -> dict[str, Any]:
    """Dotted key -> the run's value, of what it sets otherwise than an arm of its profile, where that is known."""
    theirs, other = _profile_settings(facts.config.get("profile", ""), arm), {*IDENTITY, *NO_RESULT}
    return {
        key: value
        for key, value in facts.flat.items()
        if value != theirs.get(key, value) and key not in other and not key.startswith("data.")
    }


def _settings(facts: Facts) -> dict[str, Any]:
    """What a run was trained and judged with; an automatic precision is what it came to, on its machine."""
    flat = facts.flat | {"final_loss_over": facts.environment.get("final_loss_over", "train.eval_batches")}
    if flat.get("train.precision") == "auto":
        flat["train.precision"] = facts.environment.get("precision", "auto")
    code = facts.environment.get("code") or {}
    return flat | {what: version for what, version in code.items() if what.startswith("plug-in ")}


def _read_own_settings(facts: Facts, read: Callable[[str, str], dict[str, Any]]) -> dict[str, Any]:
    """What the profile says of the run's arm alone; of one that it does not know nothing."""
    try:
        return read(facts.config["profile"], facts.arm)
    except (UserError, KeyError):  # the profile or the arm is not there any more
        return {}


def _changes_of_arm(profile: str, arm: str) -> dict[str, Any]:
    return profile_arms(profile)[arm]


def _settings_in_profile(facts: Facts, keys: Iterable[str]) -> dict[str, Any]:
    """What the run's arm has for some keys, which may be other arms' own."""
    known = _profile_settings(facts.config.get("profile", ""), facts.arm)
    return {key: known[key] for key in keys if key in known}


@cache
def _profile_settings(profile: str, arm: str) -> dict[str, Any]:
    try:
        return flatten(load_config(profile, arm).to_dict())
    except UserError:
        return {}


def _unread(settings: dict[str, Any]) -> tuple[str, ...]:
    return _UNREAD.get(settings.get("method", ""), ())


def _same_text(a: Facts, b: Facts) -> bool:
    ours, theirs = a.environment.get("shards"), b.environment.get("shards")
    if ours and theirs:
        return ours == theirs
    return _source(a) == _source(b)  # runs from before they recorded their tokens


def _source(facts: Facts) -> dict[str, Any]:
    data = {key: value for key, value in _settings(facts).items() if key.startswith("data.")}
    return data | ({"python": facts.environment.get("python")} if data.get("data.source") == "stdlib" else {})


def _text(facts: Facts) -> str:
    shards = facts.environment.get("shards")
    return f"train shard {shards['train'][:12]}…" if shards else "not recorded"
