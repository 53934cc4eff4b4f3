"""Several processes on one store, and what is left when one dies."""

from __future__ import annotations

import errno
import shutil
import signal
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import pytest

from kaas_core.errors import InternalError, QueueFullError, StoreForeignError, StoreFullError
from kaasd.store.base import Durability, Write
from kaasd.store.environment import translate
from kaasd.store.lmdb_store import LmdbStore
from tests.store.support import Start, kill, said, tell, wait_until


def test_processes_see_each_other_and_share_versions(store: LmdbStore, start: Start, read: Callable) -> None:
    child = start("""
versions = [store.commit([Write(f"child{i}", [bytes([i]) * 3000])]).result()[f"child{i}"].version for i in range(100)]
say(*versions)
sys.stdin.readline()
with store.snapshot() as snapshot:
    say(sum(len(view) for view in snapshot.pieces("parent99")))
store.close()
""")
    versions = [store.commit([Write(f"parent{i}", [bytes([i]) * 5000])]).result()[f"parent{i}"].version for i in range(100)]
    versions += map(int, said(child).split())
    assert len(set(versions)) == 200
    assert all(read(store, f"child{i}") == bytes([i]) * 3000 for i in range(100))
    tell(child)
    assert said(child) == "5000"
    assert child.wait() == 0


KILLED_WHILE_COMMITTING = """
for i in range(10**9):
    patch = bytes([i % 251])
    writes = [Write("inline", [b"%020d" % i]), Write("chunk", [patch * 4000]), Write("chunks", [b"%020d" % i, patch * 30_000])]
    staged = store.stage()
    staged.append(patch * 20_000)
    writes += [Write("staged", staged), Write("range", [patch * 9000], 1000)]
    store.commit(writes).result()
    say(i)
"""


@pytest.mark.parametrize("durability", ["FULL", "META", "NONE"])
def test_kill_during_commits_tears_and_loses_nothing(open_store: Callable, start: Start, read: Callable, durability: str) -> None:
    store = open_store(durability=Durability[durability])
    store.commit([Write("range", [bytes(20_000)])]).result()
    for rounds in range(1, 9):
        child = start(KILLED_WHILE_COMMITTING.replace("for i in", "store._environment.lmdb.sync\nfor i in"))
        for _ in range(rounds * 3):
            answered = int(said(child))
        child.send_signal(signal.SIGKILL)
        assert child.stdout is not None
        answered = [answered, *map(int, child.stdout.read().split())][-1]
        child.wait()
        found = int(read(store, "inline"))
        assert found in (answered, answered + 1)
        patch = bytes([found % 251])
        assert read(store, "chunk") == patch * 4000
        assert read(store, "chunks") == b"%020d" % found + patch * 30_000
        assert read(store, "staged") == patch * 20_000
        assert read(store, "range") == bytes(1000) + patch * 9000 + bytes(10_000)
    for key in ("inline", "chunk", "chunks", "staged", "range"):
        store.delete(key).result()
    store.sweep().result()
    assert store.stats().used_bytes == 0


def test_writer_killed_with_the_lock(store: LmdbStore, start: Start, read: Callable) -> None:
    child = start("""
txn = store._environment.begin(write=True)
txn.put(b"a", b"torn", db=store._environment.entries[Namespace.VALUES])
say("locked")
sys.stdin.readline()
""")
    assert said(child) == "locked"
    commit = store.commit([Write("b", [b"1"])])
    assert not commit.done()
    kill(child)
    commit.result()
    with store.snapshot() as snapshot:
        assert [entry.key for entry in snapshot.list()] == ["b"]


def test_upload_of_a_live_process_is_kept_and_of_a_dead_one_swept(store: LmdbStore, start: Start, payload: Callable) -> None:
    child = start("""
staged = store.stage()
staged.append(b"x" * 50_000)
say("staged")
sys.stdin.readline()
store.commit([Write("a", staged)]).result()
other = store.stage()
other.append(b"y" * 50_000)
say("committed")
sys.stdin.readline()
""")
    assert said(child) == "staged"
    assert store.sweep().result() == 0
    tell(child)
    assert said(child) == "committed"
    kill(child)
    # Twelve full chunks each; the thirteenth was still in the process's memory.
    assert store.sweep().result() == 12
    with store.snapshot() as snapshot:
        assert b"".join(snapshot.pieces("a")) == b"x" * 50_000
    store.delete("a").result()
    assert store.stats().used_bytes == 0


def test_orphans_are_swept_at_start(open_store: Callable, start: Start) -> None:
    child = start("""
store.stage().append(b"x" * 500_000)
say(store.stats().used_bytes)
sys.stdin.readline()
""")
    assert int(said(child)) > 500_000
    kill(child)
    store = open_store(sweep_interval_s=3600.0)
    store.commit([Write("a", [b"1"])]).result()  # behind the sweep that the writer begins with
    store.delete("a").result()
    store.close()
    store = open_store(sweep_interval_s=3600.0)
    assert store.stats().used_bytes == 0


def test_orphans_are_swept_now_and_then(open_store: Callable, start: Start) -> None:
    store = open_store(sweep_interval_s=0.05)
    child = start("""
store.stage().append(b"x" * 500_000)
say(store.stats().used_bytes)
sys.stdin.readline()
""")
    assert int(said(child)) > 500_000
    kill(child)
    wait_until(lambda: store.stats().used_bytes == 0)


def test_what_an_overwritten_value_left_is_swept(store: LmdbStore, start: Start) -> None:
    """More chunks than one transaction frees, of a process that dies before it comes to the rest."""
    child = start("""
store._writer._free_some = lambda: 0
store.commit([Write("a", [b"x" * 1_000_000])]).result()
store.commit([Write("a", [b"y"])]).result()
say(store.stats().used_bytes)
sys.stdin.readline()
""")
    assert int(said(child)) > 1_000_000
    kill(child)
    assert store.sweep().result() == 245
    store.delete("a").result()
    assert store.stats().used_bytes == 0


def test_failed_second_open_does_not_end_the_first(open_store: Callable, store_path: Path, start: Start) -> None:
    """Closing a descriptor frees a process's locks on a file; those that keep its uploads from being swept must survive."""
    store = open_store()
    staged = store.stage()
    staged.append(b"x" * 50_000)
    with pytest.raises(InternalError, match="already open in this process"):
        open_store()
    child = start("say(store.sweep().result())")
    assert said(child) == "0"
    store.commit([Write("a", staged)]).result()


def test_process_with_a_larger_limit(open_store: Callable, start: Start, payload: Callable, read: Callable) -> None:
    """The map of this process ends before the file does: it is enlarged when no transaction is open here."""
    store = open_store(limit_bytes=2 << 20)
    store.commit([Write("a", [b"1"])]).result()
    child = start(
        """
store.commit([Write("big", [b"x" * 3_000_000])]).result()
say("written")
sys.stdin.readline()
""",
        LIMIT_BYTES=str(64 << 20),
    )
    snapshot = store.snapshot()
    assert said(child) == "written"
    with ThreadPoolExecutor(2) as threads:
        reads = threads.submit(read, store, "big")
        delete = store.delete("a")
        assert b"".join(snapshot.pieces("a")) == b"1"
        snapshot.close()
        assert reads.result() == b"x" * 3_000_000
        delete.result()
    with pytest.raises(StoreFullError):
        store.commit([Write("b", [payload(100)])]).result()
    store.delete("big").result()
    store.commit([Write("b", [b"1"])]).result()


class WatchedLock(threading.Condition):
    """Tells when somebody asks for it."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()

    def __enter__(self) -> bool:
        self.asked.set()
        return super().__enter__()


def test_nothing_reads_the_map_while_it_moves(store: LmdbStore) -> None:
    environment = store._environment
    store.sweep().result()  # no transaction is open from here on
    environment._turn = lock = WatchedLock()
    read_meanwhile = []
    with ThreadPoolExecutor(2) as threads:

        class MovingMap:
            """LMDB's environment, asked for its state while its map moves."""

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def set_mapsize(self, size: int) -> None:
                for question in (environment.is_held, environment.last_transaction):
                    lock.asked.clear()
                    answers.append(threads.submit(question))
                    answers[-1].add_done_callback(lambda _: lock.asked.set())
                    assert lock.asked.wait(60.0)
                    read_meanwhile.append(answers[-1].done())
                real.set_mapsize(size)

        real, answers = environment.lmdb, list[Any]()
        environment.lmdb = MovingMap()
        try:
            environment._adopt_size()
        finally:
            environment.lmdb = real
        assert [answer.result() for answer in answers] == [False, environment.last_transaction()]
    assert read_meanwhile == [False, False]


def test_readers_of_a_dead_process_are_reclaimed(open_store: Callable, start: Start) -> None:
    store = open_store(max_readers=4)
    store.sweep().result()  # it reads too, here and in the child
    child = start("""
store.sweep().result()
snapshots = []
try:
    while True:
        snapshots.append(store.snapshot())
except Exception as error:
    say(type(error).__name__, len(snapshots))
sys.stdin.readline()
""")
    assert said(child) == "QueueFullError 4"
    with pytest.raises(QueueFullError, match="too many snapshots"):
        store.snapshot()
    kill(child)
    store.snapshot().close()


def test_fork_is_refused(store: LmdbStore, start: Start) -> None:
    child = start("""
import warnings
warnings.simplefilter("ignore")
store.commit([Write("a", [b"1"])]).result()
sys.stdout.flush()
if pid := os.fork():
    os.waitpid(pid, 0)
    with store.snapshot() as snapshot:
        say(bytes(next(snapshot.pieces("a"))))
else:
    commit = lambda: store.commit([Write("a", [b"2"])])
    for attempt in (store.snapshot, store.stats, commit, lambda: store.delete("a"), store.close):
        try:
            attempt()
        except Exception as error:
            say(error.message.partition(" was ")[2])
    os._exit(0)
""")
    for _ in range(5):
        assert said(child) == "opened before a fork; LMDB must be opened anew in each process"
    assert said(child) == "b'1'"


def test_file_that_cannot_grow(open_store: Callable, start: Start, read: Callable) -> None:
    """A write that the system cuts short fails the commits that need it, and no other."""
    store = open_store()
    store.commit([Write("a", [b"1" * 10_000])]).result()
    child = start("""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
commits = [store.commit([Write("b", [b"x" * 5_000_000])]), store.commit([Write("c", [b"small"])])]
say(*(type(commit.exception()).__name__ for commit in commits))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store.commit([Write("b", [b"x" * 5_000_000])]).result()
store.close()
""")
    assert said(child) == "StoreFullError NoneType"
    assert child.wait() == 0
    assert read(store, "a") == b"1" * 10_000
    assert read(store, "b") == b"x" * 5_000_000


def test_format_of_another_version(store_path: Path, open_store: Callable) -> None:
    open_store().close()
    with lmdb.open(str(store_path)) as environment, environment.begin(write=True) as txn:
        txn.put(b"state", struct.pack("<QQQ", 7, 0, 0))
    with pytest.raises(StoreForeignError, match="has format 7, but this version of kaasd reads formats up to 6"):
        open_store()


@pytest.mark.parametrize(("free", "kind"), [(0, StoreFullError), (1 << 40, InternalError)])
def test_error_of_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, kind: type) -> None:
    """LMDB calls a write that was cut short an input/output error; how much is free tells what it was."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    for code, expected in {errno.EIO: kind, errno.ENOSPC: StoreFullError, errno.EPERM: InternalError}.items():
        error = lmdb.Error("mdb_txn_commit")
        vars(error)["code"] = code  # as py-lmdb does
        assert type(translate(error, tmp_path)) is expected
