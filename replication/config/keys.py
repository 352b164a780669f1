"""Dotted keys and names: flattening, comparing, and the nearest known one to a slip."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from replication.system.errors import UserError

# What other codes call our keys, by the last part of the name (ours).
SYNONYMS = {
    "lr": "learning_rate",
    "max_lr": "learning_rate",
    "min_lr": "min_learning_rate",
    "wd": "weight_decay",
    "steps": "num_steps",
    "max_steps": "num_steps",
    "max_iters": "num_steps",
    "iterations": "num_steps",
    "batch": "batch_size",
    "bs": "batch_size",
    "warmup": "warmup_steps",
    "warmup_iters": "warmup_steps",
    "clip": "grad_clip",
    "max_grad_norm": "grad_clip",
    "dtype": "precision",
    "layers": "n_layer",
    "num_hidden_layers": "n_layer",
    "heads": "n_head",
    "num_attention_heads": "n_head",
    "width": "n_embd",
    "d_model": "n_embd",
    "hidden_size": "n_embd",
    "context": "n_positions",
    "context_length": "n_positions",
    "block_size": "n_positions",
    "seq_len": "n_positions",
    "density": "sparsity",
    "update_interval": "update_freq",
    "delta_t": "update_freq",
    "delta": "update_freq",
    "zeta": "drop_fraction",
    "drop_rate": "drop_fraction",
    "prune_rate": "drop_fraction",
    "dataset": "source",
    "vocab": "vocab_size",
}


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a nested configuration."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def find_differing_keys(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Dotted keys at which two nested configurations differ."""
    a, b = flatten(ours), flatten(theirs)
    return sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))


def check_known(key: str, name: str, known: Sequence[str], more: str = "") -> None:
    """Raises UserError, with the nearest valid name, unless `name` is among the known; `more` is also allowed."""
    if name not in known:
        raise UserError(f"{key} is {name!r}; {nearest(name, known)}; allowed: {', '.join(known)}{more}")


def nearest(name: str, known: Sequence[str]) -> str:
    """A clause that names the valid name that was probably meant."""
    if not known:
        return "there is none"
    found = _nearest(name, known)
    return f"the nearest valid one is {found!r}" if found else "none is near"


def _nearest(name: str, known: Sequence[str]) -> str | None:
    plain = name.strip().lower().replace("-", "_")
    section, _, last = plain.rpartition(".")
    last = SYNONYMS.get(last, last)
    for wanted in (plain, f"{section}.{last}"):
        if wanted in known:
            return wanted
    of_that_name = [key for key in known if key.rpartition(".")[2] == last]
    if of_that_name:
        return of_that_name[0]
    ends = {key.rpartition(".")[2]: key for key in reversed(known)}
    begun = [end for end in ends if last and end.startswith(last)]
    near = begun or difflib.get_close_matches(last, ends, n=1) or difflib.get_close_matches(plain, known, n=1)
    return ends.get(near[0], near[0]) if near else None
