"""Care of the store while a daemon serves from it, as an operator sees it: ``kaasctl store``, real processes, a real disk."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from examples.local_daemon import local_daemon, server_process
from kaas.v1 import executor_pb2_grpc
from kaas_client import Client, Kernel, Request, inp, out, tmp, u64
from kaas_client.errors import UnavailableError
from kaasd.store.lmdb_store import LmdbStore
from tests.faults.conftest import KERNELS
from tests.faults.support import begin, spin, wait_until
from tests.store.test_check import damage_chunk

KAASCTL = [sys.executable, "-m", "kaas_client.cli.main"]
N = 1024


@pytest.fixture
def own_address() -> Iterator[str]:
    with local_daemon("--device", "emulator", "--log-level", "ERROR") as address:
        yield address


def kaasctl(address: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*KAASCTL, "--address", address, *arguments], capture_output=True, timeout=600)


def register_dot(kaas: Client) -> None:
    library = kaas.upload(KERNELS / "dot.ptx")
    product = Kernel(library, "prodKern", grid=1, block=N, args=[u64(N), inp("a", 4 * N), inp("b", 4 * N), tmp("p", 4 * N)])
    kaas.register("dot", Request([product, Kernel(library, "sumKern", grid=1, block=N // 2, args=[inp("p"), out("c", 4)])]))


@contextmanager
def daemon_on(store: Path) -> Iterator[str]:
    address = f"unix:{store.parent}/restored.sock"
    with server_process(
        [sys.executable, "-m", "kaasd", "--listen", address, "--store", store, "--device", "emulator", "--log-level", "ERROR"], {}
    ):
        yield address


def test_a_backup_is_a_store_with_values_functions_and_libraries(own_address: str, tmp_path: Path) -> None:
    """It is made while another client goes on writing, and is of one moment."""
    a, b = np.random.default_rng(1).integers(0, 2**32, (2, N), dtype=np.uint32)
    stop, written = threading.Event(), threading.Event()

    def write() -> None:
        with Client(own_address) as kaas:
            number = 0
            while not stop.is_set():
                kaas.put("changing", bytes([number % 251]) * 3_000_000)
                number += 1
                written.set()

    with Client(own_address) as kaas:
        register_dot(kaas)
        kaas.put("a", a)
        kaas.put("b", b)
        writer = threading.Thread(target=write)
        writer.start()
        assert written.wait(60)
        done = kaasctl(own_address, "store", "backup", str(tmp_path / "all.tar"))
        stop.set()
        writer.join()
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
        kaas.put("a", b"after the backup")
        store_id = kaas.server_info().store_id
    restored = tmp_path / "restored"
    restored.mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "all.tar", "-C", restored], check=True)
    with daemon_on(restored) as address, Client(address) as kaas:
        assert kaas.server_info().store_id == store_id
        assert [entry.key for entry in kaas.list()] == ["a", "b", "changing"]
        assert len(set(kaas.get("changing"))) == 1
        (library,) = kaas.libraries()
        assert library.file_name == "dot.ptx"
        dot = kaas.function("dot")
        assert dot().array("c", "u4")[0] == np.sum(a * b, dtype=np.uint32)


def test_a_backup_on_standard_output(own_address: str) -> None:
    with Client(own_address) as kaas:
        kaas.put("a", b"1")
    done = kaasctl(own_address, "store", "backup", "-")
    assert (done.returncode, done.stderr) == (0, b"")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as file:
        assert file.getnames() == ["data.mdb"]


def test_a_copy_that_has_a_name_is_gone_at_the_next_start(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / ".kaasd-backup-x").write_bytes(b"half a copy")
    with daemon_on(store):
        assert not (store / ".kaasd-backup-x").exists()


def test_a_compaction_gives_back_what_was_deleted(own_address: str) -> None:
    store = Path(own_address.removeprefix("unix:")).parent / "store"
    with Client(own_address) as kaas:
        kept = np.random.default_rng(2).bytes(3_000_000)
        kaas.put("kept", kept)
        kaas.put("large", bytes(40_000_000))
        kaas.delete("large")
        done = kaasctl(own_address, "-o", "json", "store", "compact")
        assert (done.returncode, done.stderr) == (0, b"")
        sizes = json.loads(done.stdout)
        assert sizes["disk_after_bytes"] < sizes["disk_before_bytes"] - 30_000_000
        assert (store / "data.mdb").stat().st_blocks * 512 == sizes["disk_after_bytes"]
        assert kaas.get("kept") == kept


@pytest.mark.slow
def test_a_worker_that_is_busy_with_a_kernel_keeps_its_pages(own_address: str, library_root: Path) -> None:
    """The emulated device does nothing else while a kernel runs."""
    with Client(own_address) as kaas, grpc.insecure_channel(own_address) as channel:
        library = kaas.upload(KERNELS / "faults.ptx")
        message = spin(library_root)
        message.request.kernels[0].library = library
        running = begin(executor_pb2_grpc.ExecutorServiceStub(channel), message, timeout=120)
        wait_until(lambda: kaas.stats().devices[0].running == 1)
        done = kaasctl(own_address, "store", "compact")
        assert done.returncode == 1
        assert b"has not let go of the store's pages" in done.stderr
        running.cancel()
        wait_until(lambda: kaas.stats().devices[0].running == 0)
        kaas.compact_store()


def test_a_worker_that_is_killed_while_the_store_is_compacted(own_address: str) -> None:
    with Client(own_address) as kaas:
        register_dot(kaas)
        dot = kaas.function("dot")
        for seed in range(2):
            a, b = np.random.default_rng(seed).integers(0, 2**32, (2, N), dtype=np.uint32)
            kaas.put("a", a)
            kaas.put("b", b)
            kaas.put("large", bytes(30_000_000))
            kaas.delete("large")
            compacting = threading.Thread(target=kaasctl, args=(own_address, "store", "compact"))
            compacting.start()
            os.kill(kaas.devices()[0].worker_pid, signal.SIGKILL)
            compacting.join()
            wait_until(lambda: kaas.devices()[0].state == "ready")
            assert dot().array("c", "u4")[0] == np.sum(a * b, dtype=np.uint32)
        wait_until(lambda: compacts(kaas))
        assert dot().array("c", "u4")[0] == np.sum(a * b, dtype=np.uint32)


def compacts(kaas: Client) -> bool:
    try:
        kaas.compact_store()
    except UnavailableError:
        return False
    return True


def test_a_check_finds_what_is_damaged_while_the_daemon_serves(tmp_path: Path) -> None:
    store = tmp_path / "store"
    with daemon_on(store) as address, Client(address) as kaas:
        register_dot(kaas)
        for key in ("a", "b", "c"):
            kaas.put(key, bytes(3_000_000))
        done = kaasctl(address, "-o", "json", "store", "check")
        assert (done.returncode, done.stderr) == (0, b"")
        whole = json.loads(done.stdout)
        assert whole["entries"] >= 5  # and the code that was compiled meanwhile
        assert whole["damaged"] == []
    with LmdbStore(store, limit_bytes=1 << 30) as opened:
        damage_chunk(opened, "b", 0, None)
    with daemon_on(store) as address, Client(address) as kaas:
        done = kaasctl(address, "store", "check")
        assert (done.returncode, done.stderr) == (1, b"")
        assert re.search(rb"value  b    chunk \d+ is missing", done.stdout)
        assert kaas.get("c") == bytes(3_000_000)
        kaas.put("b", b"whole again")
        assert kaas.check_store().damaged == ()


def test_a_store_is_whole_after_a_backup_and_a_compaction(own_address: str, tmp_path: Path) -> None:
    with Client(own_address) as kaas:
        register_dot(kaas)
        for number in range(20):
            kaas.put(f"k{number % 7}", bytes([number]) * 700_000)
            kaas.compact_store()
        before = kaas.check_store()
        assert before.entries >= 9  # and the code that was compiled meanwhile
        assert before.damaged == ()
        kaas.backup_store(tmp_path / "all.tar")
    restored = tmp_path / "restored"
    with tarfile.open(tmp_path / "all.tar") as file:
        file.extractall(restored, filter="data")
    with daemon_on(restored) as address, Client(address) as kaas:
        assert kaas.check_store() == before
