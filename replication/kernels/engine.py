"""Which matrices of a model are executed at their active weights alone, and the upkeep of their packed forms."""

import ctypes
import platform
import warnings
from typing import Any

import torch

from replication.kernels.choice import Limits, is_faster, kind_of
from replication.kernels.library import SparseWeight, library
from replication.kernels.linear import Execution
from replication.kernels.tiles import GroupWeight, TileWeight, pack
from replication.sparsity.algorithm import SparsityAlgorithm
from replication.sparsity.grid import WEIGHTS
from replication.system.errors import UserError


class Engine:
    """The executions of a model's masked matrices.

    Args:
        model: its masked matrices but for the head are those of `MaskedLinear`.
        algorithm: applied to it.
        kernels: `sparse`, `masked`, or `auto`: sparse for each matrix that is sparse enough for it to be faster.
        bf16: the precision of products.
        head: the LM head's name, which is stored [outputs, inputs] and multiplied with the loss.
        limits: by which `auto` chooses.

    Raises:
        UserError: `sparse` is wanted where it cannot be had.
    """

    def __init__(
        self, model: Any, algorithm: SparsityAlgorithm, kernels: str, bf16: bool, head: str, limits: Limits
    ) -> None:
        self.limits = limits
        self.algorithm, self.kernels, self.bf16 = algorithm, available(kernels, model.device), bf16
        self.executions = {name: Execution() for name in algorithm.parameters}
        self.head_name, self.head = head, self.executions.get(head, Execution())
        self.is_stale = True
        for name, execution in self.executions.items():
            if name != head:
                model.get_submodule(name.removesuffix(".weight")).execution = execution

    def prepare(self, dense_gradient: bool = False) -> None:
        """To be called when weights have changed, before the products of a step.

        Args:
            dense_gradient: the step's gradient is read at masked weights too.
        """
        for name, execution in self.executions.items():
            if self.is_stale:
                execution.sparse = self._sparse(name)
            if execution.sparse:
                execution.sparse.pack(self.algorithm.parameters[name].detach())
            execution.dense_gradient = dense_gradient
        self.is_stale = False

    def topology_changed(self) -> None:
        """The next `prepare` makes new structures."""
        self.is_stale = True

    def _sparse(self, name: str) -> SparseWeight | TileWeight | GroupWeight | None:
        mask, block = self.algorithm.masks[name], self.algorithm.grids.get(name, WEIGHTS).block
        kind, nnz = kind_of(mask.shape, name == self.head_name, self.bf16, block), self.algorithm.nnz[name]
        if self.kernels == "masked" or (self.kernels == "auto" and not is_faster(self.limits, kind, nnz, mask.shape)):
            return None
        return pack(mask, name == self.head_name, self.bf16, block)


def available(kernels: str, device: torch.device) -> str:
    """The choice of kernels that this device and installation allow; where there is no compiler it says so.

    Raises:
        UserError: `sparse` is wanted where it cannot be had.
    """
    if kernels == "masked":
        return kernels
    missing = (
        "the model is not on a CPU"
        if device.type != "cpu"
        else "they were not built from this source: `make install` does, with a C compiler"
        if library() is None
        else None
    )
    if missing and kernels == "sparse":
        raise UserError(f"train.kernels is sparse, but {missing}; allowed: auto or masked")
    if missing and device.type == "cpu":
        warnings.warn(f"no sparse kernels: {missing}; masked weights are multiplied densely", stacklevel=2)
    return "masked" if missing else kernels


def keep_memory() -> None:
    """Let glibc keep the memory that tensors free.

    Giving it back and faulting it in again costs more than many a product.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        mallopt = ctypes.CDLL(None).mallopt
        if mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25):  # the most that glibc takes before 2.35
            mallopt(trim_threshold, 2**31 - 1)
