"""Which runs may stand in one table, and what keeps two arms from being compared: settings, and the text they were trained on."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from replication.config import IDENTITY, build_config, flattened, profile_arms
from replication.errors import UserError
from replication.files import Json
from replication.runs import RunFolder

_NO_RESULT = {"train.log_freq", "train.eval_freq", "train.checkpoint_freq", "eval.tasks"}  # what these set changes no loss
# Beginnings of the keys that a method does not read: two values of them are no difference.
_UPDATES = tuple(f"sparsity.{name}" for name in ("update_", "drop_fraction", "reset_moments", "growth_gradient"))
_UNREAD: dict[str, tuple[str, ...]] = {
    "dense": ("sparsity.", "mst.", "attention."),
    "static": (*_UPDATES, "mst.", "attention."),
    "set": ("sparsity.growth_gradient", "mst.", "attention."),
    "rigl": ("mst.", "attention."),
    "mst": ("sparsity.sparsity",),
}


@dataclass(frozen=True)
class Facts:
    """What says whether a run compares with another.

    Attributes:
        name: `<arm>/seed-<n>`.
        config: nested, as in `config.yaml`.
        environment: as in `environment.json`; of it, `shards`, `python` and `precision` are read.
        evaluation_sets: task -> sha256 of what it was scored on, where that is known.
    """

    name: str
    config: Json
    environment: Json = field(default_factory=dict)
    evaluation_sets: dict[str, str] = field(default_factory=dict)

    @property
    def arm(self) -> str:
        return self.name.partition("/")[0]


def facts_of(run: RunFolder) -> Facts:
    """Of a run that is finished."""
    sets = {task: raw["evaluation_set"] for task, raw in run.evals().items() if raw.get("evaluation_set")}
    return Facts(run.name, run.config(), run.environment(), sets)


def check_one_table(found: Sequence[Facts], with_text: bool = True) -> None:
    """Runs of one table share their text (unless that is looked at elsewhere), and each arm's seeds their settings.

    Raises:
        UserError: they do not; the line names runs and keys.
    """
    if with_text:
        check_one_text(found)
    first: dict[str, Facts] = {}
    for facts in found:
        keys = differences(first.setdefault(facts.arm, facts), facts)
        if keys:
            raise UserError(
                f"{first[facts.arm].name} and {facts.name} are no seeds of one run: they differ in {_listed(keys)}; "
                "allowed in one table: one configuration an arm; move one of them away, or train it anew"
            )


def check_one_text(found: Sequence[Facts]) -> None:
    """Raises UserError where runs were trained, or scored by one task, on different texts."""
    for facts in found:
        if not _same_text(found[0], facts):
            raise UserError(
                f"{found[0].name} and {facts.name} were trained on different texts ({_text(found[0])}; {_text(facts)}); "
                "allowed in one table: one text; move the ones or the others away, or train them anew"
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
    ours, theirs = _settings(a), _settings(b)
    arms = {} if a.arm == b.arm else {a.name: (_own(a, ours), ours), b.name: (_own(b, theirs), theirs)}
    strange = [
        f"{key} ({settings.get(key)} in {name}, {value} in its arm's profile)"
        for name, (own, settings) in arms.items()
        for key, value in own.items()
        if settings.get(key) != value
    ]
    ignored = {*IDENTITY, *_NO_RESULT, *(key for own, _ in arms.values() for key in own)}
    unread = (*_unread(ours), *_unread(theirs), *(("data.",) if _same_text(a, b) else ()))
    keys = [
        key
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key) and key not in ignored and not key.startswith(unread)
    ]
    return strange + [f"{key} ({ours.get(key)}, {theirs.get(key)})" for key in keys]


def changes(arm: Facts, base: Facts) -> dict[str, Any]:
    """Dotted key -> the arm's value, of what it sets otherwise than another arm of the same profile."""
    ours, theirs = _settings(arm), _settings(base)
    return {key: value for key, value in ours.items() if value != theirs.get(key) and key not in IDENTITY}


def _settings(facts: Facts) -> dict[str, Any]:
    try:
        whole = build_config(facts.config).to_dict()  # a key added since then has its default
    except UserError:  # of another version
        whole = facts.config
    flat = flattened(whole)
    if flat.get("train.precision") == "auto":  # what it came to, on the machine where it was trained
        flat["train.precision"] = facts.environment.get("precision", "auto")
    return flat


def _own(facts: Facts, settings: dict[str, Any]) -> dict[str, Any]:
    """What the profile says of the run's arm; of one that it does not know nothing."""
    try:
        arms = profile_arms(settings["profile"])
    except UserError:  # the profile is not there any more
        return {}
    return {"method": facts.arm, **arms[facts.arm]} if facts.arm in arms else {}


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


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(parts)
