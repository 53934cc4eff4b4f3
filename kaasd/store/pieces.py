"""Bytes that lie in several buffers, addressed as if they lay in one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kaasd.store.base import ReadableBuffer


def flat(buffer: ReadableBuffer) -> memoryview:
    """Return ``buffer`` as a view of bytes. Raises ``TypeError`` where it is not contiguous."""
    view = memoryview(buffer)
    return view if view.ndim == 1 and view.format == "B" and view.contiguous else view.cast("B")


class Pieces:
    """A sequence of buffers, none copied."""

    __slots__ = ("_views", "size_bytes")

    def __init__(self, buffers: Iterable[ReadableBuffer] = ()) -> None:
        self._views = [view for view in map(flat, buffers) if len(view)]
        self.size_bytes = sum(map(len, self._views))

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self._views)

    def joined(self) -> bytes | memoryview:
        """Return the bytes in one buffer, copied only where there are several."""
        return self._views[0] if len(self._views) == 1 else b"".join(self._views)

    def cut(self, size_bytes: int) -> Iterator[Pieces]:
        """Yield parts of ``size_bytes``, the last one as long as what is left."""
        part: list[memoryview] = []
        missing = size_bytes
        for view in self._views:
            start = 0
            while len(view) - start >= missing:
                part.append(view[start : start + missing])
                start += missing
                yield Pieces(part)
                part, missing = [], size_bytes
            if start < len(view):
                part.append(view[start:])
                missing -= len(view) - start
        if part:
            yield Pieces(part)
