"""The words of the page: the finding in four sentences, and each figure's title, caption and alternative text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from replication.analysis import titles
from replication.analysis.arms import Runs, count_of, label
from replication.analysis.claims import NOT_TESTED, READINGS, Reading, Verdict
from replication.analysis.frontier import FRONTIER_SAID
from replication.analysis.series import MOVED, by_kind, first_seed, parts_of, shared_conventions
from replication.files import Json
from replication.model.patterns import PATTERNS, pattern_mask
from replication.report.data import CONTEXT_LIMIT, masks_of

Clause = tuple[str, str]  # what was measured, and the verdict

CONVENTIONS = {
    "head_counted_full": "with head, full",
    "head_counted_causal": "with head, causal",
    "head_excluded_full": "no head, full",
    "head_excluded_causal": "no head, causal",
    "blocks_only": "blocks only",
    "mean_density": "mean density",
}


@dataclass(frozen=True)
class Figure:
    """What is said of a figure.

    Attributes:
        name: as in `data.frames`, and in what draws it.
        title: a sentence; or one for each counting convention, of which the page's switch shows one.
        caption: below the figure; `alt` is what somebody who does not see it is told.
        missing: said in its place where there is no data.
    """

    name: str
    title: str | Mapping[str, str]
    caption: str
    alt: str
    missing: str = "No finished run here has what it is drawn from."


def reading_of(verdict: Verdict) -> Reading | None:
    """The reading of the head that a claim is of; None: of a user's own arm."""
    return next((reading for reading in READINGS if reading.name in verdict.statement), None)


def finding(found: Iterable[Verdict]) -> list[tuple[str, list[Clause]]]:
    """Four sentences, of cost, quality, rivals and smaller dense models: how each begins, and its clauses; none where
    the profile gives no verdict."""
    found = list(found)
    if not found:
        return []
    return [
        ("MST trains with fewer FLOPs than dense:", _clauses(found, "C1", lambda verdict: verdict.measured)),
        ("Its final validation loss minus dense's, in nats per token:", _clauses(found, "C2", _interval)),
        ("MST's loss minus a sparse rival's, at equal FLOPs:", _clauses(found, "C3", _interval)),
        ("MST's loss minus the best smaller dense model's, at equal FLOPs:", _clauses(found, "C4", _interval)),
    ]


def _clauses(found: Sequence[Verdict], claim: str, measured: Callable[[Verdict], str]) -> list[Clause]:
    of_claim = [verdict for verdict in found if verdict.claim == claim]
    tested = [verdict for verdict in of_claim if verdict.measured]
    untested = [verdict for verdict in of_claim if verdict.verdict == NOT_TESTED]
    clauses = [(f"{measured(verdict)} {_of(verdict)}", verdict.verdict) for verdict in tested]
    return clauses + [(f"{_of(verdict)}: {verdict.detail.rstrip('.')}", verdict.verdict) for verdict in untested]


def _interval(verdict: Verdict) -> str:
    mean, _, interval = verdict.measured.partition(" ")
    return f"{mean} (95 % interval {interval.strip('()')}, n = {verdict.n})"


def _of(verdict: Verdict) -> str:
    """`with the head dense`, and what else tells this claim from its like."""
    reading = reading_of(verdict)
    words = f"with the {reading.name}" if reading else verdict.statement
    if verdict.claim == "C1" and reading:
        return f"{words} (counted: {CONVENTIONS[reading.convention]})" if verdict.measured else words
    if verdict.claim == "C4" and reading:
        counted = next(name for name in reading.conventions if f"({name})" in verdict.statement)
        return f"{words} (counted: {CONVENTIONS[counted]})"
    if verdict.claim == "C3" and verdict.statement.startswith("better than "):
        rival = verdict.statement.removeprefix("better than ").partition(",")[0]
        return f"from {rival}, {words}"
    return words


def figures(
    data: Mapping[str, pd.DataFrame], runs: Runs, table: pd.DataFrame, plan: titles.Counts | None
) -> list[Figure]:
    """Those that show all arms, in the page's order, then those of one run.

    Args:
        data: `data.frames`.
        runs: by arm and seed; `table` is Table 1's of the same.
        plan: every arm's counts at the paper's scale, where they are known.
    """
    counts = {arm: count_of(seeds.values()) for arm, seeds in runs.items()}
    scales = {"As run": counts} | ({"Planned, GPT-2 small": plan} if plan else {})
    every = [count for arms in scales.values() for count in arms.values()]
    config = first_seed(next(iter(runs.values()))).config()
    context, ours = config["model"]["n_positions"], "the arms that are shown"
    moved = "; ".join(f"{what.lower()} as a share of {of}" for what, (of, _, _) in MOVED.items())
    return [
        Figure(
            "against_dense",
            titles.against_dense(table),
            "Mean over the seeds in common, with its 95 % t interval. The grey band is the margin within which a "
            "method counts as no worse than dense. Beside each: difference, × and seeds.",
            f"Differences to dense in validation loss. {_extremes(data['against_dense'], 'difference', '+.3f')}",
        ),
        Figure(
            "conventions",
            titles.conventions(scales),
            "Dense ÷ method, a column for each way to count; framed: the one that is chosen above. The darker, the "
            "more is saved; bold: at least the abstract's 4×.",
            "FLOP reduction of each arm under each counting convention. MST: "
            + "; ".join(_times(row) for _, row in _mst(data["conventions"]).iterrows()),
        ),
        Figure(
            "quality_against_cost",
            titles.quality(runs),
            f"{FRONTIER_SAID} The switch of conventions changes nothing here.",
            f"Final validation loss against training FLOPs. {_extremes(data['quality_against_cost'], 'loss', '.3f')}",
        ),
        Figure(
            "loss_curves",
            titles.loss_by_step(runs),
            "Mean over seeds, band from the lowest to the highest; dashed where the head is dense. Grey: MST's phases; "
            "on the way losses are under the attention of that step, which is sparse in the second, at the end under "
            "dense. Pale: training loss of the first seed, from the first logged step.",
            f"Validation loss of {ours}, falling over training. "
            + _extremes(_last(data["loss_curves"]), "mean", ".3f"),
        ),
        Figure(
            "flops_by_phase",
            _by_convention(lambda convention: _by_phase(scales, convention), every),
            "Dense training on top, MST's phases and their sum below, on one scale.",
            f"FLOPs of MST's phases, split by component, beside dense training: {_phases(data['flops_by_phase'])}.",
        ),
        Figure(
            "flops_by_component",
            _by_convention(
                lambda convention: ". ".join(
                    titles.by_component(count, convention, scale) for scale, count in scales.items()
                ),
                every,
            ),
            "Masked weights do not make attention cheaper, only a sparse pattern does. × is dense ÷ method.",
            "Training FLOPs of each arm, split into blocks, attention, LM head and the dense gradient for growth.",
        ),
        Figure(
            "flops_by_step",
            _by_convention(lambda convention: titles.by_step(runs, convention), every),
            "First seed. The cost of a step is the mean between two log lines; its teeth are the dense gradients of "
            "topology updates.",
            f"FLOPs of a step and their sum over training, for {ours}.",
        ),
        Figure(
            "schedules",
            titles.schedules(runs),
            "First seed: share of maskable weights that are zero (dotted: its target), share of active weights that an "
            "update drops, and the attention pattern.",
            f"Sparsity, drop fraction and attention pattern over training, for {ours}. At the end: "
            + _sparsities(_last(data["schedules"])),
        ),
        Figure(
            "attention_patterns",
            titles.attention_patterns(_kept(config)),
            f"A row per query, a column per key; coloured pairs are computed. The runs' context is {context} tokens"
            + (", drawn smaller in proportion." if context > CONTEXT_LIMIT else "."),
            "Five attention patterns as pictures of query-key pairs: dense, local, strided, sparse (local and "
            "strided together) and fixed.",
        ),
        Figure(
            "topology_by_arm",
            titles.topology_by_arm(runs),
            f"A line for each seed, over all layers: {moved}.",
            f"Four panels over training for the arms whose topology changes: {moved}.",
            "No finished run here has a topology log with an update.",
        ),
        Figure(
            "topology_by_layer",
            _by_layer(runs) or "Its connections, layer by layer",
            "First seed of the run that is chosen above, a line per layer, dashed by what the matrix does.",
            f"Four panels over training, a line per layer: {moved}.",
            "No finished run here has a topology log with an update.",
        ),
        Figure(
            "masks",
            _active(runs) or "Which weights are active at the end",
            "A picture per layer of the same run: the fuller a tile's colour, the more of its weights are active. "
            "At most 64 tiles a side. Stripes are inputs or outputs that the method favours. Q, K and V are one "
            "matrix, attn.c_attn: rules part them, and each has its own density.",
            "Final mask of a layer",
            "No finished run here has masks.",
        ),
    ]


def _by_convention(title: Callable[[str], str], counts: Sequence[Json]) -> dict[str, str]:
    """A title for each counting convention that all these have, which it names."""
    return {name: f"{title(name)} ({CONVENTIONS[name]})" for name in shared_conventions(counts)}


def _by_phase(scales: Mapping[str, titles.Counts], convention: str) -> str:
    found = [titles.by_phase(count, convention, scale) for scale, count in scales.items() if "mst" in count]
    return ". ".join(found) or "Where the FLOPs go, by phase"


def _by_layer(runs: Runs) -> str:
    """Of MST, whose run is shown first; empty where it has no updates."""
    kinds = by_kind(runs.get("mst", {}).values())
    return titles.topology_by_layer("mst", kinds) if kinds else ""


def _active(runs: Runs) -> str:
    """Of MST's first seed; empty where it has no masks that can be read."""
    masks, _ = masks_of(first_seed(runs["mst"])) if "mst" in runs else ({}, "")
    return titles.masks("mst", parts_of(masks)) if masks else ""


def _kept(config: Json) -> dict[str, float]:
    """Pattern -> share of causal pairs that it keeps at a run's context."""
    context = config["model"]["n_positions"]
    window, stride = (config["attention"][key] or max(1, context // 8) for key in ("window", "stride"))
    pairs = context * (context + 1) / 2
    return {name: float(pattern_mask(name, context, window, stride).sum() / pairs) for name in PATTERNS}


def _extremes(frame: pd.DataFrame, column: str, form: str) -> str:
    """Who is lowest and who is highest, with their numbers."""
    if frame.empty:
        return ""
    means = frame.groupby("arm", sort=False)[column].mean()
    low, high = means.idxmin(), means.idxmax()
    return f"Lowest: {label(low)}, {means[low]:{form}}; highest: {label(high)}, {means[high]:{form}}."


def _last(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.groupby("arm", sort=False).tail(1) if len(frame) else frame


def _mst(frame: pd.DataFrame) -> pd.DataFrame:
    arms = [reading.arm("mst") for reading in READINGS]
    return frame[frame["arm"].isin(arms) & (frame["scale"] == "as run")] if len(frame) else frame


def _times(row: pd.Series) -> str:
    times = row.drop(["scale", "arm"]).astype(float)
    return f"{label(row['arm'])}, {times.min():.2f}× to {times.max():.2f}×"


def _phases(frame: pd.DataFrame) -> str:
    return ", ".join(phase for phase in dict.fromkeys(frame.get("phase", ())) if phase != "all training")


def _sparsities(frame: pd.DataFrame) -> str:
    return ", ".join(f"{label(row['arm'])} {row['sparsity']:.1%}" for _, row in frame.iterrows())
