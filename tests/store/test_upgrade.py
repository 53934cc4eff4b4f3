"""Stores of the formats 2 to 5 get what they lack at their first start, in their place and at once.

Format 5 had no forms of arrays in its records, format 4 no replies in its counters, format 3 no accounts, and format 2 no tree
for replies either.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from kaas_core.array_form import ArrayForm
from kaas_core.errors import StoreForeignError
from kaasd.store import migration
from kaasd.store.base import Account, KeyExistsError, Namespace, Write
from kaasd.store.directory import DATABASES, LMDB_MAJOR_VERSION, OLD_DATABASES
from tests.store.support import Start, kill, own

FORMAT_2 = Path(__file__).parent / "data/format2.mdb.gz"
FORMAT_3 = Path(__file__).parent / "data/format3.mdb.gz"
FORMAT_4 = Path(__file__).parent / "data/format4.mdb.gz"
FORMAT_5 = Path(__file__).parent / "data/format5.mdb.gz"
"""Each made by kaasd when that format was today's, with chunks of 4 KiB; ``key/N`` has N * 700 times the byte N."""


def store_of(content: Path, store_path: Path) -> Path:
    """Lay a file of an older format where the store is; return where it lies."""
    store_path.mkdir(mode=0o700)
    (store_path / "owners").touch(0o600)
    file = store_path / "data.mdb"
    file.write_bytes(gzip.decompress(content.read_bytes()))
    return file


def upgrade_until_killed(file: Path, start: Start) -> None:
    """Have a process upgrade a store, which is killed before all is written; see that nothing has changed."""
    before = file.read_bytes()
    child = start(
        f"""
import signal
from pathlib import Path
from kaasd.store import migration
migration.StoreState.pack = lambda state: os.kill(os.getpid(), signal.SIGKILL)
migration.upgrade(Path({str(file.parent)!r}))
""",
        bare="yes",
    )
    assert child.wait() == -9
    assert file.read_bytes() == before


@pytest.fixture
def old(store_path: Path) -> Path:
    return store_of(FORMAT_2, store_path)


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


@pytest.fixture
def old3(store_path: Path) -> Path:
    return store_of(FORMAT_3, store_path)


def test_all_of_format_3_is_there_and_counts_for_the_default_group(old3: Path, open_store: Callable, read: Callable) -> None:
    store = open_store()
    for number in range(20):
        if number != 6:
            assert read(store, f"key/{number:02}") == bytes([number]) * (number * 700)
    assert read(store, "default/1", namespace=Namespace.REPLIES) == b"reply"
    assert read(store, "code", namespace=Namespace.COMPILED) == b"machine code"
    values = sum(number * 700 for number in range(20) if number != 6)
    assert store.accounts() == {"default": Account(values + len("function") + 9000 + len("reply"), 19)}
    assert list(store.check()) == []
    store.commit([Write("key/07", [b"new"], account="a")]).result()
    assert store.accounts()["default"].stored_bytes == values + len("function") + 9000 + len("reply") - 4900
    store.close()
    assert open_store().accounts()["a"] == Account(3, 1)


def test_what_format_2_had_counts_for_the_default_group(old: Path, open_store: Callable) -> None:
    values = sum(number * 700 for number in range(20) if number not in (5, 6)) + len("again")
    assert open_store().accounts() == {"default": Account(values + len("function") + 9000, 19)}


def test_of_format_3_killed_before_the_end(old3: Path, open_store: Callable, start: Start) -> None:
    upgrade_until_killed(old3, start)
    assert open_store().accounts()["default"].keys == 19


@pytest.fixture(params=[FORMAT_4, FORMAT_5], ids=["4", "5"])
def old4(request: pytest.FixtureRequest, store_path: Path) -> Path:
    """Both hold the same, but for the place of the first reply."""
    return store_of(request.param, store_path)


def test_all_of_format_4_is_there(old4: Path, open_store: Callable, read: Callable) -> None:
    """Its accounts too, and a reply that it has keeps its id from running again."""
    store = open_store()
    for number in range(1, 20):
        if number != 6:
            assert read(store, f"key/{number:02}") == bytes([number]) * (number * 700)
    assert read(store, "key/00") == b"with a reply"
    assert read(store, "default/1", namespace=Namespace.REPLIES) == b"reply"
    assert read(store, "a/2", namespace=Namespace.REPLIES) == b"large" * 400
    assert store.accounts() == {"default": Account(67825, 9), "a": Account(72000, 10, 100_000, 50)}
    with pytest.raises(KeyExistsError):
        store.commit([Write("default/1", [b"again"], namespace=Namespace.REPLIES, must_be_new=True)]).result()
    store.commit([Write("default/3", [b"new"], namespace=Namespace.REPLIES, must_be_new=True)]).result()
    store.close()
    again = open_store()
    assert read(again, "default/3", namespace=Namespace.REPLIES) == b"new"
    assert list(again.check()) == []


def test_of_format_4_killed_before_the_end(old4: Path, open_store: Callable, start: Start) -> None:
    upgrade_until_killed(old4, start)
    assert open_store().accounts()["a"].keys == 10


def test_values_of_format_5_have_no_form_and_may_get_one(store_path: Path, open_store: Callable, read: Callable) -> None:
    store_of(FORMAT_5, store_path)
    store = open_store()
    with store.snapshot() as snapshot:
        before = {entry.key: entry for entry in snapshot.list()}
    assert {entry.form for entry in before.values()} == {None}
    form = ArrayForm("float32", (700,))
    entry = store.commit([Write("key/04", [b"4" * 2800], form=form)]).result()["key/04"]
    assert entry.version == max(entry.version for entry in before.values()) + 2  # one is a reply's
    store.close()
    again = open_store()
    with again.snapshot() as snapshot:
        assert {entry.key: entry for entry in snapshot.list()} == before | {"key/04": entry}
        assert snapshot.stat("key/04").form == form
    assert list(again.check()) == []
