"""Validation loss against FLOPs: a run's curve, and what lies between its points, by the logarithm of FLOPs (ours)."""

import math
from collections.abc import Sequence

import numpy as np

from replication.flops.ledger import total
from replication.system.files import Json

CONVENTION = "head_counted_full"
Curve = Sequence[tuple[float, float]]  # (FLOPs, loss), by rising FLOPs


def validation_curve(rows: Sequence[Json], convention: str = CONVENTION) -> list[tuple[float, float]]:
    """(FLOPs so far, validation loss in nats per token) of each evaluation in the rows of a `metrics.jsonl`."""
    evaluated = [row for row in rows if "validation_loss" in row]
    return [(float(total(row["flops"], convention)), row["validation_loss"]) for row in evaluated]


def loss_at(curve: Curve, flops: float) -> float | None:
    """The loss at these FLOPs; None: before the first point, or after the last."""
    if not curve or not curve[0][0] <= flops <= curve[-1][0]:
        return None
    spent, losses = zip(*curve)
    return float(np.interp(math.log(flops), np.log(spent), losses))


def first_crossing(curve: Curve, loss: float) -> tuple[float, bool] | None:
    """FLOPs after which a curve is first at or below a loss; None: it never is.

    Returns:
        The FLOPs, and whether they are a bound: the curve is that low at its first point already.
    """
    for place, (flops, value) in enumerate(curve):
        if value <= loss:
            if place == 0:
                return flops, True
            before, above = curve[place - 1]
            return float(before * (flops / before) ** ((above - loss) / (above - value))), False
    return None
