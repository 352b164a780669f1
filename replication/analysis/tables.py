"""Table 1 and the verdicts beside it: as a data frame, as CSV and JSON, and as text for a terminal."""

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd

from replication import paper
from replication.analysis.arms import by_arm, final_losses, incomparable, label, without_ablations
from replication.analysis.claims import ALPHA, MARGIN, Verdict, verdicts
from replication.analysis.clock import BEST, SAME, speedups
from replication.analysis.comparable import changes, facts_of
from replication.analysis.statistics import summarise
from replication.errors import UserError
from replication.files import write_atomically
from replication.runs import RunFolder, examine

ABSOLUTE = "head_counted_full"  # the convention of the absolute FLOPs: the one that leaves nothing out
HIGHER_IS_BETTER = ("acc", "acc_norm", "f1", "exact_match")


def table1(runs: Iterable[RunFolder]) -> pd.DataFrame:
    """One row per arm, in Table 1's order.

    Columns: `arm`, `label`, `n`; `final_sparsity` and `mean_sparsity` (over training) of the maskable weights; `training_flops
    (<convention>)` and `reduction (<convention>)` (dense ÷ method), which are counted and so have no spread; `precision` and `kernels`
    of its execution, and the `speedups` of its wall-clock; `not_compared`, why the arm is not to be compared with dense, and `changed`, what
    its runs set otherwise than the profile as it stands; and
    `<quantity>_mean`, `_std` (ddof 1) and `_n` over seeds for `validation_loss` (nats per token), `validation_perplexity` (per token),
    `wall_clock` (seconds of training), `tokens_per_second` and every zero-shot `<task>/<metric>`.
    """
    grouped = by_arm(runs)
    arms = {arm: list(seeds.values()) for arm, seeds in grouped.items()}
    clock, reasons = speedups(arms), {arm: incomparable(grouped, "dense", arm) if "dense" in arms else None for arm in arms}
    changed = {arm: described(changes(facts_of(runs[0]), arm)) for arm, runs in arms.items()}
    table = pd.DataFrame([_row(arm, runs) | clock[arm] | {"not_compared": reasons[arm], "changed": changed[arm]} for arm, runs in arms.items()])
    counts = [column for column in table.columns if column.endswith("_n")]
    return table.astype(dict.fromkeys(counts, "Int64")).fillna(dict.fromkeys(counts, 0))


def write_table1(results: Path, profile: str) -> str:
    """Write `<results>/<profile>/table1.csv`, `table1.md` and `claims.json`.

    Returns:
        The text of table1.md, to be printed.

    Raises:
        UserError: the profile has no finished run.
    """
    found_runs, left_out = examine(results, profile)
    runs = without_ablations(found_runs, profile)
    check_any(runs, left_out, results, profile)
    table, found = table1(runs), verdicts(runs)
    text = render(table, found, profile) + said(left_out)
    folder = Path(results) / profile
    claims = {"profile": profile, "alpha": ALPHA, "margin": MARGIN, "verdicts": [asdict(verdict) for verdict in found], "paper": paper.load()["results"]}
    write_atomically(folder / "table1.csv", table.to_csv(index=False))
    write_atomically(folder / "claims.json", json.dumps(claims, indent=1, ensure_ascii=False) + "\n")
    write_atomically(folder / "table1.md", text)
    return text


def check_any(runs: Sequence[RunFolder], left_out: Sequence[str], results: Path, profile: str) -> None:
    """Raises UserError where there is no run to make a table of."""
    if not runs:
        reasons = "".join(f" ({problem})" for problem in left_out)
        raise UserError(f"profile is {profile!r}, and {Path(results) / profile} holds no finished run{reasons}; allowed: a profile that has one")


def said(left_out: Sequence[str]) -> str:
    """The runs that a table does not have, and why, as the end of its text."""
    lines = "\n".join(textwrap.fill(f"- {problem}", 118, subsequent_indent="  ", break_on_hyphens=False) for problem in left_out)
    return f"\n## Left out\n\n{lines}\n" if left_out else ""


def render(table: pd.DataFrame, found: Sequence[Verdict], profile: str) -> str:
    """Table 1 in Markdown tables stacked to fit a terminal, then the verdicts."""
    parts = [
        f"# Table 1, profile `{profile}`",
        f"Training and quality. Sparsity of the maskable weights at the end, and its mean over training; training FLOPs under `{ABSOLUTE}`;\n"
        "validation loss in nats per token and perplexity per token, mean ± std over n seeds (no ± where n = 1).",
        to_markdown(main_columns(table)),
        "FLOP reduction, dense ÷ method, under each counting convention: LM head counted or not, attention over full T² or causal pairs;\n"
        "and what the paper says, whose convention is not known.",
        to_markdown(reduction_columns(table)),
        "Time, as the clock measured it: seconds and tokens/s of training alone, without evaluation and saving (means); × is dense ÷ method in\n"
        "seconds, against dense in the same precision and against the fastest dense, on the same machine and threads; × FLOPs is something else.\n"
        "Kernels: `masked` multiplies masked matrices densely, `auto` at their active weights alone wherever that is faster; – is from before\n"
        "there was a choice.",
        to_markdown(time_columns(table)),
    ]
    if zero_shot_metrics(table):
        parts += ["Zero-shot, by lm-eval, mean ± std over seeds: task/metric, ↑ where higher is better, ↓ where lower is.", to_markdown(zero_shot_rows(table))]
    return "\n\n".join([*parts, *remarks(table), "## Verdicts", "\n".join(map(_lines, found))]) + "\n"


def remarks(table: pd.DataFrame) -> list[str]:
    """What the tables' rows do not show: settings that are not the profile's, and arms that do not compare with dense."""
    changed = table[table["changed"] != ""].groupby("changed", sort=False)["label"].agg(list)
    lines = [f"Set otherwise than in the profile: {change} ({'every arm' if len(arms) == len(table) else ', '.join(arms)})." for change, arms in changed.items()]
    lines += [f"Not to be compared: {reason}" for reason in table["not_compared"] if reason]
    return [textwrap.fill(line, 118, break_on_hyphens=False) for line in lines]


def described(settings: Mapping[str, object]) -> str:
    """`growth=random, num_steps=500` of dotted keys and their values."""
    return ", ".join(f"{key.rpartition('.')[2]}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items())


def main_columns(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: arm, n, sparsity, absolute FLOPs, validation loss and perplexity."""
    return pd.DataFrame({
        "arm": table["label"],
        "n": table["n"],
        "sparsity": table["final_sparsity"].map("{:.1%}".format),
        "mean sp.": table["mean_sparsity"].map("{:.1%}".format),
        "FLOPs": table[f"training_flops ({ABSOLUTE})"].map("{:.3g}".format),
        "val. loss ↓": spread(table, "validation_loss"),
        "perplexity ↓": spread(table, "validation_perplexity"),
    })


def time_columns(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: arm, execution, time and speed (means), × in seconds, and × in FLOPs."""
    times = {name: ["–" if pd.isna(value) else f"{value:.2f}×" for value in table[name]] for name in (SAME, BEST)}
    return pd.DataFrame({
        "arm": table["label"],
        "precision": table["precision"],
        "kernels": table["kernels"],
        "wall s": table["wall_clock_mean"].map("{:.0f}".format),
        "tokens/s": table["tokens_per_second_mean"].map("{:.0f}".format),
        **times,
        "× FLOPs": reduction_columns(table)[ABSOLUTE],
    })


def reduction_columns(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: arm, then × under each counting convention, and the paper's own."""
    conventions = [column for column in table.columns if column.startswith("reduction (")]
    shown = {name: ["–" if reason else f"{value:.2f}×" for value, reason in zip(table[name], table["not_compared"])] for name in conventions}
    columns = {name.removeprefix("reduction (").removesuffix(")"): values for name, values in shown.items()}
    return pd.DataFrame({"arm": table["label"], **columns, "paper": [_known(arm, "reduction", "{:.2f}×") for arm in table["arm"]]})


def zero_shot_rows(table: pd.DataFrame) -> pd.DataFrame:
    """For reading: a row per task/metric, a column per arm; below it the paper's values, where they are known."""
    rows = []
    for metric in zero_shot_metrics(table):
        values = zip(table["label"], spread(table, metric))
        rows.append({"": f"{metric} {'↑' if _is_higher_better(metric) else '↓'}", **dict(values)})
        known = [_known(arm, metric, "{:g}") for arm in table["arm"]]
        if any(value != "–" for value in known):
            rows.append({"": "… in the paper", **dict(zip(table["label"], known))})
    return pd.DataFrame(rows)


def _known(arm: str, quantity: str, form: str) -> str:
    value = paper.cell(arm, quantity)
    return "–" if value is None else form.format(value)


def zero_shot_metrics(table: pd.DataFrame) -> list[str]:
    return [column.removesuffix("_mean") for column in table.columns if "/" in column and column.endswith("_mean")]


def _row(arm: str, runs: list[RunFolder]) -> dict[str, object]:
    counts, states = [run.flops() for run in runs], [run.status() for run in runs]
    losses = list(final_losses(dict(enumerate(runs))).values())
    row: dict[str, object] = {"arm": arm, "label": label(arm), "n": len(runs)}
    for key in ("precision", "kernels"):
        row[key] = ", ".join(sorted({run.environment().get(key, "–") for run in runs}))
    row |= {key: _agreed([count[key] for count in counts]) for key in ("final_sparsity", "mean_sparsity")}
    for key, title in (("flops", "training_flops"), ("reduction", "reduction")):
        row |= {f"{title} ({name})": _agreed([count["conventions"][name][key] for count in counts]) for name in counts[0]["conventions"]}
    sampled = {
        "validation_loss": losses,
        "validation_perplexity": list(np.exp(losses)),
        "wall_clock": [state["seconds"] for state in states],
        "tokens_per_second": [state["tokens_per_second"] for state in states],
    }
    for quantity, values in (sampled | zero_shot(runs)).items():
        n, mean, std = summarise(values)
        row |= {f"{quantity}_mean": mean, f"{quantity}_std": std, f"{quantity}_n": n}
    return row


def _agreed(values: list) -> object:
    """A count that seeds cannot change, as it is (C1 checks that); the mean if they did change it."""
    return values[0] if len(set(values)) == 1 else float(np.mean(values))


def zero_shot(runs: Iterable[RunFolder]) -> dict[str, list[float]]:
    """`task/metric` -> its values over the runs that have it."""
    values: dict[str, list[float]] = {}
    for run in runs:
        for raw in run.evals().values():
            for name, value in _metrics(raw):
                values.setdefault(name, []).append(value)
    return values


def _metrics(raw: dict) -> Iterator[tuple[str, float]]:
    """lm-eval writes `metric,filter`, and the standard error beside it as `metric_stderr,filter`."""
    for task, result in raw["results"].items():
        for key, value in result.items():
            metric, comma, _ = key.partition(",")
            if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
                yield f"{task}/{metric}", float(value)


def _is_higher_better(metric: str) -> bool:
    return metric.rsplit("/", 1)[1] in HIGHER_IS_BETTER


def spread(table: pd.DataFrame, quantity: str) -> list[str]:
    """Per arm `mean ± std`, with n where it is not every seed."""
    columns = (table[f"{quantity}_{part}"] for part in ("mean", "std", "n"))
    return [mean_and_std(mean, std) + (f" (n = {n:.0f})" if 0 < n < seeds else "") for mean, std, n, seeds in zip(*columns, table["n"])]


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


def _lines(verdict: Verdict) -> str:
    text = f"- **{verdict.claim}, {verdict.statement}: {verdict.verdict}.** {verdict.detail} [{verdict.tag}]"
    return textwrap.fill(text, width=118, subsequent_indent="  ", break_on_hyphens=False)
