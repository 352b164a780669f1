"""The one exception that means: the input is wrong, not the program."""


class UserError(Exception):
    """Bad input. The message is one line naming the key, the value and what is allowed; the CLI exits with 2."""
