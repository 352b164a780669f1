"""The schedule solver: phase lengths and sparsities at which a run's FLOPs fall by a target factor (ours).

The reduction rises with each knob on its own (`KNOBS` says in which direction), so every solution is a bracketed root.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from scipy.optimize import brentq

from replication.config.keys import check_known
from replication.config.run_config import RunConfig
from replication.flops.ledger import CONVENTIONS, total
from replication.flops.plan import check_schedule, plan
from replication.flops.stretches import build_ledger
from replication.model.gpt2 import select_masked_shapes
from replication.system.errors import UserError

DIGITS = 3  # of a solution; a rounded value lies on the side that saves more
HIGHEST = 0.999  # the highest sparsity that is tried

Values = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Solution:
    """Settings that reach the target: `varied` names the knobs that moved from the configuration's own values."""

    varied: tuple[str, ...]
    values: Values
    reduction: float


@dataclasses.dataclass(frozen=True)
class Family:
    """What the solver found.

    Attributes:
        target, convention: what was asked.
        lowest, highest: reductions that the free knobs span.
        ceiling: the reduction if every masked weight were zero in every step, by attention: dense, and sparse
            throughout; infinite where nothing that is counted remains.
        solutions: one for each free knob that reaches the target alone, one for all together, and final sparsity over
            a grid of ultra-sparsity; empty where none exists.
    """

    target: float
    convention: str
    lowest: float
    highest: float
    ceiling: dict[str, float]
    solutions: list[Solution]
    refused: str | None = None  # why the solutions that there are cannot be trained


def solve(
    config: RunConfig, target: float, convention: str = "head_counted_full", fixed: Mapping[str, float] | None = None
) -> Family:
    """Settings of `config`'s method at which dense ÷ method is `target`.

    Args:
        config: a sparse method's run. MST's knobs are its three phase bounds and two sparsities, any other method's is
            `sparsity`.
        target: the factor, above 1, under `convention`.
        fixed: knob -> value that is not to be varied.

    Raises:
        UserError: a target that is 1 or less, an unknown convention or knob, a value that is out of range, a dense
            method.
    """
    if not target > 1:
        raise UserError(f"--target-reduction is {target:g}; allowed: above 1 (1 is dense training)")
    check_known("--convention", convention, list(CONVENTIONS))
    values = _knobs(config)
    for name, value in (fixed or {}).items():
        check_known("--fix", name, list(values))
        values[name] = value
    free = [name for name in values if name not in (fixed or {})]
    problem = _Problem(config, target, convention)
    lowest, highest = map(problem.reduction, problem.ends(values, free))
    found = _solutions(problem, values, free) if lowest <= target <= highest else []
    reasons = {id(solution): problem.refusal(solution.values) for solution in found}
    solutions = [solution for solution in found if not reasons[id(solution)]]
    refused = None if solutions else next(iter(reasons.values()), None)
    return Family(target, convention, lowest, highest, _ceiling(config, convention), solutions, refused)


def render(family: Family) -> str:
    """For the terminal: the solutions, a line each.

    Raises:
        UserError: there is none; the line says what can be reached.
    """
    limits = {attention: value for attention, value in family.ceiling.items() if math.isfinite(value)}
    ceiling = ", ".join(f"{value:.2f}× with {attention} attention" for attention, value in limits.items())
    span = f"the free knobs span {family.lowest:.2f}× to {family.highest:.2f}×"
    span += f"; with every masked weight zero in every step it would be {ceiling}" if limits else ""
    if family.refused:
        raise UserError(
            f"--target-reduction is {family.target:g}, and what reaches it cannot be trained: {family.refused}"
        )
    if not family.solutions:
        raise UserError(
            f"--target-reduction is {family.target:g}, which no setting reaches under {family.convention}; "
            f"allowed: {span}"
        )
    names = list(family.solutions[0].values)
    lines = [
        f"{family.target:g}× under {family.convention}; * marks what was varied",
        "".join(f"{name:>20}" for name in [*names, "dense ÷ method"]),
    ]
    for solution in family.solutions:
        cells = [f"{value:g}{'*' if name in solution.varied else ' '}" for name, value in solution.values.items()]
        lines.append("".join(f"{cell:>20}" for cell in [*cells, f"{solution.reduction:.3f}× "]))
    return "\n".join([*lines, f"{span[0].upper()}{span[1:]}."])


class _Problem:
    """The reduction as a function of the knobs."""

    def __init__(self, config: RunConfig, target: float, convention: str) -> None:
        fixed = dataclasses.replace(config, mst=dataclasses.replace(config.mst, phases="fixed"))
        self.config, self.target, self.convention = fixed, target, convention

    def at(self, values: Values) -> RunConfig:
        section = "mst" if self.config.method == "mst" else "sparsity"
        changed: Any = dataclasses.replace(getattr(self.config, section), **values)
        return dataclasses.replace(self.config, **{section: changed})

    def reduction(self, values: Values) -> float:
        return plan(self.at(values))["conventions"][self.convention]["reduction"]

    def refusal(self, values: Values) -> str | None:
        """Why a run with these values would not be trained; None: it would."""
        try:
            check_schedule(self.at(values))
        except UserError as error:
            return str(error)
        return None

    def ends(self, values: Values, varied: list[str]) -> tuple[Values, Values]:
        """`values` with the varied knobs at their densest and at their sparsest, in order with the others."""
        dense, sparse = dict(values), dict(values)
        for name in varied:
            if name == "warmup_end":
                sparse[name] = 0.0
                dense[name] = values["restoration_start"] if varied == [name] else values[name]
            elif name in (
                "restoration_start",
                "restoration_end",
            ):  # the knobs are visited in order: the one before is set
                before = "warmup_end" if name == "restoration_start" else "restoration_start"
                dense[name] = values["warmup_end"] if before == "warmup_end" else dense[before]
                sparse[name] = (
                    1.0 if name == "restoration_end" or "restoration_end" in varied else values["restoration_end"]
                )
            elif name == "ultra_sparsity":
                dense[name] = 0.0 if "final_sparsity" in varied else values["final_sparsity"]
                sparse[name] = HIGHEST
            else:
                dense[name] = 0.0
                sparse[name] = sparse.get("ultra_sparsity", HIGHEST)
        return dense, sparse

    def root(self, values: Values, varied: list[str]) -> Solution | None:
        """Move the varied knobs together until the target is met, towards their densest or their sparsest ends."""
        dense, sparse = self.ends(values, varied)
        end = sparse if self.reduction(values) < self.target else dense

        def at(share: float) -> Values:
            return {name: round(value + share * (end[name] - value), 9) for name, value in values.items()}

        def excess(share: float) -> float:
            return self.reduction(at(share)) - self.target

        if excess(0) * excess(1) > 0:
            return None
        share = brentq(excess, 0, 1, xtol=1e-7)
        found = at(share) | {name: _round(at(share)[name], sparse[name] > dense[name]) for name in varied}
        return Solution(tuple(varied), found, self.reduction(found))


def _solutions(problem: _Problem, values: Values, free: list[str]) -> list[Solution]:
    found = [problem.root(values, [name]) for name in free]
    if len(free) > 1:
        found.append(problem.root(values, free))
    if {"ultra_sparsity", "final_sparsity"} <= set(free):
        found += [
            problem.root(values | {"ultra_sparsity": ultra, "final_sparsity": 0.0}, ["final_sparsity"])
            for ultra in (0.8, 0.85, 0.9, 0.95)
        ]
    return [solution for place, solution in enumerate(found) if solution and solution not in found[:place]]


def _knobs(config: RunConfig) -> Values:
    if config.method == "dense":
        raise UserError(
            f"--method is {config.arm!r}, which trains densely; allowed with --target-reduction: a sparse arm"
        )
    if config.method != "mst":
        return {"sparsity": config.sparsity.sparsity}
    if config.mst.sparsity_steps or not config.mst.sparsity_variation:
        raise UserError(
            "mst.sparsity_steps, mst.sparsity_variation set another schedule; "
            "allowed with --target-reduction: MST's three phases"
        )
    names = ("warmup_end", "restoration_start", "restoration_end", "ultra_sparsity", "final_sparsity")
    return {name: getattr(config.mst, name) for name in names}


def _ceiling(config: RunConfig, convention: str) -> dict[str, float]:
    """No method can save more than this: only what is not masked is left."""
    ledger, nothing = build_ledger(config), dict.fromkeys(select_masked_shapes(config), 0)
    dense = total(ledger.dense_step, convention)
    left = {
        name: total(ledger.step(nothing, pattern, False), convention)
        for name, pattern in (("dense", "dense"), ("sparse", config.attention.pattern))
    }
    return {attention: dense / flops if flops else float("inf") for attention, flops in left.items()}


def _round(value: float, up: bool) -> float:
    scale = 10**DIGITS
    return (math.ceil if up else math.floor)(value * scale) / scale
