"""What figures find, as their titles: a sentence each, of the data at hand, for the notebooks and the page alike."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from replication.analysis.arms import DENSE_HEAD, Runs, count_of, final_losses, label
from replication.analysis.claims import MARGIN
from replication.analysis.frontier import frontier_of
from replication.analysis.palette import PATTERNS
from replication.analysis.readings import READINGS, each_count
from replication.analysis.series import (
    cumulative_flops,
    find_shared_conventions,
    first_seed,
    select_counted,
    share_moved,
    updates_of,
)
from replication.analysis.statistics import pair_differences
from replication.flops.ledger import CONVENTIONS
from replication.system.files import Json

Counts = Mapping[str, Json]  # arm -> the object of its flops.json


def against_dense(table: pd.DataFrame) -> str:
    """How many sparse arms are shown to end within the margin, by reading of the head; `table` is Table 1's."""
    parts = []
    for head in ("masked", "dense"):
        rows = table[(table["head"] == head) & table["minus_dense"].notna()]
        if len(rows):
            within = int((rows["minus_dense_high"].astype(float) < MARGIN).sum())
            parts.append(f"{within} of {len(rows)} with the head {head}")
    return f"Sparse arms no more than {MARGIN} nats above dense (95 %): {', '.join(parts) or 'none was run'}"


def ablations(table: pd.DataFrame, noise: float) -> str:
    """How many changes move the loss by more than `noise`, nats (0: not known); and which most."""
    table = table.dropna(subset="minus_base")
    if table.empty:
        return "No ablation has a seed in common with its base"
    beyond, most = table[table["minus_base"].abs() > noise], table.loc[table["minus_base"].abs().idxmax()]
    largest = f"{most['label']}, {most['minus_base']:+.3f}"
    if not noise:
        return f"Of {len(table)} changes the largest: {largest}"
    return f"{len(beyond)} of {len(table)} changes move the loss beyond dense's own noise; most: {largest}"


def tuning(chosen: pd.DataFrame) -> str:
    """Who chose the lowest learning rate and who the highest, of `tuning.csv`'s rows that were chosen."""
    rates = chosen["train.learning_rate"]
    low, high = chosen.loc[rates.idxmin()], chosen.loc[rates.idxmax()]
    return (
        f"Best learning rates lie {rates.max() / rates.min():.0f}× apart: {low['label']} at {rates.min():g}, "
        f"{high['label']} at {rates.max():g}"
    )


def conventions(scales: Mapping[str, Counts]) -> str:
    """From what to what MST's × goes, over conventions, readings and scales."""
    ours = [count for counts in scales.values() for arm, count in counts.items() if arm in _mst()]
    rest = [count for counts in scales.values() for arm, count in counts.items() if arm != "dense"]
    counts = ours or rest
    times = [count["conventions"][name]["reduction"] for name in find_shared_conventions(counts) for count in counts]
    who = "MST saves" if ours else "The arms save"
    return f"{who} {min(times):.1f}× to {max(times):.1f}×: it depends on what is counted"


def quality(runs: Runs) -> str:
    """How far MST lies from the frontier of smaller dense models, each reading under its conventions; without such
    models, how far from dense."""
    places, outside = [], []
    for reading, convention in each_count(READINGS):
        if (arm := reading.arm("mst")) in runs:
            found = frontier_of(runs, convention)
            if not found.smaller:
                return _tell_difference(runs)
            above = found.above(arm)
            which = reading.name if convention == reading.convention else f"{reading.name}, {convention}"
            places += [f"{_above(above)} ({which})"] if above is not None else []
            outside += [which] if above is None else []
    parts = [f"MST lies {_enumerate(places)} the frontier of smaller dense models"] if places else []
    parts += [f"MST's FLOPs lie outside the frontier of smaller dense models ({', '.join(outside)})"] if outside else []
    return "; ".join(parts) or f"Lowest final loss: {lowest(runs)}"


def _tell_difference(runs: Runs) -> str:
    """MST's difference to dense, and at which ×, as C1 and C2 have it."""
    parts = []
    for reading in READINGS:
        arm = reading.arm("mst")
        if arm in runs and "dense" in runs:
            pairs = pair_differences(final_losses(runs[arm]), final_losses(runs["dense"]))
            times = count_of(runs[arm].values())["conventions"][reading.convention]["reduction"]
            if len(pairs):
                parts.append(f"{np.mean(pairs):+.2f} at {times:.1f}× ({reading.name})")
    return f"MST's loss minus dense's, nats: {', '.join(parts)}" if parts else f"Lowest final loss: {lowest(runs)}"


def _enumerate(parts: list[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _above(nats: float) -> str:
    """`0.05 nats above`; below 0.01 with a third digit."""
    size = f"{abs(nats):.2f}" if abs(nats) >= 0.0095 else f"{abs(nats):.3f}"
    return f"{size} nats {'below' if nats < 0 else 'above'}"


def loss_by_step(runs: Runs) -> str:
    """Who ends lowest, and where dense does."""
    dense = f"; dense ends at {_mean(runs, 'dense'):.3f}" if "dense" in runs else ""
    return f"After the same text lowest: {lowest(runs)}{dense}"


def loss_by_flops(runs: Runs, convention: str) -> str:
    """Who is lowest of those that cost no more than MST."""
    cost = {arm: count_of(seeds.values())["conventions"][convention]["flops"] for arm, seeds in runs.items()}
    if "mst" not in runs:
        return f"Lowest final loss: {lowest(runs)}"
    within = {arm: runs[arm] for arm in runs if cost[arm] <= 1.02 * cost["mst"]}
    return f"Lowest for MST's FLOPs or fewer: {lowest(within)}; MST ends at {_mean(runs, 'mst'):.3f}"


def lowest(runs: Runs) -> str:
    """The arm whose mean final loss is lowest, and that loss."""
    best = min(runs, key=lambda arm: _mean(runs, arm))
    return f"{label(best)}, at {_mean(runs, best):.3f} nats"


def title_phases(counts: Counts, convention: str, scale: str, arm: str = "mst") -> str:
    """MST's share of dense's FLOPs, of the reading whose arm is given, and which phase takes most of it."""
    mst, who = counts[arm], label(arm).replace(", dense head", " with a dense head")
    whole = mst["conventions"][convention]["flops"]
    phases = {name: sum(select_counted(parts, convention).values()) for name, parts in mst["phases"].items()}
    most = max(phases, key=phases.__getitem__)
    return (
        f"{scale}: {who} costs {whole / mst['conventions'][convention]['dense_flops']:.0%} of dense; "
        f"{phases[most] / whole:.0%} of that is {most}"
    )


def title_components(counts: Counts, convention: str, scale: str) -> str:
    """Attention's share of dense's FLOPs and of MST's; where it is not counted, who saves most."""
    shares = {arm: _attention(counts[arm]["components"], convention) for arm in ("dense", "mst") if arm in counts}
    if len(shares) == 2 and all(shares.values()):
        return f"{scale}: attention is {shares['dense']:.0%} of dense's FLOPs, {shares['mst']:.0%} of MST's"
    best = max(counts, key=lambda arm: counts[arm]["conventions"][convention]["reduction"])
    times = counts[best]["conventions"][convention]["reduction"]
    return f"{scale}: {label(best)} saves most, {times:.1f}×"


def title_steps(runs: Runs, convention: str) -> str:
    """Between what and what a step of MST costs, as a share of a dense one."""
    if "mst" not in runs or "dense" not in runs:
        return "What a step costs, by arm"
    steps, flops = cumulative_flops(first_seed(runs["mst"]), convention)
    reference = count_of(runs["mst"].values())["conventions"][convention]["dense_flops"] / steps[-1]
    shares = np.diff(flops, prepend=0) / np.diff(steps, prepend=0) / reference
    return f"A step of MST costs {shares.min():.0%} to {shares.max():.0%} of a dense one"


def schedules(runs: Runs) -> str:
    """MST's highest sparsity and its last, beside the others'."""
    if "mst" not in runs:
        return "What each method decided over training"
    own = [row["sparsity"] for row in first_seed(runs["mst"]).metrics()]
    rest = [
        first_seed(seeds).metrics()[-1]["sparsity"]
        for arm, seeds in runs.items()
        if not arm.startswith(("mst", "dense"))
    ]
    beside = f"; the others hold {_span(rest)}" if rest else ""
    return f"MST goes up to {max(own):.0%} sparsity and ends at {own[-1]:.0%}{beside}"


def attention_patterns(kept: Mapping[str, float]) -> str:
    """The share of causal pairs that MST's pattern keeps; `kept` is each pattern's."""
    sparse = [name for name in PATTERNS if name != "dense"]
    least = min(sparse, key=kept.__getitem__)
    return f"MST's sparse pattern keeps {kept['sparse']:.0%} of causal pairs; {least} keeps least, {kept[least]:.0%}"


def topology_by_arm(runs: Runs) -> str:
    """Who has tried most and who fewest of the weights by the end, as a mean over seeds."""
    what = "Ever active"
    tried = {
        arm: float(np.mean([share_moved(list(updates_of(run).values())[-1], what) for run in seeds.values()]))
        for arm, seeds in runs.items()
        if all(run.topology() for run in seeds.values())
    }
    if not tried:
        return "No run has a topology log"
    most, least = max(tried, key=tried.__getitem__), min(tried, key=tried.__getitem__)
    return f"{label(most)} has tried {tried[most]:.0%} of its weights by the end, {label(least)} {tried[least]:.0%}"


def topology_by_layer(arm: str, kinds: Mapping[str, Iterable[Sequence[Json]]]) -> str:
    """Which kind of matrix keeps most and which least of its first mask; `kinds` -> each layer's updates."""
    what = "Still active of the first mask"
    left = {kind: float(np.mean([share_moved([rows[-1]], what) for rows in layers])) for kind, layers in kinds.items()}
    most, least = max(left, key=left.__getitem__), min(left, key=left.__getitem__)
    return f"{label(arm)}: {left[most]:.0%} of the first mask stay in {most}, {left[least]:.0%} in {least}"


def masks(arm: str, parts: Mapping[str, float]) -> str:
    """How dense Q, K and V are, over all layers of a run."""
    if not parts:
        return f"{label(arm)}: which weights are active at the end"
    return f"{label(arm)}: active at the end are " + ", ".join(
        f"{share:.0%} of {part.upper()}" for part, share in parts.items()
    )


def _mst() -> set[str]:
    return {"mst", f"mst{DENSE_HEAD}"}


def _mean(runs: Runs, arm: str) -> float:
    return float(np.mean(list(final_losses(runs[arm]).values())))


def _attention(components: Mapping[str, int], convention: str) -> float:
    spent = {name: components[name] for name in CONVENTIONS[convention] if name in components}
    return sum(flops for name, flops in spent.items() if name.startswith("attention")) / sum(spent.values())


def _span(shares: Sequence[float]) -> str:
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low} to {high}"
