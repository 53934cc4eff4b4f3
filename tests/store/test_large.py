"""A value past 4 GiB, which LMDB could not hold in one entry, in chunks as large as those of the daemon."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path

import pytest

from kaasd.store.base import Durability, Write
from kaasd.store.lmdb_store import CHUNK_BYTES, LmdbStore

SIZE_BYTES = (4 << 30) + (3 << 20) + 5
PIECE_BYTES = 1 << 20


def pattern(start: int, stop: int) -> bytes:
    """Return the value's bytes of a range. Every MiB differs, and so none can stand in another's place."""
    first, last = start // PIECE_BYTES, -(-stop // PIECE_BYTES)
    whole = b"".join(number.to_bytes(8, "little") * (PIECE_BYTES // 8) for number in range(first, last))
    return whole[start - first * PIECE_BYTES : stop - first * PIECE_BYTES]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_value_past_4_gib(tmp_path: Path) -> None:
    size = SIZE_BYTES
    free = shutil.disk_usage(tmp_path).free
    if free < size + (2 << 30):
        size = max(free // 4 // PIECE_BYTES * PIECE_BYTES, 3 * CHUNK_BYTES) + 5
        warnings.warn(f"{tmp_path} has {free} bytes free: the value is of {size} bytes in place of {SIZE_BYTES}", stacklevel=1)
    with LmdbStore(tmp_path / "store", limit_bytes=8 << 30, durability=Durability.NONE) as store:
        expected = hashlib.blake2b()
        staged = store.stage()
        for start in range(0, size, PIECE_BYTES):
            piece = pattern(start, min(start + PIECE_BYTES, size))
            expected.update(piece)
            staged.append(piece)
        assert store.commit([Write("a", staged)]).result()["a"].size_bytes == size

        found = hashlib.blake2b()
        with store.snapshot() as snapshot:
            for view in snapshot.pieces("a"):
                found.update(view)
        assert found.digest() == expected.digest()

        # A range over the edge of two chunks, near the end.
        start = size - CHUNK_BYTES - 100
        patch = b"y" * (CHUNK_BYTES + 50)
        store.commit([Write("a", [patch], start)]).result()
        with store.snapshot() as snapshot:
            tail = b"".join(snapshot.pieces("a", start - 1000))
        assert tail == pattern(start - 1000, start) + patch + pattern(size - 50, size)

        store.delete("a").result()
        store.sweep().result()
        assert store.stats().used_bytes == 0
    shutil.rmtree(tmp_path / "store")
