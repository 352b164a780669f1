"""The finished runs of a profile as suggestions need them: each file read once, arm by arm."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from replication.analysis.arms import group_by_arm
from replication.analysis.comparable import Facts, differences, facts_of
from replication.analysis.statistics import pair_differences
from replication.config.profiles import base_arm, profile_arms
from replication.config.run_config import RunConfig
from replication.forecast.loss_model import Arm
from replication.runs.folder import RunFolder
from replication.system.files import Json


@dataclass(frozen=True)
class Record:
    """One arm's runs; its seeds share one configuration.

    Attributes:
        config: of its first seed.
        losses: seed -> final validation loss, nats per token.
        flops: `flops.json` of its first seed.
        statuses, environments: seed -> `status.json`, `environment.json`.
        facts: by which it is told whether it compares with another arm.
    """

    arm: str
    config: RunConfig
    losses: dict[int, float]
    flops: Json
    statuses: dict[int, Json]
    environments: dict[int, Json]
    facts: Facts

    @property
    def size(self) -> tuple[float, int]:
        return size(self.flops)

    def cost(self, convention: str) -> int:
        """Training FLOPs."""
        return self.flops["conventions"][convention]["flops"]


@dataclass(frozen=True)
class Logged:
    """The runs of a profile; `convention`: by which FLOPs are counted.

    Raises:
        UserError: they are of different texts, or seeds of an arm differ in settings.
    """

    profile: str
    runs: Iterable[RunFolder]
    convention: str
    _compared: dict[tuple[str, str], bool] = field(default_factory=dict)

    @cached_property
    def records(self) -> dict[str, Record]:
        """By arm, in Table 1's order."""
        return {arm: _record(arm, seeds) for arm, seeds in group_by_arm(self.runs).items()}

    def cost(self, arm: str) -> int:
        """Training FLOPs of a run."""
        return self.records[arm].cost(self.convention)

    @cached_property
    def own_arms(self) -> list[str]:
        """Those that are like no other: a variant differs in what no law of size and length sees."""
        known = profile_arms(self.profile)
        return [arm for arm in self.records if arm in known and not base_arm(self.profile, arm)]

    def arms(self) -> tuple[Arm, ...]:
        """Own arms, as a law is fitted to them."""
        own = [self.records[arm] for arm in self.own_arms]
        return tuple(Arm(one.arm, *one.size, groups(one.config), tuple(one.losses.values())) for one in own)

    def gaps(self, arm: str, other: str) -> np.ndarray:
        """Loss of the first minus the second's, by seed that both have; shape (seeds,)."""
        return pair_differences(self.records[arm].losses, self.records[other].losses)

    def compares(self, arm: str, other: str) -> bool:
        """Do two arms differ only in what makes them these arms?"""
        if (arm, other) not in self._compared:
            self._compared[arm, other] = not differences(self.records[arm].facts, self.records[other].facts)
        return self._compared[arm, other]


def size(flops: Json) -> tuple[float, int]:
    """N and D, of a `flops.json`: the mean number of weights that multiply a token, and the number of tokens."""
    products = flops["components"]["block_forward"] + flops["components"]["head_forward"]
    return products / (2 * flops["tokens"]), flops["tokens"]


def groups(config: RunConfig) -> tuple[str, ...]:
    """What may have an offset in a law: the method, and a masked head."""
    is_masked = config.method != "dense" and config.sparsity.mask_lm_head
    return (config.method, "masked head") if is_masked else (config.method,)


def _record(arm: str, seeds: dict[int, RunFolder]) -> Record:
    first = next(iter(seeds.values()))
    losses: dict[int, Any] = {seed: run.metrics()[-1]["validation_loss"] for seed, run in seeds.items()}
    statuses = {seed: run.status() for seed, run in seeds.items()}
    environments = {seed: run.environment() for seed, run in seeds.items()}
    return Record(arm, first.configuration(), losses, first.flops(), statuses, environments, facts_of(first))
