"""How an emulated device is to be."""

from __future__ import annotations

from dataclasses import dataclass

EMULATOR_CHECKS = ("races", "init")


@dataclass(frozen=True, slots=True)
class EmulatorOptions:
    """Settings of the emulated device. What it pretends to be is by default an H100."""

    memory_bytes: int = 4 << 30
    """A limit, not a reservation."""
    checks: tuple[str, ...] = ()
    """Of ``EMULATOR_CHECKS``: data races, and reads of memory that nothing wrote."""
    seed: int | None = None
    """Of the random order in which blocks and warps run; None: a fixed order."""
    compute_capability: tuple[int, int] = (9, 0)
    multiprocessor_count: int = 132
    shared_memory_bytes: int = 227 << 10
    """Most of a block."""
