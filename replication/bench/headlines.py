"""The headline ratios by name: what each one is, and how it is shown."""

from replication.bench.layers import TILES
from replication.bench.ratios import Ratio, times

BLOCKS = {  # as layers' contenders are called -> what they are
    "unstructured": "",
    "block22": ", 2×2 blocks",
    "block1616": ", 16×16 blocks",
    "block3232": ", 32×32 blocks",
    "block321": ", 32×1 blocks",
}
RIVALS = {"fp32": "dense, fp32", "bf16": "dense, bf16", "sparselab": "sparselab, unstructured, fp32"}

HEADLINES: dict[str, str] = {
    f"layer_{kind}_{sparsity}_vs_{rival}": f"a layer, {sparsity} % sparse{blocks}, against {other}"
    for rival, other in RIVALS.items()
    for kind, blocks in BLOCKS.items()
    for sparsity in (80, 90)
    if rival == "bf16" or kind not in TILES
} | {
    "run_mst_vs_dense_fp32": "a whole run of MST at 4× fewer FLOPs, width 768, against dense, fp32",
    "run_mst_vs_dense_bf16": "the same against dense, bf16",
    "run_mst_block22_vs_dense_bf16": "the same, 2×2 blocks, against dense, bf16",
    "run_mst_block3232_vs_dense_bf16": "the same, 32×32 blocks, against dense, bf16",
    "width64_ultra_vs_dense_fp32": "a step of MST's ultra phase, width 64, against dense, fp32",
    "auto_vs_masked_min": "such a step by `auto` against `masked`, where it gains least",
    "dense_vs_plain_loop": "our dense training, widths from 256, against a plain loop like nanoGPT's",
    "dense_vs_hf_trainer": "our dense training against transformers' Trainer",
    "topology_share": "share of training time that topology updates take, one every 100 steps",
}
SHARES = ("topology_share",)  # the others are ratios of times


def cell(name: str, value: Ratio) -> str:
    """`2.34× (2.31–2.35)`; of a share, in percent."""
    if name in SHARES:
        percent = {key: f"{100 * part:.2f}" for key, part in value.items()}
        return f"{percent['ratio']}% ({percent['low']}–{percent['high']})"
    return times(value)
