"""The FLOP ledger: per step and component, exact, under every counting convention. Imports no torch.

A multiply-add is two FLOPs; matrix products and attention count, nothing else does (ours, as the field mostly does).
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from replication.config.run_config import RunConfig
from replication.model.patterns import num_pairs

_BLOCK = ("block_forward", "block_input_gradient", "block_weight_gradient", "block_dense_gradient")
_HEAD = ("head_forward", "head_input_gradient", "head_weight_gradient", "head_dense_gradient")

CONVENTIONS: dict[str, tuple[str, ...]] = {
    "head_counted_full": (*_BLOCK, *_HEAD, "attention_full"),
    "head_counted_causal": (*_BLOCK, *_HEAD, "attention_causal"),
    "head_excluded_full": (*_BLOCK, "attention_full"),
    "head_excluded_causal": (*_BLOCK, "attention_causal"),
    "blocks_only": _BLOCK,
    "mean_density": ("masked_active",),  # what the authors' code logs, `1.DST/avg_density` (PAPER `code`)
}
# Those under which any two runs cost the same unit: `mean_density` counts what a run masks, which is its own.
COSTS = tuple(name for name in CONVENTIONS if name != "mean_density")

Components = dict[str, int]
_num_pairs = lru_cache(num_pairs)


def matrix_flops(prefix: str, nnz: int, size: int, tokens: int, dense_gradient: bool) -> Components:
    """Training FLOPs of matrices with `nnz` of `size` weights active, over `tokens` tokens.

    Three products over the active weights; `dense_gradient` adds what the weight gradient at masked positions costs.
    """
    product = 2 * nnz * tokens
    surplus = 2 * (size - nnz) * tokens if dense_gradient else 0
    return {
        f"{prefix}_forward": product,
        f"{prefix}_input_gradient": product,
        f"{prefix}_weight_gradient": product,
        f"{prefix}_dense_gradient": surplus,
    }


def attention_flops(pairs: int, n_embd: int, n_layer: int, sequences: int) -> int:
    """Training FLOPs of QKᵀ and of the weighted sum over V for `pairs` pairs per sequence: forward, twice that back."""
    return 3 * 4 * pairs * n_embd * n_layer * sequences


def total(components: Mapping[str, int], convention: str) -> int:
    """Sum of the components that a convention counts."""
    return sum(components.get(name, 0) for name in CONVENTIONS[convention])


def is_counted(components: Mapping[str, int], convention: str) -> bool:
    """Are all components there that a convention sums? A run of an earlier version lacks those added since."""
    return components.keys() >= set(CONVENTIONS[convention])


def share_saved(components: Mapping[str, int], dense_step: float, step: int) -> float:
    """Share of dense's FLOPs that was saved in `step` steps (head_counted_full).

    Args:
        components: FLOPs so far.
        dense_step: what a step of dense training costs.
    """
    return 1 - total(components, "head_counted_full") / (dense_step * step)


class Ledger:
    """Running account of a run's training FLOPs.

    Args:
        config: the run's configuration.
        shapes: name -> shape of every matrix (`matrix_shapes`); the one named `head` is the LM head.
        masked: names of the matrices whose sparsity is reported and which `mean_density` counts: the blocks', with
            the head or without.
        dense_step: what a step of the profile's dense training costs; None: of these shapes.
    """

    def __init__(
        self,
        config: RunConfig,
        shapes: Mapping[str, tuple[int, int]],
        head: str,
        masked: set[str],
        dense_step: Components | None = None,
    ) -> None:
        self.config = config
        self.sizes = {name: n_in * n_out for name, (n_in, n_out) in shapes.items()}
        self.head = head
        self.masked = masked
        self.dense_step = dense_step or self.step({}, "dense", False)
        self.steps = 0
        self.phases: dict[str, Components] = {}
        self.nnz_steps = 0  # masked matrices' active weights, summed over steps

    def charge(
        self, phase: str, nnz: Mapping[str, int], pattern: str, dense_gradient: bool, num_steps: int = 1
    ) -> None:
        """Account for `num_steps` equal steps.

        Args:
            phase: what the account is split by.
            nnz: matrix name -> active weights; a matrix that is not named is dense.
            pattern: attention pattern.
            dense_gradient: the step computes the weight gradient at masked positions too.
        """
        account = self.phases.setdefault(phase, defaultdict(int))
        for name, value in self.step(nnz, pattern, dense_gradient).items():
            account[name] += num_steps * value
        self.steps += num_steps
        self.nnz_steps += num_steps * self._nnz(self.masked, nnz)

    def components(self) -> Components:
        """FLOPs so far by component, over all phases."""
        sums: Components = defaultdict(int)
        for account in self.phases.values():
            for name, value in account.items():
                sums[name] += value
        return dict(sums)

    def dense_step_flops(self) -> int:
        """What a step of the profile's dense training costs (head_counted_full)."""
        return total(self.dense_step, "head_counted_full")

    def dense_components(self) -> Components:
        """What dense training of the profile's full length costs: the numerator of every ×."""
        return {name: self.config.train.num_steps * value for name, value in self.dense_step.items()}

    def report(self, final_nnz: Mapping[str, int]) -> dict[str, Any]:
        """The run folder's `flops.json`; `reduction` is dense ÷ method.

        Args:
            final_nnz: active weights per matrix after the last step.
        """
        spent, dense = self.components(), self.dense_components()
        conventions = {}
        for name in CONVENTIONS:
            dense_flops, flops = total(dense, name), total(spent, name)
            conventions[name] = {
                "dense_flops": dense_flops,
                "flops": flops,
                "reduction": dense_flops / flops if flops else math.inf,
            }
        size = sum(self.sizes[name] for name in self.masked)
        return {
            "conventions": conventions,
            "components": spent,
            "phases": {phase: dict(account) for phase, account in self.phases.items()},
            "steps": self.steps,
            "tokens": self.steps * self.tokens_per_step,
            "mean_sparsity": 1 - self.nnz_steps / (self.steps * size),
            "final_sparsity": 1 - self._nnz(self.masked, final_nnz) / size,
        }

    @property
    def tokens_per_step(self) -> int:
        return self.config.train.batch_size * self.config.model.n_positions

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "nnz_steps": self.nnz_steps, "phases": self.phases}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.steps, self.nnz_steps = state["steps"], state["nnz_steps"]
        self.phases = {phase: defaultdict(int, account) for phase, account in state["phases"].items()}
        for account in self.phases.values():
            account.setdefault("masked_active", self._masked_active(account))  # a state of an earlier version lacks it

    def step(self, nnz: Mapping[str, int], pattern: str, dense_gradient: bool) -> Components:
        """What one step costs; arguments as of `charge`."""
        head_size, head_nnz = self.sizes[self.head], self._nnz({self.head}, nnz)
        all_size, all_nnz = sum(self.sizes.values()), self._nnz(self.sizes, nnz)
        products = {
            **matrix_flops("block", all_nnz - head_nnz, all_size - head_size, self.tokens_per_step, dense_gradient),
            **matrix_flops("head", head_nnz, head_size, self.tokens_per_step, dense_gradient),
        }
        return products | {
            "attention_full": self._attention(pattern, "full"),
            "attention_causal": self._attention(pattern, "causal"),
            "masked_active": self._masked_active(products),
        }

    def _masked_active(self, products: Mapping[str, int]) -> int:
        """The masked matrices' three products, over active weights: counted again, for `mean_density` alone to sum."""
        names = (*_BLOCK[:3], *_HEAD[:3]) if self.head in self.masked else _BLOCK[:3]
        return sum(products[name] for name in names)

    def _attention(self, pattern: str, convention: str) -> int:
        model, attention = self.config.model, self.config.attention
        if pattern == "dense" and convention == "full":
            pairs = model.n_positions**2
        else:
            pairs = _num_pairs(pattern, model.n_positions, *attention.spans(model.n_positions))
        return attention_flops(pairs, model.n_embd, model.n_layer, self.config.train.batch_size)

    def _nnz(self, names: Iterable[str], nnz: Mapping[str, int]) -> int:
        return sum(nnz.get(name, self.sizes[name]) for name in names)
