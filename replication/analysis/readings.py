"""The two readings of the paper's LM head, and the counts under which each one's MST is judged."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from replication.analysis.arms import DENSE_HEAD, Runs, label
from replication.analysis.capacity import COUNTED, SMALLER


@dataclass(frozen=True)
class Reading:
    """One reading of the paper's LM head, and its arms: masked like the rest (the authors' code), or dense.

    Attributes:
        name: in words.
        suffix: of its arms' names.
        convention: under which its MST is solved for 4×: the head counted, or left out.
        counted: a further convention -> the smaller dense models of its MST's FLOPs under that one.
    """

    name: str
    suffix: str
    convention: str
    counted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def conventions(self) -> list[str]:
        """Under which MST is held against smaller dense models of its own FLOPs."""
        return [self.convention, *self.counted]

    def arm(self, method: str) -> str:
        return f"{method}{self.suffix}"

    def smaller(self, convention: str) -> tuple[str, ...]:
        """The smaller dense models of its MST's FLOPs under one of `conventions`."""
        return self.counted.get(convention) or tuple(map(self.arm, SMALLER))

    def refusal(self, arms: Runs, arm: str) -> str | None:
        """Why an arm's runs are not of this reading, in a sentence; None: they are."""
        masked = next(iter(arms[arm].values())).config()["sparsity"]["mask_lm_head"]
        if masked == (self.suffix != DENSE_HEAD):
            return None
        return f"{label(arm)} was trained with sparsity.mask_lm_head {str(masked).lower()}, which is not this reading."


READINGS = (
    Reading("head masked", "", "head_counted_full"),
    # A dense head costs most of what is left at 4×, so that a count without it alone would flatter MST.
    Reading("head dense", DENSE_HEAD, "head_excluded_causal", {"head_counted_full": (COUNTED,)}),
)


def each_count(readings: Iterable[Reading]) -> list[tuple[Reading, str]]:
    """Each reading under each convention by which its MST is held against smaller dense models."""
    return [(reading, convention) for reading in readings for convention in reading.conventions]
