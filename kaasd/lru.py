"""A cache bounded by bytes that forgets what was used longest ago."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """Values by key, at most ``limit_bytes`` of them together. Not thread-safe."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._used_bytes = 0
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: K) -> V | None:
        """Return the value, which is now the one used last; None where there is none."""
        item = self._items.get(key)
        if item is None:
            return None
        self._items.move_to_end(key)
        return item[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        """Keep ``value``, unless it alone is over the limit."""
        self.discard(key)
        if size_bytes > self._limit_bytes:
            return
        self._items[key] = value, size_bytes
        self._used_bytes += size_bytes
        while self._used_bytes > self._limit_bytes:
            _, (_, freed_bytes) = self._items.popitem(last=False)
            self._used_bytes -= freed_bytes

    def discard(self, key: K) -> None:
        """Forget the key, if it is there."""
        if (item := self._items.pop(key, None)) is not None:
            self._used_bytes -= item[1]
