"""The ablations: every arm of a profile against MST and against dense, paired by seed."""

from pathlib import Path

import numpy as np
import pandas as pd

from replication.analysis.arms import Runs, by_arm, final_losses, incomparable, label
from replication.analysis.comparable import changes, facts_of
from replication.analysis.statistics import paired_differences, summarise, t_interval
from replication.analysis.tables import check_any, described, said, spread, to_markdown, zero_shot, zero_shot_metrics
from replication.config import profile_arms
from replication.files import write_atomically
from replication.runs import examine

CONVENTIONS = ("head_counted_full", "head_excluded_causal")  # the two that differ most


def ablations(runs: Runs, profile: str) -> pd.DataFrame:
    """One row per arm of the profile that has a finished run, in the profile's order.

    Columns: `arm`, `label`, `changes` (its runs' settings that are not those of its method's plain arm), `n`, `mean_sparsity`, `reduction (<convention>)`,
    `validation_loss_mean` and `_std`, and for `mst` and `dense` as references `minus_<reference>` (mean difference in nats per
    token over the seeds in common), `_n`, `_low` and `_high` (95 % t interval, from 2 seeds on), and the same of each zero-shot `<task>/<metric>`;
    `not_compared` says why an arm has no difference to one of them, where its settings are the reason.
    """
    losses, changed = {arm: final_losses(seeds) for arm, seeds in runs.items()}, _changes(runs)
    return pd.DataFrame([_row(arm, runs, losses, changed[arm]) for arm in profile_arms(profile) if arm in runs])


def write_ablations(results: Path, profile: str) -> str:
    """Write `<results>/<profile>/ablations.csv` and `ablations.md`; returns the text of the latter.

    Raises:
        UserError: the profile has no ablations, or no finished run.
    """
    found, left_out = examine(results, profile)
    check_any(found, left_out, results, profile)
    table = ablations(by_arm(found), profile)
    text = render(table, profile) + said(left_out)
    write_atomically(Path(results) / profile / "ablations.csv", table.to_csv(index=False))
    write_atomically(Path(results) / profile / "ablations.md", text)
    return text


def render(table: pd.DataFrame, profile: str) -> str:
    """For the terminal: quality and cost, then zero-shot."""
    parts = [
        f"# Ablations, profile `{profile}`",
        "Validation loss in nats per token, mean ± std over n seeds (no ± where n = 1), and its difference to MST and to dense over the seeds in\n"
        f"common; × is dense ÷ arm, under {CONVENTIONS[0]} and {CONVENTIONS[1]}.",
        to_markdown(columns(table)),
        *(f"Not compared: {reason}" for reason in table["not_compared"] if reason),
    ]
    if metrics := zero_shot_metrics(table):
        rows = {"arm": table["label"]} | {metric: spread(table, metric) for metric in metrics}
        parts += ["Zero-shot, by lm-eval, mean ± std over seeds.", to_markdown(pd.DataFrame(rows))]
    return "\n\n".join(parts) + "\n"


def columns(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: what an arm changes, its cost, its loss and differences."""
    counted = {f"× {name.replace('_', ' ')}": table[f"reduction ({name})"].map("{:.2f}×".format) for name in CONVENTIONS}
    return pd.DataFrame({
        "arm": table["label"],
        "changes": table["changes"],
        "n": table["n"],
        "mean sp.": table["mean_sparsity"].map("{:.1%}".format),
        **counted,
        "val. loss ↓": spread(table, "validation_loss"),
        "− MST": table["minus_mst"].map(_signed),
        "− dense": table["minus_dense"].map(_signed),
    })


def _row(arm: str, runs: Runs, losses: dict[str, dict[int, float]], changed: str) -> dict[str, object]:
    flops = next(iter(runs[arm].values())).flops()  # counted: the same for every seed
    row: dict[str, object] = {"arm": arm, "label": label(arm), "changes": changed, "n": len(runs[arm])}
    row |= {"mean_sparsity": flops["mean_sparsity"]}
    row |= {f"reduction ({name})": flops["conventions"][name]["reduction"] for name in CONVENTIONS}
    for quantity, values in ({"validation_loss": list(losses[arm].values())} | zero_shot(runs[arm].values())).items():
        row |= dict(zip((f"{quantity}_n", f"{quantity}_mean", f"{quantity}_std"), summarise(values)))
    reasons = {reference: incomparable(runs, reference, arm) for reference in ("mst", "dense") if reference in runs}
    for reference in ("mst", "dense"):
        theirs = {} if reasons.get(reference) else losses.get(reference, {})
        row |= _differences(f"minus_{reference}", paired_differences(losses[arm], theirs))
    return row | {"not_compared": " ".join(reason for reason in reasons.values() if reason)}


def _differences(name: str, differences: np.ndarray) -> dict[str, object]:
    low, high = t_interval(differences) if len(differences) > 1 else (None, None)
    return {name: float(np.mean(differences)) if len(differences) else None, f"{name}_n": len(differences), f"{name}_low": low, f"{name}_high": high}


def _changes(runs: Runs) -> dict[str, str]:
    """Arm -> what its runs set otherwise than the profile's plain arm of their method; but for what all arms have in common."""
    facts = {arm: facts_of(next(iter(seeds.values()))) for arm, seeds in runs.items()}
    methods = {arm: found.config["method"] for arm, found in facts.items()}
    changed = {arm: changes(facts[arm], methods[arm]) for arm in runs}
    first = next(iter(changed.values()), {})
    common = {key for key, value in first.items() if len(runs) > 1 and all(own.get(key, ...) == value for own in changed.values())}
    return {
        arm: described(({"method": methods[arm]} if arm != methods[arm] else {}) | {key: value for key, value in own.items() if key not in common})
        for arm, own in changed.items()
    }


def _signed(value: float | None) -> str:
    return "–" if pd.isna(value) else f"{value:+.3f}"
