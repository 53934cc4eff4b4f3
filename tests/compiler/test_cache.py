"""The cache of compiled code: bounded, and in nobody's way."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kaasd.compiler.cache import CLAIMS_FILE, CodeCache, SharedCache, StoreCache
from kaasd.store.base import Namespace, Write
from kaasd.store.lmdb_store import LmdbStore

LIMIT_BYTES = 64 << 20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    with closing(LmdbStore(tmp_path, limit_bytes=LIMIT_BYTES)) as store:
        yield store


@pytest.fixture
def cache(store: LmdbStore, tmp_path: Path) -> Iterator[StoreCache]:
    with closing(StoreCache(store, tmp_path, 100_000)) as cache:
        yield cache


def key(number: int) -> str:
    return f"{number:064x}"


def settle(store: LmdbStore) -> None:
    """Wait until what was begun before is stored."""
    store.commit([Write("x", [b""])]).result()


def kept(store: LmdbStore) -> list[str]:
    with store.snapshot() as snapshot:
        return [entry.key for entry in snapshot.list(namespace=Namespace.COMPILED)]


def test_what_was_put_is_found(store: LmdbStore, cache: StoreCache) -> None:
    assert cache.get(key(1)) is None
    cache.put(key(1), b"code")
    settle(store)
    assert (cache.get(key(1)), cache.get(key(2))) == (b"code", None)


def test_the_oldest_goes_first(store: LmdbStore, cache: StoreCache) -> None:
    for number in (3, 1, 4, 5, 2):
        cache.put(key(number), bytes(30_000))
        settle(store)
    assert kept(store) == [key(2), key(4), key(5)]
    cache.put(key(9), bytes(80_000))  # More than is left of the limit when the oldest have gone.
    settle(store)
    assert kept(store) == [key(2), key(4), key(5)]


def test_what_others_have_added_counts_at_the_next_look(store: LmdbStore, cache: StoreCache, tmp_path: Path) -> None:
    cache.put(key(1), bytes(30_000))
    settle(store)
    store.commit([Write(key(2), [bytes(60_000)], namespace=Namespace.COMPILED)]).result()
    for number in (3, 4, 5):
        cache.put(key(number), bytes(30_000))
        settle(store)
    assert kept(store) == [key(4), key(5)]


def test_a_store_that_is_rather_full_gets_nothing(store: LmdbStore, cache: StoreCache) -> None:
    store.commit([Write("v", [bytes(LIMIT_BYTES * 3 // 4)])]).result()
    cache.put(key(1), b"code")
    settle(store)
    assert kept(store) == []


def test_a_shared_one_keeps_what_it_locks(tmp_path: Path) -> None:
    with closing(SharedCache(tmp_path, 100_000)) as cache, closing(SharedCache(tmp_path)) as other:
        for number in range(5):
            cache.put(key(number), bytes(30_000))
        assert (tmp_path / CLAIMS_FILE).exists()
        assert other.get(key(4)) == bytes(30_000)
        assert other.get(key(0)) is None


@pytest.mark.parametrize("kind", ["store", "shared"])
def test_what_is_claimed_is_claimed_by_one_process(store: LmdbStore, tmp_path: Path, kind: str) -> None:
    with closing(StoreCache(store, tmp_path) if kind == "store" else SharedCache(tmp_path)) as cache:
        check_claims(cache, store, tmp_path)


def check_claims(cache: CodeCache, store: LmdbStore, tmp_path: Path) -> None:
    script = (
        "import fcntl, os, sys\n"
        f"descriptor = os.open({str(tmp_path / CLAIMS_FILE)!r}, os.O_RDWR)\n"
        "fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 7)\n"
        "print('claimed', flush=True)\n"
        "sys.stdin.read()\n"
    )
    claimed, other = f"{7:015x}".ljust(64, "f"), f"{8:015x}".ljust(64, "f")
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "claimed\n"
        assert not cache.claim(claimed)
        assert cache.claim(other)
        process.kill()
        process.wait()
    assert cache.claim(claimed)
    for end in (cache.give_up, lambda claimed: (cache.put(claimed, b"code"), settle(store))):
        assert cache.claim(claimed)
        end(claimed)
        subprocess.run([sys.executable, "-c", script.replace("LOCK_EX", "LOCK_EX | fcntl.LOCK_NB")], input=b"", check=True)
