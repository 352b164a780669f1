"""Options that hold several values: how their text is read."""

import math
import os
import re

from replication.system.errors import UserError


def names(text: str) -> list[str]:
    """Those of a list with commas, once each."""
    return list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def settings() -> list[str]:
    """The KEY=VALUE pairs of $REPLICATION_SET, as make hands them on: each begins with a dotted key, and what follows
    is its value as it stands, spaces and quotes too."""
    pairs = re.split(r"\s+(?=[a-z]\w*\.\w+=)", os.environ.get("REPLICATION_SET", "").strip())
    return [pair for pair in pairs if pair]


def numbers(option: str, pairs: list[str]) -> dict[str, float]:
    """Of NAME=NUMBER pairs. Raises UserError where one is none, or not finite."""
    try:
        parsed = {key: float(value) for key, _, value in (pair.partition("=") for pair in pairs)}
        if all(map(math.isfinite, parsed.values())):
            return parsed
        raise ValueError
    except ValueError:
        raise UserError(f"{option} is {' '.join(pairs)!r}; allowed: NAME=NUMBER, as in ultra_sparsity=0.9") from None


def seeds(text: str) -> list[int]:
    """Once each. Raises UserError where one is no whole number."""
    try:
        return list(dict.fromkeys(int(seed) for seed in text.split(",")))
    except ValueError:
        raise UserError(f"seeds is {text!r}; allowed: whole numbers separated by commas") from None
