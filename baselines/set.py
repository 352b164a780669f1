"""SET, Sparse Evolutionary Training (Mocanu et al., 2018): drop by magnitude, grow at random."""

from replication.sparsity.algorithm import DynamicSparsityAlgorithm


class SET(DynamicSparsityAlgorithm):
    """The dynamic algorithm as it stands; needs no dense gradient."""
