"""Dense training: the method layer with nothing masked."""

from replication.sparsity.algorithm import SparsityAlgorithm


class Dense(SparsityAlgorithm):
    """Every weight active, and no mask to multiply by."""

    def apply(self, model, param_filter) -> None:
        super().apply(model, lambda name, param: False)
