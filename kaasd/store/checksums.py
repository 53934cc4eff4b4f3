"""Checksums of what is stored: made when it is written, compared before anybody sees it. XXH3 of 64 bits.

They find what a disk, a copy or another program has changed, by accident; who changes a store on purpose can make them too.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from xxhash import xxh3_64_intdigest as checksum

from kaas_core import ReadableBuffer

__all__ = ["ChecksumThread", "VerifiedChunks", "checksum"]

ASIDE_BYTES = 1 << 20
"""From this size on a checksum is made by a thread of its own while LMDB copies the same bytes. XXH3 takes 40 µs for 1 MiB."""
MAX_VERIFIED = 1 << 16
"""Chunks that a process remembers: 1 TiB of chunks of 16 MiB, in 4 MB of memory."""


class ChecksumThread:
    """Makes the checksums of large buffers while its caller does something else with them."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "checksums")

    def begin(self, data: ReadableBuffer) -> Callable[[], int]:
        """Return what waits for the checksum of ``data``, and is to be called before that is changed or goes away."""
        if len(data) < ASIDE_BYTES:
            return lambda: checksum(data)
        return self._executor.submit(checksum, data).result

    def close(self) -> None:
        """End the thread. Idempotent."""
        self._executor.shutdown()


class VerifiedChunks:
    """The chunks that this process has compared with their checksums: each is read for that once, however often it is used.

    A chunk is never changed, and its id never used again. Thread-safe.
    """

    def __init__(self) -> None:
        self._ids: set[int] = set()

    def is_intact(self, chunk_id: int, data: ReadableBuffer, expected: int) -> bool:
        """Whether ``data`` are the bytes that were written as this chunk."""
        if chunk_id in self._ids:
            return True
        if checksum(data) != expected:
            return False
        if len(self._ids) >= MAX_VERIFIED:
            self._ids.clear()
        self._ids.add(chunk_id)
        return True
