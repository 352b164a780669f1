"""The processes of one run: under torchrun several, otherwise one. Only this file knows torch.distributed."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from replication.system.errors import DisagreementError, TrainingError, UserError
from replication.system.launcher import read_launcher

# Without it cuBLAS may sum in another order each time; it is read once, at a process's first product on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

Problem = UserError | TrainingError
_GONE = ("connection closed by peer", "connection reset by peer", "broken pipe", "socket closed")  # in gloo's words


class _Agreed:
    """Has this process met the others in `World.agree`?"""

    once = False


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
            digest.update(tensor.cpu().contiguous().numpy().data)
        own = torch.frombuffer(bytearray(digest.digest()), dtype=torch.int64).to(self.device)
        every = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(every, own)
        others = [str(rank) for rank, its in enumerate(every) if not torch.equal(its, every[0])]
        if others:
            raise DisagreementError(f"{what} of rank {', '.join(others)} are not those of rank 0")

    def agree(self, problem: Problem | None = None, facts: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Raise, in every process, the problem of the first one that has any; or name what is not the same in all.

        Args:
            facts: what has to be the same, by its name.
        """
        _Agreed.once = True
        if not dist.is_initialized():
            if problem:
                raise problem
            return
        every: list[Any] = [None] * self.size
        dist.all_gather_object(every, ((type(problem), str(problem)) if problem else None, dict(facts)))
        shared = _problem([own for own, _ in every]) or _difference([own for _, own in every])
        if shared:
            shared.is_shared = True
            raise shared from problem

    @contextmanager
    def agreeing(self) -> Iterator[dict[str, Any]]:
        """What one process finds wrong in it, all raise at its end, or what differs of the facts that each gives it."""
        facts: dict[str, Any] = {}
        try:
            yield facts
        except (UserError, TrainingError) as error:
            self.agree(error)
        self.agree(facts=facts)

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


def share(problem: UserError) -> None:
    """Raise in every process what one finds wrong before any has met the others: they wait for it in `agree`."""
    if not _Agreed.once:
        join().agree(problem)


@contextmanager
def together() -> Iterator[None]:
    """Raises TrainingError where another process has ended, which this one learns from a connection that is gone."""
    try:
        yield
    except (UserError, TrainingError):
        raise
    except RuntimeError as error:
        is_gone = any(sign in str(error).lower() for sign in _GONE) or isinstance(error, dist.DistError)
        if not dist.is_initialized() or not is_gone:
            raise
        raise TrainingError("another process of this run has ended, and said why") from error


def _problem(problems: Sequence[tuple[type[Problem], str] | None]) -> Problem | None:
    for rank, problem in enumerate(problems):
        if problem:
            kind, line = problem
            return kind(f"rank {rank}: {line}" if rank else line)
    return None


def _difference(facts: Sequence[Mapping[str, Any]]) -> UserError | None:
    for rank, own in enumerate(facts):
        differing = [key for key in {**facts[0], **own} if facts[0].get(key) != own.get(key)]
        if differing:
            both = [f"{key} is {facts[0].get(key)} in rank 0 and {own.get(key)} in rank {rank}" for key in differing]
            return UserError(f"{'; '.join(both)}; allowed: the same in every process of a run")
    return None


def join() -> World:
    """The world that torchrun's environment variables describe; one process without them."""
    rank, size = read_launcher()
    own = device()
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if (size > 1 or dist.is_torchelastic_launched()) and not dist.is_initialized():
        on_gpu = own.type == "cuda"
        dist.init_process_group("nccl" if on_gpu else "gloo", device_id=own if on_gpu else None)
    return World(rank, size, own)
