"""A store of format 2, which had no tree for replies, gets one at its first start, in its place and at once."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from kaas_core.errors import StoreForeignError
from kaasd.store import migration
from kaasd.store.base import Namespace, Write
from kaasd.store.directory import DATABASES, LMDB_MAJOR_VERSION, OLD_DATABASES
from tests.store.support import Start, kill, own

FORMAT_2 = Path(__file__).parent / "data/format2.mdb.gz"
"""Made by kaasd when format 2 was today's, with chunks of 4 KiB; ``key/N`` has N * 700 times the byte N."""


@pytest.fixture
def old(store_path: Path) -> Path:
    store_path.mkdir(mode=0o700)
    (store_path / "owners").touch(0o600)
    file = store_path / "data.mdb"
    file.write_bytes(gzip.decompress(FORMAT_2.read_bytes()))
    return file


def test_all_that_was_stored_is_there(old: Path, open_store: Callable, read: Callable) -> None:
    store = open_store()
    for number in range(20):
        if number not in (5, 6):
            assert read(store, f"key/{number:02}") == bytes([number]) * (number * 700)
    assert read(store, "key/05") == b"again"
    assert read(store, "f", namespace=Namespace.FUNCTIONS) == b"function"
    assert read(store, "sha256:1", namespace=Namespace.LIBRARIES) == bytes(9000)
    with store.snapshot() as snapshot:
        assert len(snapshot.list()) == 19
        assert snapshot.stat("sha256:1", Namespace.LIBRARIES).version == 23
    assert list(store.check()) == []
    assert {file.name for file in old.parent.iterdir()} == {"data.mdb", "lock.mdb", "owners"}


def test_it_keeps_replies_from_then_on(old: Path, open_store: Callable, read: Callable) -> None:
    store = open_store()
    assert store.commit([Write("g/1", [b"reply"], namespace=Namespace.REPLIES)]).result()["g/1"].version == 25
    store.close()
    again = open_store()
    assert read(again, "g/1", namespace=Namespace.REPLIES) == b"reply"
    assert list(again.check()) == []


def test_killed_before_the_end_it_is_as_it_was(old: Path, open_store: Callable, read: Callable, start: Start) -> None:
    """All of it is one transaction."""
    before = old.read_bytes()
    child = start(
        f"""
import signal
from pathlib import Path
from kaasd.store import migration
migration.StoreState.pack = lambda state: os.kill(os.getpid(), signal.SIGKILL)
migration.upgrade(Path({str(old.parent)!r}))
""",
        bare="yes",
    )
    assert child.wait() == -9
    assert old.read_bytes() == before
    assert read(open_store(), "key/05") == b"again"


def test_another_process_has_it_open(old: Path, open_store: Callable, start: Start) -> None:
    child = own(old.parent, start)
    before = old.read_bytes()
    with pytest.raises(StoreForeignError, match="another process has it open; end that first"):
        open_store()
    assert old.read_bytes() == before
    kill(child)
    open_store()


def test_a_damaged_tree_is_refused_as_before(old: Path, open_store: Callable) -> None:
    raw = bytearray(old.read_bytes())
    for page in range(2, len(raw) // 4096):
        if raw[page * 4096 + 10] & 3:
            raw[page * 4096 + 12] ^= 0xFF
    old.write_bytes(raw)
    with pytest.raises(StoreForeignError, match="is damaged"):
        open_store()
    assert old.read_bytes() == bytes(raw)


def test_it_happens_once(old: Path, open_store: Callable) -> None:
    open_store().close()
    with lmdb.open(str(old.parent), max_dbs=len(DATABASES), lib_version=LMDB_MAJOR_VERSION) as environment:
        transaction = environment.info()["last_txnid"]
    migration.upgrade(old.parent)
    with lmdb.open(str(old.parent), max_dbs=len(DATABASES), lib_version=LMDB_MAJOR_VERSION) as environment:
        assert environment.info()["last_txnid"] == transaction
    assert set(DATABASES) - set(OLD_DATABASES) >= {b"replies"}
