"""The exceptions that mean: the input is wrong, not the program."""


class UserError(Exception):
    """Bad input. The message is one line naming the key, the value and what is allowed; the CLI exits with 2."""


class DamagedError(UserError):
    """A file is missing, or not as it was written. Where runs are many, it concerns one of them."""


class NonFiniteError(RuntimeError):
    """The loss or the gradient is no number any more."""
