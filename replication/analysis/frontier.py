"""The frontier of smaller dense models: the loss that training FLOPs buy without a method, and what lies above it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from replication.analysis.arms import Runs, count_of, final_losses
from replication.analysis.curves import loss_at
from replication.analysis.series import first_seed
from replication.analysis.statistics import pair_differences
from replication.system.files import Json

Point = tuple[float, float]  # (training FLOPs, final validation loss in nats per token)
FRONTIER_SAID = (  # a figure's caption
    "Line: the frontier of smaller dense models, through dense and those dense models of other shapes, trained for as "
    "many steps, that no other one beats; between them straight over the logarithm of FLOPs. A method is good where it "
    "lies below the line. Hollow: dense trained for fewer steps, which the line never goes through. Each panel counts "
    "FLOPs as its own axis says. Markers are means, bars their 95 % t intervals over seeds, dots the seeds. An arm of "
    "fewer seeds than dense is marked at its difference to dense on the seeds in common."
)


def pareto_front(costs: Sequence[float], losses: Sequence[float]) -> list[bool]:
    """Which points no other beats: by being lower in one of the two, and not higher in the other."""
    points = list(zip(costs, losses))
    return [not any(a <= cost and b <= loss and (a, b) != (cost, loss) for a, b in points) for cost, loss in points]


def frontier(points: Iterable[Point]) -> list[Point]:
    """The points that no other beats, by rising FLOPs and falling loss. Between two of them the frontier is the
    straight line over the logarithm of FLOPs (ours)."""
    ordered = sorted(set(points))
    kept = pareto_front([flops for flops, _ in ordered], [loss for _, loss in ordered])
    return [point for point, is_on in zip(ordered, kept) if is_on]


def above_frontier(nodes: Sequence[Point], flops: float, loss: float) -> float | None:
    """A loss minus the frontier's at these FLOPs, nats: below 0 is better than smaller dense models.

    Args:
        nodes: `frontier(...)`.

    Returns:
        None where the frontier says nothing: below its cheapest model, above its dearest, or where it has one model.
    """
    reference = loss_at(nodes, flops) if len(nodes) > 1 else None
    return None if reference is None else loss - reference


@dataclass(frozen=True)
class Frontier:
    """The frontier of a table's dense models under one counting convention.

    Attributes:
        smaller: dense models of another shape than dense's, trained for as many steps; `shorter`: dense training for
            fewer steps.
        points: every arm's (training FLOPs, mean loss), where dense has more seeds dense's mean loss and the mean
            difference to it on the seeds in common: the seeds of a mean must not decide what is on the frontier.
        nodes: `frontier(...)` of dense and the smaller ones. Dense trained for fewer steps is no smaller model: it is a
            point beside the line, wherever it lies (ours).
    """

    smaller: Sequence[str]
    shorter: Sequence[str]
    points: Mapping[str, Point]
    nodes: Sequence[Point]

    def above(self, arm: str) -> float | None:
        """An arm's mean loss minus the frontier's at its FLOPs; None: `above_frontier` says when."""
        return above_frontier(self.nodes, *self.points[arm])


def frontier_of(runs: Runs, convention: str) -> Frontier:
    """The arms of a table beside the frontier of its dense models; without an arm `dense` that has no nodes."""
    losses = {arm: final_losses(seeds) for arm, seeds in runs.items()}
    points = {
        arm: (
            float(count_of(seeds.values())["conventions"][convention]["flops"]),
            _place(losses[arm], losses.get("dense", {})),
        )
        for arm, seeds in runs.items()
    }
    smaller, shorter = _dense_arms(runs)
    return Frontier(smaller, shorter, points, frontier(points[arm] for arm in ("dense", *smaller) if "dense" in runs))


def _place(losses: Mapping[int, float], dense: Mapping[int, float]) -> float:
    """An arm's mean loss as if it had dense's seeds."""
    pairs = pair_differences(losses, dense)
    if not len(pairs) or losses.keys() >= dense.keys():
        return float(np.mean(list(losses.values())))
    return float(np.mean(list(dense.values())) + np.mean(pairs))


def _dense_arms(runs: Runs) -> tuple[list[str], list[str]]:
    """Arms of dense training but for dense: those of another shape, trained for as many steps; those of fewer steps."""
    configs = {arm: first_seed(seeds).config() for arm, seeds in runs.items()}
    dense = configs.get("dense")
    others = {arm: config for arm, config in configs.items() if dense and config["method"] == "dense"}
    smaller = [
        arm for arm, config in others.items() if config["model"] != dense["model"] and _steps(config) == _steps(dense)
    ]
    return smaller, [arm for arm, config in others.items() if _steps(config) < _steps(dense)]


def _steps(config: Json) -> float:
    return config["train"]["num_steps"] * config["train"]["steps_fraction"]
