"""Registered pages: a mapped file made known to the driver, so that copies from it run at the bus's speed.

On an H100 64 MiB of a mapped file are copied at 10 GB/s by way of the driver's own pinned memory, and at 54 GB/s straight from
the file's pages when these are registered. Registering costs 35 ms a GiB, so that even a first copy is faster with it. The driver
refuses a range beyond the file's end, and a copy that touches two ranges.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator

from cuda.bindings import driver

from kaasd.devices.base import MappedFile, OutOfMemory
from kaasd.devices.cuda.driver import Check, CudaError, Release

PIECE_BYTES = 32 << 20
"""Registered at once."""
MAX_REGISTERED_SHARE = 0.5
"""Of the machine's memory: what is registered cannot be swapped or dropped."""

_log = logging.getLogger(__name__)


class RegisteredFile:
    """The registered ranges of one mapped file, disjoint and in order."""

    def __init__(
        self, check: Check, release: Release, wait_for_copies: Callable[[], None], limit_bytes: int | None = None
    ) -> None:
        """``check`` raises ``DeviceLost`` where a kernel's fault comes back.

        ``wait_for_copies`` returns when no copy from the file is under way any more.
        """
        self._check = check
        self._release = release
        self._wait_for_copies = wait_for_copies
        self._limit_bytes = _default_limit() if limit_bytes is None else limit_bytes
        self._file: MappedFile | None = None
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._bytes = 0
        self._refused = False

    def parts(self, file: MappedFile, address: int, size_bytes: int) -> Iterator[tuple[int, int]]:
        """Cut a range of memory where registered ranges meet: yield address and size of each part, in order.

        What is not registered yet is, if it is of the file and can be; the rest is copied all the same, slower.
        """
        self.follow(file)
        end = address + size_bytes
        if not file.address <= address <= end <= file.address + file.size_bytes:
            yield address, size_bytes
            return
        while address < end:
            covered = min(end, self._covered_to(file, address))
            yield address, covered - address
            address = covered

    def follow(self, file: MappedFile | None) -> None:
        """Let go of any other file: what is mapped where it was would be taken for it, and its old pages copied."""
        if file is not self._file:
            self._unregister_all()
            self._file = file
            self._refused = False

    def _covered_to(self, file: MappedFile, address: int) -> int:
        """Return the end of the registered range that holds ``address``, or of the unregistered one."""
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._ends[index]:
            return self._ends[index]
        after = self._ends[index] if index >= 0 else file.address
        before = self._starts[index + 1] if index + 1 < len(self._starts) else file.address + file.size_bytes
        piece = file.address + (address - file.address) // PIECE_BYTES * PIECE_BYTES
        start, end = max(after, piece), min(before, piece + PIECE_BYTES)
        if not self._refused:
            # The mapping may reach further than the file, whose length is a multiple of the page.
            length = os.stat(file.path).st_size if file.grows else file.size_bytes  # noqa: PTH116  (a Path costs as much again)
            end_of_file = file.address + length
            self._register(start, min(end, end_of_file))
        return end if self._refused else min(end, end_of_file)

    def _register(self, start: int, end: int) -> None:
        if self._bytes + (end - start) > self._limit_bytes:
            self._unregister_all()
        try:
            self._check(driver.cuMemHostRegister, start, end - start, driver.CU_MEMHOSTREGISTER_READ_ONLY)
        except (CudaError, OutOfMemory) as error:
            self._refused = True
            _log.warning("inputs are copied slower: the driver does not register the pages of %s: %s", self._file, error)
            return
        index = bisect_right(self._starts, start)
        self._starts.insert(index, start)
        self._ends.insert(index, end)
        self._bytes += end - start

    def _unregister_all(self) -> None:
        if self._starts:
            self._wait_for_copies()
        for start in self._starts:
            self._release(driver.cuMemHostUnregister, start)
        self._starts.clear()
        self._ends.clear()
        self._bytes = 0

    def close(self) -> None:
        """Unregister everything. Idempotent."""
        self.follow(None)


def _default_limit() -> int:
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * MAX_REGISTERED_SHARE)
