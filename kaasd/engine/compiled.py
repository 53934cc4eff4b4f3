"""Compiled code kept in the store, so that only the first worker that ever meets a library compiles it."""

from __future__ import annotations

import logging
from concurrent.futures import Future

from kaasd.errors import KeyNotFoundError
from kaasd.store.base import Entry, KeyValueStore, Namespace, Write

_log = logging.getLogger(__name__)


class StoredCode:
    """A ``CodeCache`` in a store."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store

    def get(self, name: str) -> bytes | None:
        """Return the code of a name; None where there is none."""
        try:
            with self._store.snapshot() as snapshot:
                return b"".join(snapshot.pieces(name, namespace=Namespace.COMPILED))
        except KeyNotFoundError:
            return None

    def put(self, name: str, code: bytes) -> None:
        """Keep code, soon. Where the store is full it is not kept."""
        self._store.commit([Write(name, [code], namespace=Namespace.COMPILED)]).add_done_callback(_note)


def _note(commit: Future[dict[str, Entry]]) -> None:
    if error := commit.exception():
        _log.warning("compiled code is not kept: %s", error)
