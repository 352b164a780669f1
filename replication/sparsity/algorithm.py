"""Masks on a model: the static algorithm, and the dynamic one that lets its topology evolve."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from replication.sparsity.distributions import Counts, Shapes, erdos_renyi
from replication.sparsity.grid import WEIGHTS, Grid
from replication.sparsity.meter import Meter, under
from replication.sparsity.schedules import Schedules
from replication.sparsity.topology import grow_random, select_largest, select_random, update_topology
from replication.system.errors import MethodError

Distribution = Callable[[Shapes, float], Counts]


class SparsityAlgorithm:
    """Masks that stay as they are: static sparse training; at sparsity 0, dense training.

    Masked weights, their gradients and (but for `reset_moments` off) the optimizer's moments of them are exactly 0 at
    all times. In a loop of one's own `apply` comes first, and `step` takes the place of `optimizer.step()`.

    Args:
        schedules: what holds at each step.
        distribution: (shapes, sparsity) -> active weights per layer.
        initial_mask: `random` or `magnitude`.
        update_replaces_step: a topology update takes the place of the weight update.
        reset_moments: an update zeroes the Adam moments of masked weights; false: they decay by themselves.
        seed: of the generator for masks and ties, the same on every rank.
        grids: parameter -> on what its mask is decided; else single weights.
        growth_score: dense gradient, [rows, columns] -> what growth ranks; None: the gradient itself.
        meter: what is measured of each layer at an update.
    """

    needs_gradient = False  # does an update read the dense gradient? Its cost is charged to the method.

    def __init__(
        self,
        schedules: Schedules,
        distribution: Distribution = erdos_renyi,
        initial_mask: str = "random",
        update_replaces_step: bool = True,
        reset_moments: bool = True,
        seed: int = 0,
        grids: Mapping[str, Grid] = MappingProxyType({}),
        growth_score: Callable[[Tensor], Tensor] | None = None,
        meter: Meter | None = None,
    ) -> None:
        self.schedules = schedules
        self.distribution = distribution
        self.initial_mask = initial_mask
        self.update_replaces_step = update_replaces_step
        self.reset_moments = reset_moments
        self.grids = grids
        self.growth_score = growth_score
        self.meter = meter or Meter()
        self.generator = torch.Generator().manual_seed(seed)
        self.parameters: dict[str, nn.Parameter] = {}
        self.masks: dict[str, Tensor] = {}
        self.nnz: Counts = {}

    def apply(self, model: nn.Module, param_filter: Callable[[str, nn.Parameter], bool]) -> None:
        """Make the first masks, for the parameters (2-D) that the filter takes, and zero what they mask.

        Before or after `torch.compile` and DDP, on the device on which the model is trained.

        Raises:
            MethodError: a parameter that is no matrix.
        """
        self.parameters = {name: param for name, param in model.named_parameters() if param_filter(name, param)}
        for name, param in self.parameters.items():
            if param.dim() != 2:
                shape = "×".join(map(str, param.shape)) or "of one number"
                raise MethodError(f"{name} is {shape}; allowed: matrices, so a filter such as parameter.ndim == 2")
        self.nnz = self.target_nnz(0)
        for name, param in self.parameters.items():
            grid = self.grids.get(name, WEIGHTS)
            parts = zip(grid.scores(param.detach().abs()), grid.share_out(self.nnz[name]))
            self.masks[name] = grid.mask([self._first_mask(part, nnz) for part, nnz in parts])
            param.data.mul_(self.masks[name])

    def target_nnz(self, step: int) -> Counts:
        """Active weights per layer that the schedule asks for at `step`."""
        shapes = {name: (param.shape[0], param.shape[1]) for name, param in self.parameters.items()}
        return self.distribution(shapes, self.schedules.sparsity_at(step))

    def step(
        self,
        step: int,
        optimizer: torch.optim.Optimizer,
        max_norm: float | None = None,
        scaler: "torch.amp.GradScaler | None" = None,
    ) -> list[dict[str, Any]]:
        """What follows the backward pass, in a loop of one's own: the topology's update, where one is due; and the
        optimizer's step on masked gradients, which an update takes the place of if `update_replaces_step` is set.

        Gradients are those of the whole batch: with accumulation after its last part, under DDP after the backward
        pass, which averages them, so that every process makes the same masks. They are not zeroed.

        Args:
            step: number of the step, from 0.
            optimizer: of torch, or one like it; of its state what has a parameter's shape is that parameter's.
            max_norm: clip all of the optimizer's gradients to this norm, masked ones being 0; None: do not.
            scaler: of mixed precision, whose `unscale_`, `step` and `update` are called here. Where its scale was too
                large, both the optimizer's step and an update of the topology are left out.

        Returns:
            Of an update a row for each layer, as in `topology.jsonl`; else none.

        Raises:
            MethodError: a masked parameter has no gradient, or an update's is not finite, or `grow` is at fault.
        """
        missing = [name for name, param in self.parameters.items() if param.grad is None]
        if missing:
            raise MethodError(f"{missing[0]} has no gradient at step {step}; allowed: one that the loss reaches")
        if scaler:
            scaler.unscale_(optimizer)
        rows = self._update_if_due(step, optimizer, scaler is not None)
        if not (rows and self.update_replaces_step):
            self.mask_gradients()
            if max_norm is not None:
                owned = (param for group in optimizer.param_groups for param in group["params"])
                nn.utils.clip_grad_norm_(owned, max_norm)
            scaler.step(optimizer) if scaler else optimizer.step()
            self.mask_weights(always=True)
        if scaler:
            scaler.update()
        return rows

    def _update_if_due(self, step: int, optimizer: torch.optim.Optimizer, may_skip: bool) -> list[dict[str, Any]]:
        if not self.is_update(step):
            return []
        if not all(param.grad.isfinite().all() for param in self.parameters.values() if param.grad is not None):
            if may_skip:
                return []
            raise MethodError(f"a gradient is not finite at step {step}, where the topology is updated")
        rows = self.update(step, optimizer)
        check_counts(self, step)
        return rows

    def is_update(self, step: int) -> bool:
        """Does the topology change after this step's gradient?"""
        return False

    def reads_gradient(self, step: int) -> bool:
        """Is this step's dense gradient read for growth?"""
        return self.needs_gradient and self.is_update(step)

    def observe(self, step: int, loss: float) -> str | None:
        """Take note of the training loss (nats per token) of the `step`-th step, from which a method may decide its
        `schedules`; where it does, why, for the log."""
        return None

    def mask_gradients(self) -> None:
        """Zero the gradients of masked weights; to be called before clipping, on every step that updates weights."""
        if self.masks:
            gradients = [param.grad for param in self.parameters.values()]
            torch._foreach_mul_(gradients, list(self.masks.values()))  # type: ignore

    def mask_weights(self, always: bool = False) -> None:
        """Zero the masked weights, where left-over moments have moved them; to be called after each weight update.

        Args:
            always: an optimizer may move weights that have neither gradient nor moments.
        """
        if self.masks and (always or not self.reset_moments):
            torch._foreach_mul_([param.data for param in self.parameters.values()], list(self.masks.values()))

    def update(
        self, step: int, optimizer: torch.optim.Optimizer, gradients: Mapping[str, Tensor] | None = None
    ) -> list[dict[str, Any]]:
        """Change the topology; returns a row for each layer.

        Args:
            gradients: dense, by layer, for the methods that need them; None: each parameter's `.grad`.
        """
        return []

    def sparsity(self) -> float:
        """Fraction of zeros over all masked layers; 0.0 if there are none."""
        size = sum(mask.numel() for mask in self.masks.values())
        return 1 - sum(self.nnz.values()) / size if size else 0.0

    def state_dict(self) -> dict[str, Tensor]:
        """Masks and generator; `load_state_dict` after `apply` restores both."""
        masks = {f"masks.{name}": mask for name, mask in self.masks.items()}
        return {"generator": self.generator.get_state()} | masks

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])
        for name, mask in self.masks.items():
            mask.copy_(state[f"masks.{name}"])
            self.nnz[name] = int(mask.count_nonzero())

    def _first_mask(self, magnitudes: Tensor, nnz: int) -> Tensor:
        every = torch.ones_like(magnitudes, dtype=torch.bool)
        if self.initial_mask == "magnitude":
            active = select_largest(magnitudes, every, nnz, self.generator)
        else:
            active = select_random(every, nnz, self.generator)
        mask = torch.zeros_like(every)
        mask.view(-1)[active] = True
        return mask


class DynamicSparsityAlgorithm(SparsityAlgorithm):
    """Masks that evolve. A method decides one thing: where new connections grow (`grow`)."""

    def apply(self, model: nn.Module, param_filter: Callable[[str, nn.Parameter], bool]) -> None:
        super().apply(model, param_filter)
        self.first_masks = {name: mask.clone() for name, mask in self.masks.items()}
        self.ever_active = {name: mask.clone() for name, mask in self.masks.items()}
        self.meter.begin(self.masks)

    def grow(self, gradient: Tensor | None, eligible: Tensor, num: int, generator: torch.Generator) -> Tensor:
        """Flat indices of `num` of the eligible (inactive) positions, where new connections grow.

        Args:
            gradient: dense gradient, [n_out, n_in] or its transpose; to be read only if `needs_gradient` is set.
            eligible: boolean, of that shape.
            num: connections to grow.
            generator: to draw from, shared by all ranks.
        """
        return grow_random(gradient, eligible, num, generator)

    def is_update(self, step: int) -> bool:
        return self.schedules.updates.is_update(step)

    def update(
        self, step: int, optimizer: torch.optim.Optimizer, gradients: Mapping[str, Tensor] | None = None
    ) -> list[dict[str, Any]]:
        targets = self.target_nnz(step)
        own = {name: param.grad for name, param in self.parameters.items() if param.grad is not None}
        gradients = gradients or own
        before = {name: mask.clone() for name, mask in self.masks.items()}
        rows = [self._update_layer(name, step, targets[name], gradients[name]) for name in self.parameters]
        for row in rows:  # not each after its layer's update: one after the other they take half the time
            name = row["layer"]
            row |= self.meter.measure(
                name,
                step,
                row["dropped"],
                row["grown"],
                weight=self.parameters[name],
                gradient=gradients[name] if self.needs_gradient else None,
                before=before[name],
                after=self.masks[name],
                first=self.first_masks[name],
                ever_active=self.ever_active[name],
            )
        for name, param in self.parameters.items():
            self._zero_masked(param, self.masks[name], optimizer)
        return rows

    def _update_layer(self, name: str, step: int, target_nnz: int, gradient: Tensor) -> dict[str, Any]:
        param, mask = self.parameters[name], self.masks[name]
        grid = self.grids.get(name, WEIGHTS)
        parts = (grid.scores(param.detach().abs()), grid.cells(mask), grid.scores(self._growth_scores(gradient, grid)))
        updates = [
            update_topology(
                *part,
                target_nnz=target,
                drop_fraction=self.schedules.drop_fraction_at(step),
                grow=self.grow,
                generator=self.generator,
                layer=name,
            )
            for target, *part in zip(grid.share_out(target_nnz), *parts)
        ]
        mask.copy_(grid.mask([update.mask for update in updates]))
        self.nnz[name] = target_nnz
        self.ever_active[name] |= mask
        dropped, grown = (
            sum(moved) * grid.size for moved in zip(*((update.num_dropped, update.num_grown) for update in updates))
        )
        size = mask.numel()
        return {"step": step, "layer": name, "size": size, "nnz": target_nnz, "dropped": dropped, "grown": grown}

    def _growth_scores(self, gradient: Tensor, grid: Grid) -> Tensor:
        """What growth ranks, by weight."""
        if self.needs_gradient and self.growth_score:
            gradient = self.growth_score(gradient)
        return gradient if grid.size == 1 else gradient.abs()

    def _zero_masked(self, param: nn.Parameter, mask: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Weights and moments of the masked become 0, so that a connection grown later starts from nothing (ours)."""
        param.data.mul_(mask)
        if not self.reset_moments:
            return
        for value in optimizer.state[param].values():  # moments, whatever the optimizer calls them
            if isinstance(value, Tensor) and value.shape == param.shape:
                value.mul_(mask)

    def state_dict(self) -> dict[str, Tensor]:
        history = {f"first_masks.{name}": mask for name, mask in self.first_masks.items()}
        history |= {f"ever_active.{name}": mask for name, mask in self.ever_active.items()}
        history |= {f"metrics.{key}": value for key, value in self.meter.state_dict().items()}
        return super().state_dict() | history

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        for name in self.masks:
            self.first_masks[name].copy_(state[f"first_masks.{name}"])
            self.ever_active[name].copy_(state[f"ever_active.{name}"])
        self.meter.load_state_dict(under("metrics.", state))


def check_counts(algorithm: SparsityAlgorithm, step: int) -> None:
    """Raises MethodError where a mask, or what is said of it, has not as many active weights as the distribution says.

    To be called once a mask was made, by whichever method.
    """
    counts = [mask.count_nonzero() for mask in algorithm.masks.values()]
    actual = dict(zip(algorithm.masks, torch.stack(counts).tolist() if counts else []))
    for name, target in algorithm.target_nnz(step).items():
        if not actual.get(name) == algorithm.nnz.get(name) == target:
            raise MethodError(
                f"{type(algorithm).__name__} left {actual.get(name)} active weights in {name} after step {step} "
                f"and says {algorithm.nnz.get(name)}, where the distribution says {target}; allowed: these"
            )
