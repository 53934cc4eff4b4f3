"""Parameters in the form in which the driver, and a wrapper, take them."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence


class Parameters:
    """An array of pointers, one to each parameter's value, which begins at a multiple of 16: that suits the largest type."""

    def __init__(self, values: Sequence[bytes]) -> None:
        memory = bytearray()
        self._offsets: list[int] = []
        for value in values:
            self._offsets.append(len(memory))
            memory += value + bytes(-len(value) % 16)
        self._values = memory or bytearray(1)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._values))
        self._pointers = (ctypes.c_void_p * (len(values) or 1))(*(base + offset for offset in self._offsets))
        self.address = ctypes.addressof(self._pointers)
        """Of the array, for as long as this object lives."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._offsets)

    def set(self, index: int, value: bytes) -> bool:
        """Change a parameter's value to another as long; return whether it was another."""
        start = self._offsets[index]
        if self._values[start : start + len(value)] == value:
            return False
        self._values[start : start + len(value)] = value
        return True
