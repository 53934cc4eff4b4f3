"""The emulated device's address space: segments, and the host memory behind them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

from kaas_core import ReadableBuffer
from kaasd.devices.base import OutOfMemory
from kaasd.devices.emulator.codegen.structures import OFFSET_BITS, OFFSET_MASK, SEGMENT, SEGMENT_COUNT, Segment
from kaasd.devices.emulator.runtime.host_memory import HostMemory, SharedMemory
from kaasd.devices.emulator.runtime.shadows import Shadows

_LONGEST_STRING = 1 << 16
_LIBC = ctypes.CDLL(None)


class Allocation:
    """A piece of device memory with a segment of its own."""

    def __init__(self, space: AddressSpace, segment: int, size_bytes: int, name: str, read_only: bool, zeroed: bool) -> None:
        self._space = space
        self.segment = segment
        self.size_bytes = size_bytes
        self.name = name
        self.read_only = read_only
        self._memory: HostMemory | None = HostMemory(size_bytes, zeroed=zeroed)
        self.host_address = self._memory.address
        entry = space.table[segment]
        entry.base, entry.size, entry.flags = self.host_address, size_bytes, int(read_only)
        entry.writable_size = 0 if read_only else size_bytes

    @property
    def address(self) -> int:
        """Its device address."""
        return self.segment << OFFSET_BITS

    @property
    def view(self) -> memoryview:
        """Its bytes; what is made of it must be gone before it closes. Raises ``ValueError`` when it is closed."""
        if self._memory is None:
            raise ValueError("the buffer is closed")
        return self._memory.view

    def _range(self, offset_bytes: int, size: int) -> memoryview:
        if offset_bytes < 0 or offset_bytes + size > self.size_bytes:
            raise ValueError(f"{size} bytes at {offset_bytes} are outside a buffer of {self.size_bytes}")
        return self.view[offset_bytes : offset_bytes + size]

    def zero(self) -> None:
        """Fill with zeros."""
        ctypes.memset(self.host_address, 0, len(self._range(0, self.size_bytes)))

    def filler(self, content: bytes) -> Callable[[], object]:
        """Return what fills it with ``content`` and zeros behind, for as long as it is open."""
        if self._memory is None:
            raise ValueError("the buffer is closed")
        return self._memory.filler(content)

    def write(self, data: ReadableBuffer, offset_bytes: int = 0) -> None:
        """Copy ``data`` in."""
        source = memoryview(data).cast("B")
        self._range(offset_bytes, source.nbytes)[:] = source

    def read(self, into: bytearray | memoryview, offset_bytes: int = 0) -> None:
        """Copy ``len(into)`` bytes out."""
        target = memoryview(into).cast("B")
        target[:] = self._range(offset_bytes, target.nbytes)

    def close(self) -> None:
        """Free the memory. Idempotent."""
        if self._memory is not None:
            self._space.release(self)
            memory, self._memory = self._memory, None
            memory.close()


class AddressSpace:
    """Segments and what is in them."""

    def __init__(self, limit_bytes: int) -> None:
        self.shadows: Shadows | None = None
        """Told of every allocation, where there are checks."""
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        size = ctypes.sizeof(SEGMENT.ctype) * SEGMENT_COUNT
        self._table_memory = SharedMemory(size)
        self.table_address = self._table_memory.address
        self.table = (SEGMENT.ctype * SEGMENT_COUNT).from_address(self.table_address)
        self._next_segment = int(Segment.FIRST_FREE)
        self._free_segments: list[int] = []
        self._allocations: dict[int, Allocation] = {}

    def __iter__(self) -> Iterator[Allocation]:
        return iter(self._allocations.values())

    def allocate(self, size_bytes: int, name: str = "", read_only: bool = False, *, zeroed: bool = True) -> Allocation:
        """Return new memory; where it need not be ``zeroed`` its content is unspecified. Raises ``OutOfMemory``."""
        if size_bytes < 0:
            raise ValueError(f"a buffer cannot have {size_bytes} bytes")
        free = self._limit_bytes - self._used_bytes
        if size_bytes > free:
            raise OutOfMemory(f"{size_bytes} bytes were asked for, and {free} of {self._limit_bytes} are free")
        if not self._free_segments and self._next_segment == Segment.HEAP:
            raise OutOfMemory(f"all {int(Segment.HEAP)} buffers of the device are in use")
        segment = self._free_segments.pop() if self._free_segments else self._next_segment
        try:
            allocation = Allocation(self, segment, size_bytes, name, read_only, zeroed)
        except (OSError, MemoryError, OverflowError) as error:
            if segment != self._next_segment:
                self._free_segments.append(segment)
            raise OutOfMemory(f"{size_bytes} bytes could not be allocated: {error}") from error
        if segment == self._next_segment:
            self._next_segment += 1
        if self.shadows is not None:
            self.shadows.add(segment, size_bytes)
        self._used_bytes += size_bytes
        self._allocations[segment] = allocation
        return allocation

    def release(self, allocation: Allocation) -> None:
        """Empty an allocation's segment; whatever still points there faults."""
        entry = self.table[allocation.segment]
        entry.base, entry.size, entry.writable_size, entry.flags = None, 0, 0, 0
        if self.shadows is not None:
            self.shadows.remove(allocation.segment)
        self._used_bytes -= allocation.size_bytes
        del self._allocations[allocation.segment]
        self._free_segments.append(allocation.segment)

    def table_of_core(self) -> int:
        """Return where another core finds the table, of which the segments with a fixed meaning are its own."""
        return self._table_memory.mapped_again(ctypes.sizeof(SEGMENT.ctype) * Segment.FIRST_FREE)

    def find(self, address: int) -> tuple[Allocation | None, int]:
        """Return what is in an address's segment, and the address's offset, which may be outside."""
        return self._allocations.get(address >> OFFSET_BITS), address & OFFSET_MASK

    def read_string(self, address: int) -> str:
        """Return the C string at a device address, as far as there is memory; empty where there is none."""
        entry = self.table[address >> OFFSET_BITS]
        offset = address & OFFSET_MASK
        if not entry.base or offset >= entry.size:
            return ""
        data = ctypes.string_at(entry.base + offset, min(entry.size - offset, _LONGEST_STRING))
        return data.split(b"\0", 1)[0].decode("utf-8", "replace")

    def clear_heap(self) -> None:
        """Free what device code got from ``malloc``."""
        for segment in range(Segment.HEAP, SEGMENT_COUNT):
            entry = self.table[segment]
            if not entry.base:
                return  # segments are taken in order, and a freed one keeps its base
            if entry.size:
                _LIBC.free(ctypes.c_void_p(entry.base))
            entry.base, entry.size, entry.writable_size = None, 0, 0

    def close(self) -> None:
        """Free everything. Idempotent."""
        for allocation in list(self._allocations.values()):
            allocation.close()
        self._table_memory.close()
