"""Hybrid sparse attention patterns: which of the causal pairs a query attends to. Imports no torch."""

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
    return _kept(pattern, query, key, window, stride) & (key <= query)


def num_pairs(pattern: str, n_positions: int, window: int, stride: int) -> int:
    """Pairs that a pattern keeps, of n_positions · (n_positions + 1) / 2 causal ones.

    A query at a time, for long contexts.
    """
    return sum(int(np.sum(_kept(pattern, query, np.arange(query + 1), window, stride))) for query in range(n_positions))


def _kept(pattern: str, query: np.ndarray | int, key: np.ndarray, window: int, stride: int) -> np.ndarray:
    distance = query - key
    local = distance < window
    strided = distance % stride == 0
    return {
        "dense": np.ones_like(local),
        "local": local,
        "strided": strided,
        "sparse": local | strided,
        "fixed": (query // stride == key // stride) | (key % stride == stride - 1),
    }[pattern]
