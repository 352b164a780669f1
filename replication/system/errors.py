"""The exceptions that are expected: the input is wrong, or a run cannot go on."""

from collections.abc import Iterator
from contextlib import contextmanager

# How numpy, torch and C++ say that there is no memory, where it is no MemoryError.
_NO_MEMORY = ("can't allocate memory", "out of memory", "cannot allocate memory", "bad_alloc", "can't start new thread")


class UserError(Exception):
    """Bad input. The message is one line naming the key, the value and what is allowed; the CLI exits with 2.

    Attributes:
        is_shared: every process of the run raises it, so that the first one says it for all.
    """

    is_shared = False

    def _render_traceback_(self) -> list[str]:
        """How a notebook shows it: the line alone."""
        return [f"error: {self}"]


class DamagedError(UserError):
    """A file is missing, or not as it was written. Where runs are many, it concerns one of them."""


def describe_error(error: BaseException) -> str:
    """Somebody else's exception in one line."""
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]


class TrainingError(RuntimeError):
    """A run cannot go on: it has failed, and its last good state is kept. `is_shared` is as in UserError."""

    is_shared = False


class NonFiniteError(TrainingError):
    """The loss or the gradient is no number any more."""

    is_shared = True  # they are means over the processes


class DisagreementError(TrainingError):
    """The processes of a run no longer train the same model."""

    is_shared = True


class MethodError(TrainingError, UserError):
    """A method, schedule or metric does not do what it must, or raises: a run by it has failed, and no plan is one."""


def is_out_of_memory(error: BaseException) -> bool:
    """Does it say that there is no memory, in one of the ways of the libraries?"""
    if isinstance(error, MemoryError):
        return True
    said = str(error).partition("\n")[0].lower()
    return isinstance(error, RuntimeError | ImportError) and any(sign in said for sign in _NO_MEMORY)


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Raises UserError where what is done in it finds no memory; everything else is raised as it is."""
    try:
        yield
    except (MemoryError, RuntimeError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        said = str(error).partition("\n")[0]
        raise UserError(
            f"out of memory ({said or 'no more is given'}); "
            "allowed: a smaller model or train.micro_batch_size, fewer --jobs, or more memory; what was saved is kept"
        ) from None
