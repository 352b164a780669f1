"""Gradual magnitude pruning (Zhu and Gupta, 2017): dense at first, then the smallest weights go; none comes back."""

from replication.sparsity.algorithm import DynamicSparsityAlgorithm


class GMP(DynamicSparsityAlgorithm):
    """Prunes to the sparsity that its schedule says. Nothing is dropped beyond that, so that nothing grows.

    Args:
        ramp_start, ramp_end: shares of training between which it prunes, ¼ and ¾ at best (Jin et al., 2025, arXiv
            2501.12486); its schedules are made of them.
    """

    def __init__(self, *args, ramp_start: float = 0.25, ramp_end: float = 0.75, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.ramp_start, self.ramp_end = ramp_start, ramp_end
