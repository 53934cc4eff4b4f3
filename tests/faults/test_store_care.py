"""Care of the store while a daemon serves from it, as an operator sees it: ``kaasctl store``, real processes, a real disk."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from examples.local_daemon import local_daemon, server_process
from kaas_client import Client, Kernel, Request, inp, out, tmp, u64
from tests.faults.conftest import KERNELS

KAASCTL = [sys.executable, "-m", "kaas_client.cli.main"]
N = 1024


@pytest.fixture
def own_address() -> Iterator[str]:
    with local_daemon("--device", "emulator", "--log-level", "ERROR") as address:
        yield address


def kaasctl(address: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*KAASCTL, "--address", address, *arguments], capture_output=True, timeout=60)


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
    (store / "backup-x").write_bytes(b"half a copy")
    with daemon_on(store):
        assert not (store / "backup-x").exists()
