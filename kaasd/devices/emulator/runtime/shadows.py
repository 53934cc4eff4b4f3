"""The notes of what kernels accessed, which compiled checks read and write: memory that stands beside the device's."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from typing import Any

from kaasd.devices.emulator.codegen.structures import CELL_BYTES, SHADOW

_LARGEST_TIME = 1 << 31


class Shadows:
    """The notes of a device: what the compiled checks read and write."""

    def __init__(self, context: Any, segments: int) -> None:
        self._context = context
        self._table = _Lazy(segments * SHADOW.size)
        self._cells: dict[int, _Lazy] = {}
        self._arena = _Lazy(CELL_BYTES)
        self._ordered = _Lazy(4)
        context.shadows, context.time = self._table.address, 1

    def _entry(self, segment: int) -> Any:
        return SHADOW.ctype.from_address(self._table.address + segment * SHADOW.size)

    def add(self, segment: int, size_bytes: int) -> None:
        """There is memory in a segment."""
        self._cells[segment] = _Lazy(max(1, size_bytes) * CELL_BYTES)
        self._entry(segment).cells = self._cells[segment].address

    def remove(self, segment: int) -> None:
        """There is no more."""
        self._entry(segment).cells = None
        self._cells.pop(segment).close()

    def begin_run(self, arena_bytes: int, most_blocks: int, most_warps: int, temporaries: Iterable[int]) -> None:
        """Make room for a run; ``temporaries`` are the segments of buffers that start with nothing written."""
        context = self._context
        if context.time > _LARGEST_TIME:
            for cells in (*self._cells.values(), self._arena):
                cells.clear()
            context.time = 1
        if self._arena.size < arena_bytes * CELL_BYTES:
            self._arena.close()
            self._arena = _Lazy(arena_bytes * CELL_BYTES)
        if self._ordered.size < 4 * (most_blocks + most_warps):
            self._ordered.close()
            self._ordered = _Lazy(4 * (most_blocks + most_warps))
        context.arena_shadow, context.ordered, context.blocks = self._arena.address, self._ordered.address, most_blocks
        context.time += 1
        context.run_time = context.time
        self._watched = [self._entry(segment) for segment in temporaries]
        for entry in self._watched:
            entry.watched = 1

    def end_run(self) -> None:
        """The run is over."""
        for entry in self._watched:
            entry.watched = 0

    def close(self) -> None:
        """Free everything. Idempotent."""
        for memory in (*self._cells.values(), self._arena, self._ordered, self._table):
            memory.close()
        self._cells.clear()


class _Lazy:
    """Zeroed memory, of which only what is touched takes any."""

    def __init__(self, size: int) -> None:
        self.size = size
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
        self._map = mmap.mmap(-1, size, flags=flags)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def clear(self) -> None:
        self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        if not self._map.closed:
            self._map.close()
