"""The paper's claims, each with a verdict from the runs and the test behind it.

Tags name where a statement comes from: `abstract` (the paper's), `tmlr` (public metadata of the journal
version), `ours` (our reading; not known from any source).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from replication.analysis.arms import Runs, by_arm, final_losses, incomparable, label
from replication.analysis.statistics import (
    holm,
    p_above,
    p_below,
    paired_differences,
    power,
    seeds_needed,
    summarise,
    t_interval,
)
from replication.runs import RunFolder

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTED = "reproduced", "not reproduced", "inconclusive", "not tested here"

ALPHA = 0.05  # ours: level of the one-sided tests of each family of claims together: C2's, and C3's
MARGIN = (
    0.04  # ours, in nats per token, fixed beforehand: 1 % of the loss of dense models of these sizes, which is about 4
)
MIN_SEEDS = 3  # ours
LEAST_REDUCTION = 3.95  # ours: the least that rounds to the abstract's "4×"

Losses = dict[str, dict[int, float]]  # arm -> seed -> final validation loss


@dataclass(frozen=True)
class Verdict:
    """One claim under test.

    Attributes:
        claim: C1, C2 or C3.
        statement: what is claimed.
        verdict: `reproduced`, `not reproduced`, `inconclusive` or `not tested here`.
        detail: one sentence with the numbers and the test behind the verdict.
        tag: where the statement comes from.
    """

    claim: str
    statement: str
    verdict: str
    detail: str
    tag: str


def verdicts(runs: Iterable[RunFolder]) -> list[Verdict]:
    """C1 by counting convention, C2, and C3 by baseline, over one profile's finished runs."""
    arms = by_arm(runs)
    losses = {arm: final_losses(seeds) for arm, seeds in arms.items()}
    rivals = [_against(arm, arms, losses) for arm in ("static", "set", "rigl")]
    return [*_flop_reductions(arms), *_judge([_quality(arms, losses)]), *_judge(rivals)]


def _flop_reductions(arms: Runs) -> Iterator[Verdict]:
    """C1. FLOPs are counted, not sampled: one seed decides, and all must agree."""
    if not {"dense", "mst"} <= arms.keys():
        yield Verdict(
            "C1", "training FLOPs fall by 4×", NOT_TESTED, "It needs finished runs of dense and MST.", "abstract"
        )
        return
    if reason := incomparable(arms, "dense", "mst"):
        yield Verdict("C1", "training FLOPs fall by 4×", NOT_TESTED, reason, "abstract")
        return
    dense = [run.flops()["conventions"] for run in arms["dense"].values()]
    mst = [run.flops()["conventions"] for run in arms["mst"].values()]
    for convention in mst[0]:
        statement = f"training FLOPs fall by 4× ({convention})"
        verdict, detail = _flop_reduction([count[convention] for count in dense], [count[convention] for count in mst])
        yield Verdict("C1", statement, verdict, detail, "abstract")


def _flop_reduction(dense: list[dict], mst: list[dict]) -> tuple[str, str]:
    spent, references = (
        {count["flops"] for count in mst},
        {count["dense_flops"] for count in mst} | {count["flops"] for count in dense},
    )
    if len(spent) > 1 or len(references) > 1:
        return (
            INCONCLUSIVE,
            f"The runs disagree on a count that seeds cannot change: MST {_listed(spent)}, dense {_listed(references)} FLOPs.",
        )
    (reference,), (flops,) = references, spent
    reduction = reference / flops
    reached = reduction >= LEAST_REDUCTION
    sentence = f"{reduction:.2f}× = {reference:.4g} ÷ {flops:.4g} FLOPs, dense ÷ MST, counted step by step, identical in {len(mst)} MST and {len(dense)} dense run(s); 4× means at least {LEAST_REDUCTION}."
    return (REPRODUCED if reached else NOT_REPRODUCED), sentence


@dataclass(frozen=True)
class _Comparison:
    """A claim that seeds decide: MST minus another arm lies below a bound.

    Attributes:
        differences: paired by seed; None where too few seeds are in common or the arms do not compare, as `lead` then says.
        sensitive: could the set-up have shown otherwise?
        lead, bound_name, end: what the differences, the bound and the set-up are, in words.
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


def _judge(comparisons: list[_Comparison]) -> Iterator[Verdict]:
    """Holm's correction over one family of claims, those of them that were tested, apart for `reproduced` and for `not reproduced`."""
    tested = [comparison for comparison in comparisons if comparison.differences is not None]
    below = dict(zip(map(id, tested), holm([p_below(each.differences, each.bound) for each in tested])))
    above = dict(zip(map(id, tested), holm([p_above(each.differences, each.bound) for each in tested])))
    for each in comparisons:
        if each.differences is None:
            yield Verdict(each.claim, each.statement, NOT_TESTED, each.lead, each.tag)
            continue
        lower, higher = below[id(each)], above[id(each)]
        verdict = (
            INCONCLUSIVE
            if not each.sensitive
            else REPRODUCED
            if lower < ALPHA
            else NOT_REPRODUCED
            if higher < ALPHA
            else INCONCLUSIVE
        )
        low, high = t_interval(each.differences)
        detail = (
            f"{each.lead} = {np.mean(each.differences):+.4f} nats per token (95 % t interval {low:+.4f} to {high:+.4f}, {len(each.differences)} seeds); "
            f"paired one-sided t-tests, Holm-corrected over the {len(tested)} tested claim(s) {each.claim}, give {_p(lower)} for below {each.bound_name} "
            f"and {_p(higher)} for above it{each.end}."
        )
        if verdict == INCONCLUSIVE and each.sensitive:
            detail += f" {_seeds_to_decide(each, len(tested))}"
        yield Verdict(each.claim, each.statement, verdict, detail, each.tag)


def _seeds_to_decide(comparison: _Comparison, num_tested: int) -> str:
    n = seeds_needed(comparison.differences, comparison.bound, ALPHA / num_tested)
    return f"If mean and spread stay as they are, {n if n else 'more than 1000'} seeds would decide it with a power of 0.8."


def _quality(arms: Runs, losses: Losses) -> _Comparison:
    """C2: non-inferiority, believed only where the set-up tells dense from a method that must be worse, by the margin."""
    statement = "quality is not compromised: MST's final validation loss against dense"
    seeds = _common_seeds(losses, "dense", "dense_quarter", "mst")
    if len(seeds) < MIN_SEEDS:
        return _Comparison(
            "C2", statement, "abstract", None, 0, False, _too_few(seeds, "dense", "dense, ¼ steps", "MST")
        )
    if reason := incomparable(arms, "dense", "mst", "dense_quarter"):
        return _Comparison("C2", statement, "abstract", None, 0, False, reason)
    dense, quarter, mst = ({seed: losses[arm][seed] for seed in seeds} for arm in ("dense", "dense_quarter", "mst"))
    control, differences = paired_differences(quarter, dense), paired_differences(mst, dense)
    p_control, spread = p_above(control, MARGIN), float(np.std(differences, ddof=1))
    chance = power(MARGIN / spread, len(seeds), ALPHA) if np.ptp(differences) else 1.0
    name = f"the margin of {MARGIN} (ours, fixed beforehand; dense's own seeds spread by {summarise(list(dense.values())).std:.4f})"
    end = (
        f"; the set-up {'separates' if p_control < ALPHA else 'does not separate'} dense from ¼ of its steps by more than the margin "
        f"({np.mean(control):+.4f}, {_p(p_control)}); if MST equalled dense, {len(seeds)} seeds of this spread ({spread:.4f}) would show it with a power of {chance:.2f}"
    )
    return _Comparison("C2", statement, "abstract", differences, MARGIN, p_control < ALPHA, "MST − dense", name, end)


def _against(baseline: str, arms: Runs, losses: Losses) -> _Comparison:
    """C3: that MST beats a sparse baseline is our reading of the paper's comparison."""
    statement = f"MST's final validation loss is lower than {label(baseline)}'s"
    seeds = _common_seeds(losses, baseline, "mst")
    if len(seeds) < MIN_SEEDS:
        return _Comparison("C3", statement, "ours", None, 0, False, _too_few(seeds, label(baseline), "MST"))
    if reason := incomparable(arms, baseline, "mst"):
        return _Comparison("C3", statement, "ours", None, 0, False, reason)
    return _Comparison(
        "C3",
        statement,
        "ours",
        paired_differences(losses["mst"], losses[baseline]),
        0.0,
        True,
        f"MST − {label(baseline)}",
    )


def _common_seeds(losses: Losses, *arms: str) -> list[int]:
    return sorted(set.intersection(*(set(losses.get(arm, {})) for arm in arms)))


def _too_few(seeds: list[int], *names: str) -> str:
    return f"{len(seeds)} seed(s) in common of {', '.join(names)}; the paired test asks for at least {MIN_SEEDS}."


def _p(value: float) -> str:
    return "p < 0.0001" if value < 1e-4 else f"p = {value:.4f}"


def _listed(counts: set[int]) -> str:
    return ", ".join(str(count) for count in sorted(counts))
