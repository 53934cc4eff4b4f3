"""The emulated device's address space: slots, and the host memory behind them."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator

from kaas_core import ReadableBuffer
from kaasd.devices.base import OutOfMemory
from kaasd.devices.emulator.checks import Shadows
from kaasd.devices.emulator.layout import OFFSET_BITS, OFFSET_MASK, SLOT, SLOT_COUNT, Slot, align

_ALIGNMENT = 256
_LONGEST_STRING = 1 << 16
_CLEARED_BY_HAND = 1 << 20
"""Bytes: more is cleared by giving its pages back, of which the next use has to get anew those that it touches."""
_LIBC = ctypes.CDLL(None)


class HostMemory:
    """Zeroed memory of the process at a fixed address. Pages that nobody touches cost nothing."""

    def __init__(self, size: int) -> None:
        # Small blocks come from a bytearray: a mapping of its own would cost each of them a page.
        if size >= mmap.PAGESIZE * 4:
            self._owner: mmap.mmap | bytearray = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            start = 0
        else:
            self._owner = bytearray(size + _ALIGNMENT)
            start = -ctypes.addressof(ctypes.c_char.from_buffer(self._owner)) % _ALIGNMENT
        self.view = memoryview(self._owner)[start : start + size]
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._owner)) + start

    def clear(self, size: int) -> None:
        """Make the first ``size`` bytes zeros again."""
        if isinstance(self._owner, mmap.mmap) and size > _CLEARED_BY_HAND:
            self._owner.madvise(mmap.MADV_DONTNEED, 0, min(align(size, mmap.PAGESIZE), len(self._owner)))
        else:
            ctypes.memset(self.address, 0, size)

    def close(self) -> None:
        """Free it. Idempotent."""
        self.view.release()
        if isinstance(self._owner, mmap.mmap):
            self._owner.close()


class Allocation:
    """A piece of device memory with a slot of its own."""

    def __init__(self, space: AddressSpace, slot: int, size_bytes: int, name: str, read_only: bool) -> None:
        self._space = space
        self.slot = slot
        self.size_bytes = size_bytes
        self.name = name
        self.read_only = read_only
        self._memory: HostMemory | None = HostMemory(max(size_bytes, 1))
        self.host_address = self._memory.address
        entry = space.table[slot]
        entry.base, entry.size, entry.flags = self.host_address, size_bytes, int(read_only)
        entry.writable_size = 0 if read_only else size_bytes

    @property
    def address(self) -> int:
        """Its device address."""
        return self.slot << OFFSET_BITS

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
    """Slots and what is in them."""

    def __init__(self, limit_bytes: int) -> None:
        self.shadows: Shadows | None = None
        """Told of every allocation, where there are checks."""
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        size = ctypes.sizeof(SLOT.ctype) * SLOT_COUNT
        self._table_memory = HostMemory(size)
        self.table_address = self._table_memory.address
        self.table = (SLOT.ctype * SLOT_COUNT).from_address(self.table_address)
        self._next_slot = int(Slot.FIRST_FREE)
        self._free_slots: list[int] = []
        self._allocations: dict[int, Allocation] = {}

    def __iter__(self) -> Iterator[Allocation]:
        return iter(self._allocations.values())

    def allocate(self, size_bytes: int, name: str = "", read_only: bool = False) -> Allocation:
        """Return new memory. Raises ``OutOfMemory``."""
        if size_bytes < 0:
            raise ValueError(f"a buffer of {size_bytes} bytes")
        free = self._limit_bytes - self._used_bytes
        if size_bytes > free:
            raise OutOfMemory(f"{size_bytes} bytes asked, {free} of {self._limit_bytes} free")
        if not self._free_slots and self._next_slot == Slot.HEAP:
            raise OutOfMemory(f"all {int(Slot.HEAP)} buffers of the device are in use")
        slot = self._free_slots.pop() if self._free_slots else self._next_slot
        try:
            allocation = Allocation(self, slot, size_bytes, name, read_only)
        except (OSError, MemoryError, OverflowError) as error:
            if slot != self._next_slot:
                self._free_slots.append(slot)
            raise OutOfMemory(f"{size_bytes} bytes: {error}") from error
        if slot == self._next_slot:
            self._next_slot += 1
        if self.shadows is not None:
            self.shadows.add(slot, size_bytes)
        self._used_bytes += size_bytes
        self._allocations[slot] = allocation
        return allocation

    def release(self, allocation: Allocation) -> None:
        """Empty an allocation's slot; whatever still points there faults."""
        entry = self.table[allocation.slot]
        entry.base, entry.size, entry.writable_size, entry.flags = None, 0, 0, 0
        if self.shadows is not None:
            self.shadows.remove(allocation.slot)
        self._used_bytes -= allocation.size_bytes
        del self._allocations[allocation.slot]
        self._free_slots.append(allocation.slot)

    def find(self, address: int) -> tuple[Allocation | None, int]:
        """Return what is in an address's slot, and the address's offset, which may be outside."""
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
        for slot in range(Slot.HEAP, SLOT_COUNT):
            entry = self.table[slot]
            if not entry.base:
                return  # slots are taken in order, and a freed one keeps its base
            if entry.size:
                _LIBC.free(ctypes.c_void_p(entry.base))
            entry.base, entry.size, entry.writable_size = None, 0, 0

    def close(self) -> None:
        """Free everything. Idempotent."""
        for allocation in list(self._allocations.values()):
            allocation.close()
        self._table_memory.close()
