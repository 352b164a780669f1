"""How many weights of each layer are active: uniform or Erdős–Rényi, as exact integers."""

from collections.abc import Callable, Mapping
from fractions import Fraction

Shapes = Mapping[str, tuple[int, int]]
Counts = dict[str, int]


def uniform(shapes: Shapes, sparsity: float) -> Counts:
    """Active weights per layer at one density for all; they sum to round((1 - sparsity) · n) exactly."""
    sizes = _sizes(shapes)
    density = 1 - _exact(sparsity)
    return _round_to_total({name: density * size for name, size in sizes.items()}, round(density * sum(sizes.values())))


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
    total = round((1 - _exact(sparsity)) * sum(sizes.values()))
    dense: set[str] = set()
    while True:
        # A layer of density ε(n_in + n_out)/(n_in · n_out) has ε(n_in + n_out) active weights.
        free = {name: sum(shape) for name, shape in shapes.items() if name not in dense}
        left = total - sum(sizes[name] for name in dense)
        epsilon = Fraction(left, sum(free.values())) if free else Fraction(0)
        overfull = {name for name, degree in free.items() if epsilon * degree > sizes[name]}
        if not overfull:
            shares = {name: epsilon * free[name] if name in free else Fraction(sizes[name]) for name in shapes}
            return _round_to_total(shares, total)
        dense |= overfull


DISTRIBUTIONS: dict[str, Callable[[Shapes, float], Counts]] = {"uniform": uniform, "er": erdos_renyi}


def _exact(sparsity: float) -> Fraction:
    # 0.8 is meant as 4/5, not as the nearest binary fraction: a half must round the same on paper and here.
    return Fraction(sparsity).limit_denominator(10**9)


def _sizes(shapes: Shapes) -> Counts:
    return {name: n_in * n_out for name, (n_in, n_out) in shapes.items()}


def _round_to_total(shares: Mapping[str, Fraction], total: int) -> Counts:
    """Largest remainders, the first layer winning ties: whole numbers within 1 of the shares, with their sum given."""
    counts = {name: int(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts
