"""How GPT-2's matrices are stored, by name. Imports no torch, so that analysis can ask too."""

from replication.sparsity.metrics import Layout

HEAD = "transformer.wte.weight"  # tied: token embedding and LM head are one matrix


def layout(layer: str) -> Layout:
    """[n_in, n_out] in the blocks, Q, K and V side by side in `c_attn`; [V, C] for the head."""
    return Layout(("q", "k", "v") if layer.endswith("attn.c_attn.weight") else (), outputs_first=layer == HEAD)
