"""MST's phases that start themselves (`mst.phases: auto`, ours): when warm-up's ramp begins, and what follows from it.

The model trains dense until its loss flattens; then the ramp begins, and with it the rest is decided: restoration
starts where what is left of the fixed phases' FLOPs is what it costs, and its last sparsity takes up what remains, so
that the reduction is the promised one whatever the loss did.
"""

import json
from bisect import bisect_left
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from statistics import fmean
from typing import Any

import torch
from scipy.optimize import brentq

from replication.config.fields import MSTConfig
from replication.config.run_config import RunConfig
from replication.flops.stretches import count
from replication.methods import build_algorithm, build_schedules
from replication.mst import MST
from replication.sparsity.algorithm import SparsityAlgorithm
from replication.system.errors import UserError

FEWEST_UPDATES = 5  # of a ramp, below which it is a few jumps (ours)
WINDOW = 0.02  # of training: two such stretches, one after the other, tell how fast the loss falls (ours)


class AutoMST(MST):
    """MST whose phases the loss decides: until then it trains dense.

    Args:
        trigger: what decides.
    """

    def __init__(self, *args, trigger: "PhaseTrigger", **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.trigger = trigger

    def observe(self, step, loss):
        if reason := self.trigger.observe(step, loss):
            self._follow()
        return reason

    def _follow(self) -> None:
        if self.trigger.decided:
            self.schedules = build_schedules(self.trigger.decided)

    def state_dict(self):
        seen = json.dumps(self.trigger.state()).encode()
        return super().state_dict() | {"trigger": torch.tensor(list(seen), dtype=torch.uint8)}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.trigger.load_state(json.loads(bytes(state["trigger"].tolist())))
        self._follow()


def build_trained(config: RunConfig) -> SparsityAlgorithm:
    """The configured method, as a run trains it: with phases that start themselves, where it has those.

    Raises:
        UserError: as `build_algorithm`, and `PhaseTrigger`.
    """
    trigger = build_trigger(config)
    return build_algorithm(config, AutoMST, trigger=trigger) if trigger else build_algorithm(config)


def fix_phases(config: RunConfig) -> RunConfig:
    """A configuration whose phases are fixed: this one, or as they are where the ramp begins as early as it may."""
    trigger = build_trigger(config)
    return trigger.phases_from(trigger.earliest) if trigger else config


def build_trigger(config: RunConfig) -> "PhaseTrigger | None":
    """What decides when the phases begin; None: they are fixed."""
    return PhaseTrigger(config) if config.method == "mst" and config.mst.phases == "auto" else None


class PhaseTrigger:
    """Watches the training loss, and decides the phases once. All ranks see the same loss, and decide the same.

    Attributes:
        earliest, latest: completed steps after which the ramp may begin, and must.
        convention: under which the FLOPs are those of the fixed phases: the head counted where it is masked.
        decided: the configuration with its phases fixed; None: the loss has not flattened yet.

    Raises:
        UserError: restoration leaves no time in which the loss could decide.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config, self.steps = config, config.train.steps
        self.convention = "head_counted_full" if config.sparsity.mask_lm_head else "head_excluded_causal"
        self.budget = self._flops(replace(config, mst=replace(config.mst, phases="fixed")))
        self.window = max(1, round(WINDOW * self.steps))
        self.losses: deque[float] = deque(maxlen=2 * self.window)
        self.decided: RunConfig | None = None
        self.earliest, self.latest = 2 * self.window, self._latest()
        if self.latest < self.earliest:
            raise UserError(
                f"mst.phases is 'auto'; allowed: 'fixed' here, as the FLOPs of the fixed phases leave time for "
                f"{max(0, self.latest)} dense steps, and the loss needs {self.earliest} to decide"
            )

    def observe(self, step: int, loss: float) -> str | None:
        """Take note of the training loss (nats per token) of the `step`-th step; why a phase begins, where one does."""
        if self.decided:
            is_start = step == round(self.decided.mst.restoration_start * self.steps)
            return "restoration begins: what is left of the FLOPs is what it costs" if is_start else None
        self.losses.append(loss)
        if step < self.earliest:
            return None
        slope, threshold = self.slope(), self.config.mst.slope
        if slope >= threshold and step < self.latest:
            return None
        self.decided = self.phases_from(step)
        falls = f"the loss falls by {slope:.3g} nats per hundredth of training"
        if slope < threshold:
            return f"warm-up's ramp begins: {falls}, less than mst.slope = {threshold:g}"
        return f"warm-up's ramp begins, although {falls}: the FLOPs allow no later one"

    def slope(self) -> float:
        """How fast the smoothed loss falls, in nats per hundredth of training."""
        losses = list(self.losses)
        before, after = losses[: self.window], losses[self.window :]
        return (fmean(before) - fmean(after)) / self.window * self.steps / 100

    def phases_from(self, step: int) -> RunConfig:
        """The configuration, its phases fixed, of a run whose ramp begins after `step` steps."""
        starts = self._restoration_starts(step)
        place = bisect_left(starts, True, key=lambda start: self._flops(self._fixed(step, start)) <= self.budget)
        start = starts[min(place, len(starts) - 1)]

        def surplus(final: float) -> float:
            return self._flops(self._fixed(step, start, final)) - self.budget

        final = self.config.mst.final_sparsity
        if surplus(final) < 0 < surplus(0.0):
            final = brentq(surplus, 0.0, final, xtol=1e-5)
        return self._fixed(step, start, final)

    def state(self) -> dict[str, Any]:
        """As JSON, for `load_state`."""
        return {"losses": list(self.losses), "decided": asdict(self.decided.mst) if self.decided else None}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.losses.extend(state["losses"])
        if state["decided"]:
            self.decided = replace(self.config, mst=MSTConfig(**state["decided"]))

    def _flops(self, config: RunConfig) -> int:
        ledger = count(config)
        return ledger["conventions"][self.convention]["flops"]

    def _fixed(self, step: int, restoration_start: int, final: float | None = None) -> RunConfig:
        """The ramp begins after `step` steps, restoration at its own; each is as long as in the fixed phases, or of
        the same share of what is left."""
        mst = self.config.mst
        start, restoration = step / self.steps, restoration_start / self.steps
        share = (mst.restoration_end - mst.restoration_start) / max(1 - mst.restoration_start, 1e-9)
        end = min(start + mst.warmup_end - mst.warmup_start, 1.0)
        changes: dict[str, Any] = {
            "phases": "fixed",
            "warmup_start": start,
            "warmup_end": end,
            "restoration_start": max(end, restoration),
            "restoration_end": min(1.0, max(end, restoration + share * (1 - restoration))),
            "final_sparsity": mst.final_sparsity if final is None else final,
        }
        return replace(self.config, mst=replace(mst, **changes))

    def _restoration_starts(self, step: int) -> list[int]:
        """Steps at which restoration may start, after a ramp that begins after `step`: those of an update, from the
        ramp's end on, that leave room for enough of them."""
        freq, mst = self.config.sparsity.update_freq, self.config.mst
        share = (mst.restoration_end - mst.restoration_start) / max(1 - mst.restoration_start, 1e-9)
        ramp_end = step + round((mst.warmup_end - mst.warmup_start) * self.steps)
        last = self.steps - round(FEWEST_UPDATES * freq / max(share, 0.1))
        return list(range(-(-ramp_end // freq) * freq, last + 1, freq))

    def _latest(self) -> int:
        """The largest number of dense steps that the FLOPs allow, with the shortest restoration after them; -1: none
        do."""

        def is_too_late(step: int) -> bool:
            starts = self._restoration_starts(step)
            return not starts or self._flops(self._fixed(step, starts[-1])) > self.budget

        return bisect_left(range(self.steps), True, key=is_too_late) - 1
