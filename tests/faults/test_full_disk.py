"""The disk, the store's limit, or the limit on the size of files is reached below a running daemon, or when one starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import lmdb
import numpy as np
import pytest

from kaas.v1 import executor_pb2_grpc
from kaas_client import Client, Kernel, Request, inp, out, u64
from kaas_core.errors import StoreFullError
from tests.faults.support import contents, dot_request, put_dot_inputs, wait_until
from tests.store.small_disk import SmallDisk, make

KERNELS = Path(__file__).parent.parent.parent / "examples/kernels"
SIZE_BYTES = 6 << 20
DEADLINE_S = 60
SIZES = [1_500_000, 500_000, 60_000, 4000, 10, 1]


class Daemon:
    """A daemon whose store has little room."""

    def __init__(self, disk: SmallDisk, library_root: Path, stack: ExitStack) -> None:
        self.disk = disk
        self.address = f"unix:{disk.folder.with_name('kaasd.sock')}"
        options = ["--listen", self.address, "--store", str(disk.folder / "store"), "--device", "emulator"]
        limit = SIZE_BYTES if disk.kind == "limit" else 64 << 20
        command = [sys.executable, "-m", "kaasd", *options, "--store-limit", str(limit), "--chunk-size", "256KiB"]
        self.process = stack.enter_context(
            subprocess.Popen(
                disk.command(*command, "--library-root", str(library_root)),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(self.process.kill)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"listening on {self.address}\n"
        self.kaas = stack.enter_context(Client(self.address, wait_for_ready=True))
        self.executor = executor_pb2_grpc.ExecutorServiceStub(stack.enter_context(grpc.insecure_channel(self.address)))

    def fill(self) -> dict[str, bytes]:
        """Have values and other files take all room; return the values."""
        values = {f"fill/{index}": np.random.default_rng(index).bytes(400_000) for index in range(5)}
        for key, value in values.items():
            self.kaas.put(key, value)
        self.disk.fill(self.process.pid)
        for size in SIZES:
            for index in range(1000):
                value = np.random.default_rng(index).bytes(size)
                try:
                    self.kaas.put(f"fill/{size}/{index}", value)
                except StoreFullError:
                    break
                values[f"fill/{size}/{index}"] = value
        return values


@pytest.fixture(params=["limit", "file-size", "tmpfs"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> SmallDisk:
    return make(request.param, tmp_path / "disk", SIZE_BYTES)


@pytest.fixture
def daemon(disk: SmallDisk, library_root: Path) -> Iterator[Daemon]:
    with ExitStack() as stack:
        yield Daemon(disk, library_root, stack)


def long_request(library: str) -> Request:
    """Return a request with an output of 1 MB, and of so many bytes that it takes room itself."""
    arguments = [u64(1024), inp("a", 4096), inp("b", 4096), out("long", 1_000_000)]
    return Request([Kernel(library, "prodKern", grid=1, block=1024, args=arguments)])


def test_whatever_writes_is_refused_and_nothing_is_lost(daemon: Daemon, library_root: Path) -> None:
    kaas, dot = daemon.kaas, str(library_root / "dot.ptx")
    expected = put_dot_inputs(kaas)
    kaas.register("before", long_request(dot))
    values = daemon.fill()
    assert sum(map(len, values.values())) >= 2_000_000
    before = contents(kaas)
    writes: list[Callable[[], object]] = [
        lambda: kaas.put("more", b"1"),
        lambda: kaas.put("more", bytes(100_000)),
        lambda: kaas.put("more", bytes(5_000_000)),
        lambda: kaas.upload(KERNELS / "dot.ptx"),
        lambda: kaas.register("more", long_request(dot)),
        lambda: kaas.submit(long_request(dot), timeout=DEADLINE_S),
        lambda: kaas.function("before")(),
    ]
    for write in writes:
        with pytest.raises(StoreFullError, match="full"):
            write()
    assert contents(kaas) == before
    assert {key: kaas.get(key) for key in values} == values
    assert [function.name for function in kaas.functions()] == ["before"]
    assert list(kaas.libraries()) == []
    for key in values:
        kaas.delete(key)
    for write in [*writes[:2], *writes[3:]]:
        write()
    assert "c" in daemon.executor.Submit(dot_request(dot), timeout=DEADLINE_S).versions
    assert kaas.get("c", dtype="u4")[0] == expected


def test_small_values_fit_where_large_ones_do_not(daemon: Daemon, library_root: Path) -> None:
    expected = put_dot_inputs(daemon.kaas)
    for index in range(1000):
        try:
            daemon.kaas.put(f"fill/{index}", bytes(1_000_000))
        except StoreFullError:
            break
    daemon.kaas.put("small", b"1")
    assert "c" in daemon.executor.Submit(dot_request(str(library_root / "dot.ptx")), timeout=DEADLINE_S).versions
    assert (daemon.kaas.get("small"), daemon.kaas.get("c", dtype="u4")[0]) == (b"1", expected)


def test_a_worker_that_dies_is_replaced_and_runs_what_comes_after_deletes(daemon: Daemon, library_root: Path) -> None:
    """Also where not even pages that were freed can be used, because a snapshot holds them."""
    kaas = daemon.kaas
    expected = put_dot_inputs(kaas)
    values = daemon.fill()
    store = daemon.disk.seen_from_here(daemon.process.pid) / "store"
    keys = list(values)
    with lmdb.open(str(store), readonly=True) as held, held.begin():
        for key in keys[-2:]:
            kaas.delete(key)
        for restarts in (1, 2):
            os.kill(kaas.devices()[0].worker_pid, signal.SIGKILL)
            wait_until(lambda restarts=restarts: (d := kaas.devices()[0]).restarts == restarts and d.state == "ready")
    for key in keys[:-2]:
        kaas.delete(key)
    assert "c" in daemon.executor.Submit(dot_request(str(library_root / "dot.ptx")), timeout=DEADLINE_S).versions
    assert kaas.get("c", dtype="u4")[0] == expected
    assert kaas.devices()[0].restarts == 2


@pytest.mark.parametrize("disk", ["limit", "file-size"], indirect=True)  # a tmpfs goes with its daemon
def test_it_starts_again_on_the_disk_that_it_has_filled(disk: SmallDisk, library_root: Path) -> None:
    with ExitStack() as stack:
        daemon = Daemon(disk, library_root, stack)
        put_dot_inputs(daemon.kaas)
        values = daemon.fill()
        daemon.process.terminate()
        assert daemon.process.wait(60) == 0
    with ExitStack() as stack:
        daemon = Daemon(disk, library_root, stack)
        assert {key: daemon.kaas.get(key) for key in values} == values
        for key in values:
            daemon.kaas.delete(key)
        assert "c" in daemon.executor.Submit(dot_request(str(library_root / "dot.ptx")), timeout=DEADLINE_S).versions


START = """
import os, subprocess, sys
from pathlib import Path
from kaasd.store.lmdb_file import LmdbFile
from kaasd.store.lmdb_store import LmdbStore
folder, kind, has_store, *command = sys.argv[1:]
store = Path(folder) / "store"
if has_store == "yes":
    LmdbStore(store, limit_bytes=64 << 20).close()
    with LmdbFile(store / "data.mdb") as file:
        size = (file.meta.last_page + 1) * file.meta.page_bytes
    os.truncate(store / "data.mdb", size)
else:
    store.mkdir()
    size = 100_000
if kind == "file-size":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
else:
    try:
        (Path(folder) / "ballast").write_bytes(bytes(100 << 20))
    except OSError:
        pass
def found():
    return {path.name: path.read_bytes() for path in store.iterdir() if path.name not in ("kaasd.lock", "lock.mdb")}
before = found()
done = subprocess.run(command)
assert found() == before, (found().keys(), before.keys())
if kind == "file-size":
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
else:
    (Path(folder) / "ballast").unlink()
LmdbStore(store, limit_bytes=64 << 20).close()
sys.exit(done.returncode)
"""


@pytest.mark.parametrize("has_store", ["yes", "no"])
@pytest.mark.parametrize("kind", ["file-size", "tmpfs"])
def test_a_start_without_room_ends_with_a_line(kind: str, has_store: str, tmp_path: Path) -> None:
    """And changes nothing: the store, or a new one, opens once there is room."""
    disk = make(kind, tmp_path / "disk", 6 << 20)
    options = ["--listen", f"unix:{tmp_path}/kaasd.sock", "--store", str(disk.folder / "store"), "--device", "emulator"]
    kaasd = [sys.executable, "-m", "kaasd", *options]
    start = [sys.executable, "-c", START, str(disk.folder), kind, has_store, *kaasd]
    # What a process has once set as its limit it cannot raise, so the script sets it itself.
    start = disk.command(*start) if kind == "tmpfs" else start
    done = subprocess.run(start, capture_output=True, text=True, check=False, timeout=600)
    (line,) = done.stderr.splitlines()
    full = (
        "the file system that holds the store is full" if kind == "tmpfs" else r"the store is full: .* \(ulimit -f, LimitFSIZE=\)"
    )
    assert re.match(rf"kaasd: {full}.*{disk.folder}", line)
    assert (done.returncode, done.stdout) == (1, "")
