"""Where a program leaves its registers: one record for each thread, stored by as few instructions as will do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

Values = np.ndarray[Any, Any]

_LARGEST = 16
"""Bytes that one instruction stores at most."""
_STORED_ALONE = {"e4m3x2", "e5m2x2"}
"""Packed with another register for a store, NVIDIA's compiler takes the pair for the other, too."""


@dataclass(frozen=True, slots=True)
class Register:
    name: str
    bits: int
    kind: str
    """The type that it was written as."""

    @property
    def stored_bytes(self) -> int:
        """Of one thread's value in a record."""
        return max(1, self.bits // 8)


@dataclass(frozen=True)
class Layout:
    """Registers of the same width, stored together at an offset; and the bytes of a record."""

    groups: tuple[tuple[int, tuple[Register, ...]], ...]
    stride: int

    def stores(self, pointer: str) -> list[str]:
        """Lines that store a thread's record."""
        lines = []
        for offset, group in self.groups:
            names = [register.name for register in group]
            if group[0].bits == 1:
                lines += [f"selp.u16 %byte{index}, 1, 0, {name};" for index, name in enumerate(names)]
                names = [f"%byte{index}" for index in range(len(names))]
            size = group[0].stored_bytes
            if len(names) == 1 or any(register.kind in _STORED_ALONE for register in group):
                lines += [f"st.global.b{size * 8} [{pointer}+{offset + i * size}], {name};" for i, name in enumerate(names)]
            else:
                lines.append(f"st.global.v{len(names)}.b{size * 8} [{pointer}+{offset}], {{{', '.join(names)}}};")
        return lines

    def take_apart(self, content: bytes, threads: int) -> dict[Register, Values]:
        """The values in the records of all threads, as bytes: an array of threads by bytes for each register."""
        table = np.frombuffer(content, np.uint8).reshape(threads, self.stride)
        found = {}
        for offset, group in self.groups:
            for index, register in enumerate(group):
                start = offset + index * register.stored_bytes
                found[register] = table[:, start : start + register.stored_bytes]
        return found


def lay_out(registers: Iterable[Register]) -> Layout:
    """Put registers into groups of powers of two, the largest first, so that each is aligned."""
    by_size: dict[int, list[Register]] = {}
    for register in registers:
        by_size.setdefault(register.stored_bytes, []).append(register)
    groups = []
    for size, some in by_size.items():
        most = min(4, _LARGEST // size)
        while some:
            count = most if len(some) >= most else 1 << len(some).bit_length() - 1
            groups.append(tuple(some[:count]))
            some = some[count:]
    groups.sort(key=lambda group: -len(group) * group[0].stored_bytes)
    placed, offset = [], 0
    for group in groups:
        placed.append((offset, group))
        offset += len(group) * group[0].stored_bytes
    return Layout(tuple(placed), max(_LARGEST, -(-offset // _LARGEST) * _LARGEST))
