"""How many weights of each layer are active: uniform or Erdős–Rényi, as exact integers."""

from collections.abc import Callable, Mapping
from fractions import Fraction

Shapes = Mapping[str, tuple[int, int]]
Counts = dict[str, int]


def uniform(shapes: Shapes, sparsity: float) -> Counts:
    """Active weights per layer at one density for all; they sum to round((1 - sparsity) · n) exactly."""
    sizes = _sizes(shapes)
    return _apportion(_num_active(sizes, sparsity), sizes)


def erdos_renyi(shapes: Shapes, sparsity: float) -> Counts:
    """Active weights per layer at density ∝ (n_in + n_out) / (n_in · n_out); layers that would exceed 1 are dense.

    Source: PAPER `code`. For matrices this equals ERK.

    Args:
        shapes: layer name -> (n_in, n_out), in either order.
        sparsity: fraction of zeros over all layers, in [0, 1).

    Returns:
        Layer name -> count; the counts sum to round((1 - sparsity) · n) exactly.
    """
    sizes = _sizes(shapes)
    left = _num_active(sizes, sparsity)
    degrees = {name: sum(shape) for name, shape in shapes.items()}  # a layer's share of the active weights
    dense: Counts = {}
    while True:
        whole = sum(degrees.values())
        overfull = [name for name, degree in degrees.items() if left * degree > whole * sizes[name]]
        if not overfull:
            counts = dense | _apportion(left, degrees)
            return {name: counts[name] for name in shapes}
        for name in overfull:
            dense[name] = sizes[name]
            left -= sizes[name]
            del degrees[name]


DISTRIBUTIONS: dict[str, Callable[[Shapes, float], Counts]] = {"uniform": uniform, "er": erdos_renyi}


def round_to_blocks(distribution: Callable[[Shapes, float], Counts], size: int) -> Callable[[Shapes, float], Counts]:
    """The distribution with each layer's count rounded down to whole blocks of `size` weights, at least one (ours)."""
    if size == 1:
        return distribution
    return lambda shapes, sparsity: {
        name: max(1, count // size) * size for name, count in distribution(shapes, sparsity).items()
    }


def _num_active(sizes: Counts, sparsity: float) -> int:
    # 0.8 is meant as 4/5, not as the nearest binary fraction: a half must round the same on paper and here.
    return round((1 - Fraction(sparsity).limit_denominator(10**9)) * sum(sizes.values()))


def _sizes(shapes: Shapes) -> Counts:
    return {name: n_in * n_out for name, (n_in, n_out) in shapes.items()}


def _apportion(total: int, weights: Counts) -> Counts:
    """`total` shared out in proportion to the weights, in whole numbers: largest remainders, ties falling by name.

    So the counts depend on the layers alone, and not on the order in which a caller lists them.
    """
    whole = sum(weights.values())
    counts = {name: total * weight // whole for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: (-(total * weights[name] % whole), name))
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
