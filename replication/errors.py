"""The exceptions that are expected: the input is wrong, or a run cannot go on."""

from collections.abc import Iterator
from contextlib import contextmanager

# How numpy, torch and C++ say that there is no memory, where it is no MemoryError.
_NO_MEMORY = ("can't allocate memory", "out of memory", "cannot allocate memory", "bad_alloc", "can't start new thread")


class UserError(Exception):
    """Bad input. The message is one line naming the key, the value and what is allowed; the CLI exits with 2."""

    def _render_traceback_(self) -> list[str]:
        """How a notebook shows it: the line alone."""
        return [f"error: {self}"]


class DamagedError(UserError):
    """A file is missing, or not as it was written. Where runs are many, it concerns one of them."""


def described(error: BaseException) -> str:
    """Somebody else's exception in one line."""
    return f"{type(error).__name__}: {error}".strip().partition("\n")[0]


class TrainingError(RuntimeError):
    """A run cannot go on: it has failed, and its last good state is kept."""


class NonFiniteError(TrainingError):
    """The loss or the gradient is no number any more."""


class DisagreementError(TrainingError):
    """The processes of a run no longer train the same model."""


@contextmanager
def out_of_memory() -> Iterator[None]:
    """Raises UserError where what is done in it finds no memory; everything else is raised as it is."""
    try:
        yield
    except (MemoryError, RuntimeError, ImportError) as error:
        said = str(error).partition("\n")[0]
        if not isinstance(error, MemoryError) and not any(sign in said.lower() for sign in _NO_MEMORY):
            raise
        raise UserError(
            f"out of memory ({said or 'no more is given'}); "
            "allowed: a smaller model or train.micro_batch_size, fewer --jobs, or more memory; what was saved is kept"
        ) from None
