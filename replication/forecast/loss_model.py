"""What loss a run will end at, from the runs that are logged: a scaling law in mean active weights and tokens.

L = (A / N^alpha + B / D^beta + E) · exp(offsets). N is the number of active weights, averaged over training (Jin et
al., arXiv 2501.12486), of the matrices that multiply a token: the blocks' and, unlike there, the LM head's, without
which no law in N holds at these sizes (ours). D is the number of tokens. Fitted by a Huber loss on the log loss from
several starts, after Hoffmann et al. (arXiv 2203.15556). Losses within a run are not used: its learning rate has not
decayed there, so they lie above what a shorter run ends at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import least_squares
from scipy.spatial import Delaunay

from replication.system.errors import UserError

BETA = 0.28  # of Hoffmann et al., held where the logs do not tell it
ALPHAS, BETAS = (0.05, 2.0), (0.1, 1.0)  # within which the exponents are sought (ours)
HUBER = 0.01  # of the log loss (ours: Hoffmann et al. have 0.001, for losses with less noise)
SAME = 1.05  # numbers within this factor are one (ours)
OUTSIDE = 1.25  # how far beyond the logged runs anything is said, as a factor (ours)
FEWEST_ARMS, FEWEST_CHECKED = 6, 3  # of different size or length; that the law can be checked by (ours)
LEAST_EXPLAINED = 0.5  # of the arms' variance, by laws that have not seen them (ours)
TINY = 1e-9  # nats, for a logarithm that is sought on the way
LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class Arm:
    """One arm's runs, which are repeated measurements.

    Attributes:
        name: the arm's.
        weights: N, mean over training of the weights that multiply a token.
        tokens: D.
        groups: what may have an offset of its own, such as the method.
        losses: final validation loss of each seed, nats per token.
    """

    name: str
    weights: float
    tokens: int
    groups: tuple[str, ...]
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        return float(np.mean(self.losses))


class Prediction(NamedTuple):
    """Nats per token; a run ends between `low` and `high` with probability `LEVEL`."""

    loss: float
    low: float
    high: float


@dataclass(frozen=True)
class Law:
    """A fitted law. `offsets`: group -> what is added to the log loss; a group that is not named has none."""

    a: float
    alpha: float
    b: float
    beta: float
    e: float
    offsets: Mapping[str, float]

    def loss(self, weights: float, tokens: float, groups: Sequence[str] = ()) -> float:
        """Nats per token."""
        smooth = self.a / weights**self.alpha + self.b / tokens**self.beta + self.e
        return float(smooth * np.exp(sum(self.offsets.get(group, 0.0) for group in groups)))


def fit(arms: Sequence[Arm], with_offsets: bool = False, beta: float | None = None) -> Law:
    """The law nearest to the arms' mean losses; each arm counts once, however many seeds it has.

    Args:
        arms: with more than one number of weights.
        with_offsets: of their groups. One costs as much as missing an arm by it, which shrinks them.
        beta: held at this, and E may be below 0 then: it is to go from one length to another. None: fitted where three
            lengths of training or more are logged, held at `BETA` where two are. Where one is, its term is dropped: it
            is a part of E.
    """
    lengths = num_lengths(arms)
    held = beta or (None if lengths > 2 else BETA)
    shared = set.intersection(*(set(arm.groups) for arm in arms))  # whose offset would be another E
    groups = sorted({group for arm in arms for group in arm.groups} - shared) if with_offsets else []
    belongs = np.array([[group in arm.groups for group in groups] for arm in arms], float)
    logs, weights, tokens = np.log([(arm.loss, arm.weights, arm.tokens) for arm in arms]).T
    middle, length, level = np.exp(weights.mean()), np.exp(tokens.mean()), np.exp(logs.min())
    weights, tokens = weights - weights.mean(), tokens - tokens.mean()

    def terms(values: np.ndarray) -> tuple[float, ...]:
        """The first and second terms' values in the middle of the data and exponents, and E."""
        a, alpha, b, free, e = values[:5]
        return a, alpha, b if lengths > 1 else 0.0, free if held is None else held, e

    def residuals(values: np.ndarray) -> np.ndarray:
        a, alpha, b, slope, e = terms(values)
        smooth = a * np.exp(-alpha * weights) + b * np.exp(-slope * tokens) + e
        return np.concatenate([np.log(np.maximum(smooth, TINY)) + belongs @ values[5:] - logs, values[5:]])

    none, most = [0.0] * len(groups), [1.0] * len(groups)
    least = 0 if beta is None else -10 * level
    bounds = (
        [0, ALPHAS[0], 0, BETAS[0], least, *(-1.0 for _ in groups)],
        [10 * level, ALPHAS[1], 10 * level, BETAS[1], 2 * level, *most],
    )
    starts = [[0.1 * level, alpha, level / 4, BETA, e * level, *none] for alpha, e in product((0.3, 1.2), (0.2, 0.7))]
    tolerances = {"ftol": 1e-7, "xtol": 1e-7, "gtol": 1e-9}
    found = [
        least_squares(residuals, start, bounds=bounds, loss="huber", f_scale=HUBER, x_scale="jac", **tolerances)
        for start in starts
    ]
    best = min(found, key=lambda one: one.cost).x
    a, alpha, b, slope, e = map(float, terms(best))
    offsets = dict(zip(groups, map(float, best[5:])))
    return Law(float(a * middle**alpha), alpha, float(b * length**slope), slope, e, offsets)


def num_lengths(arms: Sequence[Arm]) -> int:
    """How many numbers of tokens there are."""
    tokens = sorted(arm.tokens for arm in arms)
    return 1 + sum(after > SAME * before for before, after in pairwise(tokens))


def covers(arms: Sequence[Arm], weights: float, tokens: float) -> bool:
    """Does a run lie between these, or not farther beyond than a factor of `OUTSIDE`?

    Between: in the convex hull of their (log N, log D).
    """
    length = OUTSIDE if num_lengths(arms) > 1 else SAME
    corners = [
        (arm.weights * n, arm.tokens * d) for arm in arms for n in (OUTSIDE, 1 / OUTSIDE) for d in (length, 1 / length)
    ]
    hull = Delaunay(np.log(corners))
    return bool(hull.find_simplex(np.log([(weights, tokens)]))[0] >= 0)


def leave_out(arms: Sequence[Arm], with_offsets: bool) -> dict[str, float]:
    """Arm -> predicted minus measured loss, nats, by the law of the others: all seeds of an arm are left out together.

    An arm that the others do not cover is not there: they say nothing of it.
    """
    errors = {}
    for arm in arms:
        others = [other for other in arms if other is not arm]
        if covers(others, arm.weights, arm.tokens):
            law = fit(others, with_offsets)
            errors[arm.name] = law.loss(arm.weights, arm.tokens, arm.groups) - arm.loss
    return errors


@dataclass(frozen=True)
class LossModel:
    """A law, and how far it is to be trusted.

    Attributes:
        arms: it was fitted to.
        laws: the law; and, where beta was held, those with beta at its bounds.
        errors, without_offsets: of the arms left out; the second by laws without offsets, by which is chosen.
    """

    arms: tuple[Arm, ...]
    laws: tuple[Law, ...]
    errors: Mapping[str, float]
    without_offsets: Mapping[str, float]

    @property
    def error(self) -> float:
        """Of an arm left out, root mean square, nats."""
        return rms(self.errors)

    @property
    def spread(self) -> float:
        """Standard deviation of the arms that can be left out, nats."""
        return float(np.std([arm.loss for arm in self.arms if arm.name in self.errors]))

    @property
    def noise(self) -> float:
        """Of one seed, nats: its standard deviation within arms."""
        freedom = sum(len(arm.losses) - 1 for arm in self.arms)
        squares = sum((loss - arm.loss) ** 2 for arm in self.arms for loss in arm.losses)
        return float(np.sqrt(squares / freedom)) if freedom else 0.0

    @property
    def unchecked(self) -> list[str]:
        """Arms that the others do not cover."""
        return [arm.name for arm in self.arms if arm.name not in self.errors]

    def covers(self, weights: float, tokens: float) -> bool:
        """May anything be said of such a run?"""
        return covers(self.arms, weights, tokens)

    def predict(self, weights: float, tokens: float, groups: Sequence[str]) -> Prediction:
        """Of a run that was not trained: the interval has the error left out, a seed's noise, and the doubt in beta."""
        losses = [law.loss(weights, tokens, groups) for law in self.laws]
        margin = stats.t.ppf((1 + LEVEL) / 2, len(self.errors) - 1) * np.hypot(self.error, self.noise)
        return Prediction(losses[0], float(min(losses) - margin), float(max(losses) + margin))

    def measured(self, losses: Sequence[float]) -> Prediction:
        """Of one more seed of runs that were trained."""
        freedom = max(1, sum(len(arm.losses) - 1 for arm in self.arms))
        margin = stats.t.ppf((1 + LEVEL) / 2, freedom) * self.noise * np.sqrt(1 + 1 / len(losses))
        mean = float(np.mean(losses))
        return Prediction(mean, float(mean - margin), float(mean + margin))

    def remarks(self) -> list[str]:
        """What was fitted, and how wrong it is."""
        law, lengths = self.laws[0], num_lengths(self.arms)
        worst = max(self.errors, key=lambda name: abs(self.errors[name]))
        offsets = "offsets of methods and of a masked head" if law.offsets else "no offsets of methods"
        without, used = rms(self.without_offsets), self.error
        lines = [
            f"The law: {law.a:.3g}/N^{law.alpha:.2f} + {law.b:.3g}/D^{law.beta:.2f} + {law.e:.2f} nats, N the active "
            f"weights (head included) averaged over training, D the tokens; of {len(self.arms)} arms, {offsets}.",
            f"Left out one at a time, all seeds together, arms are missed by {used:.3f} nats (root mean square; "
            f"{without:.3f} without offsets), at worst {worst} by {self.errors[worst]:+.3f}; they spread by "
            f"{self.spread:.3f}, seeds by {self.noise:.3f}.",
        ]
        if lengths == 1:
            lines.append(f"All runs have {self.arms[0].tokens:,} tokens: nothing is said of other lengths.")
        if lengths == 2:
            lines.append(f"Two lengths of training are logged, so beta is held at {BETA:g}; intervals span {BETAS}.")
        if self.unchecked:
            lines.append(f"Not checked so, as the others do not cover them: {', '.join(self.unchecked)}.")
        return lines


@cache
def fit_model(arms: tuple[Arm, ...]) -> LossModel:
    """The law of these arms, with offsets where the error left out is lower with them.

    Raises:
        UserError: there are too few arms, or left out they are missed by too much.
    """
    num = len({(round(np.log(arm.weights) / np.log(SAME)), arm.tokens) for arm in arms})
    if num < FEWEST_ARMS:
        raise UserError(
            f"the logged runs are of {num} arms that differ in size or length; allowed: {FEWEST_ARMS} or more, "
            "to fit a law of the loss to"
        )
    plain, shifted = leave_out(arms, False), leave_out(arms, True)
    if len(plain) < FEWEST_CHECKED:
        raise UserError(
            f"{len(plain)} of the {len(arms)} arms lie between the others, and can be left out to check the law; "
            f"allowed: {FEWEST_CHECKED} or more"
        )
    with_offsets = rms(shifted) < rms(plain)
    held = BETAS if num_lengths(arms) == 2 else ()
    laws = tuple(fit(arms, with_offsets, beta) for beta in (None, *held))
    model = LossModel(arms, laws, shifted if with_offsets else plain, plain)
    explained = 1 - (model.error / model.spread) ** 2 if model.spread else 0.0
    if explained < LEAST_EXPLAINED:
        raise UserError(
            f"the law misses arms that it has not seen by {model.error:.3f} nats, where they spread by "
            f"{model.spread:.3f}: {explained:.0%} explained; allowed: {LEAST_EXPLAINED:.0%} or more"
        )
    return model


def rms(errors: Mapping[str, float]) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(list(errors.values())))))


def within(value: float, values: Sequence[float], factor: float) -> bool:
    """Does it lie among them, or beyond by this factor at most?"""
    return min(values) / factor <= value <= max(values) * factor
