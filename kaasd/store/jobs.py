"""What waits for the writer: changes that may share a transaction."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from kaasd.store.base import Entry, Namespace
from kaasd.store.changes import Change, Changes
from kaasd.store.records import Extent

T = TypeVar("T")


class Job(Generic[T]):
    """What waits for a transaction that it may share with others."""

    def __init__(self) -> None:
        self.future: Future[T] = Future()

    @property
    def size_bytes(self) -> int:
        """How much it writes."""
        return 0

    @property
    def loose(self) -> Sequence[Extent]:
        """Chunks that are of no use if it fails."""
        return ()

    def check(self, changes: Changes) -> None:
        """Raises ``KaasError`` where ``apply`` cannot be done."""
        raise NotImplementedError

    def apply(self, changes: Changes) -> T:
        """Change the store; what this raises aborts the transaction."""
        raise NotImplementedError


class Commit(Job[dict[str, Entry]]):
    """New values."""

    def __init__(self, changes: Sequence[Change]) -> None:
        super().__init__()
        self.changes = changes

    @property
    def size_bytes(self) -> int:
        return sum(change.pieces.size_bytes for change in self.changes)

    @property
    def loose(self) -> Sequence[Extent]:
        return [extent for change in self.changes for extent in change.extents]

    def check(self, changes: Changes) -> None:
        changes.check(self.changes)

    def apply(self, changes: Changes) -> dict[str, Entry]:
        return changes.apply(self.changes)


class Delete(Job[Entry]):
    """A key's end."""

    def __init__(self, namespace: Namespace, raw_key: bytes, key: str) -> None:
        super().__init__()
        self._what = (namespace, raw_key, key)

    def check(self, changes: Changes) -> None:
        changes.check_key(*self._what)

    def apply(self, changes: Changes) -> Entry:
        return changes.delete(*self._what)
