"""Hybrid sparse attention patterns: which of the causal pairs a query attends to. Imports no torch."""

from typing import Any

import numpy as np

PATTERNS = ("dense", "local", "strided", "sparse", "fixed")


def pattern_mask(pattern: str, n_positions: int, window: int, stride: int) -> np.ndarray:
    """Boolean [query, key]: the pairs that a pattern keeps. Source: PAPER `code`.

    Args:
        pattern: `dense` all causal pairs; `local` the last `window` keys; `strided` every `stride`-th key back;
            `sparse` both together; `fixed` the query's own block of `stride`, plus the last column of each block.
        n_positions: sequence length in tokens.
        window, stride: in tokens.
    """
    query = np.arange(n_positions)[:, None]
    key = np.arange(n_positions)[None, :]
    return keeps(pattern, query, key, window, stride) & (key <= query)


def num_pairs(pattern: str, n_positions: int, window: int, stride: int) -> int:
    """Pairs that a pattern keeps, of n_positions · (n_positions + 1) / 2 causal ones.

    A query at a time, for long contexts.
    """
    return sum(int(np.sum(keeps(pattern, query, np.arange(query + 1), window, stride))) for query in range(n_positions))


def keeps(pattern: str, query: Any, key: Any, window: int, stride: int) -> Any:
    """Are pairs kept, future keys not ruled out? Positions are numbers, or arrays or tensors that broadcast."""
    distance = query - key
    local = distance < window
    strided = distance % stride == 0
    return {
        "dense": distance == distance,
        "local": local,
        "strided": strided,
        "sparse": local | strided,
        "fixed": (query // stride == key // stride) | (key % stride == stride - 1),
    }[pattern]
