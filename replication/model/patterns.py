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
    """Pairs that a pattern keeps, of n_positions · (n_positions + 1) / 2 causal ones; in the time of one row."""
    query = np.arange(n_positions, dtype=np.int64)
    if pattern == "fixed":  # of the own block up to the query, and a column of each block before it
        return int(np.sum(query % stride + 1 + query // stride))
    distance = query  # which decides, and n_positions - distance pairs lie that far apart
    return int(np.sum((n_positions - distance) * keeps(pattern, distance, 0, window, stride)))


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
