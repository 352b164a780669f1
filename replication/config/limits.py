"""What any value of a configuration is held to, whatever its key."""

from typing import Any

from replication.system.errors import UserError

LARGEST = 2**31 - 1  # of whole numbers
MOST_STEPS, MOST_LAYERS = 10**7, 10**4


def check(condition: bool, key: str, value: Any, allowed: str) -> None:
    if not condition:
        raise UserError(f"{key} is {value}; allowed: {allowed}")


def check_plain(key: str, value: Any) -> None:
    """Raises UserError where a value, or one in it, is larger than any count is, or text that can be no name."""
    for one in value if isinstance(value, tuple | list) else [value]:
        if isinstance(one, tuple | list):
            check_plain(key, one)
        elif isinstance(one, str):
            is_plain = not any(ord(sign) < 32 or ord(sign) == 127 or "\ud800" <= sign <= "\udfff" for sign in one)
            check(is_plain, key, repr(one), "text without control characters, in UTF-8")
        elif isinstance(one, int):
            check(abs(one) <= LARGEST, key, one, f"at most {LARGEST}")
