"""The ablations: every arm of a profile against the one that it ablates and against dense, paired by seed."""

from pathlib import Path

import pandas as pd

from replication.analysis.arms import Runs, count_of, final_losses, group_by_arm, incomparable, label
from replication.analysis.comparable import changes, facts_of
from replication.analysis.scores import higher_in
from replication.analysis.statistics import summarise
from replication.analysis.tables import (
    HIGHER,
    chance,
    check_any,
    describe_settings,
    differences,
    format_signed,
    name_left_out,
    spread,
    to_latex,
    to_markdown,
    zero_shot,
    zero_shot_rows,
)
from replication.config.profiles import arm_names, base_arm, profile_arms
from replication.runs.finding import sort_out_runs
from replication.system.files import write_atomically

NONE_TRAINED = "None of the profile's ablations has a finished run here: `make replicate-ablations` trains them."
CONVENTIONS = ("head_counted_full", "head_excluded_causal")  # the two that differ most


def ablations(runs: Runs, profile: str) -> pd.DataFrame:
    """One row per arm of the profile that has a finished run, in the profile's order.

    Columns: `arm`, `label`, `base` (the arm that it ablates), `changes` (its runs' settings that are not the base's, or
    of an arm without one its method's plain arm's), `n`, `mean_sparsity`, `reduction (<convention>)`,
    `validation_loss_mean` and `_std`, and for `base` and `dense` as references `minus_<reference>` (mean difference in
    nats per token over the seeds in common), `_n`, `_low` and `_high` (95 % t interval, from 2 seeds on), and the same
    of each zero-shot `<task>/<metric>`; `not_compared` says why an arm has no difference to one of them, where its
    settings are the reason.
    """
    bases = {arm: base_arm(profile, arm) for arm in profile_arms(profile)}
    losses, changed = {arm: final_losses(seeds) for arm, seeds in runs.items()}, _changes(runs, bases)
    table = pd.DataFrame([_row(arm, bases[arm], runs, losses, changed[arm]) for arm in bases if arm in runs])
    table.attrs[HIGHER] = higher_in(run for seeds in runs.values() for run in seeds.values())
    return table


def has_ablations(table: pd.DataFrame, profile: str) -> bool:
    """Has `ablations(...)` more than Table 1's arms?"""
    return not table["arm"].isin(arm_names(profile)).all()


def write_ablations(results: Path, profile: str) -> str:
    """Write `<results>/<profile>/ablations.csv`, `ablations.tex` and `ablations.md`; returns the text of the last.

    Raises:
        UserError: the profile has no ablations, or no finished run.
    """
    found, left_out = sort_out_runs(results, profile)
    check_any(found, left_out, results, profile)
    table = ablations(group_by_arm(found), profile)
    text = render(table, profile) + name_left_out(left_out)
    write_atomically(Path(results) / profile / "ablations.csv", table.to_csv(index=False))
    write_atomically(Path(results) / profile / "ablations.md", text)
    write_atomically(Path(results) / profile / "ablations.tex", to_latex(columns(table)))
    return text


def render(table: pd.DataFrame, profile: str) -> str:
    """For the terminal: quality and cost, then zero-shot."""
    parts = [
        f"# Ablations, profile `{profile}`",
        "Validation loss in nats per token, mean ± std over n seeds (no ± where n = 1), and its differences to the arm "
        "that is ablated and to\n"
        "dense, paired over the seeds in common, whose number stands beside them; × is dense ÷ arm, under "
        f"{CONVENTIONS[0]} and\n"
        f"{CONVENTIONS[1]}.",
        to_markdown(columns(table)),
        *(f"Not compared: {reason}" for reason in table["not_compared"] if reason),
    ]
    if (rows := zero_shot_rows(table)).shape[1] > 1:
        parts += ["Zero-shot, by lm-eval, mean ± std over seeds.", to_markdown(rows)]
    return "\n\n".join(parts) + "\n"


def columns(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: what an arm changes, its cost, its loss and differences."""
    counted = {
        f"× {name.replace('_', ' ')}": table[f"reduction ({name})"].map("{:.2f}×".format) for name in CONVENTIONS
    }
    return pd.DataFrame(
        {
            "arm": table["label"],
            "changes": table["changes"],
            "n": table["n"],
            "mean sp.": table["mean_sparsity"].map("{:.1%}".format),
            **counted,
            "val. loss ↓": spread(table, "validation_loss"),
            "ablates": [label(base) if base else "" for base in table["base"]],
            "− that (n)": list(map(format_signed, table["minus_base"], table["minus_base_n"])),
            "− dense (n)": list(map(format_signed, table["minus_dense"], table["minus_dense_n"])),
        }
    )


def _row(arm: str, base: str, runs: Runs, losses: dict[str, dict[int, float]], changed: str) -> dict[str, object]:
    flops = count_of(runs[arm].values())
    row: dict[str, object] = {"arm": arm, "label": label(arm), "base": base, "changes": changed, "n": len(runs[arm])}
    row |= {"mean_sparsity": flops["mean_sparsity"]}
    row |= {f"reduction ({name})": flops["conventions"][name]["reduction"] for name in CONVENTIONS}
    for quantity, values in ({"validation_loss": list(losses[arm].values())} | zero_shot(runs[arm].values())).items():
        row |= dict(zip((f"{quantity}_n", f"{quantity}_mean", f"{quantity}_std"), summarise(values)))
    references = {"base": base, "dense": "dense"}
    reasons = {name: incomparable(runs, of, arm) for name, of in references.items() if of in runs}
    for name, of in references.items():
        theirs = {} if reasons.get(name) else losses.get(of, {})
        row |= differences(f"minus_{name}", losses[arm], theirs)
    not_compared = " ".join(reason for reason in reasons.values() if reason)
    return row | chance(runs[arm].values()) | {"not_compared": not_compared}


def _changes(runs: Runs, bases: dict[str, str]) -> dict[str, str]:
    """Arm -> what its runs set otherwise than what it ablates, else than the profile's plain arm of their method.

    But for what all arms have in common.
    """
    facts = {arm: facts_of(next(iter(seeds.values()))) for arm, seeds in runs.items()}
    methods = {arm: bases.get(arm) or found.config["method"] for arm, found in facts.items()}
    changed = {arm: changes(facts[arm], methods[arm]) for arm in runs}
    first = next(iter(changed.values()), {})
    common = {
        key
        for key, value in first.items()
        if len(runs) > 1 and all(own.get(key, ...) == value for own in changed.values())
    }
    return {
        arm: describe_settings({key: value for key, value in own.items() if key not in common})
        for arm, own in changed.items()
    }
