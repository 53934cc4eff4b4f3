"""Memory of the process that stands for memory of the device."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from functools import partial

CLEARED_BY_HAND = 1 << 20
"""Bytes: more is cleared by giving its pages back, of which the next use has to get anew those that it touches."""
FREED_KEPT_BYTES = 128 << 20
"""Of large blocks that were freed: the first touch of its pages is most of what a large block costs, 9 ms of 10 for 16 MiB."""
_ALIGNMENT = 256
_MAP_FIXED, _MREMAP_MAYMOVE = 0x10, 1
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_LIBC = ctypes.CDLL(None, use_errno=True)
_mmap = _LIBC.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_mremap = _LIBC.mremap
_mremap.restype = ctypes.c_void_p
_mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
_munmap = _LIBC.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)


class FreedBlocks:
    """Large blocks for the next that need as many bytes. For any thread."""

    def __init__(self, most_bytes: int) -> None:
        """``most_bytes`` are kept, those that were freed last."""
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._blocks: list[mmap.mmap] = []
        """The one freed last is the last."""

    def take(self, size: int) -> mmap.mmap | None:
        """Return a block of this size, of unspecified content, if there is one."""
        with self._lock:
            at = next((at for at in reversed(range(len(self._blocks))) if len(self._blocks[at]) == size), None)
            if at is None:
                return None
            return self._blocks.pop(at)

    def give(self, block: mmap.mmap) -> None:
        """Keep a block that nobody uses, or free it. Raises ``BufferError`` where a view of it is left."""
        block.resize(len(block))  # changes nothing, and raises this; so does ``close``
        if not CLEARED_BY_HAND < len(block) <= self._most_bytes // 2:
            block.close()
            return
        with self._lock:
            self._blocks.append(block)
            while sum(map(len, self._blocks)) > self._most_bytes:
                self._blocks.pop(0).close()


_freed = FreedBlocks(FREED_KEPT_BYTES)


class HostMemory:
    """Memory of the process at a fixed address. Pages that nobody touches cost nothing."""

    def __init__(self, size: int, *, zeroed: bool = True) -> None:
        """Where it need not be ``zeroed`` its content is unspecified."""
        # Small blocks come from a bytearray: a mapping of its own would cost each of them a page.
        if size >= mmap.PAGESIZE * 4:
            freed = _freed.take(size)
            self._owner: mmap.mmap | bytearray = freed or mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if zeroed and freed is not None:
                ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(freed)), 0, size)
            start = 0
        else:
            self._owner = bytearray(size + _ALIGNMENT)
            start = -ctypes.addressof(ctypes.c_char.from_buffer(self._owner)) % _ALIGNMENT
        self.view = memoryview(self._owner)[start : start + size]
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._owner)) + start

    def filler(self, content: bytes) -> Callable[[], object]:
        """Return what fills it with ``content`` and zeros behind, in one call."""
        size = len(self.view)
        if content:
            return partial(ctypes.memmove, self.address, content.ljust(size, b"\0"), size)
        if size > CLEARED_BY_HAND and isinstance(self._owner, mmap.mmap):
            return partial(self._owner.madvise, mmap.MADV_DONTNEED)
        return partial(ctypes.memset, self.address, 0, size)

    def close(self) -> None:
        """Free it. Idempotent. Raises ``BufferError`` where a view of it is left."""
        self.view.release()
        if isinstance(self._owner, mmap.mmap):
            _freed.give(self._owner)
            self._owner = bytearray()


class SharedMemory:
    """Memory that starts as zeros, and can be seen at several addresses. Pages that nobody touches cost nothing."""

    def __init__(self, size: int) -> None:
        """``size`` is that of whole pages. No file, not even one in memory: a limit on the size of files would count for it."""
        self._size = size
        self.address = _checked(_mmap(None, size, _READ_WRITE, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS, -1, 0))
        self._maps = [self.address]
        self._end = weakref.finalize(self, _unmap, self._maps, size)

    def mapped_again(self, own_bytes: int) -> int:
        """Return another address of it, where the first ``own_bytes``, whole pages, are memory of its own. Raises ``OSError``."""
        # Of a shared mapping whose old size is given as 0 Linux makes another one of the same pages.
        address = _checked(_mremap(self.address, 0, self._size, _MREMAP_MAYMOVE))
        self._maps.append(address)
        _checked(_mmap(address, own_bytes, _READ_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED, -1, 0))
        return address

    def close(self) -> None:
        """Free it, wherever it is seen. Idempotent."""
        self._end()


def _checked(address: int) -> int:
    if address == ctypes.c_void_p(-1).value:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(address)


def _unmap(maps: list[int], size: int) -> None:
    for address in maps:
        _munmap(address, size)
