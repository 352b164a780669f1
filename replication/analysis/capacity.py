"""Smaller dense models of MST's own FLOPs (ours): do they lose quality where MST does not? Only then is quality tested.

Where a model of fewer layers, or of less width, ends at dense's loss for a quarter of the FLOPs, the set-up leaves so
much capacity unused that nothing can be lost, and MST's equal loss says nothing.
"""

from collections.abc import Iterator

from replication.analysis.arms import Runs, count_of, label
from replication.flops.ledger import COSTS

SMALLER = ("dense_narrow", "dense_shallow")  # less width; fewer layers, and of less width where those are not enough
EQUAL_FLOPS = 0.02  # ours: the relative difference up to which two arms cost the same
LEAST_SHARE = 0.9  # ours: of MST's FLOPs that a smaller model has, as widths are whole; one with less must lose
COUNTED = (
    "dense_shallow_counted"  # one of fewer layers that costs what MST with its head dense costs with the head counted
)
FEWER_TOKENS = "dense_nine_tenths"  # what the margin is in compute


def flops_of(arms: Runs, arm: str, convention: str) -> float:
    """Training FLOPs of an arm."""
    return count_of(arms[arm].values())["conventions"][convention]["flops"]


def cost_the_same(arms: Runs, arm: str, other: str, convention: str) -> bool:
    """Within `EQUAL_FLOPS` of each other."""
    return abs(flops_of(arms, arm, convention) / flops_of(arms, other, convention) - 1) <= EQUAL_FLOPS


def wrong_cost(arms: Runs, mst: str, other: str, convention: str, least: float = 1 - EQUAL_FLOPS) -> str | None:
    """Why an arm is none of MST's own FLOPs, in a sentence; None: it is.

    Args:
        least: the share of MST's FLOPs that it has at least.
    """
    share = flops_of(arms, other, convention) / flops_of(arms, mst, convention)
    if least <= share <= 1 + EQUAL_FLOPS:
        return None
    return (
        f"{label(other)} costs {share:.2f} times {label(mst)}'s FLOPs ({convention}); "
        f"its own FLOPs are {least} to {1 + EQUAL_FLOPS}."
    )


def costs(arms: Runs, mst: str, other: str) -> str:
    """Under which conventions a rival does not cost what MST costs, for the end of a sentence; empty: under none."""
    found = ", ".join(f"{ratio:.2f} ({name})" for name, ratio in _ratios(arms, mst, other))
    return f"; {label(other)} costs, in {label(mst)}'s FLOPs, {found}" if found else ""


def _ratios(arms: Runs, mst: str, other: str) -> Iterator[tuple[str, float]]:
    own, theirs = (count_of(arms[arm].values())["conventions"] for arm in (mst, other))
    for name in (name for name in COSTS if name in own and name in theirs):
        ratio = theirs[name]["flops"] / own[name]["flops"]
        if abs(ratio - 1) > EQUAL_FLOPS:
            yield name, ratio
