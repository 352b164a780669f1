"""What quality costs: against FLOPs and density, up to a loss, and phase by phase; from run folders alone."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from replication.analysis.arms import Runs, count_of, final_losses, group_by_arm, incomparable, label, without_ablations
from replication.analysis.curves import CONVENTION, Curve, first_crossing, loss_at, validation_curve
from replication.analysis.frontier import pareto_front
from replication.analysis.scores import score_values
from replication.analysis.statistics import summarise
from replication.analysis.tables import (
    check_any,
    differences,
    format_signed,
    name_left_out,
    spread,
    telling,
    to_markdown,
)
from replication.runs.finding import sort_out_runs
from replication.runs.folder import RunFolder
from replication.runs.snapshots import DENSE_LOSS, OWN_LOSS, Snapshot, snapshots_of
from replication.system.errors import UserError
from replication.system.files import write_atomically

BY_PHASE = (
    "Quality by phase: the model at the end of each, or after a share of training, over the whole validation split, "
    "under the attention that it was trained under then (own) and under dense attention."
)
NO_PHASES = "No run here kept the model on its way: `replicate --set 'eval.at=[phases]'` does, for quality by phase."


def tradeoffs(runs: Runs, loss: float | None = None, convention: str = CONVENTION) -> pd.DataFrame:
    """One row per arm, in Table 1's order; the means over its n seeds.

    Args:
        loss: that is to be reached; None: the best that every run reaches.

    Columns: `arm`, `label`, `n`; `density`, the share of the maskable weights that is active, over training; `flops`,
    under the convention; `validation_loss_mean`, `_std` and `_n` of the end, in nats per token; `on_front`, whether no
    other arm has a lower loss for as few FLOPs; `is_dense`, whether it is one of the dense models of various budgets
    that are the dense line, the front of them; `dense_line`, its loss at the arm's FLOPs; `minus_dense_line`, `_n`,
    `_low` and `_high`: the mean difference to it over the seeds in common, and its 95 % t interval; `loss`, that is
    to be reached, `flops_to_loss_mean`, `_std` and `_n` (runs that reach it), whether they are a bound (`is_bound`),
    and `times_dense`, dense's ÷ the arm's, where all its runs reach it; `not_compared`, why an arm has no place on the
    front, and no difference.

    Raises:
        UserError: a loss that no run reaches.
    """
    curves = {arm: [validation_curve(run.metrics(), convention) for run in of.values()] for arm, of in runs.items()}
    lowest = [min(value for _, value in curve) for of_arm in curves.values() for curve in of_arm]
    if loss is None:
        loss = max(lowest)
    elif not loss >= min(lowest):
        raise UserError(f"--loss is {loss:g}; allowed: one that a run here reaches, {min(lowest):.4g} or more")
    table = pd.DataFrame([_row(arm, runs, convention) | _tabulate_reached(curves[arm], loss) for arm in runs])
    compared = table["not_compared"].isna()
    _mark(table, "on_front", compared)
    _mark(table, "is_dense", compared & table["is_dense"])
    lines = _dense_lines(table[table["is_dense"]], runs)
    rows = [_against(lines, runs[arm], flops, own) for arm, flops, own in zip(table["arm"], table["flops"], compared)]
    dense = table.loc[table["arm"] == "dense", "flops_to_loss_mean"]
    reached = table["flops_to_loss_mean"].where(compared & (table["flops_to_loss_n"] == table["n"]))
    times = (dense.iloc[0] if len(dense) else math.nan) / reached.astype(float)
    return pd.concat([table, pd.DataFrame(rows)], axis=1).assign(loss=loss, times_dense=times)


def tabulate_snapshots(runs: Runs) -> pd.DataFrame:
    """One row per arm, step and attention pattern of what was kept on the way (`eval.at`); means over n seeds.

    Columns: `arm`, `label`, `step`; `phase`, that the step is of; `sparsity`; `attention`, that the model is judged
    under, and whether it `is_own`, the one that it was trained under then; `n`; and `<quantity>_mean`, `_std` and `_n`
    of `validation_loss`, over the whole split in nats per token, and of every zero-shot `<task>/<metric>`.
    """
    kept: dict[tuple[str, int, str], list[Snapshot]] = {}
    for arm, seeds in runs.items():
        for snapshot in (snapshot for run in seeds.values() for snapshot in snapshots_of(run)):
            for pattern in reversed(snapshot.patterns):
                kept.setdefault((arm, snapshot.step, pattern), []).append(snapshot)
    return pd.DataFrame([_summarise_snapshots(*key, snapshots) for key, snapshots in kept.items()])


def write_tradeoffs(folder: Path, table: pd.DataFrame, phases: pd.DataFrame, text: str) -> None:
    """Write `tradeoffs.csv`, `tradeoffs.md`, `tradeoffs.png` and, where there are such, `tradeoffs_phases.csv`."""
    from replication.analysis import (
        drawing,
        tradeoffs_figure,
    )  # seaborn takes a second, which the tables alone need not wait

    write_atomically(folder / "tradeoffs.csv", table.to_csv(index=False))
    write_atomically(folder / "tradeoffs.md", text)
    if len(phases):
        write_atomically(folder / "tradeoffs_phases.csv", phases.to_csv(index=False))
    else:
        (folder / "tradeoffs_phases.csv").unlink(missing_ok=True)
    drawing.save(tradeoffs_figure.figure(table, phases), folder / "tradeoffs.png")


def runs_of(results: Path, profile: str, ablations: bool) -> tuple[Runs, str]:
    """A profile's finished runs by arm; and what is said of those that are left out.

    Raises:
        UserError: there is none, or they do not belong in one table.
    """
    found, left_out = sort_out_runs(results, profile)
    found = found if ablations else without_ablations(found, profile)
    check_any(found, left_out, results, profile)
    return group_by_arm(found), name_left_out(left_out)


def render(table: pd.DataFrame, phases: pd.DataFrame, profile: str, convention: str) -> str:
    """For reading, in Markdown."""
    parts = [
        f"# Trade-offs, profile `{profile}`",
        _fill(
            f"Quality, density and cost: training FLOPs under `{convention}`; density is the share of the maskable "
            "weights that is active, over training; validation loss at the end in nats per token, mean ± std over n "
            "seeds. Front: no other arm is lower in one of FLOPs and loss, and not higher in the other. Dense line: "
            "dense models of other budgets (shorter, smaller), between them linear in log FLOPs; the difference to it "
            "is paired over the seeds in common."
        ),
        to_markdown(cost_columns(table)),
        *(f"Not compared: {reason}" for reason in table["not_compared"].dropna()),
        _fill(
            f"{title_reached(table)} On the way the loss is over `train.eval_batches` batches under the run's own "
            "attention, at the end over the whole split; between evaluations it is taken to fall linearly "
            "in log FLOPs; ≤ and ≥ are of arms that were there at their first evaluation already."
        ),
        to_markdown(name_reached_columns(table)),
        _fill(BY_PHASE) if len(phases) else NO_PHASES,
        *([to_markdown(phase_columns(phases))] if len(phases) else []),
    ]
    return "\n\n".join(parts) + "\n"


def cost_columns(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: what each arm costs, and what that buys."""
    line = ["–" if pd.isna(value) else f"{value:.3f}" for value in table["dense_line"]]
    differences = map(format_signed, table["minus_dense_line"], table["minus_dense_line_n"])
    return pd.DataFrame(
        {
            "arm": table["label"],
            "n": table["n"],
            "density": table["density"].map("{:.1%}".format),
            "FLOPs": table["flops"].map("{:.3g}".format),
            "val. loss ↓": spread(table, "validation_loss"),
            "front": ["yes" if is_on else "" for is_on in table["on_front"]],
            "dense line": line,
            "− dense line (n)": ["on it" if is_it else cell for is_it, cell in zip(table["is_dense"], differences)],
        }
    )


def title_reached(table: pd.DataFrame) -> str:
    return f"FLOPs after which the validation loss is first {table['loss'].iloc[0]:.4g} or lower; × is dense ÷ arm."


def name_reached_columns(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: what it costs to reach the loss."""
    mean, std, is_bound = (table[column] for column in ("flops_to_loss_mean", "flops_to_loss_std", "is_bound"))
    reached = [
        "–" if pd.isna(a) else f"≤ {a:.3g}" if bound else f"{a:.3g}" + ("" if pd.isna(b) else f" ± {b:.1g}")
        for a, b, bound in zip(mean, std, is_bound)
    ]
    runs = [f"{reaching} of {n}" for reaching, n in zip(table["flops_to_loss_n"], table["n"])]
    sign = {(True, False): "≤ ", (False, True): "≥ ", (False, False): ""}  # is dense's a bound, is the arm's?
    by_dense = bool(is_bound[table["arm"] == "dense"].any())
    times = [
        "–" if pd.isna(value) or (by_dense and bound) else f"{sign[by_dense, bool(bound)]}{value:.2f}×"
        for value, bound in zip(table["times_dense"], is_bound)
    ]
    return pd.DataFrame({"arm": table["label"], "reached by": runs, "FLOPs to reach it": reached, "× dense": times})


def phase_columns(phases: pd.DataFrame) -> pd.DataFrame:
    """For reading: how good the model was on its way."""
    own = [f"{pattern}, own" if is_own else pattern for pattern, is_own in zip(phases["attention"], phases["is_own"])]
    return pd.DataFrame(
        {
            "arm": phases["label"],
            "phase": phases["phase"],
            "step": phases["step"],
            "n": phases["n"],
            "sparsity": phases["sparsity"].map("{:.1%}".format),
            "attention": own,
            "val. loss ↓": spread(phases, "validation_loss"),
            **{metric: spread(phases, metric) for metric in telling(phases)},
        }
    )


def _fill(text: str) -> str:
    return textwrap.fill(text, 118, break_on_hyphens=False)


def _row(arm: str, runs: Runs, convention: str) -> dict[str, object]:
    seeds = runs[arm]
    first = next(iter(seeds.values()))
    count = count_of(seeds.values())
    n, mean, std = summarise(list(final_losses(seeds).values()))
    return {
        "arm": arm,
        "label": label(arm),
        "n": n,
        "density": 1 - count["mean_sparsity"],
        "flops": count["conventions"][convention]["flops"],
        "validation_loss_mean": mean,
        "validation_loss_std": std,
        "validation_loss_n": n,
        "is_dense": first.config()["method"] == "dense",
        "not_compared": incomparable(runs, "dense", arm) if "dense" in runs else None,
    }


def _tabulate_reached(curves: Iterable[Curve], loss: float) -> dict[str, object]:
    found = [crossing for curve in curves if (crossing := first_crossing(curve, loss))]
    n, mean, std = summarise([flops for flops, _ in found])
    reached = {"flops_to_loss_mean": mean, "flops_to_loss_std": std, "flops_to_loss_n": n}
    return reached | {"is_bound": any(is_bound for _, is_bound in found)}


def _mark(table: pd.DataFrame, column: str, among: pd.Series) -> None:
    """Set a column to whether a row is on the Pareto front of some rows."""
    rows = table[among]
    front = pareto_front(list(rows["flops"]), list(rows["validation_loss_mean"]))
    table[column] = pd.Series(front, rows.index, dtype=bool).reindex(table.index, fill_value=False)


def _dense_lines(nodes: pd.DataFrame, runs: Runs) -> dict[int | None, Curve]:
    """The dense line of the means (None), and of each seed that all its models have."""
    nodes = nodes.sort_values("flops")
    losses = [final_losses(runs[arm]) for arm in nodes["arm"]]
    seeds = set.intersection(*map(set, losses)) if losses else set()
    lines: dict[int | None, Curve] = {None: list(zip(nodes["flops"], nodes["validation_loss_mean"]))}
    return lines | {seed: list(zip(nodes["flops"], (of[seed] for of in losses))) for seed in seeds}


def _against(lines: Mapping[int | None, Curve], seeds: dict[int, RunFolder], flops: float, own: bool) -> dict:
    """The dense line at an arm's FLOPs, and the arm's differences to it."""
    at = {seed: value for seed, nodes in lines.items() if own and (value := loss_at(nodes, flops)) is not None}
    reference = {seed: value for seed, value in at.items() if seed is not None}
    return {"dense_line": at.get(None, math.nan)} | differences("minus_dense_line", final_losses(seeds), reference)


def _summarise_snapshots(arm: str, step: int, pattern: str, snapshots: Sequence[Snapshot]) -> dict[str, object]:
    row = snapshots[0].row
    is_own = row["attention_pattern"] == pattern
    key = DENSE_LOSS if pattern == "dense" else OWN_LOSS
    sampled = {"validation_loss": [snapshot.row[key] for snapshot in snapshots]}
    for snapshot in snapshots:
        for raw in snapshot.evals(pattern).values():
            for name, value in score_values(raw):
                sampled.setdefault(name, []).append(value)
    kept: dict[str, object] = {"arm": arm, "label": label(arm), "step": step, "phase": row["phase"]}
    kept |= {"sparsity": row["sparsity"], "attention": pattern, "is_own": is_own, "n": len(snapshots)}
    for quantity, values in sampled.items():
        kept |= dict(zip((f"{quantity}_n", f"{quantity}_mean", f"{quantity}_std"), summarise(values)))
    return kept
