"""A value that arrives bit by bit."""

from __future__ import annotations

from types import TracebackType

from kaas_core import ReadableBuffer
from kaas_core.errors import InternalError
from kaasd.store.records import Extent, Pieces, flat
from kaasd.store.writer import Writer


class StagedValue:
    """Full chunks are written as they come, the last one with the commit. Used by one thread at a time.

    A commit uses it up, whether it succeeds or not.
    """

    def __init__(self, writer: Writer, chunk_bytes: int) -> None:
        self._writer = writer
        self._chunk_bytes = chunk_bytes
        self._extents: list[Extent] = []
        self._tail = bytearray()
        self._size_bytes = 0
        self._open = True

    def __enter__(self) -> StagedValue:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def append(self, data: ReadableBuffer) -> None:
        self._check_open()
        view = flat(data)
        self._size_bytes += len(view)
        # A full chunk is written only when more comes, so that a value of at most one takes no transaction before its commit.
        while len(view):
            if not self._tail and len(view) > self._chunk_bytes:
                self._write(view[: self._chunk_bytes])
                view = view[self._chunk_bytes :]
                continue
            if len(self._tail) == self._chunk_bytes:
                self._write(self._tail)
                self._tail = bytearray()
            part = view[: self._chunk_bytes - len(self._tail)]
            self._tail += part
            view = view[len(part) :]

    def take(self, writer: Writer) -> tuple[list[Extent], Pieces]:
        """Hand over what was written and what was not, to a commit of ``writer``."""
        self._check_open()
        if writer is not self._writer:
            raise InternalError("a value was staged in one store and committed in another")
        self._open = False
        return self._extents, Pieces([self._tail])

    def close(self) -> None:
        if self._open:
            self._open = False
            self._tail = bytearray()
            self._writer.drop_loose(self._extents)

    def _write(self, data: ReadableBuffer) -> None:
        try:
            self._extents += self._writer.write_loose(Pieces([data]))
        except BaseException:
            self.close()
            raise

    def _check_open(self) -> None:
        if not self._open:
            raise InternalError("a staged value was used after its commit, failure or close")
