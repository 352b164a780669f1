"""A run's configuration with where each value is from, and the fields there are, for the command line."""

import inspect
import json
import re
import textwrap
from collections.abc import Iterable

from replication.config import fields as fields_of
from replication.config.keys import flatten
from replication.config.profiles import arm_names, layers, load_config, profile_names
from replication.config.run_config import sections

WIDTH = 100


def render(profile: str, arm: str, seed: int = 0, overrides: Iterable[str] = ()) -> str:
    """YAML of the whole configuration, each value with its source: the default, the profile, what was tuned for the
    arm, the arm itself, or `--set`.

    Raises:
        UserError: as `load_config`.
    """
    overrides = list(overrides)
    values = load_config(profile, arm, seed, overrides).to_dict()
    source = {key: origin for origin, changes in layers(profile, arm, overrides) for key in changes}
    lines = [f"{key}: {values[key]}" for key in ("profile", "arm", "method", "seed")]
    for section, keys in values.items():
        if not isinstance(keys, dict) or not keys:
            continue
        if section == "reference":
            lines.append(f"{section}: {json.dumps(keys)} # the profile's own shape, which × compares with")
            continue
        lines.append(f"{section}:")
        for key, value in flatten(keys).items():
            line = f"  {key}: {json.dumps(value, ensure_ascii=False)}"
            lines.append(f"{line:<48} # {source.get(f'{section}.{key}', 'default')}")
    return "\n".join(lines)


def list_fields() -> str:
    """Every field with its default and meaning, as the configuration's docstrings have them."""
    lines = []
    for section, keys in sections().items():
        meanings = _meanings(section)
        for key, default in keys.items():
            text = f"{section}.{key}={json.dumps(default, ensure_ascii=False)}"
            meaning = meanings.get(key, "")
            lines += _wrap(f"{text}  {meaning}".rstrip())
    return "\n".join(lines)


def list_arms() -> str:
    """The arms of each shipped profile."""
    lines = []
    for profile in profile_names():
        text = f"{profile}: {', '.join(arm_names(profile))}"
        lines += _wrap(text)
    return "\n".join(lines)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="      ")


def _meanings(section: str) -> dict[str, str]:
    """Field -> what the docstring of its dataclass says of it."""
    names = {"mst": "MSTConfig"}
    told = getattr(fields_of, names.get(section, f"{section.capitalize()}Config"), None)
    text = inspect.cleandoc(told.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {4}(\w+(?:, \w+)*): (.+(?:\n {8}.+)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.split()) for keys, meaning in entries for name in keys.split(", ")}
