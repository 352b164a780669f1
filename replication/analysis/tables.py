"""Table 1 and the verdicts beside it: as a data frame, as CSV and JSON, and as text for a terminal."""

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from replication import paper
from replication.analysis.arms import count_of, final_losses, group_by_arm, incomparable, label, without_ablations
from replication.analysis.claims import ALPHA, MARGIN, WITHOUT_VERDICT, Verdict, verdicts
from replication.analysis.clock import BEST, SAME, explain_clock, name_columns, read_used, speedups
from replication.analysis.comparable import changes, facts_of
from replication.analysis.origins import origin, origin_column, origins
from replication.analysis.readings import READINGS
from replication.analysis.scores import higher_in, score_values
from replication.analysis.statistics import pair_differences, summarise, t_interval
from replication.analysis.tuned import settings_of
from replication.runs.finding import sort_out_runs
from replication.runs.folder import RunFolder
from replication.system.errors import UserError
from replication.system.files import write_atomically

ABSOLUTE = "head_counted_full"  # the convention of the absolute FLOPs: the one that leaves nothing out
HIGHER = "higher"  # the table's attribute: of its zero-shot metrics those of which the higher value is better
BITS = "bits_per_byte"
PROVES_NOTHING = (
    "**This profile shows that everything works. It gives no verdict: its models are too small to say anything about "
    "methods.**"
)


def table1(runs: Iterable[RunFolder]) -> pd.DataFrame:
    """One row per arm, in Table 1's order.

    Columns: `arm`, `label`, `n`; `head`, whether it is masked; `learning_rate` and, of a method whose topology evolves,
    `drop_fraction` and `update_freq` (steps); `tries`, settings that tuning tried, with a star where the chosen one is
    the last of its kind (empty: not tuned); `final_sparsity` and `mean_sparsity` (over training) of the
    maskable weights; `training_flops (<convention>)` and `reduction (<convention>)` (dense ÷ method), which are counted
    and so have no spread; `precision` and `kernels` of its execution, and the `speedups` of its wall-clock; `origin`,
    the commits and machines that its runs are from; `minus_dense`, `_n`, `_low` and `_high`: the mean difference to
    dense in validation loss over the seeds in common, and its 95 % t interval; `not_compared`, why the arm is not to be
    compared with dense, and `changed`, what its runs set otherwise than the profile as it stands; and
    `<quantity>_mean`, `_std` (ddof 1) and `_n` over seeds for `validation_loss` (nats per token),
    `validation_perplexity` (per token), `wall_clock` (seconds of training), `tokens_per_second` and every zero-shot
    `<task>/<metric>`, this also with its `_chance` level, where it has one.
    """
    grouped = group_by_arm(runs)
    arms = {arm: list(seeds.values()) for arm, seeds in grouped.items()}
    clock, rows = speedups(arms), []
    for arm, seeds in arms.items():
        reason = incomparable(grouped, "dense", arm) if "dense" in arms else None
        reference = {} if reason else final_losses(grouped.get("dense", {}))
        row = _row(arm, seeds) | clock[arm] | differences("minus_dense", final_losses(grouped[arm]), reference)
        rows.append(row | {"not_compared": reason, "changed": describe_settings(changes(facts_of(seeds[0]), arm))})
    table = pd.DataFrame(rows)
    counts = [column for column in table.columns if column.endswith("_n")]
    table = table.astype(dict.fromkeys(counts, "Int64")).fillna(dict.fromkeys(counts, 0))
    table.attrs[HIGHER] = higher_in(run for runs in arms.values() for run in runs)
    return table


def write_table1(results: Path, profile: str) -> str:
    """Write `<results>/<profile>/table1.csv`, `table1.md`, `table1.tex`, `table1.png` and `claims.json`.

    Returns:
        The text of table1.md, to be printed.

    Raises:
        UserError: the profile has no finished run.
    """
    found_runs, left_out = sort_out_runs(results, profile)
    runs = without_ablations(found_runs, profile)
    check_any(runs, left_out, results, profile)
    table, found = table1(runs), verdicts(runs)
    text = render(table, found, profile) + name_left_out(left_out)
    folder = Path(results) / profile
    claims = {
        "profile": profile,
        "alpha": ALPHA,
        "margin": MARGIN,
        "verdicts": [asdict(verdict) for verdict in found],
        "paper": paper.load()["results"],
    }
    write_atomically(folder / "table1.csv", table.to_csv(index=False))
    write_atomically(folder / "claims.json", json.dumps(claims, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "table1.md", text)
    write_atomically(folder / "table1.tex", to_latex(main_columns(table)))
    _draw(table, folder / "table1.png")
    return text


def _draw(table: pd.DataFrame, file: Path) -> None:
    """Differences to dense as a figure, where there are any."""
    if (table["head"].ne("") & table["minus_dense"].notna()).any():
        from replication.analysis import charts, drawing  # seaborn takes a second, which a table alone need not wait

        masked, dense = READINGS
        drawn = charts.against_dense(table, {"masked": masked.convention, "dense": dense.convention})
        drawing.save(drawn.figure, file)
    else:
        file.unlink(missing_ok=True)


def check_any(runs: Sequence[RunFolder], left_out: Sequence[str], results: Path, profile: str) -> None:
    """Raises UserError where there is no run to make a table of."""
    if not runs:
        reasons = "".join(f" ({problem})" for problem in left_out)
        raise UserError(
            f"profile is {profile!r}, and {Path(results) / profile} holds no finished run{reasons}; "
            "allowed: a profile that has one"
        )


def name_left_out(left_out: Sequence[str]) -> str:
    """The runs that a table does not have, and why, as the end of its text."""
    lines = "\n".join(
        textwrap.fill(f"- {problem}", 118, subsequent_indent="  ", break_on_hyphens=False) for problem in left_out
    )
    return f"\n## Left out\n\n{lines}\n" if left_out else ""


def render(table: pd.DataFrame, found: Sequence[Verdict], profile: str) -> str:
    """Table 1 in Markdown tables stacked to fit a terminal, then the verdicts."""
    parts = [
        f"# Table 1, profile `{profile}`",
        *([PROVES_NOTHING] if profile in WITHOUT_VERDICT else []),
        "Training and quality. LM head: is it masked? Drop: share of connections that the first update drops; every: "
        "steps between updates.\n"
        "Tries: settings that tuning tried, * where the best value lies at an end of those tried. Sparsity of the "
        "maskable weights at the\n"
        f"end, and its mean over training; FLOPs saved: dense ÷ this (`{ABSOLUTE}`); validation loss over the whole "
        "validation split in\n"
        "nats per token, mean ± std over n seeds (no ± where n = 1); its difference to dense, paired over the n seeds "
        "in common.",
        to_markdown(main_columns(table)),
        *origins(table),
        "FLOP reduction, dense ÷ method, under each counting convention: LM head counted or not, attention over full "
        "T² or causal pairs;\n"
        "and what the paper says, whose convention is not known." + _explain_mean_density(table),
        to_markdown(reduction_columns(table)),
        explain_clock(table),
        to_markdown(time_columns(table)),
    ]
    if zero_shot_metrics(table):
        text = (
            "Zero-shot, by lm-eval, mean ± std over seeds: bits per byte where a task has them (a model that knows "
            "nothing needs 8), else its own\n"
            "metrics; ↑ where higher is better, ↓ where lower is. table1.csv has them all."
        )
        parts += [text, to_markdown(zero_shot_rows(table))]
    powers = [textwrap.fill(verdict.power, 118) for verdict in found if verdict.power]
    parts += [*remarks(table), *(["## Verdicts"] if found else []), *powers]
    if any(verdict.measured for verdict in found):
        text = (
            "MST − dense (C2), MST − rival (C3) and MST − the best smaller dense model (C4) in nats per token, paired "
            "over n seeds,\nwith their 95 % t interval."
        )
        parts += [text, to_markdown(verdict_rows(found))]
    return "\n\n".join([*parts, *(["\n".join(map(_lines, found))] if found else [])]) + "\n"


def _explain_mean_density(table: pd.DataFrame) -> str:
    """What that column counts; of runs of earlier versions, which have none, nothing."""
    said = (
        "\n`mean_density`: what a run masks at its active weights, against the same dense (the one cost that the "
        "authors' code\nlogs)."
    )
    return said if "reduction (mean_density)" in table else ""


def verdict_rows(found: Sequence[Verdict]) -> pd.DataFrame:
    """For reading: the verdicts in a line each, C1 under the conventions that its schedules were solved for."""
    shown = [verdict for verdict in found if verdict.measured]
    return pd.DataFrame(
        {
            "claim": [f"{verdict.claim}, {verdict.statement.partition(':')[0]}" for verdict in shown],
            "verdict": [verdict.verdict for verdict in shown],
            "measured": [verdict.measured for verdict in shown],
            "n": [str(verdict.n) for verdict in shown],
        }
    )


def remarks(table: pd.DataFrame) -> list[str]:
    """What the tables' rows do not show: settings that are not the profile's, arms that do not compare with dense."""
    changed = table[table["changed"] != ""].groupby("changed", sort=False)["label"].agg(list)
    lines = [
        f"Set otherwise than in the profile: {change} ({'every arm' if len(arms) == len(table) else ', '.join(arms)})."
        for change, arms in changed.items()
    ]
    lines += [f"Not to be compared: {reason}" for reason in table["not_compared"] if reason]
    return [textwrap.fill(line, 118, break_on_hyphens=False) for line in lines]


def describe_settings(settings: Mapping[str, object]) -> str:
    """`growth=random, num_steps=500` of dotted keys and their values."""
    return ", ".join(
        f"{key.rpartition('.')[2]}={str(value).lower() if isinstance(value, bool) else value}"
        for key, value in settings.items()
    )


def main_columns(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: arm, n, what was tuned, sparsity, cost, validation loss and its difference to dense."""
    return pd.DataFrame(
        {
            "arm": table["label"],
            "LM head": table["head"],
            "n": table["n"],
            **origin_column(table),
            "learning rate": table["learning_rate"].map("{:g}".format),
            "drop": ["" if pd.isna(value) else f"{value:.2g}" for value in table["drop_fraction"]],
            "every": ["" if pd.isna(value) else f"{value:g}" for value in table["update_freq"]],
            "tries": table["tries"],
            "sparsity": table["final_sparsity"].map("{:.1%}".format),
            "mean": table["mean_sparsity"].map("{:.1%}".format),
            "FLOPs saved": reduction_columns(table)[ABSOLUTE],
            "val. loss ↓": spread(table, "validation_loss"),
            "loss − dense (n)": [
                format_signed(value, n) for value, n in zip(table["minus_dense"], table["minus_dense_n"])
            ],
        }
    )


def format_signed(value: float, n: int) -> str:
    """`+0.123 (3)`: a paired difference, and its number of pairs."""
    return "–" if pd.isna(value) else f"{value:+.3f} ({n:.0f})"


def time_columns(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: arm, execution, time and speed (means), × in seconds, and × in FLOPs."""
    times = {name: ["–" if pd.isna(value) else f"{value:.2f}×" for value in table[name]] for name in (SAME, BEST)}
    return pd.DataFrame(
        {
            "arm": table["label"],
            "precision": table["precision"],
            "kernels": table["kernels"],
            "wall s": table["wall_clock_mean"].map("{:.0f}".format),
            "tokens/s": table["tokens_per_second_mean"].map("{:.0f}".format),
            **times,
            **name_columns(table),
            "× FLOPs": reduction_columns(table)[ABSOLUTE],
        }
    )


def reduction_columns(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: arm, then × under each counting convention, and the paper's own."""
    conventions = [column for column in table.columns if column.startswith("reduction (")]
    shown = {
        name: [
            "–" if reason or pd.isna(value) else f"{value:.2f}×"
            for value, reason in zip(table[name], table["not_compared"])
        ]
        for name in conventions
    }
    columns = {name.removeprefix("reduction (").removesuffix(")"): values for name, values in shown.items()}
    return pd.DataFrame(
        {
            "arm": table["label"],
            **columns,
            "paper": [_format_known(arm, "reduction", "{:.2f}×") for arm in table["arm"]],
        }
    )


def zero_shot_rows(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: a row per arm, a column per task/metric of those that tell models of every size apart; then chance,
    and the paper's values, where they are known."""
    metrics, rows = telling(table), table[["label"]].rename(columns={"label": "arm"})
    chance, known = {"arm": "chance"}, []
    for metric in metrics:
        title = f"{metric} {'↑' if metric in table.attrs.get(HIGHER, ()) else '↓'}"
        rows[title] = spread(table, metric)
        level = table[f"{metric}_chance"].dropna() if f"{metric}_chance" in table else ()
        chance[title] = f"{level.iloc[0]:g}" if len(level) else "–"
    for arm, name in zip(table["arm"], table["label"]):
        cells = [_format_known(arm, metric, "{:g}") for metric in metrics]
        if any(cell != "–" for cell in cells):
            known.append({"arm": f"{name}, in the paper", **dict(zip(rows.columns[1:], cells))})
    return pd.concat([rows, pd.DataFrame([chance, *known])], ignore_index=True)


def telling(table: pd.DataFrame) -> list[str]:
    """Of each task its bits per byte, where it has them, and what the paper reports; else all its metrics."""
    metrics = zero_shot_metrics(table)
    with_bits = {metric.partition("/")[0] for metric in metrics if metric.endswith(f"/{BITS}")}

    def is_shown(metric: str) -> bool:
        task, _, name = metric.partition("/")
        return name == BITS or task not in with_bits or any(paper.cell(arm, metric) is not None for arm in table["arm"])

    return list(filter(is_shown, metrics))


def _format_known(arm: str, quantity: str, form: str) -> str:
    value = paper.cell(arm, quantity)
    return "–" if value is None else form.format(value)


def zero_shot_metrics(table: pd.DataFrame) -> list[str]:
    return [column.removesuffix("_mean") for column in table.columns if "/" in column and column.endswith("_mean")]


def differences(name: str, losses: Mapping[int, float], reference: Mapping[int, float]) -> dict[str, object]:
    """`<name>`, `_n`, `_low` and `_high`: mean, pairs and 95 % t interval of the paired difference in loss."""
    pairs = pair_differences(losses, reference)
    low, high = t_interval(pairs) if len(pairs) > 1 else (None, None)
    mean = float(np.mean(pairs)) if len(pairs) else None
    return {name: mean, f"{name}_n": len(pairs), f"{name}_low": low, f"{name}_high": high}


def _row(arm: str, runs: list[RunFolder]) -> dict[str, object]:
    count, states = count_of(runs), [run.status() for run in runs]
    losses = list(final_losses(dict(enumerate(runs))).values())
    with np.errstate(over="ignore"):
        perplexities = list(np.exp(losses))
    row: dict[str, object] = {"arm": arm, "label": label(arm), "n": len(runs), "origin": origin(runs)}
    row |= settings_of(runs[0])
    for key in ("precision", "kernels"):
        row[key] = ", ".join(sorted({run.environment().get(key, "–") for run in runs}))
    row |= {key: count[key] for key in ("final_sparsity", "mean_sparsity")}
    for key, title in (("flops", "training_flops"), ("reduction", "reduction")):
        row |= {f"{title} ({name})": counted[key] for name, counted in count["conventions"].items()}
    sampled = {
        "validation_loss": losses,
        "validation_perplexity": perplexities,
        "wall_clock": [state["seconds"] for state in states],
        "tokens_per_second": [state["tokens_per_second"] for state in states],
        **read_used(runs),
    }
    for quantity, values in (sampled | zero_shot(runs)).items():
        with np.errstate(invalid="ignore"):  # the spread of what is infinite is no number
            n, mean, std = summarise(values)
        row |= {f"{quantity}_mean": mean, f"{quantity}_std": std, f"{quantity}_n": n}
    return row | chance(runs)


def chance(runs: Iterable[RunFolder]) -> dict[str, float]:
    """`task/metric_chance` -> what a model that knows nothing scores: 8 bits per byte, or one of a task's choices."""
    levels = {}
    for run in runs:
        for raw in run.evals().values():
            for name, _ in score_values(raw):
                task, _, metric = name.partition("/")
                choices = raw.get("configs", {}).get(task, {}).get("doc_to_choice")
                if metric == BITS:
                    levels[f"{name}_chance"] = 8.0
                elif metric == "acc" and isinstance(choices, list):
                    levels[f"{name}_chance"] = 1 / len(choices)
    return levels


def zero_shot(runs: Iterable[RunFolder]) -> dict[str, list[float]]:
    """`task/metric` -> its values over the runs that have it."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for raw in run.evals().values():
            for name, value in score_values(raw):
                values.setdefault(name, []).append(value)
    return values


def spread(table: pd.DataFrame, quantity: str) -> list[str]:
    """Per arm `mean ± std`, with n where it is not every seed."""
    columns = (table[f"{quantity}_{part}"] for part in ("mean", "std", "n"))
    return [
        mean_and_std(mean, std) + (f" (n = {n:.0f})" if 0 < n < seeds else "")
        for mean, std, n, seeds in zip(*columns, table["n"])
    ]


def mean_and_std(mean: float, std: float) -> str:
    """`3.881 ± 0.012`: four digits of the mean, and the std to the same place."""
    if pd.isna(mean):
        return "–"
    if abs(mean) >= 1e6:
        return f"{mean:.2e}" + ("" if pd.isna(std) else f" ± {std:.0e}")
    digits = max(0, min(4, 3 - int(np.floor(np.log10(abs(mean) or 1)))))
    return f"{mean:.{digits}f}" + ("" if pd.isna(std) else f" ± {std:.{digits}f}")


def to_markdown(table: pd.DataFrame) -> str:
    """A Markdown table of cells as they are, the first column to the left and the others to the right."""
    return table.to_markdown(index=False, disable_numparse=True, colalign=["left"] + ["right"] * (table.shape[1] - 1))


def to_latex(table: pd.DataFrame) -> str:
    """The same for a paper: booktabs, UTF-8."""
    return table.to_latex(index=False, escape=True, column_format="l" + "r" * (table.shape[1] - 1))


def _lines(verdict: Verdict) -> str:
    text = f"- **{verdict.claim}, {verdict.statement}: {verdict.verdict}.** {verdict.detail} [{verdict.tag}]"
    return textwrap.fill(text, width=118, subsequent_indent="  ", break_on_hyphens=False)
