"""SIGTERM drains: what runs finishes, what comes later is refused, health says so, and the daemon exits with 0."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kaas.v1 import executor_pb2, executor_pb2_grpc
from kaas_client import Client
from kaas_core.errors import DrainingError
from kaasd.store.base import Namespace
from kaasd.store.lmdb_store import LmdbStore
from tests.faults.support import as_kaas_error, begin, dot_request, put_dot_inputs, spin, wait_until
from tests.store.test_migration import write_old


@pytest.fixture
def daemon(library_root: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A daemon of one's own and its address."""
    address = f"unix:{tmp_path}/kaasd.sock"
    options = ["--listen", address, "--store", f"{tmp_path}/store", "--device", "emulator", "--library-root", str(library_root)]
    command = [sys.executable, "-m", "kaasd", *options, "--drain-timeout", "60s"]
    log = (tmp_path / "log").open("w")
    with log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"listening on {address}\n"
        yield process, address
        process.kill()


def health(channel: grpc.Channel) -> int:
    """Return the server's health."""
    status: int = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()).status
    return status


@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["to the daemon", "to its process group"])
def test_a_running_request_finishes(
    daemon: tuple[subprocess.Popen[str], str], library_root: Path, tmp_path: Path, send: Callable[[int, int], None]
) -> None:
    """Also where those who stop it send the signal to all of its processes: the front alone decides when workers end."""
    process, address = daemon
    with Client(address) as kaas, grpc.insecure_channel(address) as channel:
        executor = executor_pb2_grpc.ExecutorServiceStub(channel)
        assert health(channel) == health_pb2.HealthCheckResponse.SERVING
        expected = put_dot_inputs(kaas)
        blocker = begin(executor, spin(library_root), timeout=600)
        wait_until(lambda: kaas.stats().devices[0].running == 1)
        request = dot_request(str(library_root / "dot.ptx"))
        request.return_buffers.append("c")
        waiting = executor.Submit.future(request, timeout=600)
        wait_until(lambda: kaas.stats().devices[0].queued == 1)

        send(process.pid, signal.SIGTERM)
        wait_until(lambda: health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING)
        with pytest.raises(grpc.RpcError) as caught:
            executor.Submit(dot_request(str(library_root / "dot.ptx")))
        assert isinstance(as_kaas_error(caught.value, address), DrainingError)
        with pytest.raises(DrainingError, match="shutting down"):
            kaas.resume()
        assert health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert process.poll() is None

        blocker.cancel()
        assert int.from_bytes(waiting.result().outputs["c"], "little") == expected
    assert process.wait(60) == 0
    assert "worker of emulator" not in (tmp_path / "log").read_text()


def test_what_still_runs_when_the_drain_has_taken_too_long_is_cancelled(tmp_path: Path, library_root: Path) -> None:
    address = f"unix:{tmp_path}/kaasd.sock"
    options = ["--listen", address, "--store", f"{tmp_path}/store", "--device", "emulator", "--library-root", str(library_root)]
    command = [sys.executable, "-m", "kaasd", *options, "--drain-timeout", "300ms"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == f"listening on {address}\n"
        with Client(address) as kaas, grpc.insecure_channel(address) as channel:
            endless = begin(executor_pb2_grpc.ExecutorServiceStub(channel), spin(library_root), timeout=100)
            wait_until(lambda: kaas.stats().devices[0].running == 1)
            process.send_signal(signal.SIGTERM)
            assert endless.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        assert "requests still run after 0.3 s; what still runs in another 5 s is cancelled" in process.stderr.read()
        assert process.wait(60) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(
    daemon: tuple[subprocess.Popen[str], str], library_root: Path, tmp_path: Path, second: signal.Signals
) -> None:
    process, address = daemon
    workers = [worker for worker in children(process.pid) if has_own_program(worker)]
    assert workers
    with Client(address) as kaas, grpc.insecure_channel(address) as channel:
        kaas.put("kept", b"value")
        endless = begin(executor_pb2_grpc.ExecutorServiceStub(channel), spin(library_root), timeout=600)
        wait_until(lambda: kaas.stats().devices[0].running == 1)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: health(channel) == health_pb2.HealthCheckResponse.NOT_SERVING)
        process.send_signal(second)
        assert process.wait(60) == -second
        assert endless.code() is grpc.StatusCode.UNAVAILABLE
    wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    with LmdbStore(tmp_path / "store", limit_bytes=1 << 30) as store, store.snapshot() as snapshot:
        assert b"".join(snapshot.pieces("kept")) == b"value"


def test_a_store_in_use_is_refused(daemon: tuple[subprocess.Popen[str], str], tmp_path: Path) -> None:
    options = ["--listen", f"unix:{tmp_path}/other.sock", "--store", f"{tmp_path}/store", "--device", "emulator"]
    second = subprocess.run([sys.executable, "-m", "kaasd", *options], capture_output=True, text=True, check=False, timeout=600)
    assert second.returncode == 1
    assert "another daemon uses this store" in second.stderr


def test_values_and_functions_outlive_the_daemon(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/kaasd.sock"
    command = [sys.executable, "-m", "kaasd", "--listen", address, "--store", f"{tmp_path}/store", "--device", "emulator"]
    for life in (1, 2):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("listening on ")
            with Client(address) as kaas:
                if life == 1:
                    library = kaas.upload(Path(__file__).parents[2] / "examples/kernels/dot.ptx")
                    expected = put_dot_inputs(kaas)
                    registration = executor_pb2.RegisterFunctionRequest(name="dot", request=dot_request(library).request)
                    with grpc.insecure_channel(address) as channel:
                        executor_pb2_grpc.ExecutorServiceStub(channel).RegisterFunction(registration)
                else:
                    kaas.invoke("dot")
                    assert kaas.get("c", dtype="u4")[0] == expected
            process.kill() if life == 1 else process.terminate()
            assert process.wait(60) == (-signal.SIGKILL if life == 1 else 0)


def test_a_worker_that_hangs_while_it_starts_holds_up_no_shutdown(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kaasd", "--listen", f"unix:{tmp_path}/kaasd.sock", "--store", f"{tmp_path}/store"]
    with subprocess.Popen([*command, "--device", "emulator"], stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(lambda: any(map(has_own_program, children(process.pid))))
            for worker in children(process.pid):
                os.kill(worker, signal.SIGSTOP)
            process.terminate()
            assert process.stderr is not None
            assert process.stderr.read() == ""
            assert process.wait(60) == 0
        finally:
            process.kill()


MIGRATION = """
import sys, time
from kaasd import __main__
from kaasd.store import migration
def go_on(is_stopped):
    print("copying", flush=True)
    while not is_stopped():
        time.sleep(0.001)
    return original(is_stopped)
original, migration._go_on = migration._go_on, go_on
sys.exit(__main__.main())
"""
"""A daemon that comes no further with a store of an older format than to look whether it is to end."""


def test_a_store_that_is_brought_up_to_date_holds_up_no_shutdown(tmp_path: Path) -> None:
    old = write_old(tmp_path / "store", {(Namespace.VALUES, f"key/{number}"): bytes(5000) for number in range(10)})
    before = old.read_bytes()
    options = ["--listen", f"unix:{tmp_path}/kaasd.sock", "--store", str(old.parent), "--device", "emulator"]
    with subprocess.Popen([sys.executable, "-c", MIGRATION, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "copying\n"
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()
    assert old.read_bytes() == before
    assert {file.name for file in old.parent.iterdir()} == {"data.mdb", "lock.mdb", "owners", "kaasd.lock"}


def has_own_program(pid: int) -> bool:
    """Whether a child has come to ``exec``: before that its parent waits for it in the kernel (vfork), and hears no signal."""
    return b"kaasd.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
