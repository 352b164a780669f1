"""The processes of one run: under torchrun several, otherwise one. Only this file knows torch.distributed."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from replication.errors import DisagreementError, UserError

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

    def parallel(self, module: nn.Module) -> nn.Module:
        """Under torchrun the module whose gradients are averaged over all processes, signs kept, in buckets and while
        the backward pass still computes others; `no_sync` leaves them each process's own. Else the module itself."""
        if not dist.is_initialized():
            return module
        return DistributedDataParallel(module, gradient_as_bucket_view=True)

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all processes, signs kept."""
        if dist.is_initialized():
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor /= self.size

    def check_equal(self, what: str, tensors: Iterable[Tensor]) -> None:
        """Raise DisagreementError, in every process, where tensors are not in all the same bit for bit."""
        if not dist.is_initialized():
            return
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.cpu().contiguous().numpy())
        own = torch.frombuffer(bytearray(digest.digest()), dtype=torch.int64).to(self.device)
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own)
        others = [str(rank) for rank, its in enumerate(every) if not torch.equal(its, every[0])]
        if others:
            raise DisagreementError(f"{what} of rank {', '.join(others)} are not those of rank 0")

    def agree(self, problem: UserError | None) -> None:
        """Raise the main process's problem, if it has one, in every process."""
        if dist.is_initialized():
            told = [str(problem) if problem else None]
            dist.broadcast_object_list(told, src=0)
            problem = problem or (UserError(told[0]) if told[0] else None)
        if problem:
            raise problem

    def any(self, number: int | None) -> int | None:
        """The largest number that one of the processes has, in all of them; None: none has any."""
        if dist.is_initialized():
            largest = torch.tensor(number or 0, device=self.device)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
            number = int(largest.item())
        return number or None

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
