"""Two arms of different cost: their losses at equal FLOPs, and the FLOPs to an equal loss, from their curves."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from replication.analysis.curves import Curve, first_crossing, loss_at
from replication.analysis.sides import Measured


@dataclass(frozen=True)
class Iso:
    """Of each arm's mean curve; FLOPs under head_counted_full, losses in nats per token over the validation text.

    Attributes:
        flops: what the cheaper arm costs whole; the other one is then in the middle of its learning-rate schedule.
        reference_loss, new_loss: there; None: before the first evaluation.
        loss: the reference's final one.
        reference_flops, new_flops: to reach it; None: the arm does not.
    """

    arm: str
    flops: float
    reference_loss: float | None
    new_loss: float | None
    loss: float
    reference_flops: float | None
    new_flops: float | None


def iso(arm: str, reference: Sequence[Measured], new: Sequence[Measured]) -> Iso | None:
    """None where both cost the same, have no curve, or were validated on different texts or at different steps."""
    sides = [[run.curve for run in runs if run.curve] for runs in (reference, new)]
    texts = {run.environment.get("shards", {}).get("validation") for run in (*reference, *new)}
    if len(texts) > 1 or any(len({len(curve) for curve in side}) != 1 for side in sides):
        return None
    if {curve[-1][0] for curve in sides[0]} == {curve[-1][0] for curve in sides[1]}:
        return None
    curves = [_mean(side) for side in sides]
    budget, loss = min(curve[-1][0] for curve in curves), curves[0][-1][1]
    losses = [loss_at(curve, budget) for curve in curves]
    return Iso(arm, budget, *losses, loss, *(_flops_to(curve, loss) for curve in curves))


def _flops_to(curve: Curve, loss: float) -> float | None:
    crossing = first_crossing(curve, loss)
    return crossing[0] if crossing else None


def _mean(curves: Sequence[Curve]) -> Curve:
    """Point by point: an arm's runs are evaluated at the same steps."""
    return [(float(flops), float(loss)) for flops, loss in np.mean(curves, axis=0)]
