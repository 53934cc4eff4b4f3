"""All that a namespace holds, read once: what the front keeps in memory from its start on."""

from __future__ import annotations

from collections.abc import Iterator

from kaas_core.errors import DataDamagedError
from kaasd.store.base import KeyValueStore, Namespace

_PAGE = 1000


def contents(store: KeyValueStore, namespace: Namespace) -> Iterator[tuple[str, bytes | DataDamagedError]]:
    """Yield all keys in order, each with its value, or with why that cannot be read as it was written."""
    after = ""
    with store.snapshot() as snapshot:
        while entries := snapshot.list(after=after, limit=_PAGE, namespace=namespace):
            for entry in entries:
                try:
                    stored = b"".join(snapshot.pieces(entry.key, namespace=namespace))
                except DataDamagedError as error:
                    yield entry.key, error
                else:
                    yield entry.key, stored
            after = entries[-1].key
