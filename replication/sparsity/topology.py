"""One topology update as a function: drop the smallest weights, grow new connections."""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from replication.system.errors import MethodError

LARGE, SAMPLE = 2**16, 2**14  # scores from which on a sample says where to look, and its size (ours)
Growth = Callable[[Tensor | None, Tensor, int, torch.Generator], Tensor]


@dataclass(frozen=True)
class Update:
    """A layer's new mask, and how many connections went and came (one dropped and regrown counts in both)."""

    mask: Tensor
    num_dropped: int
    num_grown: int


def update_counts(nnz: int, target_nnz: int, drop_fraction: float) -> tuple[int, int]:
    """Connections to drop and to grow, so that `target_nnz` are left.

    Source: PAPER `code`: n_drop = max(⌊drop fraction · nnz⌋, ⌊rise · n⌋), n_grow = n_drop - ⌊rise · n⌋; here the rise
    in sparsity is the exact nnz - target_nnz (ours).
    """
    rise = nnz - target_nnz
    num_drop = max(int(drop_fraction * nnz), rise)
    return num_drop, num_drop - rise


def select_largest(scores: Tensor, eligible: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Flat indices of the `num` eligible positions with the largest scores; ties fall to the generator.

    Args:
        scores: any shape, finite.
        eligible: boolean, of the same shape, with at least `num` true.
        num: how many.
        generator: on the CPU, so that every device and rank draws the same.
    """
    if num == 0:
        return torch.empty(0, dtype=torch.long, device=scores.device)
    scores = scores.flatten().masked_fill(~eligible.flatten(), -torch.inf)
    candidates = (scores >= _pivot(scores, num, generator)).nonzero().squeeze(1)
    if len(candidates) < num:  # the sample was an odd one
        candidates = eligible.flatten().nonzero().squeeze(1)
    values = scores[candidates]
    threshold = values.topk(num, sorted=False).values.min()
    above = candidates[values > threshold]
    tied = candidates[values == threshold]
    order = torch.randperm(len(tied), generator=generator)[: num - len(above)]
    return torch.cat([above, tied[order.to(tied.device)]])


def _pivot(scores: Tensor, num: int, generator: torch.Generator) -> float:
    """A score that very probably at least `num` reach, and not many more (ours): by a sample, or the least finite."""
    least = torch.finfo(scores.dtype).min
    if len(scores) <= LARGE:
        return least
    sample = (
        scores[torch.randint(len(scores), (SAMPLE,), generator=generator).to(scores.device)]
        .sort(descending=True)
        .values
    )
    share = num / len(scores)
    place = int(SAMPLE * share + 5 * (SAMPLE * share * (1 - share)) ** 0.5) + 5  # five standard deviations below
    return max(sample[place].item(), least) if place < SAMPLE else least


def select_random(eligible: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Flat indices of `num` eligible positions, uniformly at random."""
    eligible = eligible.flatten()
    if len(eligible) <= LARGE or 8 * num > eligible.count_nonzero():
        candidates = eligible.nonzero().squeeze(1)
        return candidates[torch.randperm(len(candidates), generator=generator)[:num].to(candidates.device)]
    drawn = torch.empty(0, dtype=torch.long, device=eligible.device)
    while len(drawn) < num:  # a few of many: drawn until enough of them are eligible and distinct, then thinned out
        positions = torch.randint(len(eligible), (2 * num,), generator=generator).to(eligible.device)
        drawn = torch.cat([drawn, positions[eligible[positions]]]).unique()
    return drawn[torch.randperm(len(drawn), generator=generator)[:num].to(drawn.device)]


def balance(gradient: Tensor) -> Tensor:
    """|gradient| relative to the root mean square of its row and of its column (ours), as far as those are not 0.

    By |gradient| alone growth crowds into the few rows and columns that have the largest of all (Q and K of a fused
    attention matrix starve beside V, hidden units die); relative to its own row and column hardly a unit dies, and V
    gives way to Q and K instead (RigL, dense head, `small`: 26, 28 and 6 % active, and by |gradient| 6, 8 and 46 %).
    """
    magnitude = gradient.abs()
    for dim in (1, 0):
        size = gradient.square().mean(dim, keepdim=True).sqrt()
        magnitude = magnitude / torch.where(size > 0, size, 1)
    return magnitude


def grow_random(gradient: Tensor | None, eligible: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """SET's growth: flat indices, uniformly at random. Needs no gradient. Source: PAPER `code`."""
    return select_random(eligible, num, generator)


def grow_gradient(gradient: Tensor, eligible: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """RigL's growth: flat indices of the largest |gradient|. Source: PAPER `code`."""
    return select_largest(gradient.abs(), eligible, num, generator)


def grow_mixed(
    gradient: Tensor, eligible: Tensor, num: int, generator: torch.Generator, random_fraction: float = 0.25
) -> Tensor:
    """Mixed-Growing: ⌊(1 - random_fraction) · num⌋ by the largest |gradient|, the others at random among the rest.

    Source: PAPER `code`.
    """
    num_by_gradient = int((1 - Fraction(random_fraction).limit_denominator(10**9)) * num)
    by_gradient = grow_gradient(gradient, eligible, num_by_gradient, generator)
    rest = eligible.flatten().clone()
    rest[by_gradient] = False
    return torch.cat([by_gradient, grow_random(None, rest, num - num_by_gradient, generator)])


def update_topology(
    weight: Tensor,
    mask: Tensor,
    gradient: Tensor | None,
    *,
    target_nnz: int,
    drop_fraction: float,
    grow: Growth,
    generator: torch.Generator,
    layer: str = "weight",
) -> Update:
    """Drop the smallest |weight| among the active, then grow. A connection just dropped may be grown again.

    Source: PAPER `code`.

    Args:
        weight: [n_out, n_in] or its transpose; zeros where masked.
        mask: boolean, of that shape; left as it is.
        gradient: dense gradient, of that shape; None where `grow` reads none.
        target_nnz: active connections afterwards, at most the layer's size.
        drop_fraction: share of the active connections to drop, 0 to 1.
        grow: (gradient, eligible, num, generator) -> flat indices of the new connections.
        generator: on the CPU, shared by all ranks.
        layer: its name, for what is said of it.

    Raises:
        MethodError: `grow` gives anything but `num` distinct eligible places.
    """
    num_drop, num_grow = update_counts(int(mask.count_nonzero()), target_nnz, drop_fraction)
    new = mask.flatten().clone()
    new[select_largest(-weight.abs(), mask, num_drop, generator)] = False
    eligible = ~new.view_as(mask)
    problem = _grow(new, grow(gradient, eligible, num_grow, generator), num_grow)
    if problem:
        raise MethodError(
            f"{_name(grow)} gave {problem} of {layer}, and was asked for {num_grow}; "
            f"allowed: {num_grow} distinct flat indices (int64, on {mask.device.type}) of eligible places"
        )
    return Update(new.view_as(mask), num_drop, num_grow)


def _grow(new: Tensor, places: object, num: int) -> str | None:
    """Set the places in a flat mask; what is wrong with them, if they are not `num` distinct ones that it lacks."""
    if not isinstance(places, Tensor):
        return f"{'nothing (None)' if places is None else type(places).__name__} as the places"
    if places.dtype != torch.long or places.dim() != 1 or places.device != new.device:
        shape = "×".join(map(str, places.shape)) or "one value"
        return f"{shape} of {str(places.dtype).removeprefix('torch.')} on {places.device.type} as the places"
    if len(places) != num:
        return f"{len(places)} places"
    if num and not 0 <= int(places.min()) <= int(places.max()) < len(new):
        return f"places {int(places.min())} to {int(places.max())} of the {len(new)}"
    before = int(new.count_nonzero())
    new[places] = True
    grown = int(new.count_nonzero()) - before
    return f"{grown} places that are distinct and were inactive" if grown != num else None


def _name(grow: Growth) -> str:
    owner = getattr(grow, "__self__", None)
    name = getattr(grow, "__name__", "grow")
    return f"{type(owner).__name__}.{name}" if owner is not None else name
