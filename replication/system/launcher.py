"""The processes of one run, as torchrun or another launcher started them: which one this is, and which one speaks."""

import os

from replication.system.errors import TrainingError, UserError


def read_launcher() -> tuple[int, int]:
    """This process's rank, and of how many processes, as torchrun or another launcher says; without one, 0 of 1.

    Raises:
        UserError: RANK or WORLD_SIZE is set otherwise than a launcher does.
    """
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    are_numbers = rank.isascii() and size.isascii() and rank.isdecimal() and size.isdecimal()
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if not (are_numbers and int(rank) < int(size)) or (int(size) > 1 and missing):
        known = ", ".join(f"{name} is {os.environ[name]!r}" for name in ("RANK", "WORLD_SIZE") if name in os.environ)
        lack = f" ({', '.join(missing)} not set)" if missing else ""
        raise UserError(
            f"{known}, but there is no launcher that set it{lack}; "
            "allowed: unset, or as torchrun sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        )
    return int(rank), int(size)


def is_first() -> bool:
    """Is this the process that speaks, of those that torchrun started?"""
    try:
        return read_launcher()[0] == 0
    except UserError:  # there is no launcher, and so no other process
        return True


def rank_of(error: UserError | TrainingError) -> str | None:
    """Before an error's line, the rank of who alone has it; None: the first process says it for all."""
    return "" if is_first() else None if error.is_shared else f"rank {read_launcher()[0]}: "
