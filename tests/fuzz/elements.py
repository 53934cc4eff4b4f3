"""Elements of matrices whose products and sums are exact in any order."""

from __future__ import annotations

from kaasd.devices.emulator.ptx.types import TYPES


def _repeated(keep: int, add: int, bits: int) -> tuple[int, int]:
    times = sum(1 << place for place in range(0, 64, bits))
    return keep * times, add * times


NUMBERS = {
    "f16": _repeated(0x8400, 0x3800, 16),
    "bf16": _repeated(0x8080, 0x3F00, 16),
    "tf32": _repeated(0x80800000, 0x3F000000, 32),
    "f32": _repeated(0x80800000, 0x3F000000, 32),
    "e4m3": _repeated(0x88, 0x30, 8),
    "e5m2": _repeated(0x84, 0x38, 8),
    "f64": (0x8010000000000000, 0x3FE0000000000000),
}
"""Bits to keep, and bits to set, that make any 64 bits numbers of 1/2 or 1, by type: the order of sums is open."""

_WIDTHS = {"tf32": 32, "s4": 4, "u4": 4, "b1": 1, "e4m3": 8, "e5m2": 8}


def width_of(kind: str) -> int:
    """Bits of an element of a matrix."""
    return _WIDTHS.get(kind) or TYPES[kind].bits
