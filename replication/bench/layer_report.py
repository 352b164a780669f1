"""The bench of single layers, in tables and pictures."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes

from replication.analysis.drawing import column, label_ends
from replication.analysis.palette import INK, RULE
from replication.analysis.tables import to_markdown
from replication.bench.headlines import BLOCKS
from replication.bench.ratios import Ratio, Rows, compare, format_times, look, picture

PRODUCTS = ("forward", "dX", "dW", "total")


def summarise_layers(rows: Rows) -> dict[str, Ratio]:
    """Forward and backward of GPT-2 small's matrices, each as a linear layer.

    Geometric means over their shapes; none if others were measured.
    """
    seconds = _layer_totals([row for row in rows if "paper" in row["profiles"]])
    shapes = {key[:2] for key in seconds}
    found = {}
    for kind in BLOCKS:
        for density in (0.2, 0.1):
            for rival, slow, precision in (
                ("fp32", "dense fp32", "fp32"),
                ("bf16", "dense bf16", "bf16"),
                ("sparselab", "sparselab fp32", "fp32"),
            ):
                pairs = [
                    (seconds[*shape, density, slow], seconds[*shape, density, f"{kind} {precision}"])
                    for shape in shapes
                    if {(*shape, density, slow), (*shape, density, f"{kind} {precision}")} <= seconds.keys()
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
        table.setdefault(key, {})[product] = format_times(compare([(dense, own)]))
    facts = ("profiles", "in×out", "tokens", "sparsity", "contender")
    products = pd.DataFrame(
        [
            dict(zip(facts, key)) | {product: values.get(product, "–") for product in PRODUCTS}
            for key, values in table.items()
        ]
    )
    figure, panel = column(2, 2.8)
    for axes, precision in zip(panel, ("fp32", "bf16")):
        _plot_layers(axes, rows, precision)
    return "\n\n".join(
        [
            "## (a) Products of one layer",
            "× against torch's dense product in the contender's own precision. `total` is forward and backward through "
            "autograd, from float32 weights to their float32 gradients,\n"
            "with the packing of the weights; torch.sparse is given features before tokens, without the cost of "
            "transposing them.",
            picture(figure, folder / "layers.png"),
            to_markdown(products),
        ]
    )


def _plot_layers(axes: Axes, rows: Rows, precision: str) -> None:
    seconds = _layer_totals(rows)
    densities, ends = sorted({key[2] for key in seconds}), []
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
            axes.plot(densities, ratios, **look(contender) | {"ls": "-"})
            ends.append((densities[0], ratios[0], look(contender), contender.removesuffix(f" {precision}")))
    best = max(ends, key=lambda end: end[1])
    axes.plot(densities, [1 / density for density in densities], color=RULE, linestyle=":")
    axes.axhline(1, color=INK, linewidth=1)
    axes.set(
        title=f"{precision}: at {densities[0]:.0%} density {best[3]} is {best[1]:.1f}× dense",
        xlabel="density (dotted: what FLOPs would save)",
        ylabel="× dense, forward + backward",
        xscale="log",
        yscale="log",
        xticks=densities,
        xticklabels=[f"{d:.0%}" for d in densities],
    )
    axes.invert_xaxis()  # the sparsest, where the names are, at the right
    axes.set(yticks=(0.125, 0.25, 0.5, 1, 2, 4, 8, 16), yticklabels=("⅛", "¼", "½", "1", "2", "4", "8", "16"))
    axes.minorticks_off()
    label_ends(axes, ends, 2.0)
