"""Two sets of runs, a reference and a new one: which runs stand against which, and what came of it."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from replication.analysis.iso import Iso, iso
from replication.analysis.judging import ALPHA, WORSE, Arms, Row, Seeds, flops_row, judge
from replication.analysis.sides import Measured, read_side
from replication.config.keys import flatten
from replication.config.profiles import default_seeds
from replication.system.errors import UserError
from replication.system.files import Json


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        num_tests: over which the false-alarm rate `alpha` holds, in each direction.
        seeds: arm -> number of runs of the reference and of the new side.
        missing: runs of the reference that the new side lacks, of arms that it has trained; as many of other seeds
            serve as well, and seeds that the profile does not ask for are there for their spread alone.
        untrained: arms of the reference of which the new side has no run, not even a damaged one.
        unmatched: arms of the new side that the reference lacks.
        left_out: a line for each run that is not finished, or damaged.
        settings, environment: key -> the reference's and the new values, where they differ.
    """

    reference: str
    new: str
    alpha: float
    num_tests: int
    seeds: dict[str, tuple[int, int]]
    rows: list[Row]
    iso: list[Iso]
    missing: list[str]
    untrained: list[str]
    unmatched: list[str]
    left_out: list[str]
    settings: dict[str, tuple[str, str]]
    environment: dict[str, tuple[str, str]]

    def of(self, verdict: str) -> list[Row]:
        return [row for row in self.rows if row.verdict == verdict]

    def is_worse(self, but_for: Collection[str] = ()) -> bool:
        """Is a metric worse, but for some, or a run missing?"""
        return any(row.metric not in but_for for row in self.of(WORSE)) or bool(self.missing)

    def to_dict(self) -> Json:
        return {**asdict(self), "is_worse": self.is_worse()}


def compare(reference: Path, new: Path, all_arms: bool = False) -> Comparison:
    """Compare what two folders hold.

    Args:
        all_arms: an arm of the reference that the new side has not trained counts as missing.

    Raises:
        UserError: a folder has nothing to compare, or a run twice, or the two have no arm in common.
    """
    (ours, ours_left), (theirs, theirs_left) = read_side(reference), read_side(new)
    before, after = _group_by_arm(ours, reference), _group_by_arm(theirs, new)
    pairs = _pairs(before, after)
    if not pairs:
        raise UserError(
            f"{reference} and {new} have no arm in common ({', '.join(before)}; {', '.join(after)}); "
            "allowed: folders of results that have one, or of one arm each"
        )
    arms = {name: (before[a], after[b]) for name, (a, b) in pairs.items()}
    partners = {a: after[b] for a, b in pairs.values()}
    tried = {path.parent.name for path in theirs_left}
    asked = {arm: seeds for arm, seeds in before.items() if all_arms or arm in partners or _arm(arm) in tried}
    rows, num_tests = judge(arms, {arm: seeds for arm, seeds in before.items() if arm not in partners})
    return Comparison(
        reference=str(reference),
        new=str(new),
        alpha=ALPHA,
        num_tests=num_tests,
        seeds={name: (len(a), len(b)) for name, (a, b) in arms.items()},
        rows=[*(row for name, sides in arms.items() if (row := flops_row(name, *sides))), *rows],
        iso=[row for name, (a, b) in arms.items() if (row := iso(name, [*a.values()], [*b.values()]))],
        missing=[run for arm, seeds in asked.items() for run in _missing(arm, seeds, partners.get(arm, {}))],
        untrained=[arm for arm in before if arm not in asked],
        unmatched=[name for name in after if name not in {b for _, b in pairs.values()}],
        left_out=[*ours_left.values(), *theirs_left.values()],
        settings=_differing(arms, lambda run: run.settings),
        environment=_differing(arms, lambda run: flatten({**run.environment, "resumed": None})),
    )


def _group_by_arm(runs: Iterable[Measured], folder: Path) -> dict[str, dict[int, Measured]]:
    """`<profile>/<arm>` -> seed -> run."""
    grouped: dict[str, dict[int, Measured]] = {}
    for run in runs:
        seeds = grouped.setdefault(f"{run.profile}/{run.arm}".lstrip("/"), {})
        if run.seed in seeds:
            raise UserError(f"{folder} holds {run.name} of profile {run.profile} twice; allowed: each run once")
        seeds[run.seed] = run
    return {arm: dict(sorted(seeds.items())) for arm, seeds in sorted(grouped.items())}


def _pairs(before: Mapping[str, Seeds], after: Mapping[str, Seeds]) -> dict[str, tuple[str, str]]:
    """Name -> the arm of each side: whatever they are where each side has one alone; by the arm's name where each has
    one profile; else by both."""
    if len(before) == len(after) == 1:
        (a,), (b,) = before, after
        return {" → ".join(dict.fromkeys((_arm(a), _arm(b)))): (a, b)}
    if all(len({arm.partition("/")[0] for arm in side}) == 1 for side in (before, after)):
        theirs = {_arm(name): name for name in after}
        return {_arm(name): (name, theirs[_arm(name)]) for name in before if _arm(name) in theirs}
    return {name: (name, name) for name in before if name in after}


def _arm(name: str) -> str:
    return name.rpartition("/")[2]


def _missing(arm: str, ours: Seeds, theirs: Seeds) -> list[str]:
    wanted = [seed for seed in ours if seed in _own_seeds(*arm.rpartition("/")[::2])] or list(ours)
    return [f"{arm}/seed-{seed}" for seed in wanted if seed not in theirs and len(theirs) < len(wanted)]


def _own_seeds(profile: str, arm: str) -> list[int]:
    """Those that the profile asks for; none of one that is not here."""
    try:
        return default_seeds(profile, arm)
    except UserError:
        return []


def _differing(arms: Arms, what: Callable[[Measured], dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """Key -> each side's values, of what an arm's runs of the two sides do not share; but for checkpoints' scores,
    which say nothing of it."""
    found: dict[str, tuple[set[str], set[str]]] = {}
    for sides in arms.values():
        known = [[values for run in side.values() if (values := what(run))] for side in sides]
        for key in {key for side in known for values in side for key in values} if all(known) else ():
            a, b = ({str(values.get(key, "–")) for values in side} for side in known)
            if a != b:
                both = found.setdefault(key, (set(), set()))
                both[0].update(a)
                both[1].update(b)
    return {key: (", ".join(sorted(a)), ", ".join(sorted(b))) for key, (a, b) in sorted(found.items())}
