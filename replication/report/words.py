"""The words of the page: the finding in four sentences, and how FLOPs are counted."""

from collections.abc import Callable, Iterable, Sequence

from replication.analysis.claims import NOT_TESTED, Verdict
from replication.analysis.readings import READINGS, Reading

Clause = tuple[str, str]  # what was measured, and the verdict

CONVENTIONS = {
    "head_counted_full": "with head, full",
    "head_counted_causal": "with head, causal",
    "head_excluded_full": "no head, full",
    "head_excluded_causal": "no head, causal",
    "blocks_only": "blocks only",
    "mean_density": "mean density",
}


def reading_of(verdict: Verdict) -> Reading | None:
    """The reading of the head that a claim is of; None: of a user's own arm."""
    return next((reading for reading in READINGS if reading.name in verdict.statement), None)


def finding(found: Iterable[Verdict]) -> list[tuple[str, list[Clause]]]:
    """Four sentences, of cost, quality, rivals and smaller dense models: how each begins, and its clauses; none where
    the profile gives no verdict."""
    found = list(found)
    if not found:
        return []
    return [
        ("MST trains with fewer FLOPs than dense:", _clauses(found, "C1", lambda verdict: verdict.measured)),
        ("Its final validation loss minus dense's, in nats per token:", _clauses(found, "C2", _interval)),
        ("MST's loss minus a sparse rival's, at equal FLOPs:", _clauses(found, "C3", _interval)),
        ("MST's loss minus the best smaller dense model's, at equal FLOPs:", _clauses(found, "C4", _interval)),
    ]


def _clauses(found: Sequence[Verdict], claim: str, measured: Callable[[Verdict], str]) -> list[Clause]:
    of_claim = [verdict for verdict in found if verdict.claim == claim]
    tested = [verdict for verdict in of_claim if verdict.measured]
    untested = [verdict for verdict in of_claim if verdict.verdict == NOT_TESTED]
    clauses = [(f"{measured(verdict)} {_tell_apart(verdict)}", verdict.verdict) for verdict in tested]
    return clauses + [
        (f"{_tell_apart(verdict)}: {verdict.detail.rstrip('.')}", verdict.verdict) for verdict in untested
    ]


def _interval(verdict: Verdict) -> str:
    mean, _, interval = verdict.measured.partition(" ")
    return f"{mean} (95 % interval {interval.strip('()')}, n = {verdict.n})"


def _tell_apart(verdict: Verdict) -> str:
    """`with the head dense`, and what else tells this claim from its like."""
    reading = reading_of(verdict)
    words = f"with the {reading.name}" if reading else verdict.statement
    if verdict.claim == "C1" and reading:
        return f"{words} (counted: {CONVENTIONS[reading.convention]})" if verdict.measured else words
    if verdict.claim == "C4" and reading:
        counted = next(name for name in reading.conventions if f"({name})" in verdict.statement)
        return f"{words} (counted: {CONVENTIONS[counted]})"
    if verdict.claim == "C3" and verdict.statement.startswith("better than "):
        rival = verdict.statement.removeprefix("better than ").partition(",")[0]
        return f"from {rival}, {words}"
    return words
