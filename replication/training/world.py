"""The processes of one run: under torchrun several, otherwise one. Only this file knows torch.distributed."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from replication.errors import UserError

# Without it cuBLAS may sum in another order each time; it is read once, at a process's first product on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@dataclass(frozen=True)
class World:
    """This process's rank among `size`, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """The one process that writes."""
        return self.rank == 0

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, signs kept."""
        if dist.is_initialized():
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.size

    def agree(self, problem: UserError | None) -> None:
        """Raise the main process's problem, if it has one, in every process."""
        if dist.is_initialized():
            told = [str(problem) if problem else None]
            dist.broadcast_object_list(told, src=0)
            problem = problem or (UserError(told[0]) if told[0] else None)
        if problem:
            raise problem

    def wait(self) -> None:
        """Until every process is here."""
        if dist.is_initialized():
            dist.barrier()


def device() -> torch.device:
    """This process's."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )


def join() -> World:
    """The world that torchrun's environment variables describe; one process without them."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    own = device()
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if (size > 1 or dist.is_torchelastic_launched()) and not dist.is_initialized():
        on_gpu = own.type == "cuda"
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=own if on_gpu else None)
    return World(rank, size, own)
