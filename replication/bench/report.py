"""The bench's measurements as headline ratios, a Markdown page and pictures. Reads `<out>/*.json` alone."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from replication.analysis.figures import panels
from replication.analysis.tables import to_markdown
from replication.bench.metrics import render_metrics
from replication.files import write_atomically, write_json

Rows = list[dict[str, Any]]
Ratio = dict[str, float]  # `ratio`, and its spread from `low` to `high`

LEAST_WIDTH = 256  # of the steps that the headline ratios speak of
PRODUCTS = ("forward", "dX", "dW", "total")
COLOURS = {
    "dense": "#9aa5b1",
    "plain loop": "#6b7785",
    "transformers": "#c4ccd4",
    "MST": "#c8324a",
    "unstructured": "#c8324a",
    "block22": "#8e6bbf",
    "torch.sparse": "#e0a030",
    "sparselab": "#4f9d69",
}


def write_report(folder: Path) -> str:
    """Write `summary.json`, `bench.md` and its pictures from the parts that have been measured; returns the page."""
    found = [path for path in folder.glob("*.json") if path.stem in SECTIONS]
    parts = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}
    headlines = {}
    page = [
        "# Bench",
        "Ratios of medians, the contenders taking turns; in brackets the quartiles over rounds. "
        "Written by `make bench`.",
    ]
    for name, (summarise, render) in SECTIONS.items():
        if name in parts:
            headlines |= summarise(parts[name]["rows"])
            page.append(render(parts[name]["rows"], folder))
    write_json(
        folder / "summary.json",
        {name: value["ratio"] for name, value in headlines.items()}
        | {"spread": {name: [value["low"], value["high"]] for name, value in headlines.items()}},
    )
    machines = {name: part["machine"] for name, part in parts.items()}
    table = to_markdown(
        pd.DataFrame([{"headline": f"`{name}`", "×": times(value)} for name, value in headlines.items()])
    )
    page[2:2] = ["\n".join(f"- {name}: {_machine(machine)}" for name, machine in machines.items()), table]
    write_atomically(folder / "bench.md", "\n\n".join(page) + "\n")
    return "\n\n".join(page)


def compare(pairs: Sequence[tuple[list[float], list[float]]]) -> Ratio:
    """How many times as long the slow take as the fast.

    The geometric mean over the pairs of the ratio of medians, and the quartiles of the rounds' own.
    """
    logs = np.log([np.divide(slow, fast) for slow, fast in pairs]).mean(0)
    low, high = np.exp(np.quantile(logs, [0.25, 0.75]))
    middle = math.exp(sum(math.log(median(slow) / median(fast)) for slow, fast in pairs) / len(pairs))
    return {"ratio": middle, "low": float(low), "high": float(high)}


def compare_runs(slow: list[float], fast: list[float]) -> Ratio:
    """The same of whole runs, from the seconds of each step.

    Of sums; the quartiles are of steps drawn with replacement.
    """
    drawn = np.random.default_rng(0).integers(len(slow), size=(1000, len(slow)))
    low, high = np.quantile(np.take(slow, drawn).sum(1) / np.take(fast, drawn).sum(1), [0.25, 0.75])
    return {"ratio": sum(slow) / sum(fast), "low": float(low), "high": float(high)}


def times(value: Ratio) -> str:
    return f"{value['ratio']:.2f}× ({value['low']:.2f}–{value['high']:.2f})"


def summarise_layers(rows: Rows) -> dict[str, Ratio]:
    """Forward and backward of GPT-2 small's matrices, each as a linear layer.

    Geometric means over their shapes; none if others were measured.
    """
    seconds = _layer_totals([row for row in rows if "paper" in row["profiles"]])
    shapes = {key[:2] for key in seconds}
    found = {}
    for kind in ("unstructured", "block22"):
        for density in (0.2, 0.1):
            for rival, slow, precision in (
                ("fp32", "dense fp32", "fp32"),
                ("bf16", "dense bf16", "bf16"),
                ("sparselab", "sparselab fp32", "fp32"),
            ):
                pairs = [
                    (seconds[*shape, density, slow], seconds[*shape, density, f"{kind} {precision}"])
                    for shape in shapes
                    if (*shape, density, slow) in seconds
                ]
                if pairs:
                    found[f"layer_{kind}_{round(100 * (1 - density))}_vs_{rival}"] = compare(pairs)
    return found


def _layer_totals(rows: Rows) -> dict[tuple[int, int, float, str], list[float]]:
    """(n_in, n_out, density, contender) -> seconds of forward and backward.

    Of GPT-2 small's shapes, if they were measured.
    """
    chosen = [row for row in rows if "paper" in row["profiles"]] or rows
    return {
        (row["n_in"], row["n_out"], row["density"], row["contender"]): row["seconds"]
        for row in chosen
        if row["product"] == "total"
    }


def render_layers(rows: Rows, folder: Path) -> str:
    """Every shape's products as × against dense in the same precision."""
    names = ("n_in", "n_out", "tokens", "density", "product", "contender")
    seconds = {(tuple(row["profiles"]), *(row[name] for name in names)): row["seconds"] for row in rows}
    table: dict[tuple, dict[str, str]] = {}
    for (profiles, n_in, n_out, tokens, density, product, contender), own in seconds.items():
        if contender.startswith("dense"):
            continue
        dense = seconds[profiles, n_in, n_out, tokens, density, product, f"dense {contender.rsplit(' ', 1)[1]}"]
        key = (", ".join(profiles), f"{n_in}×{n_out}", tokens, f"{1 - density:.0%}", contender)
        table.setdefault(key, {})[product] = f"{median(dense) / median(own):.2f}×"
    facts = ("profiles", "in×out", "tokens", "sparsity", "contender")
    products = pd.DataFrame(
        [
            dict(zip(facts, key)) | {product: values.get(product, "–") for product in PRODUCTS}
            for key, values in table.items()
        ]
    )
    figure, panel = panels(1, 2, (12, 4.2))
    for axes, precision in zip(panel, ("fp32", "bf16")):
        _plot_layers(axes, rows, precision)
    _save(figure, folder / "layers.png")
    return "\n\n".join(
        [
            "## (a) Products of one layer",
            "× against torch's dense product in the contender's own precision. `total` is forward and backward through "
            "autograd, from float32 weights to their float32 gradients,\n"
            "with the packing of the weights; torch.sparse is given features before tokens, without the cost of "
            "transposing them.",
            "![layers](layers.png)",
            to_markdown(products),
        ]
    )


def _plot_layers(axes: Axes, rows: Rows, precision: str) -> None:
    seconds = _layer_totals(rows)
    densities = sorted({key[2] for key in seconds})
    for contender in dict.fromkeys(key[3] for key in seconds):
        if contender.endswith(precision) and not contender.startswith("dense"):
            ratios = [
                compare(
                    [
                        (dense, seconds[*key[:3], contender])
                        for key, dense in seconds.items()
                        if key[2:] == (density, f"dense {precision}")
                    ]
                )["ratio"]
                for density in densities
            ]
            axes.plot(
                densities, ratios, marker="o", color=_colour(contender), label=contender.removesuffix(f" {precision}")
            )
    axes.plot(densities, [1 / density for density in densities], color="#b8c0c8", linestyle=":", label="FLOPs saved")
    axes.axhline(1, color="#1f2933", linewidth=1)
    axes.set(
        title=f"Layers of profile {rows[-1]['profiles'][-1]}, {precision}",
        xlabel="density",
        ylabel=f"× dense {precision}, forward + backward",
        xscale="log",
        yscale="log",
        xticks=densities,
        xticklabels=[f"{d:.0%}" for d in densities],
    )
    axes.set(yticks=(0.5, 1, 2, 4, 8, 16), yticklabels=("½", "1", "2", "4", "8", "16"))
    axes.minorticks_off()
    axes.legend()


def summarise_steps(rows: Rows) -> dict[str, Ratio]:
    """Our dense training against others', at widths from 256 on and in both precisions."""
    seconds = {(row["width"], row["precision"], row["contender"]): row["seconds"] for row in rows}
    least = min(LEAST_WIDTH, max(width for width, _, _ in seconds))
    return {
        name: compare(
            [
                (seconds[width, precision, rival], own)
                for (width, precision, contender), own in seconds.items()
                if contender == "dense" and width >= least
            ]
        )
        for name, rival in (("dense_vs_plain_loop", "plain loop"), ("dense_vs_hf_trainer", "transformers Trainer"))
    }


def render_steps(rows: Rows, folder: Path) -> str:
    """Tokens per second and memory, by width, precision and contender."""
    seconds = {(row["width"], row["precision"], row["contender"]): row["seconds"] for row in rows}
    best = {
        row["width"]: min(
            median(other) for (width, _, name), other in seconds.items() if width == row["width"] and name in DENSE
        )
        for row in rows
    }
    table = pd.DataFrame(
        [
            {
                "width": row["width"],
                "precision": row["precision"],
                "contender": row["contender"],
                "tokens/s": f"{row['tokens'] / median(row['seconds']):,.0f}",
                "× dense": times(compare([(seconds[row["width"], row["precision"], "dense"], row["seconds"])])),
                "× best dense": f"{best[row['width']] / median(row['seconds']):.2f}×",
                "peak memory": f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB",
            }
            for row in rows
        ]
    )
    data = pd.DataFrame(
        [
            row | {"× dense": median(seconds[row["width"], row["precision"], "dense"]) / median(row["seconds"])}
            for row in rows
        ]
    )
    figure, panel = panels(1, 2, (13, 4.6))
    for axes, (precision, part) in zip(panel, data.groupby("precision", sort=False)):
        sns.barplot(
            part,
            x="width",
            y="× dense",
            hue="contender",
            ax=axes,
            palette=sns.color_palette("husl", part["contender"].nunique()),
        )
        axes.axhline(1, color="#1f2933", linewidth=1)
        axes.set(title=f"A training step, {precision}", ylabel=f"× our dense, {precision}")
        axes.legend(fontsize=7)
    _save(figure, folder / "steps.png")
    return "\n\n".join(
        [
            "## (b) Training steps, and (d) their memory",
            "Each contender in a process of its own. MST's steps are of its ultra phase at 90 %, without topology "
            "updates; × dense is against our trainer's dense step in the same precision,\n"
            "× best dense against the fastest dense one of any precision and trainer. Peak memory is the process's "
            "resident set, of which Python and torch take some 400 MiB.",
            "![steps](steps.png)",
            to_markdown(table),
        ]
    )


DENSE = ("dense", "dense, compiled", "plain loop", "plain loop, compiled", "transformers Trainer")


def render_densities(rows: Rows, folder: Path) -> str:
    """A line through the step times of each precision and block shape."""
    table, (figure, panel) = [], panels(1, 2, (12, 4.2))
    for axes, precision in zip(panel, ("fp32", "bf16")):
        for block in dict.fromkeys(row["block_shape"] for row in rows):
            own = {
                row["contender"]: median(row["seconds"])
                for row in rows
                if (row["precision"], row["block_shape"]) == (precision, block)
            }
            dense = own.pop("dense")
            densities, relative = np.array([float(name) for name in own]), np.array(list(own.values())) / dense
            below = densities <= FITTED
            slope, intercept = np.polyfit(densities[below], relative[below], 1)
            table.append(
                {
                    "precision": precision,
                    "block": block,
                    "slope": f"{slope:.2f}",
                    "intercept": f"{intercept:.2f}",
                    "as fast as dense at": f"{(1 - intercept) / slope:.0%}",
                }
                | {f"{d:.0%}": f"{r:.2f}" for d, r in zip(densities, relative)}
            )
            (points,) = axes.plot(densities, relative, "o", label=f"{block}: {intercept:.2f} + {slope:.2f} density")
            axes.plot([0, 1], [intercept, intercept + slope], color=points.get_color(), linewidth=1)
        axes.plot([0, 1], [0, 1], color="#b8c0c8", linestyle=":", label="in proportion")
        axes.axhline(1, color="#1f2933", linewidth=1)
        axes.set(
            title=f"Step time against density, {precision}",
            xlabel="density of every masked matrix",
            ylabel=f"÷ dense step, {precision}",
            xlim=(0, 1),
            ylim=(0, None),
        )
        axes.legend()
    _save(figure, folder / "densities.png")
    return "\n\n".join(
        [
            "## (e) Step time against density",
            f"Width {rows[0]['width']}, every matrix at the same density, dense attention and `kernels: sparse` "
            "throughout, as a share of the dense step. "
            f"The line is fitted up to density {FITTED}; its intercept is what does not shrink.",
            "![densities](densities.png)",
            to_markdown(pd.DataFrame(table)),
        ]
    )


FITTED = 0.5


def summarise_runs(rows: Rows) -> dict[str, Ratio]:
    """Whole runs of MST at 4× against dense, and what topology updates take of them at an update every 100 steps."""
    seconds = {row["contender"]: row["seconds"] for row in rows}
    found = {
        f"run_mst_vs_dense_{precision}": compare_runs(seconds[f"dense {precision}"], seconds[f"MST {precision}"])
        for precision in ("fp32", "bf16")
    }
    found["run_mst_block22_vs_dense_bf16"] = compare_runs(seconds["dense bf16"], seconds["MST 2×2 blocks bf16"])
    return found | {"topology_share": topology_share(seconds["MST bf16"], rows[0]["update_freq"])}


def topology_share(seconds: list[float], update_freq: int, per: int = 100) -> Ratio:
    """What an update adds, beyond the steps around it, as a share of `per` steps.

    To its own step, which then trains no weights, and to the next, which makes new structures.
    """
    updates = range(update_freq, len(seconds) - 6, update_freq)
    typical = np.array([median(seconds[step - 5 : step - 1] + seconds[step + 2 : step + 6]) for step in updates])
    extra = np.array([seconds[step] + seconds[step + 1] for step in updates]) - 2 * typical
    ordinary = np.mean([second for step, second in enumerate(seconds) if step % update_freq > 1])
    low, middle, high = np.quantile(extra / (per * ordinary + extra), [0.25, 0.5, 0.75])
    return {"ratio": float(middle), "low": float(low), "high": float(high)}


def render_runs(rows: Rows, folder: Path) -> str:
    """Seconds to the end of training, from first step to last."""
    seconds = {row["contender"]: row["seconds"] for row in rows}
    best = min((own for name, own in seconds.items() if name.startswith("dense")), key=sum)
    table = [
        {
            "run": name,
            "seconds": f"{sum(own):.0f}",
            "× dense, same precision": times(compare_runs(seconds[f"dense {name.rsplit(' ', 1)[1]}"], own)),
            "× best dense": f"{sum(best) / sum(own):.2f}×",
        }
        for name, own in seconds.items()
    ]
    figure, (axes, rate) = panels(1, 2, (13, 4.4))
    for name, own in seconds.items():
        axes.plot(np.cumsum(own), label=name)
        rate.plot(pd.Series(own).rolling(5, center=True).median(), label=name)
    axes.set(title="Seconds of training so far", xlabel="step", ylabel="seconds", ylim=(0, None))
    rate.set(title="Seconds of a step (median of 5)", xlabel="step", ylabel="seconds", ylim=(0, None))
    axes.legend()
    _save(figure, folder / "runs.png")
    return "\n\n".join(
        [
            "## (c) Whole runs",
            f"Width {rows[0]['width']}, context {rows[0]['context']}, {len(rows[0]['seconds'])} steps, the runs taking "
            "turns at each. MST's schedule is one of 4× under `head_counted_full`, with its topology updates every "
            f"{rows[0]['update_freq']} steps.",
            "![runs](runs.png)",
            to_markdown(pd.DataFrame(table)),
        ]
    )


def render_profile(rows: Rows, folder: Path) -> str:
    """A bar for each precision and method, of its parts."""
    data = pd.DataFrame(
        [row | {"run": f"{row['contender']}, {row['precision']}", "ms": 1000 * row["seconds"][0]} for row in rows]
    )
    table = data.pivot_table(index="part", columns="run", values="ms", sort=False).fillna(0)
    figure, axes = panels(1, 1, (9, 3.6))
    table.T.plot.barh(stacked=True, ax=axes, width=0.7, color=sns.color_palette("husl", len(table)))
    axes.invert_yaxis()
    axes.set(title=f"A training step at width {rows[0]['width']}", xlabel="milliseconds", ylabel="")
    axes.legend(fontsize=8)
    _save(figure, folder / "profile.png")
    cells = table.map("{:.0f}".format)
    cells.loc["sum"] = table.sum().map("{:.0f}".format)
    return "\n\n".join(
        [
            "## (f) Where the time goes",
            f"Milliseconds of a step at width {rows[0]['width']}, dense and in MST's ultra phase with automatic "
            "kernels, by torch's profiler.",
            "![profile](profile.png)",
            to_markdown(cells.rename_axis("part").reset_index()),
        ]
    )


SECTIONS = {
    "layers": (summarise_layers, render_layers),
    "steps": (summarise_steps, render_steps),
    "runs": (summarise_runs, render_runs),
    "densities": (lambda rows: {}, render_densities),
    "profile": (lambda rows: {}, render_profile),
    "metrics": (lambda rows: {}, render_metrics),
}


def _machine(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['processor']}, {machine['threads']} threads, kernels for {machine['kernels']}; {versions}; "
        f"commit {machine['git']}."
    )


def _colour(contender: str) -> str:
    return next(colour for start, colour in COLOURS.items() if contender.startswith(start))


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight")
