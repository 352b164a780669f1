"""The paper's claims, each with a verdict from the runs and the test behind it.

Tags name where a statement comes from: `abstract` (the paper's), `tmlr` (public metadata of the journal
version), `ours` (our reading; not known from any source).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from replication.analysis.arms import ARMS, OURS, Runs, count_of, final_losses, group_by_arm, incomparable, label
from replication.analysis.capacity import EQUAL_FLOPS, FEWER_TOKENS, LEAST_SHARE, cost_the_same, costs, wrong_cost
from replication.analysis.readings import READINGS, Reading, each_count
from replication.analysis.series import find_shared_conventions
from replication.analysis.statistics import (
    has_spread,
    holm,
    p_above,
    p_below,
    pair_differences,
    power_interval,
    seeds_needed,
    summarise,
    t_interval,
)
from replication.flops.ledger import COSTS
from replication.runs.folder import RunFolder

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTED = "reproduced", "not reproduced", "inconclusive", "not tested here"
LOWER, NOT_LOWER = "lower", "higher"  # of a user's own arm, which claims nothing of the paper

ALPHA = 0.05  # ours: level of the one-sided tests of each family of claims together: C2's, C3's, C4's
# ours, in nats per token, fixed beforehand: 1 % of the loss of dense models of these sizes, which is about 4
MARGIN = 0.04
WITHOUT_VERDICT = ("smoke",)  # profiles that prove that everything works, and nothing about methods
RIVALS = ("static_4x", "set_4x", "rigl_4x")  # the sparse arms at MST's own FLOPs
MIN_SEEDS = 3  # ours
LEAST_REDUCTION = 3.95  # ours: the least that rounds to the abstract's "4×"

Losses = dict[str, dict[int, float]]  # arm -> seed -> final validation loss


@dataclass(frozen=True)
class Verdict:
    """One claim under test.

    Attributes:
        claim: C1 to C4; or `own`, of a user's own arm.
        statement: what is claimed.
        verdict: `reproduced`, `not reproduced`, `inconclusive` or `not tested here`; of a user's own arm `lower` or
            `higher` instead of the first two.
        detail: one sentence with the numbers and the test behind the verdict.
        tag: where the statement comes from.
        power: of a claim that the seeds could show, the chance that they do if it is true, in a sentence.
        measured: the number that decides and what it is of, for a table; empty: not one of those that a table shows.
        n: seeds behind it.
    """

    claim: str
    statement: str
    verdict: str
    detail: str
    tag: str
    power: str = ""
    measured: str = ""
    n: int = 0


def verdicts(runs: Iterable[RunFolder]) -> list[Verdict]:
    """C1 by counting convention, C2, C3 by rival, and C4, by reading of the head where both were trained; then each arm
    of a user's own against dense and against the arms that cost the same. None of a profile without verdicts."""
    arms = group_by_arm(runs)
    if arms and _profile(arms) in WITHOUT_VERDICT:
        return []
    losses = {arm: final_losses(seeds) for arm, seeds in arms.items()}
    readings = [reading for reading in READINGS if reading.arm("mst") in arms] or READINGS[:1]
    rivals = [(reading, rival) for reading in readings for rival in _rivals(arms, reading)]
    return [
        *(verdict for reading in readings for verdict in _flop_reductions(arms, reading)),
        *_judge([_quality(arms, losses, reading, ALPHA / len(readings)) for reading in readings]),
        *_judge([_against(rival, arms, losses, reading) for reading, rival in rivals]),
        *_judge([_against_smaller(arms, losses, *each) for each in each_count(readings)]),
        *(verdict for arm in arms if _is_own(arms, arm) for verdict in _own(arm, arms, losses)),
    ]


def _profile(arms: Runs) -> str:
    return next(iter(next(iter(arms.values())).values())).config()["profile"]


def _rivals(arms: Runs, reading: Reading) -> Sequence[str]:
    """Those that were trained; the first one where none was, so that this is said."""
    return [rival for rival in RIVALS if reading.arm(rival) in arms] or RIVALS[:1]


def _flop_reductions(arms: Runs, reading: Reading) -> Iterator[Verdict]:
    """C1. FLOPs are counted, not sampled: one seed decides, and all must agree."""
    mst, statement = reading.arm("mst"), f"training FLOPs fall by 4×, {reading.name}"
    if not {"dense", mst} <= arms.keys():
        yield Verdict("C1", statement, NOT_TESTED, "It needs finished runs of dense and MST.", "abstract")
        return
    if reason := incomparable(arms, "dense", mst) or reading.refusal(arms, mst):
        yield Verdict("C1", statement, NOT_TESTED, reason, "abstract")
        return
    dense, sparse = ([run.flops()["conventions"] for run in arms[arm].values()] for arm in ("dense", mst))
    for convention in find_shared_conventions(run.flops() for arm in ("dense", mst) for run in arms[arm].values()):
        # Dense masks nothing: under `mean_density` its count is of matrices that this reading may not mask.
        references = dense if convention in COSTS else []
        counts = ([count[convention] for count in every] for every in (references, sparse))
        verdict, detail = _flop_reduction(*counts)
        measured, n = "", len(sparse)
        if convention == reading.convention:
            measured = detail.partition(" ")[0] if verdict != INCONCLUSIVE else "seeds disagree"
            if verdict == REPRODUCED:
                measured += " (by construction)"
                detail += " Attainable by construction: the schedule was solved for it."
        yield Verdict("C1", f"{statement} ({convention})", verdict, detail, "abstract", measured=measured, n=n)


def _flop_reduction(dense: list[dict], mst: list[dict]) -> tuple[str, str]:
    spent = {count["flops"] for count in mst}
    references = {count["dense_flops"] for count in mst} | {count["flops"] for count in dense}
    if len(spent) > 1 or len(references) > 1:
        both = f"MST {_list(spent)}, dense {_list(references)}"
        return INCONCLUSIVE, f"The runs disagree on a count that seeds cannot change: {both} FLOPs."
    (reference,), (flops,) = references, spent
    reduction = reference / flops
    reached = reduction >= LEAST_REDUCTION
    of = f"{len(mst)} MST and {len(dense)} dense run(s)" if dense else f"{len(mst)} MST run(s), of what they mask alone"
    sentence = (
        f"{reduction:.2f}× = {reference:.4g} ÷ {flops:.4g} FLOPs, dense ÷ MST, counted step by step, identical in "
        f"{of}; 4× means at least {LEAST_REDUCTION}."
    )
    return (REPRODUCED if reached else NOT_REPRODUCED), sentence


@dataclass(frozen=True)
class _Comparison:
    """A claim that seeds decide: MST minus another arm lies below a bound.

    Attributes:
        differences: paired by seed; None where too few seeds are in common or the arms do not compare, as `lead` then
            says.
        sensitive: could the set-up have shown otherwise? If not, nothing is reproduced; a loss that shows is one.
        lead, bound_name, end: what the differences, the bound and the set-up are, in words.
        power: the verdict's.
        others: differences to further arms: MST must lie below the bound of each, and above that of one.
    """

    claim: str
    statement: str
    tag: str
    differences: np.ndarray | None
    bound: float
    sensitive: bool
    lead: str
    bound_name: str = "0"
    end: str = ""
    power: str = ""
    others: tuple[np.ndarray, ...] = ()

    def p_values(self) -> tuple[float, float]:
        """That the mean lies below the bound, and above it: below all of them (an intersection-union test), above one
        of them (Bonferroni)."""
        every = (self.differences, *self.others)
        below = max(p_below(each, self.bound) for each in every)
        return below, min(1.0, len(every) * min(p_above(each, self.bound) for each in every))


def _judge(comparisons: list[_Comparison], words: tuple[str, str] = (REPRODUCED, NOT_REPRODUCED)) -> Iterator[Verdict]:
    """Holm's correction over one family of claims, those of them that were tested.

    Apart for the two `words`: of what lies below the bound, and of what lies above it.
    """
    tested = [comparison for comparison in comparisons if comparison.differences is not None]
    below, above = (
        (dict(zip(map(id, tested), holm(column))) for column in zip(*(each.p_values() for each in tested)))
        if tested
        else ({}, {})
    )
    for each in comparisons:
        if each.differences is None:
            yield Verdict(each.claim, each.statement, NOT_TESTED, each.lead, each.tag)
            continue
        lower, higher = below[id(each)], above[id(each)]
        is_lower = lower < ALPHA and each.sensitive
        verdict = words[0] if is_lower else words[1] if higher < ALPHA else INCONCLUSIVE
        low, high = t_interval(each.differences)
        detail = (
            f"{each.lead} = {np.mean(each.differences):+.4f} nats per token "
            f"(95 % t interval {low:+.4f} to {high:+.4f}, {len(each.differences)} seeds); "
            f"paired one-sided t-tests, Holm-corrected over the {len(tested)} tested claim(s) {each.claim}, "
            f"give {_p(lower)} for below {each.bound_name} and {_p(higher)} for above it{each.end}."
        )
        if verdict == INCONCLUSIVE and each.sensitive:
            detail += f" {_seeds_to_decide(each, len(tested))}"
        measured = f"{np.mean(each.differences):+.3f} ({low:+.3f} to {high:+.3f})"
        n = len(each.differences)
        yield Verdict(each.claim, each.statement, verdict, detail, each.tag, each.power, measured, n)


def _seeds_to_decide(comparison: _Comparison, num_tested: int) -> str:
    if not has_spread(comparison.differences):
        return "All seeds differ by the same amount: they changed nothing, so that they are one."
    n = seeds_needed(comparison.differences, comparison.bound, ALPHA / num_tested)
    wanted = n if n else "more than 1000"
    return f"If mean and spread stay as they are, {wanted} seeds would decide it with a power of 0.8."


def _quality(arms: Runs, losses: Losses, reading: Reading, alpha: float) -> _Comparison:
    """C2: non-inferiority, believed only where every smaller dense model of MST's own FLOPs is worse than dense by more
    than the margin.

    Args:
        alpha: the least that Holm's correction may leave for this claim, for the power.
    """
    name = reading.arm("mst")
    statement = f"quality is not compromised, {reading.name}: MST's final validation loss against dense"
    if reason := _saves_less(arms, reading) or _untestable(arms, losses, reading, reading.convention, "dense"):
        return _Comparison("C2", statement, "abstract", None, 0, False, reason)
    differences = pair_differences(losses[name], losses["dense"])
    spread, n = float(np.std(differences, ddof=1)), len(differences)
    chance, least, most = power_interval(MARGIN, spread, n, alpha)
    own_spread = summarise(list(losses["dense"].values())).std
    margin = f"the margin of {MARGIN} (ours, fixed beforehand; dense's own seeds spread by {own_spread:.4f})"
    is_sensitive, end = _capacity(losses, reading)
    said = (
        f"Power of C2, {reading.name}: if MST equals dense, {n} seeds with this spread (SD {spread:.4f}) show it with "
        f"probability {chance:.2f} ({least:.2f} to {most:.2f}, as {n} seeds leave the spread uncertain)."
    )
    lead = f"{label(name)} − dense"
    return _Comparison("C2", statement, "abstract", differences, MARGIN, is_sensitive, lead, margin, end, said)


def _saves_less(arms: Runs, reading: Reading) -> str | None:
    """That MST does not save what the claim is of, so that no loss at its FLOPs would say nothing; None: it does."""
    if (name := reading.arm("mst")) not in arms:
        return None
    reduction = count_of(arms[name].values())["conventions"][reading.convention]["reduction"]
    if reduction >= LEAST_REDUCTION:
        return None
    return (
        f"{label(name)} saves {reduction:.2f}× ({reading.convention}); the claim is of 4×, {LEAST_REDUCTION} at least."
    )


def _untestable(arms: Runs, losses: Losses, reading: Reading, convention: str, *others: str) -> str | None:
    """Why MST's quality cannot be judged beside the smaller dense models of its FLOPs, in a sentence; None: it can."""
    name, smaller = reading.arm("mst"), reading.smaller(convention)
    for arm in (*others, *smaller):
        seeds = _common_seeds(losses, arm, name)
        if len(seeds) < MIN_SEEDS:
            return _too_few(seeds, label(arm), label(name))
    wrong = [wrong_cost(arms, name, arm, convention, LEAST_SHARE) for arm in smaller]
    return incomparable(arms, name, *others, *smaller) or reading.refusal(arms, name) or next(filter(None, wrong), None)


def _capacity(losses: Losses, reading: Reading) -> tuple[bool, str]:
    """Does the set-up tell a model that has lost capacity? And the numbers, for the end of a sentence."""
    smaller = reading.smaller(reading.convention)
    found = {arm: pair_differences(losses[arm], losses["dense"]) for arm in smaller}
    chances = {arm: p_above(differences, MARGIN) for arm, differences in found.items()}
    numbers = ", ".join(f"{label(arm)} {np.mean(found[arm]):+.4f} ({_p(chances[arm])})" for arm in smaller)
    is_sensitive = max(chances.values()) < ALPHA
    end = f"; smaller dense models of its FLOPs ({reading.convention}) above dense by more than the margin: {numbers}"
    if not is_sensitive:
        end += ": one is not shown to lose more than the margin, so that this set-up cannot tell lost capacity"
    fewer = pair_differences(losses.get(FEWER_TOKENS, {}), losses["dense"])
    if len(fewer):
        end += f"; a tenth fewer tokens cost dense {np.mean(fewer):+.4f}"
    return is_sensitive, end


def _against(rival: str, arms: Runs, losses: Losses, reading: Reading) -> _Comparison:
    """C3: that MST beats a sparse rival at its own FLOPs is our reading of the paper's comparison."""
    mst, other = reading.arm("mst"), reading.arm(rival)
    statement = (
        f"better than {label(rival)}, {reading.name}: MST's final validation loss is lower, at the same FLOPs "
        f"({reading.convention})"
    )
    seeds = _common_seeds(losses, other, mst)
    if len(seeds) < MIN_SEEDS:
        return _Comparison("C3", statement, "ours", None, 0, False, _too_few(seeds, label(other), label(mst)))
    wrong = wrong_cost(arms, mst, other, reading.convention)
    if reason := incomparable(arms, other, mst) or reading.refusal(arms, mst) or wrong:
        return _Comparison("C3", statement, "ours", None, 0, False, reason)
    differences = pair_differences(losses[mst], losses[other])
    lead, end = f"{label(mst)} − {label(other)}", costs(arms, mst, other)
    return _Comparison("C3", statement, "ours", differences, 0.0, True, lead, end=end)


def _against_smaller(arms: Runs, losses: Losses, reading: Reading, convention: str) -> _Comparison:
    """C4: that MST is worth it at all: it beats every smaller dense model of its FLOPs under a convention (ours)."""
    mst, smaller = reading.arm("mst"), reading.smaller(convention)
    statement = (
        f"better than smaller dense models, {reading.name} ({convention}): MST's final validation loss is lower than "
        "that of each, at the same FLOPs"
    )
    if reason := _untestable(arms, losses, reading, convention):
        return _Comparison("C4", statement, "ours", None, 0, False, reason)
    found = {arm: pair_differences(losses[mst], losses[arm]) for arm in smaller}
    best, *others = sorted(found, key=lambda arm: -np.mean(found[arm]))
    beside = f", the best of {len(smaller)} smaller dense models," if others else ""
    lead = f"{label(mst)} − {label(best)}{beside}"
    end = "".join(f"; {label(mst)} − {label(arm)} = {np.mean(found[arm]):+.4f}" for arm in others)
    end += "".join(costs(arms, mst, arm) for arm in smaller)
    rest = tuple(found[arm] for arm in others)
    return _Comparison("C4", statement, "ours", found[best], 0.0, True, lead, end=end, others=rest)


def _own(arm: str, arms: Runs, losses: Losses) -> Iterator[Verdict]:
    """An arm of a user's own: is its loss lower than dense's, and than that of each arm that costs the same?"""
    reading = READINGS[not next(iter(arms[arm].values())).config()["sparsity"]["mask_lm_head"]]
    rivals = [
        other for other in arms if other not in (arm, "dense") and cost_the_same(arms, arm, other, reading.convention)
    ]
    found = [_lower(arm, "dense", arms, losses, "")] if "dense" in arms else []
    found += [_lower(arm, rival, arms, losses, f", at the same FLOPs ({reading.convention})") for rival in rivals]
    yield from _judge(found, (LOWER, NOT_LOWER))
    if not rivals:
        reason = (
            f"No arm within {EQUAL_FLOPS:.0%} of its FLOPs ({reading.convention}) was trained; "
            "`plan --target-reduction` finds the sparsity at which another one is."
        )
        yield Verdict("own", f"{label(arm)} against an arm of the same FLOPs", NOT_TESTED, reason, "ours")


def _lower(arm: str, other: str, arms: Runs, losses: Losses, end: str) -> _Comparison:
    statement = f"{label(arm)} against {label(other)}: final validation loss{end}"
    seeds = _common_seeds(losses, arm, other)
    if len(seeds) < MIN_SEEDS:
        return _Comparison("own", statement, "ours", None, 0, False, _too_few(seeds, label(arm), label(other)))
    if reason := incomparable(arms, other, arm):
        return _Comparison("own", statement, "ours", None, 0, False, reason)
    differences = pair_differences(losses[arm], losses[other])
    return _Comparison("own", statement, "ours", differences, 0.0, True, f"{label(arm)} − {label(other)}")


def _is_own(arms: Runs, arm: str) -> bool:
    """An arm that no shipped profile has, or one of a method that is not ours."""
    return arm not in ARMS or next(iter(arms[arm].values())).config()["method"] not in OURS


def _common_seeds(losses: Losses, *arms: str) -> list[int]:
    return sorted(set.intersection(*(set(losses.get(arm, {})) for arm in arms)))


def _too_few(seeds: list[int], *names: str) -> str:
    return f"{len(seeds)} seed(s) in common of {', '.join(names)}; the paired test asks for at least {MIN_SEEDS}."


def _p(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.4f}"


def _list(counts: set[int]) -> str:
    return ", ".join(str(count) for count in sorted(counts))
