"""The store's directory is removed or replaced below a running daemon, or is not a store when one starts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import grpc
import lmdb
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kaas.v1 import executor_pb2_grpc
from kaas_client import Client
from kaas_core.errors import StoreGoneError
from tests.faults.support import as_kaas_error, begin, dot_request, put_dot_inputs, spin, wait_until

KERNELS = Path(__file__).parent.parent.parent / "examples/kernels"
NEVER = "3600"
"""Between two looks of the daemon, where a test wants to see what finds it besides."""


class Daemon:
    """A daemon on a socket and a store of its own."""

    def __init__(
        self,
        folder: Path,
        library_root: Path,
        stack: ExitStack,
        name: str = "kaasd",
        interval: str = "0.05",
        before: str = "pass",
    ) -> None:
        """``before`` is code that its front runs first."""
        self.address = f"unix:{folder}/{name}.sock"
        self.store = folder / "store"
        code = (
            f"import sys; from kaasd.front import store_watch; store_watch.INTERVAL_S = {interval}; {before};"
            " from kaasd.__main__ import main; sys.exit(main())"
        )
        options = ["--listen", self.address, "--store", str(self.store), "--device", "emulator"]
        command = [sys.executable, "-c", code, *options, "--library-root", str(library_root)]
        self._errors = (folder / f"{name}.log").open("w+")
        stack.callback(self._errors.close)
        self.process = stack.enter_context(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, text=True, umask=0)
        )
        stack.callback(self.process.kill)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"listening on {self.address}\n"
        self.kaas = stack.enter_context(Client(self.address, wait_for_ready=True))
        channel = stack.enter_context(grpc.insecure_channel(self.address))
        self.executor = executor_pb2_grpc.ExecutorServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    def log(self) -> str:
        self._errors.seek(0)
        return self._errors.read()


Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path, library_root: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda **options: Daemon(tmp_path, library_root, stack, **options)


def remove(store: Path) -> None:
    shutil.rmtree(store)


def move(store: Path) -> None:
    store.rename(store.with_name("moved"))


def replace_directory(store: Path) -> None:
    move(store)
    shutil.copytree(store.with_name("moved"), store)


def empty(store: Path) -> None:
    for path in store.iterdir():
        path.unlink()


def replace_file(store: Path) -> None:
    shutil.copy(store / "data.mdb", store / "copy")
    (store / "copy").rename(store / "data.mdb")


def remove_lock(store: Path) -> None:
    (store / "lock.mdb").unlink()


LOSSES = [remove, move, replace_directory, empty, replace_file, remove_lock]


@pytest.mark.parametrize("lose", LOSSES)
def test_the_daemon_fails_what_runs_and_ends(lose: Callable[[Path], None], start: Start, library_root: Path) -> None:
    daemon = start()
    put_dot_inputs(daemon.kaas)
    running = begin(daemon.executor, spin(library_root), timeout=600)
    waiting = [daemon.executor.Submit.future(dot_request(str(library_root / "dot.ptx")), timeout=600) for _ in range(3)]
    wait_until(lambda: daemon.kaas.stats().devices[0].queued == 3)
    watch = daemon.health.Watch(health_pb2.HealthCheckRequest(service="kaas.v1.KvService"), timeout=600)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    lose(daemon.store)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    for call in (running, *waiting):
        assert call.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert isinstance(as_kaas_error(call.exception(), daemon.address), StoreGoneError)
    assert daemon.process.wait(60) == 1
    log = daemon.log()
    assert len(re.findall("CRITICAL kaasd.app: the store is lost, so all requests fail and kaasd ends: ", log)) == 1
    (last,) = re.findall(rf"^kaasd: {daemon.store}.* (?:is no longer there|was replaced).*; its data.*", log, re.M)
    if lose is move:
        assert f"its data are in {daemon.store.with_name('moved')}/data.mdb" in last
    if lose is remove:
        assert not daemon.store.exists()
    assert "Traceback" not in log


def test_a_file_that_is_cut_short_ends_the_daemon(start: Start) -> None:
    """What is missing would kill who next reads it, without a word."""
    daemon = start()
    daemon.kaas.put("a", bytes(1 << 20))
    os.truncate(daemon.store / "data.mdb", 1 << 18)
    assert daemon.process.wait(60) == 1
    log = daemon.log()
    assert re.findall(rf"^kaasd: {daemon.store}/data.mdb is cut short: it has 262144 bytes of ", log, re.M)
    assert "Traceback" not in log


@pytest.mark.parametrize(
    "write",
    [
        lambda kaas: kaas.put("b", b"2"),
        lambda kaas: kaas.delete("a"),
        lambda kaas: kaas.upload(KERNELS / "dot.ptx"),
    ],
    ids=["Put", "Delete", "UploadLibrary"],
)
def test_nothing_that_the_front_writes_is_acknowledged_in_it(write: Callable[[Client], object], start: Start) -> None:
    daemon = start(interval=NEVER)
    daemon.kaas.put("a", b"1")
    replace_directory(daemon.store)
    with pytest.raises(StoreGoneError, match="was replaced"):
        write(daemon.kaas)
    assert daemon.process.wait(60) == 1


@pytest.mark.parametrize("lose", [remove, replace_directory, remove_lock])
def test_no_worker_is_started_for_it(lose: Callable[[Path], None], start: Start, library_root: Path) -> None:
    daemon = start(interval=NEVER)
    put_dot_inputs(daemon.kaas)
    pid = daemon.kaas.devices()[0].worker_pid
    lose(daemon.store)
    before = sorted(path.name for path in daemon.store.iterdir()) if daemon.store.exists() else None
    os.kill(pid, signal.SIGKILL)
    assert daemon.process.wait(60) == 1
    assert (sorted(path.name for path in daemon.store.iterdir()) if daemon.store.exists() else None) == before


@pytest.mark.parametrize("lose", [remove, replace_directory])
def test_a_worker_opens_no_other_store_and_makes_none(lose: Callable[[Path], None], start: Start) -> None:
    """Also where the front has looked too early."""
    daemon = start(before="store_watch.StoreWatch.check = lambda self: None")
    lose(daemon.store)
    before = sorted(path.name for path in daemon.store.iterdir()) if daemon.store.exists() else None
    os.kill(daemon.kaas.devices()[0].worker_pid, signal.SIGKILL)
    refusal = f"ERROR kaasd.front.supervisor: worker of emulator: {daemon.store} "
    wait_until(lambda: refusal in daemon.log())
    assert (sorted(path.name for path in daemon.store.iterdir()) if daemon.store.exists() else None) == before


def test_a_second_daemon_takes_the_new_directory_and_the_first_ends(start: Start) -> None:
    first = start()
    first.kaas.put("a", b"1")
    first_id = first.kaas.server_info().store_id
    assert re.fullmatch("[0-9a-f]{32}", first_id)
    shutil.rmtree(first.store)
    second = start(name="second")
    assert first.process.wait(60) == 1
    assert second.kaas.server_info().store_id != first_id
    assert list(second.kaas.list()) == []
    second.kaas.put("a", b"2")
    os.kill(second.kaas.devices()[0].worker_pid, signal.SIGKILL)
    wait_until(lambda: second.kaas.devices()[0].state == "ready" and second.kaas.devices()[0].restarts == 1)
    assert second.kaas.get("a") == b"2"
    second.process.terminate()
    assert second.process.wait(60) == 0


@pytest.mark.usefixtures("own_code")
def test_files_are_the_owners_whatever_the_umask(start: Start) -> None:
    daemon = start()
    assert daemon.store.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in daemon.store.iterdir()}
    files = ["data.mdb", "lock.mdb", "owners", "kaasd.lock", "compiling"]
    assert modes == {**dict.fromkeys(files, 0o600), "compiled": 0o700}
    assert [path.stat().st_mode & 0o777 for path in (daemon.store / "compiled").iterdir()] == [0o600]


def of_another_program(store: Path) -> None:
    with lmdb.open(str(store)) as environment, environment.begin(write=True) as txn:
        txn.put(b"a", b"1")


def of_a_store_without_its_data(store: Path) -> None:
    for name in ("owners", "lock.mdb", "kaasd.lock"):
        (store / name).touch()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (of_another_program, "not one of kaasd's stores"),
        (of_a_store_without_its_data, "is missing"),
        (lambda store: (store / "data.mdb").touch(), "is empty"),
        (lambda store: (store / "data.mdb").write_bytes(b"x" * 10_000), "is not a file of LMDB, or is damaged"),
    ],
    ids=["another program's", "no data", "empty", "not LMDB"],
)
def test_a_start_on_what_is_not_a_store_ends_with_a_line(make: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    make(store)
    data = store / "data.mdb"
    before = data.read_bytes() if data.exists() else None
    options = ["--listen", f"unix:{tmp_path}/kaasd.sock", "--store", str(store), "--device", "emulator"]
    done = subprocess.run([sys.executable, "-m", "kaasd", *options], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"kaasd: {data} ")
    assert says in line
    assert (data.read_bytes() if data.exists() else None) == before
