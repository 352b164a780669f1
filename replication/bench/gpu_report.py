"""What `bench gpu` found, in tables. Imports no torch."""

from collections.abc import Callable
from statistics import median

import pandas as pd

from replication.analysis.tables import to_markdown
from replication.bench.ratios import Rows
from replication.system.files import Json

PRODUCTS = ("forward", "dX", "dW")


def render(found: Json) -> str:
    """Markdown of a `gpu.json`: a section for each part that is there."""
    sections = {"tests": _tests, "steps": _steps, "attention": _attention, "blocks": _blocks}
    return "\n\n".join(_section(part, found[part], show) for part, show in sections.items() if part in found)


def _section(part: str, measured: Json, show: Callable[[Rows], str]) -> str:
    machine = measured["machine"]
    versions = f"torch {machine['versions']['torch']}, CUDA {machine['cuda']}, driver {machine['driver']}"
    where = f"{machine['gpus']} × {machine['gpu']}, {versions}, {machine['git']}; {measured['total_seconds']:.0f} s."
    problem = f"\n\nIt did not come to its end: {measured['error']}" if "error" in measured else ""
    shown = show(measured["rows"]) if measured["rows"] else f"## Nothing of {part}"
    return f"{shown}\n\n{where}{problem}"


def _tests(rows: Rows) -> str:
    counts = {kind: sum(row["outcome"] == kind for row in rows) for kind in ("passed", "failed", "skipped")}
    failed = [f"\n- failed: {row['test']}" for row in rows if row["outcome"] == "failed"]
    return f"## Tests\n\n{', '.join(f'{count} {kind}' for kind, count in counts.items())}.{''.join(failed)}"


def _steps(rows: Rows) -> str:
    dense = median(rows[0]["seconds"])
    table = [
        {
            "": row["contender"],
            "sparsity": f"{row['sparsity']:.0%}",
            "ms a step": f"{1e3 * median(row['seconds']):.1f}",
            "tokens/s": f"{row['tokens_per_second']:,.0f}",
            "× dense": f"{dense / median(row['seconds']):.2f}",
            "MFU": f"{row['mfu']:.0%}",
            "dense MFU": f"{row['dense_mfu']:.0%}",
            "GiB": f"{row['peak_memory_bytes'] / 2**30:.1f}",
        }
        for row in rows
    ]
    peak = f"MFU is of the {rows[0]['peak_flops'] / 1e12:.0f} TFLOP/s of a large product here"
    size = f"{rows[0]['tokens']:,} tokens a step, {rows[0]['precision']}; {peak}; dense MFU counts dense's FLOPs."
    return f"## Training steps of GPT-2 small\n\n{to_markdown(pd.DataFrame(table))}\n\n{size}"


def _attention(rows: Rows) -> str:
    """Milliseconds forward and backward, as × against SDPA over all causal pairs."""
    dense = {row["length"]: row["seconds"] for row in rows if row["pattern"] == "dense"}
    patterns: dict[tuple[int, str], dict[str, str]] = {}
    for row in rows:
        if row["pattern"] != "dense":
            key = (row["length"], row["pattern"])
            facts = {"tokens": f"{row['length']}", "pattern": row["pattern"], "pairs": f"{row['pairs']:.0%}"}
            facts |= {"tiles": f"{row['tiles']:.0%}", "SDPA, dense": f"{1e3 * dense[row['length']]:.2f} ms"}
            times = dense[row["length"]] / row["seconds"]
            patterns.setdefault(key, facts)[row["contender"]] = f"{times:.2f}×"
    table = to_markdown(pd.DataFrame(patterns.values()))
    found = "\n".join(f"- {_crossover(rows, pattern)}." for pattern in dict.fromkeys(name for _, name in patterns))
    text = "× is SDPA over all causal pairs ÷ the pattern's; pairs and tiles are shares of the causal ones."
    return f"## Attention, forward and backward\n\n{table}\n\n{text}\n\n{found}"


def _crossover(rows: Rows, pattern: str) -> str:
    """From which length on FlexAttention is faster than dense SDPA."""
    dense = {row["length"]: row["seconds"] for row in rows if row["pattern"] == "dense"}
    flex = {r["length"]: r["seconds"] for r in rows if (r["pattern"], r["contender"]) == (pattern, "FlexAttention")}
    wins = [length for length in flex if all(flex[at] < dense[at] for at in flex if at >= length)]
    return f"{pattern}: FlexAttention beats dense SDPA " + (f"from {min(wins)} tokens on" if wins else "at no length")


def _blocks(rows: Rows) -> str:
    """× of torch's dense bf16 product, by shape, block and sparsity; and of all three products together."""
    seconds = {(r["n_in"], r["n_out"], r["contender"], r["sparsity"], r["product"]): r["seconds"] for r in rows}
    table = []
    for n_in, n_out, contender, sparsity in dict.fromkeys(key[:4] for key in seconds):
        own = [seconds.get((n_in, n_out, contender, sparsity, product)) for product in PRODUCTS]
        dense = [seconds[n_in, n_out, "dense", 0.0, product] for product in PRODUCTS]
        if contender != "dense" and None not in own:
            times = [*(theirs / ours for theirs, ours in zip(dense, own)), sum(dense) / sum(own)]
            facts = {"matrix": f"{n_in} → {n_out}", "blocks": contender, "sparsity": f"{sparsity:.0%}"}
            table.append(facts | {name: f"{ratio:.2f}×" for name, ratio in zip((*PRODUCTS, "all"), times)})
    text = f"{rows[0]['tokens']:,} tokens; × is torch's dense bf16 product ÷ ours at the active blocks."
    return f"## Products of block-sparse matrices\n\n{to_markdown(pd.DataFrame(table))}\n\n{text}"
