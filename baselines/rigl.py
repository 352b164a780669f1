"""RigL (Evci et al., 2020): SET that grows where the dense gradient is largest."""

from replication.baselines.set import SET
from replication.sparsity.topology import grow_gradient


class RigL(SET):
    """Overrides where connections grow, and nothing else."""

    needs_gradient = True

    def grow(self, gradient, eligible, num, generator):
        return grow_gradient(gradient, eligible, num, generator)
