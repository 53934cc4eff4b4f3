"""A store on a disk that is full, or under a limit on the size of files: it says so, can be read, and can be emptied."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.store.small_disk import SmallDisk, make

MIB = 1 << 20
DISK_BYTES = 6 * MIB

PROLOGUE = """
import json, os, random, sys
from pathlib import Path
from kaas_core.errors import KaasError, StoreFullError
from kaasd.store.base import *
from kaasd.store.lmdb_store import LmdbStore
path = Path(sys.argv[1]) / "store"
payload = random.Random(0).randbytes
def open_store(**settings):
    return LmdbStore(path, **{"limit_bytes": 64 << 20, "durability": Durability.META, "chunk_bytes": 64 << 10} | settings)
def fill(store, *sizes):
    "Put values of these sizes, each until one fails; return those that did not."
    values = {}
    for size in sizes:
        for i in range(10**6):
            value = payload(size)
            try:
                store.commit([Write(f"{size}/{i}", [value])]).result()
            except StoreFullError:
                break
            values[f"{size}/{i}"] = value
    return values
def read(store, key):
    with store.snapshot() as snapshot:
        return b"".join(snapshot.pieces(key))
def say(*words):
    print(json.dumps(words), flush=True)
"""

Run = Callable[..., list[list[Any]]]


@pytest.fixture(params=["file-size", "tmpfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> SmallDisk:
    return make(request.param, tmp_path / "disk", DISK_BYTES)


@pytest.fixture
def start(disk: SmallDisk) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Start a process whose disk is small; it is killed at the end of the test."""
    with ExitStack() as stack:

        def start_(code: str) -> subprocess.Popen[str]:
            command = disk.command(sys.executable, "-c", PROLOGUE + code, str(disk.folder))
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield start_


@pytest.fixture
def run(start: Callable[[str], subprocess.Popen[str]]) -> Run:
    """Run code to its end, and return what it said."""

    def run_(code: str) -> list[list[Any]]:
        process = start(code)
        output, _ = process.communicate()
        assert process.returncode == 0
        return [json.loads(line) for line in output.splitlines()]

    return run_


def test_what_does_not_fit_is_refused_and_what_is_there_can_be_read_and_deleted(run: Run) -> None:
    """Also when it is full to the last byte, and again and again."""
    (first, second, third), (left,), (end,) = run("""
with open_store() as store:
    rounds = []
    for _ in range(3):
        values = fill(store, 500_000, 60_000, 4000, 100, 1)
        assert {key: read(store, key) for key in values} == values
        for key in values:
            store.delete(key).result()
        rounds.append(sum(map(len, values.values())))
    say(*rounds)
    store.sweep().result()
    say(store.stats().used_bytes)
with open_store() as store:
    say(store.stats().keys)
""")
    assert first > DISK_BYTES * 0.6
    assert min(second, third) > first * 0.9
    assert (left, end) == (0, 0)


def test_a_commit_that_does_not_fit_changes_nothing_and_a_smaller_one_fits(run: Run) -> None:
    run("""
with open_store() as store:
    values = fill(store, 500_000)
    for size in (1_000_000, 30_000_000):
        for writes in ([Write("500000/0", [b"new"]), Write("b", [payload(size)])], [Write("500000/0", [payload(size)])]):
            try:
                store.commit(writes).result()
            except StoreFullError as error:
                assert "full" in str(error)
            else:
                raise AssertionError("it fits")
    staged = store.stage()
    try:
        for _ in range(100):
            staged.append(payload(100_000))
    except StoreFullError:
        pass
    staged.close()
    store.sweep().result()
    assert {key: read(store, key) for key in values} == values
    with store.snapshot() as snapshot:
        assert len(snapshot.list(limit=1000)) == len(values)
    store.commit([Write("small", [b"1"])]).result()
    store.commit([Write("500000/0", [b"new"])]).result()
    assert read(store, "500000/0") == b"new" and read(store, "small") == b"1"
    used = store.stats().used_bytes
    values.pop("500000/0")
    for key in [*values, "500000/0", "small"]:
        store.delete(key).result()
    store.sweep().result()
    assert store.stats().used_bytes == 0
""")


def test_deletes_work_on_a_disk_that_others_have_filled(disk: SmallDisk, start: Callable) -> None:
    """Also while a snapshot holds the pages that were freed."""
    child = start("""
with open_store() as store:
    values = {f"k{i}": payload(100_000) for i in range(20)}
    for key, value in values.items():
        store.commit([Write(key, [value])]).result()
    say(os.getpid())
    sys.stdin.readline()
    values |= fill(store, 100_000, 4000, 1)
    with store.snapshot() as snapshot:
        for key in list(values)[:5]:
            store.delete(key).result()
            del values[key]
    for key in values:
        assert read(store, key) == values[key]
        store.delete(key).result()
    store.commit([Write("again", [payload(300_000)])]).result()
say("done")
""")
    disk.fill(json.loads(child.stdout.readline())[0])
    output, _ = child.communicate("go\n")
    assert (child.returncode, output) == (0, '["done"]\n')


def test_a_process_opens_a_store_whose_disk_is_full_and_can_empty_it(disk: SmallDisk, start: Callable) -> None:
    child = start(
        """
import subprocess
store = open_store()
say(os.getpid())
sys.stdin.readline()
values = fill(store, 100_000, 4000, 1)
with store.snapshot():
    # What was freed cannot be used while this snapshot is open, and all the rest is taken.
    for key in list(values)[-3:]:
        store.delete(key).result()
    other = '''
store = open_store(identity=None)
with store.snapshot() as snapshot:
    keys = [entry.key for entry in snapshot.list(limit=10**6)]
for key in keys[:3]:
    store.delete(key).result()
store.close()
'''
    done = subprocess.run([sys.executable, "-c", Path(sys.argv[2]).read_text() + other, sys.argv[1]])
say(done.returncode)
store.close()
""".replace("Path(sys.argv[2]).read_text()", repr(PROLOGUE))
    )
    disk.fill(json.loads(child.stdout.readline())[0])
    output, _ = child.communicate("go\n")
    assert (child.returncode, output) == (0, "[0]\n")


def test_snapshots_find_their_place_in_the_lock_file(disk: SmallDisk, start: Callable) -> None:
    """LMDB maps it: a page of it that is on no disk yet kills the process that takes a slot there once the disk is full."""
    child = start("""
with open_store(max_readers=500) as store:
    store.commit([Write("a", [b"1"])]).result()
    say(os.getpid())
    sys.stdin.readline()
    fill(store, 100_000, 4000, 1)
    snapshots = [store.snapshot() for _ in range(499)]
    assert all(bytes(next(snapshot.pieces("a"))) == b"1" for snapshot in snapshots)
    for snapshot in snapshots:
        snapshot.close()
say("done")
""")
    disk.fill(json.loads(child.stdout.readline())[0])
    output, _ = child.communicate("go\n")
    assert (child.returncode, output) == (0, '["done"]\n')


def test_deletes_work_after_a_compaction_on_a_disk_that_others_have_filled(disk: SmallDisk, start: Callable) -> None:
    """What was given back is gone, but some room for deletes is kept; what these free can be given back again."""
    child = start("""
with open_store() as store:
    values = {f"k{i}": payload(100_000) for i in range(35)}
    for key, value in values.items():
        store.commit([Write(key, [value])]).result()
    for key in list(values)[:30]:
        store.delete(key).result()
        del values[key]
    store.compact()
    say(os.getpid())
    sys.stdin.readline()
    for key in list(values)[:2]:
        store.delete(key).result()
        del values[key]
    store.compact()
    for key in values:
        assert read(store, key) == values[key]
        store.delete(key).result()
    store.compact()
    store.commit([Write("again", [payload(200_000)])]).result()
    store.delete("again").result()
    store.sweep().result()
    assert store.stats().used_bytes == 0
say("done")
""")
    disk.fill(json.loads(child.stdout.readline())[0])
    output, _ = child.communicate("go\n")
    assert (child.returncode, output) == (0, '["done"]\n')
