"""The study's cells, each arm against dense at each point, and its hypotheses, tested as the protocol says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from replication.analysis.arms import final_losses, group_by_arm, label
from replication.analysis.statistics import holm, p_above, p_below, pair_differences, summarise, t_interval
from replication.analysis.tables import to_markdown
from replication.runs.finding import find_runs
from replication.system.errors import DamagedError
from replication.system.files import read_json

SHOWN, OPPOSITE, OPEN, UNTESTED = "shown", "the opposite is shown", "inconclusive", "not tested"
HEAD_DENSE = ("dense_narrow_dense_head", "dense_shallow_dense_head")  # smaller dense models of MST's FLOPs
REGISTERED, EXPLORATORY = "registered", "exploratory"

Losses = Mapping[str, Mapping[str, Mapping[int, float]]]  # point -> arm -> seed -> nats per token


@dataclass(frozen=True)
class Question:
    """A hypothesis at one point: differences that are expected below a bound, or above it.

    Attributes:
        name: of the hypothesis, whose questions are corrected together.
        point: at which it is asked.
        differences: by seed, nats per token.
        below: expected below the bound; else above it.
        bound: nats per token.
        can_fail: what must hold for a "shown" to mean anything; else it is inconclusive.
    """

    name: str
    point: str
    differences: np.ndarray
    below: bool = True
    bound: float = 0.0
    can_fail: bool = True


def read_losses(results: Path, points: Sequence[str]) -> dict[str, dict[str, dict[int, float]]]:
    """Of the finished runs: final loss over the whole validation split."""
    found = {}
    for point in points:
        if runs := find_runs(results, point):
            found[point] = {arm: final_losses(seeds) for arm, seeds in group_by_arm(runs).items()}
    return found


def tabulate_cells(losses: Losses, points: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """A row per point and arm: parameters, tokens a parameter, n, mean loss, and the difference to dense over the seeds
    in common with its 95 % t interval (NaN where n < 2)."""
    rows = []
    for point, arms in losses.items():
        size, length = points[point]
        for arm, seeds in arms.items():
            row = {"point": point, "parameters": size, "tokens_per_parameter": length, "arm": arm, "label": label(arm)}
            differences = pair_differences(seeds, arms.get("dense", {})) if arm != "dense" else np.array([])
            n, mean, _ = summarise(differences.tolist())
            low, high = t_interval(differences) if n > 1 else (np.nan, np.nan)
            row |= {"n": len(seeds), "loss": summarise([*seeds.values()]).mean}
            rows.append(row | {"difference": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def ask(losses: Losses, core: Sequence[str], points: Mapping[str, Sequence[float]], margin: float) -> list[Question]:
    """Every hypothesis of the protocol, at each core point at which its arms are there."""
    asked = [*_ask_length(losses, core, points)]
    for point in core:
        arms = losses.get(point, {})

        def minus(left: str, right: str, arms: Mapping[str, Mapping[int, float]] = arms) -> np.ndarray:
            return pair_differences(arms.get(left, {}), arms.get(right, {}))

        smaller = [minus(arm, "dense") for arm in HEAD_DENSE]
        is_used = all(len(own) > 1 and p_above(own, margin) < 0.05 for own in smaller)
        asked.append(Question("quality", point, minus("mst_dense_head", "dense"), True, margin, is_used))
        for rival in ("set", "rigl", "gmp"):
            asked.append(Question(f"method_{rival}", point, minus("mst_dense_head", f"{rival}_4x_dense_head")))
        means = {arm: np.mean([*arms[arm].values()]) for arm in HEAD_DENSE if arms.get(arm)}
        if len(means) == len(HEAD_DENSE):
            asked.append(Question("capacity", point, minus("mst_dense_head", min(means, key=means.__getitem__))))
        asked.append(Question("head", point, minus("mst", "mst_dense_head"), below=False))
    return asked


def judge(asked: Sequence[Question], level: float) -> pd.DataFrame:
    """A row per question: n, mean, 95 % t interval, Holm-corrected p of the expected and of its opposite, verdict."""
    rows = []
    for name in dict.fromkeys(question.name for question in asked):
        own = [question for question in asked if question.name == name]
        tested = [question for question in own if len(question.differences) > 1]
        expected = _correct(tested, lambda one: one.below)
        opposite = _correct(tested, lambda one: not one.below)
        for question in own:
            row = {"hypothesis": name, "point": question.point, "n": len(question.differences)}
            if question not in tested:
                rows.append(row | {"verdict": UNTESTED})
                continue
            place = tested.index(question)
            low, high = t_interval(question.differences)
            row |= {"difference": float(np.mean(question.differences)), "low": low, "high": high}
            row |= {"p": expected[place], "p_opposite": opposite[place]}
            rows.append(row | {"verdict": _decide(expected[place], opposite[place], level, question.can_fail)})
    return pd.DataFrame(rows)


def render(cells: pd.DataFrame, verdicts: pd.DataFrame, registered: Mapping[str, str]) -> str:
    """Markdown: the cells of each point, the hypotheses, and which points are registered."""
    if cells.empty:
        return "No run of the study is finished."
    shown = pd.DataFrame(
        {
            "point": cells["point"],
            "parameters": cells["parameters"].map("{:,.0f}".format),
            "tokens a parameter": cells["tokens_per_parameter"].map("{:g}".format),
            "arm": cells["label"],
            "n": cells["n"].map(str),
            "loss": cells["loss"].map("{:.3f}".format),
            "minus dense": [_format(row) for _, row in cells.iterrows()],
        }
    )
    if verdicts.empty:
        return to_markdown(shown)
    tested = pd.DataFrame(
        {
            "hypothesis": verdicts["hypothesis"],
            "point": verdicts["point"],
            "n": verdicts["n"].map(str),
            "difference": [_format(row) for _, row in verdicts.iterrows()],
            "verdict": verdicts["verdict"] + ", " + verdicts["point"].map(registered).fillna(EXPLORATORY),
        }
    )
    return f"{to_markdown(shown)}\n\n{to_markdown(tested)}"


def _format(row: pd.Series) -> str:
    """A difference with its interval, as far as there is one."""
    if pd.isna(row.get("difference")):
        return ""
    interval = "" if pd.isna(row.get("low")) else f" ({row['low']:+.3f} to {row['high']:+.3f})"
    return f"{row['difference']:+.3f}{interval}"


def read_registration(results: Path, point: str, protocols: set[str]) -> str:
    """`registered` where every finished run of the point began under one of these protocols, else `exploratory`."""
    runs = find_runs(results, point)
    try:
        digests = {read_json(run.path / "environment.json").get("protocol", {}).get("sha256") for run in runs}
    except DamagedError:
        return EXPLORATORY
    return REGISTERED if runs and digests <= protocols else EXPLORATORY


def _ask_length(losses: Losses, core: Sequence[str], points: Mapping[str, Sequence[float]]) -> list[Question]:
    """Of each size that the core has at two lengths: MST's difference to dense at the longer, minus at the shorter."""
    by_size: dict[float, list[str]] = {}
    for point in core:
        by_size.setdefault(points[point][0], []).append(point)
    asked = []
    for names in by_size.values():
        short, *_, long = sorted(names, key=lambda point: points[point][1])
        costs = []
        for point in (long, short):
            arms = losses.get(point, {})
            mst, dense = arms.get("mst_dense_head", {}), arms.get("dense", {})
            costs.append({seed: mst[seed] - dense[seed] for seed in mst.keys() & dense.keys()})
        asked.append(Question("length", long, pair_differences(*costs), below=False))
    return asked


def _correct(asked: Sequence[Question], below: Callable[[Question], bool]) -> list[float]:
    return holm([(p_below if below(one) else p_above)(one.differences, one.bound) for one in asked])


def _decide(expected: float, opposite: float, level: float, can_fail: bool) -> str:
    if opposite < level:
        return OPPOSITE
    return SHOWN if expected < level and can_fail else OPEN
