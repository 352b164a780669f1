"""A processor's measurements as headline ratios, a Markdown page and pictures. Reads `<out>/<kind>/*.json` alone.

`python -m replication.bench.report OUT` writes all pages anew from what was measured.
"""

import sys
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd

from replication.analysis.tables import to_markdown
from replication.bench import history, pictures
from replication.bench.corpus import render_corpus
from replication.bench.kind import read_parts
from replication.bench.layer_report import render_layers, summarise_layers
from replication.bench.metrics import render_metrics
from replication.bench.page import FILE as FRONT
from replication.bench.page import write_page, write_summary
from replication.bench.predictions import render_predictions
from replication.bench.processes import render_processes
from replication.bench.profile import PRODUCTS
from replication.bench.ratios import Ratio, Rows, compare, compare_runs, format_times, picture, quartiles, times
from replication.system.files import Json, write_atomically

LEAST_WIDTH = 256  # of the steps that the headline ratios speak of


def write_report(folder: Path) -> str:
    """Write a processor's `summary.json`, `bench.md` and its pictures from the parts measured; returns the page.

    Args:
        folder: named for the kind of processor.

    Raises:
        DamagedError: a file in it is not as it was written.
    """
    found = read_parts(folder)
    parts = {name: found[name] for name in SECTIONS if name in found}
    write_summary(folder, {name: value for part in parts for name, value in headlines(part, parts[part]).items()})
    entries = history.read(folder)
    sections = [f"{SECTIONS[name][1](part['rows'], folder)}\n\n{caption(folder, part)}" for name, part in parts.items()]
    page = "\n\n".join(
        [
            f"# Bench of {folder.name}",
            "Ratios are medians over rounds, the contenders taking turns. All processors side by side: "
            f"[{FRONT}](../{FRONT}). Written by `make bench`.",
            *([history.render(entries), caption(folder, *parts.values())] if entries else []),
            *sections,
        ]
    )
    write_atomically(folder / "bench.md", page + "\n")
    return page


def headlines(part: str, measured: Json) -> dict[str, Ratio]:
    """Of one part's measurement, by name; none where it has no headline."""
    return SECTIONS[part][0](measured["rows"])


def caption(folder: Path, *parts: Json) -> str:
    """Which machine a table is of: its kind, what it calls itself, threads, commits and versions."""
    machine = parts[-1]["machine"]
    commits = ", ".join(dict.fromkeys(str(part["machine"]["git"]) for part in parts))
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    quick = " A quick bench: of the smallest sizes, not to be believed." if machine.get("is_quick") else ""
    return (
        f"*{folder.name} ({machine['processor']}), {machine['threads']} threads; commit {commits}; {versions}.{quick}*"
    )


def summarise_steps(rows: Rows) -> dict[str, Ratio]:
    """Our dense training against others', at widths from 256 on and in both precisions; and MST's ultra phase.

    Of what was measured: `auto` against `masked`, where it is least; and at width 64 against dense.
    """
    seconds = {(row["width"], row["precision"], row["contender"]): row["seconds"] for row in rows}
    least = min(LEAST_WIDTH, max(width for width, _, _ in seconds))
    found = {
        name: compare(
            [
                (seconds[width, precision, rival], own)
                for (width, precision, contender), own in seconds.items()
                if contender == "dense" and width >= least
            ]
        )
        for name, rival in (("dense_vs_plain_loop", "plain loop"), ("dense_vs_hf_trainer", "transformers Trainer"))
    }
    auto = {key[:2]: own for key, own in seconds.items() if key[2] == "MST ultra, auto"}
    gains = [
        compare([(seconds[*key, "MST ultra, masked"], own)])
        for key, own in auto.items()
        if (*key, "MST ultra, masked") in seconds
    ]
    if gains:
        found["auto_vs_masked_min"] = min(gains, key=lambda gain: gain["ratio"])
    if (64, "fp32") in auto:
        found["width64_ultra_vs_dense_fp32"] = compare([(seconds[64, "fp32", "dense"], auto[64, "fp32"])])
    return found


def render_steps(rows: Rows, folder: Path) -> str:
    """Tokens per second and memory, by width, precision and contender."""
    seconds = {(row["width"], row["precision"], row["contender"]): row["seconds"] for row in rows}
    best = {
        row["width"]: min(
            (other for (width, _, name), other in seconds.items() if width == row["width"] and name in DENSE),
            key=median,
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
                "× best dense": format_times(compare([(best[row["width"]], row["seconds"])])),
                "peak memory": f"{row['peak_memory_bytes'] / 2**20:,.0f} MiB",
            }
            for row in rows
        ]
    )
    return "\n\n".join(
        [
            "## (b) Training steps, and (d) their memory",
            "Each contender in a process of its own. MST's steps are of its ultra phase at 90 %, without topology "
            "updates; × dense is against our trainer's dense step in the same precision,\n"
            "× best dense against the fastest dense one of any precision and trainer. Peak memory is the process's "
            "resident set, of which Python and torch take some 400 MiB.",
            picture(pictures.steps(seconds), folder / "steps.png"),
            to_markdown(table),
        ]
    )


DENSE = ("dense", "dense, compiled", "plain loop", "plain loop, compiled", "transformers Trainer")


def render_densities(rows: Rows, folder: Path) -> str:
    """A line through the step times of each precision and block shape."""
    table, lines = [], []
    for precision in ("fp32", "bf16"):
        for block in dict.fromkeys(row["block_shape"] for row in rows):
            own = {
                row["contender"]: row["seconds"]
                for row in rows
                if (row["precision"], row["block_shape"]) == (precision, block)
            }
            dense = own.pop("dense")
            densities = np.array([float(name) for name in own])
            relative = np.array([compare([(seconds, dense)])["ratio"] for seconds in own.values()])
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
            lines.append((precision, block, densities, relative, slope, intercept))
    return "\n\n".join(
        [
            "## (e) Step time against density",
            f"Width {rows[0]['width']}, every matrix at the same density, dense attention and `kernels: sparse` "
            "throughout, as a share of the dense step. "
            f"The line is fitted up to density {FITTED}; its intercept is what does not shrink.",
            picture(pictures.densities(lines), folder / "densities.png"),
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
    for name, contender in (("block22", "MST 2×2 blocks bf16"), ("block3232", "MST 32×32 blocks bf16")):
        if contender in seconds:
            found[f"run_mst_{name}_vs_dense_bf16"] = compare_runs(seconds["dense bf16"], seconds[contender])
    return found | {"topology_share": topology_share(seconds["MST bf16"], rows[0]["update_freq"])}


def topology_share(seconds: list[float], update_freq: int, per: int = 100) -> Ratio:
    """What an update adds, beyond the steps around it, as a share of `per` steps.

    To its own step, which then trains no weights, and to the next, which makes new structures.
    """
    updates = range(update_freq, len(seconds) - 6, update_freq)
    typical = np.array([median(seconds[step - 5 : step - 1] + seconds[step + 2 : step + 6]) for step in updates])
    extra = np.array([seconds[step] + seconds[step + 1] for step in updates]) - 2 * typical
    ordinary = np.mean([second for step, second in enumerate(seconds) if step % update_freq > 1])
    return quartiles(extra / (per * ordinary + extra))


def render_runs(rows: Rows, folder: Path) -> str:
    """Seconds to the end of training, from first step to last."""
    seconds = {row["contender"]: row["seconds"] for row in rows}
    best = min((own for name, own in seconds.items() if name.startswith("dense")), key=sum)
    table = [
        {
            "run": name,
            "seconds": f"{sum(own):.0f}",
            "× dense, same precision": times(compare_runs(seconds[f"dense {name.rsplit(' ', 1)[1]}"], own)),
            "× best dense": format_times(compare_runs(best, own)),
        }
        for name, own in seconds.items()
    ]
    return "\n\n".join(
        [
            "## (c) Whole runs",
            f"Width {rows[0]['width']}, context {rows[0]['context']}, {len(rows[0]['seconds'])} steps, the runs taking "
            "turns at each. MST's schedule is one of 4× under `head_counted_full`, with its topology updates every "
            f"{rows[0]['update_freq']} steps.",
            picture(pictures.runs(seconds), folder / "runs.png"),
            to_markdown(pd.DataFrame(table)),
        ]
    )


def render_profile(rows: Rows, folder: Path) -> str:
    """A bar for each width, precision and method, of its parts; and what products that cost nothing would gain."""
    data = pd.DataFrame([row | {"ms": 1000 * row["seconds"][0]} for row in rows])
    table = data.pivot_table(
        index=["width", "precision", "contender"], columns="part", values="ms", sort=False, aggfunc="sum"
    ).fillna(0)
    dense = table.xs("dense", level="contender")
    bound = dense.sum(axis=1) / (dense.sum(axis=1) - dense.reindex(columns=list(PRODUCTS)).sum(axis=1))
    most = ", ".join(f"{ratio:.1f}× at width {width} in {precision}" for (width, precision), ratio in bound.items())
    cells = table.assign(sum=table.sum(axis=1)).map("{:.1f}".format)
    return "\n\n".join(
        [
            "## (f) Where the time goes",
            "Milliseconds of a step, dense and in MST's ultra phase with automatic kernels, by torch's profiler, which "
            f"slows small steps. Dense steps whose linear layers, head and loss took no time would be faster {most}: "
            "what sparse products alone can reach.",
            picture(pictures.profile(table), folder / "profile.png"),
            to_markdown(cells.reset_index()),
        ]
    )


SECTIONS = {
    "layers": (summarise_layers, render_layers),
    "steps": (summarise_steps, render_steps),
    "runs": (summarise_runs, render_runs),
    "densities": (lambda rows: {}, render_densities),
    "profile": (lambda rows: {}, render_profile),
    "metrics": (lambda rows: {}, render_metrics),
    "predictions": (lambda rows: {}, render_predictions),
    "corpus": (lambda rows: {}, render_corpus),
    "processes": (lambda rows: {}, render_processes),
}


if __name__ == "__main__":
    out = Path(sys.argv[1])
    for folder in sorted({path.parent for path in out.glob("*/*.json") if path.stem in SECTIONS}):
        write_report(folder)
    write_page(out)
