"""The palette: one colour and one marker per method, the same in every figure.

Methods have hues of Okabe and Ito (2008), which colour-blind readers tell apart, but for MST's, a darker red than
theirs (ours). What is no method has a hue of its own, purple, or greys: attention, components, phases, margins.
"""

from zlib import crc32

from replication.analysis.arms import DENSE_HEAD, family

METHODS = {
    "dense": "#1f2933",
    "static": "#e69f00",
    "set": "#009e73",
    "rigl": "#0072b2",
    "gmp": "#9bcc7a",
    "mst": "#b5123e",
}
MARKERS = {"dense": "o", "static": "s", "set": "^", "rigl": "D", "gmp": "v", "mst": "*"}
SHAPES = {  # of dense models of other shapes
    "dense_one_layer": "p",
    "dense_narrow": "d",
    "dense_shallow": "p",
    "dense_shallow_counted": "p",
    "dense_shallow_short": "p",
}
TINTS = {  # of arms that stand beside their method's own
    "dense_bf16": "#52606d",
    "dense_nine_tenths": "#747f8b",
    "dense_quarter": "#9aa5b1",
    "dense_one_layer": "#3e4c59",
    "dense_narrow": "#6b7785",
    "dense_shallow": "#6b7785",
    "dense_narrow_dense_head": "#9aa5b1",
    "dense_shallow_dense_head": "#9aa5b1",
    "dense_shallow_counted": "#c3cbd3",
    "dense_short": "#c3cbd3",
    "dense_shallow_short": "#e6e9ec",
    "static_4x": "#f2cf80",
    "set_4x": "#7fceb9",
    "rigl_4x": "#80b8d8",
    "mst_density": "#d9849a",
}
OTHER_DENSE = "#85909c"  # a dense arm of a user's own
OTHER_COLOURS = ("#5b3fa0", "#7a7a1e", "#2a7f93")  # of users' own arms
OTHER_MARKERS = ("P", "X", "H", "<", ">", "h")

INK, QUIET, RULE = "#1f2933", "#52606d", "#b8c0c8"  # text and axes
BAND = "#dde2e7"  # a margin, or noise, behind what is compared with it
PHASES = {"warm-up": "#e3e6ea", "ultra-sparsification": "#f4f5f7", "restoration": "#e3e6ea"}
PATTERNS = {  # attention is purple wherever it is
    "dense": "#dfe3e8",
    "local": "#f0d4ea",
    "strided": "#d193c5",
    "sparse": "#8e2a7d",
    "fixed": "#4a2a45",
}
# What a bar is made of: components of the ledger that are read as one thing.
GROUPS = {
    "blocks, forward": (("block_forward",), "#4a5560"),
    "blocks, input gradient": (("block_input_gradient",), "#8b96a1"),
    "blocks, weight gradient": (("block_weight_gradient",), "#c3cbd3"),
    "attention": (("attention_full", "attention_causal"), "#aa4499"),
    "LM head": (("head_forward", "head_input_gradient", "head_weight_gradient"), "#e4dccb"),
    "masked matrices": (("masked_active",), "#66717d"),  # under `mean_density`, which sums nothing else
    "dense gradient for growth": (("block_dense_gradient", "head_dense_gradient"), "#0d1218"),
}


def colour(arm: str) -> str:
    """Of the arm's method, whatever its reading of the head; a user's own has the same one in every figure too."""
    name = _own(arm)
    if tint := TINTS.get(family(arm)) or TINTS.get(name):
        return tint
    if method(arm) == "dense" and name != "dense":
        return OTHER_DENSE
    return METHODS.get(method(arm)) or OTHER_COLOURS[crc32(name.encode()) % len(OTHER_COLOURS)]


def marker(arm: str) -> str:
    """Of the arm's method, by its name's beginning, as `set_4x` is SET's; a dense model of another shape and a user's
    own have others."""
    other = crc32(_own(arm).encode()) // len(OTHER_COLOURS) % len(OTHER_MARKERS)
    return SHAPES.get(_own(arm)) or MARKERS.get(method(arm), OTHER_MARKERS[other])


def method(arm: str) -> str:
    """As which an arm is drawn: by its name's beginning."""
    return _own(arm).partition("_")[0]


def _own(arm: str) -> str:
    return family(arm).removesuffix(DENSE_HEAD)
