"""Static sparse training: the first mask stays."""

from replication.sparsity.algorithm import SparsityAlgorithm


class Static(SparsityAlgorithm):
    """A random mask at constant sparsity, never updated."""
