"""Words of the command line that have others now: they go on working for one release, and say so."""

from pathlib import Path

from replication.system.launcher import is_first
from replication.system.signals import tell

OLD = {
    "tune": ("search", "tune"),
    "suggest": ("plan", "suggest"),
    "calibrate": ("evaluate",),
    "ls": ("runs", "list"),
    "watch": ("runs", "watch"),
    "show": ("runs", "show"),
    "topology": ("runs", "topology"),
    "tradeoffs": ("report", "tradeoffs"),
    "paper": ("report", "paper"),
    "gpu-check": ("bench", "gpu"),
}
DEFAULTS = {"plan": "run", "report": "page", "bench": "cpu"}  # what a word alone means


def modernise(arguments: list[str]) -> list[str]:
    """The command line in today's words, with a line about each that is old."""
    if not arguments:
        return arguments
    word, *rest = arguments
    if word in OLD:
        new = list(OLD[word])
        _say_renamed(word, " ".join(new) + (" … --reference NAME" if word == "calibrate" else ""))
        return [*new, *rest, *(_reference(rest) if word == "calibrate" else [])]
    if word == "plan" and "--calibrate" in rest:
        _say_renamed("plan --calibrate", "plan machine")
    if word == "replicate" and any(option.startswith("--sweep") for option in rest):
        _say_renamed("replicate --sweep", "search grid")
    if word in DEFAULTS and (not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help"))):
        return [word, DEFAULTS[word], *rest]
    return arguments


def _reference(rest: list[str]) -> list[str]:
    """What `calibrate MODEL` took for granted."""
    before = ["", *rest]
    models = [one for last, one in zip(before, rest) if not one.startswith("-") and last != "--data-dir"]
    asked = any(argument.startswith(("--reference", "-h", "--help")) for argument in rest)
    return [] if asked or not models else ["--reference", Path(models[0]).name]


def _say_renamed(old: str, new: str) -> None:
    if is_first():
        tell(f"`{old}` is `{new}` now; the old name goes with the next release")
