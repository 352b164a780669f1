"""Levels of a processor's instructions, and how a process is held to a lower one than there is. Imports no torch."""

import os

from replication.system.errors import UserError

LEVELS = ("plain", "avx2", "avx512", "avx512-bf16", "amx")  # by `library.processor_kind`, and AMX's tiles
HELD = "REPLICATION_INSTRUCTIONS"  # environment variable: the highest level that this process uses
# What holds torch, oneDNN and MKL to a level; they read it as they are loaded.
_LIBRARIES = {
    "ATEN_CPU_CAPABILITY": ("default", "avx2", "avx512", "avx512", ""),
    "ONEDNN_MAX_CPU_ISA": ("SSE41", "AVX2", "AVX512_CORE_VNNI", "AVX512_CORE_BF16", ""),
    "MKL_ENABLE_INSTRUCTIONS": ("SSE4_2", "AVX2", "AVX512", "AVX512", ""),
}


def read_level() -> int:
    """Place in `LEVELS` of the highest level that may be used.

    Raises:
        UserError: the variable names none.
    """
    level = os.environ.get(HELD) or LEVELS[-1]
    if level not in LEVELS:
        raise UserError(f"{HELD} is {level!r}; allowed: {', '.join(LEVELS)}")
    return LEVELS.index(level)


def hold_environment(level: str) -> dict[str, str]:
    """What a process is started with, to find such a processor."""
    return {HELD: level, **{name: values[LEVELS.index(level)] for name, values in _LIBRARIES.items()}}


def find_lower_levels(level: str) -> tuple[str, ...]:
    """Those that such a processor can be held to, the highest first."""
    return LEVELS[: LEVELS.index(level)][::-1]
