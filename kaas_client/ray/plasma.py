"""Where Ray's object store lies in this process: one file in memory, mapped by all processes of a node."""

from __future__ import annotations

from pathlib import Path

from kaasd.store.base import StoreMapping

_MAPS = Path("/proc/self/maps")


class Plasma:
    """Finds the store, which a process maps when it first reads an object from there; it stays where it is."""

    def __init__(self) -> None:
        self._found: StoreMapping | None = None

    def mapping(self) -> StoreMapping | None:
        """Return the mapping that is there from the start, the same one each time; None while there is none.

        What Ray puts elsewhere because this is full is not in it.
        """
        if self._found is None:
            self._found = find_mapping(_MAPS.read_text())
        return self._found


def find_mapping(maps: str) -> StoreMapping | None:
    """Return the largest mapping of a store in the text of ``/proc/self/maps``."""
    found: list[StoreMapping] = []
    for line in maps.splitlines():
        span, _, _, _, _, *path = line.split(maxsplit=5)
        if path and path[0].rpartition("/")[2].startswith("plasma"):
            start, end = (int(address, 16) for address in span.split("-"))
            found.append(StoreMapping(path[0].removesuffix(" (deleted)"), start, end - start, grows=False))
    return max(found, key=lambda mapping: mapping.size_bytes, default=None)
