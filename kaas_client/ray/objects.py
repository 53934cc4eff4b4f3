"""Ray's objects as the store of an executor: what requests read is lent to it, and what they write is handed over to Ray.

An object never changes. So each has version 1, the store has one state for ever, and what is on the device of an object stays
right. Used by the thread that owns the device; only ``Loan`` ends in any.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from kaas_core import ReadableBuffer
from kaas_core.errors import KeyNotFoundError, ValueTooShortError
from kaasd.store.base import Entry, Namespace, StoreMapping, Write

VERSION = 1


class Loan:
    """Goes with the last that uses bytes which were lent; they may be freed then."""

    def __init__(self, on_end: Callable[[], object]) -> None:
        """``on_end`` may be called by any thread, in the middle of anything: it must not wait."""
        self._on_end = on_end

    def __del__(self) -> None:
        self._on_end()


class Receiver(Protocol):
    """Who waits for what one request writes."""

    def receive(self, contents: Mapping[str, memoryview], loan: Loan | None) -> None:
        """Take the bytes of all outputs, by key, to be used for as long as ``loan`` is held; None: for ever."""


class ObjectStore:
    """A ``ValueStore``. Keys are object ids in hexadecimal; of outputs that do not stay on the device, buffer names."""

    last_commit = 0

    def __init__(self, later: Callable[[Callable[[], None]], object], mapped: Callable[[], StoreMapping | None]) -> None:
        """``later`` takes what this thread is to call soon, from any thread and without waiting.

        ``mapped`` says where Ray's objects lie in this process.
        """
        self._later = later
        self._mapped = mapped
        self._lent: dict[str, list[memoryview]] = {}
        self._served: set[str] = set()
        """Outputs of requests that are under way."""
        self._receiver: Receiver | None = None
        """Of what is committed next."""

    @property
    def mapped(self) -> StoreMapping | None:
        """Where the values that are lent lie."""
        return self._mapped()

    def serves(self, outputs: Collection[str]) -> bool:
        """Return whether a request is under way that is to write one of these."""
        return not self._served.isdisjoint(outputs)

    def lend(self, values: Mapping[str, memoryview], outputs: Collection[str]) -> None:
        """While a request is under way that makes these ``outputs``, lend it values by object id."""
        for key, view in values.items():
            self._lent.setdefault(key, []).append(view)
        self._served.update(outputs)

    def take_back(self, values: Mapping[str, memoryview], outputs: Collection[str]) -> None:
        """The request has ended that these were lent to."""
        self._served.difference_update(outputs)
        for key in values:
            self._lent[key].pop()
            if not self._lent[key]:
                del self._lent[key]

    @contextmanager
    def snapshot(self) -> Iterator[ObjectSnapshot]:
        """Yield what can be read now."""
        yield ObjectSnapshot(self._lent)

    def hand_over_to(self, receiver: Receiver) -> None:
        """Have ``receiver`` be given what is committed next."""
        self._receiver = receiver

    def commit(self, writes: Sequence[Write]) -> Future[dict[str, Entry]]:
        """Hand over one request's outputs, each a value in one piece; the future is done when nobody uses the device's bytes."""
        future: Future[dict[str, Entry]] = Future()
        pieces = {write.key: _only_piece(write) for write in writes}
        returned = partial(future.set_result, {key: Entry(key, len(piece), VERSION, 0) for key, piece in pieces.items()})
        receiver, self._receiver = self._receiver, None
        assert receiver is not None
        contents = {key: memoryview(piece) for key, piece in pieces.items()}
        if all(isinstance(piece, bytes) for piece in pieces.values()):  # small ones, which were copied
            receiver.receive(contents, None)
            returned()
        else:
            receiver.receive(contents, Loan(partial(self._later, returned)))
        return future


def _only_piece(write: Write) -> ReadableBuffer:
    assert isinstance(write.pieces, Sequence)
    (piece,) = write.pieces
    return piece


class ObjectSnapshot:
    """What is lent now: a request's inputs are, for as long as it is under way."""

    commit = ObjectStore.last_commit

    def __init__(self, lent: Mapping[str, Sequence[memoryview]]) -> None:
        self._lent = lent

    def stat(self, key: str, namespace: Namespace = Namespace.VALUES) -> Entry:
        """Return the one version that an object has, also of one that is on the device alone, whose size is not known here."""
        lent = self._lent.get(key)
        return Entry(key, len(lent[-1]) if lent else 0, VERSION, 0)

    def pieces(
        self, key: str, offset_bytes: int = 0, size_bytes: int | None = None, namespace: Namespace = Namespace.VALUES
    ) -> Iterator[memoryview]:
        """Yield a range in one piece, where it lies. Raises ``KeyNotFoundError``, ``ValueTooShortError``."""
        value = self._value(key)
        end = len(value) if size_bytes is None else offset_bytes + size_bytes
        if end > len(value):
            raise ValueTooShortError(
                f"object {key} has {len(value)} bytes; the range from {offset_bytes} to {end} cannot be read",
                {"key": key, "size_bytes": str(len(value))},
            )
        return iter((value[offset_bytes:end],))

    def close(self) -> None:
        """Do nothing: who lent the values takes them back."""

    def _value(self, key: str) -> memoryview:
        if key not in self._lent:
            raise KeyNotFoundError(f"object {key} did not come with the call, and is not on the device", {"key": key})
        return self._lent[key][-1]
