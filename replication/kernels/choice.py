"""Up to which density a matrix's products are faster at its active weights alone: as measured here, or on its kind.

`plan machine` measures it and keeps it for this machine; without that a table of the kinds of processor serves.
Source: ours.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from replication.kernels.library import TILES, gains, processor_kind, sources
from replication.kernels.tiles import tile_block
from replication.system.errors import UserError
from replication.system.files import read_json, write_json
from replication.system.instructions import LEVELS, read_level
from replication.system.machine import cache_file

# Kind of products -> (smaller side of a matrix, density): from this side on sparse products are faster up to it.
Limits = Mapping[str, Sequence[Sequence[float]]]
AMX = LEVELS[TILES]
# `python -m replication.bench.limits LEVEL` on an Intel Xeon with AMX, which it has do as a processor of the level
# would, 1024 tokens, 2 threads; but for avx512-bf16, which was measured on an AMD EPYC (Zen 4), by `make bench`. In
# bf16 dense products of the first two levels are emulated, and slow.
MEASURED: dict[str, Limits] = {
    "avx2": {"fp32": [(128, 0.27), (256, 0.33), (768, 0.4)], "bf16": [(32, 0.8)]},
    "avx512": {"fp32": [(128, 0.2), (256, 0.3), (768, 0.33)], "bf16": [(32, 0.8)]},
    "avx512-bf16": {"fp32": [(64, 0.4), (128, 0.6)], "bf16": [(32, 0.3), (64, 0.35), (128, 0.45)]},
    AMX: {
        "fp32": [(128, 0.2), (256, 0.31), (768, 0.31)],
        "bf16": [(128, 0.02), (768, 0.05)],
        "tiles of 16×16": [(64, 0.65), (256, 0.41), (768, 0.65)],
        "tiles of 32×32": [(64, 0.8), (256, 0.67), (768, 0.8)],
        "tiles of 32×1": [(128, 0.17), (256, 0.33), (768, 0.6)],
    },
}


class _Held:
    limits: Limits | None = None


def limits() -> Limits:
    """Of this processor with so many threads; none where nothing was measured."""
    if _Held.limits is not None:
        return _Held.limits
    if not gains():
        return {}
    return _read_limits() or MEASURED.get(level(), {})


def hold_limits() -> None:
    """From the first call on this process goes by them as they are then, whatever is measured meanwhile: of many runs
    that it trains, all."""
    _Held.limits = limits()


def keep(measured: Limits) -> None:
    """For this machine and number of threads, from now on. Raises UserError where it cannot be written."""
    write_json(_file(), {"of": _circumstances(), "up_to": measured})


def level() -> str:
    """Of the instructions that products are computed by here: the kernels', or torch's dense ones' where it is AMX."""
    has_amx = read_level() >= TILES and torch.cpu.get_capabilities().get("amx_bf16")
    return AMX if has_amx else LEVELS[processor_kind()]


def kind_of(shape: torch.Size, out_first: bool, bf16: bool, block: tuple[int, int]) -> str:
    """Of a mask's products on this processor; the arguments are those of `tile_block`."""
    tiles = tile_block(shape, out_first, bf16, block)
    return f"tiles of {tiles[0]}×{tiles[1]}" if tiles else "bf16" if bf16 else "fp32"


def is_faster(limits: Limits, kind: str, nnz: int, shape: Sequence[int]) -> bool:
    """Are a matrix's three products faster at its active weights than dense? No, where it was not measured."""
    known = [density for side, density in limits.get(kind, ()) if side <= min(shape)]
    return nnz <= math.prod(shape) * (known[-1] if known else 0)


def _read_limits() -> Limits | None:
    """What was measured here; None: it was not, or of other circumstances, or is damaged."""
    try:
        kept = read_json(_file())
        if kept["of"] != _circumstances():
            return None
        up_to = {str(kind): [[float(side), float(most)] for side, most in rows] for kind, rows in kept["up_to"].items()}
    except (UserError, OverflowError, KeyError, TypeError, ValueError, AttributeError):
        return None
    rows = chain.from_iterable(up_to.values())
    return up_to if all(0 < side < math.inf and 0 <= most <= 1 for side, most in rows) else None


def _circumstances() -> dict[str, Any]:
    return {"torch": torch.__version__, "kernels": _sources(), "level": level()}


@cache
def _sources() -> str:
    """A digest of the kernels' source."""
    digest = hashlib.sha256()
    for file in sources():
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _file() -> Path:
    return cache_file("limits", torch.get_num_threads())
