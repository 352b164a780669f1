"""Laws of the field for the loss of sparse training, fitted to some runs and judged by others that they have not seen.

Three say what a run ends at from the weights N, the tokens D and the density d:

- *Dense width*: Chinchilla's form, E + A/N^α + B/D^β (Hoffmann et al., arXiv 2203.15556), with N the dense count: what
  a sparse run would end at if sparsity cost nothing.
- *Average parameter count*: the same form with N the active weights, averaged over training (Jin et al., arXiv
  2501.12486).
- *Sparse*: E + A (d^ε + c (1 - d)^μ) / (N d)^α + B/D^α (arXiv 2606.01155), with N the dense count and d the mean
  density; its ε, μ and c are the published ones, and A, B, E and α are fitted.

Each is fitted to all runs that it is given, by a Huber loss on the log loss from several starts, after Hoffmann et al.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import least_squares

from replication.system.errors import UserError

HUBER = 0.01  # of the log loss (ours: Hoffmann et al. have 0.001, for losses with less noise)
EXPONENTS = (0.05, 2.0)  # within which they are sought (ours)
FEWEST = 5  # runs to fit four numbers to, or five


@dataclass(frozen=True)
class Point:
    """A run: dense weights N, tokens D, mean density d over training (0 to 1), loss in nats per token or byte."""

    weights: float
    tokens: float
    density: float
    loss: float


@dataclass(frozen=True)
class Chinchilla:
    """E + A/N^α + B/D^β; `active`: N is the weights times their mean density, else the dense count."""

    a: float
    alpha: float
    b: float
    beta: float
    e: float
    active: bool = False

    def loss(self, weights: float, tokens: float, density: float = 1.0) -> float:
        n = weights * density if self.active else weights
        return self.e + self.a / n**self.alpha + self.b / tokens**self.beta


@dataclass(frozen=True)
class Sparse:
    """E + A (d^ε + c (1 - d)^μ) / (N d)^α + B/D^α. Defaults of ε, μ and c: as published (LLaMA, C4, 20 M to 3.8 B)."""

    a: float
    alpha: float
    b: float
    e: float
    epsilon: float = -0.00968044
    mu: float = 0.84661793
    c: float = -0.27288932

    def loss(self, weights: float, tokens: float, density: float = 1.0) -> float:
        shape = density**self.epsilon + self.c * (1 - density) ** self.mu
        return self.e + self.a * shape / (weights * density) ** self.alpha + self.b / tokens**self.alpha


Law = Chinchilla | Sparse
PUBLISHED = Sparse(math.exp(5.24073718), 0.32682177, math.exp(6.10303089), math.exp(0.85355013))


def fit_dense_width(points: Sequence[Point]) -> Law:
    """Raises UserError: fewer than `FEWEST` points."""
    return _fit(points, lambda a, alpha, b, beta, e: Chinchilla(a, alpha, b, beta, e))


def fit_average_count(points: Sequence[Point]) -> Law:
    """Raises UserError: fewer than `FEWEST` points."""
    return _fit(points, lambda a, alpha, b, beta, e: Chinchilla(a, alpha, b, beta, e, active=True))


def fit_sparse(points: Sequence[Point]) -> Law:
    """Raises UserError: fewer than `FEWEST` points."""
    return _fit(points, lambda a, alpha, b, beta, e: Sparse(a, alpha, b, e), shared=True)


FITS: dict[str, Callable[[Sequence[Point]], Law]] = {
    "dense width": fit_dense_width,
    "average parameter count": fit_average_count,
    "sparse": fit_sparse,
}


def judge(seen: Sequence[Point], unseen: Mapping[str, Point]) -> dict[str, dict[str, float]]:
    """Law -> run -> predicted minus measured loss, of runs that the law was not fitted to."""
    laws = {name: fit(seen) for name, fit in FITS.items()}
    return {
        name: {run: law.loss(point.weights, point.tokens, point.density) - point.loss for run, point in unseen.items()}
        for name, law in laws.items()
    }


def _fit(points: Sequence[Point], make: Callable[..., Law], shared: bool = False) -> Law:
    """The form's nearest law; terms are scaled to the middle of the data, so that the search knows no units."""
    if len(points) < FEWEST:
        raise UserError(f"{len(points)} runs are too few to fit a law to; allowed: {FEWEST} or more")
    logs = np.log([point.loss for point in points])
    middle = float(np.exp(np.mean([np.log(point.weights) for point in points])))
    length = float(np.exp(np.mean([np.log(point.tokens) for point in points])))
    level = float(np.exp(logs.min()))

    def law(values: np.ndarray) -> Law:
        a, alpha, b, beta, e = values
        beta = alpha if shared else beta
        return make(a * middle**alpha, alpha, b * length**beta, beta, e)

    def residuals(values: np.ndarray) -> np.ndarray:
        here = law(values)
        return np.log([here.loss(point.weights, point.tokens, point.density) for point in points]) - logs

    bounds = ([0, EXPONENTS[0], 0, EXPONENTS[0], 0], [10 * level, EXPONENTS[1], 10 * level, EXPONENTS[1], 2 * level])
    starts = [[level / 5, alpha, level / 5, beta, level / 2] for alpha, beta in product((0.2, 0.6), (0.2, 0.6))]
    tolerances = {"ftol": 1e-12, "xtol": 1e-12, "gtol": 1e-12}
    found = [least_squares(residuals, at, bounds=bounds, loss="huber", f_scale=HUBER, **tolerances) for at in starts]
    return law(min(found, key=lambda one: one.cost).x)
