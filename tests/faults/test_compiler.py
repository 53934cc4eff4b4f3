"""Compiling costs neither the worker nor its other callers anything, however long it takes and whatever ends the compiler."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import lmdb
import pytest

from examples.local_daemon import local_daemon
from kaas.v1 import executor_pb2, executor_pb2_grpc, library_pb2, library_pb2_grpc, types_pb2
from kaas_client import Client
from kaas_client.errors import InvalidLibraryError
from kaasd.store.directory import LMDB_MAJOR_VERSION
from tests.faults.conftest import KERNELS
from tests.faults.support import as_kaas_error, children, dot_request, fault_request, front_of, put_dot_inputs, use, wait_until

pytestmark = pytest.mark.usefixtures("own_code")

LONG_S = 300
HISTOGRAM = (KERNELS / "histogram.ptx").read_bytes()


def slow_ptx(count: int) -> str:
    """Return a kernel that takes seconds to compile: so many reads and writes in a row, each of which is checked."""
    steps = "".join(
        f"ld.global.u32 %r1, [%at];\nmad.lo.u32 %r2, %r1, {2 * index + 3}, %r2;\nst.global.u32 [%at], %r2;\n"
        for index in range(count)
    )
    return (
        ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry slowKern(.param .u64 out)\n{\n"
        f".reg .b32 %r<4>;\n.reg .b64 %at;\nld.param.u64 %at, [out];\nmov.u32 %r2, 1;\n{steps}ret;\n}}\n"
    )


def slow_result(count: int) -> int:
    """Return what that kernel leaves in a word that was 0."""
    word, sum_ = 0, 1
    for index in range(count):
        sum_ = word = (word * (2 * index + 3) + sum_) % 2**32
    return sum_


def parts(content: bytes) -> Iterator[library_pb2.UploadLibraryRequest]:
    header = library_pb2.UploadLibraryHeader(file_name="x.ptx", size_bytes=len(content))
    yield library_pb2.UploadLibraryRequest(header=header)
    yield library_pb2.UploadLibraryRequest(chunk=content)


@dataclass
class Bench:
    """A daemon whose worker has run the dot product, so that its compiler idles."""

    address: str
    root: Path
    kaas: Client
    executor: executor_pb2_grpc.ExecutorServiceStub
    library: library_pb2_grpc.LibraryServiceStub

    @property
    def worker(self) -> tuple[int, int]:
        """Its pid, and how many there were before it."""
        device = self.kaas.devices()[0]
        return device.worker_pid, device.restarts

    @property
    def compiler(self) -> int:
        """The pid of the compiler; fails where none runs."""
        (pid,) = children(self.worker[0])
        return pid

    def run_dot(self) -> None:
        """Run a request whose code is there."""
        assert "c" in self.executor.Submit(dot_request(str(self.root / "dot.ptx")), timeout=LONG_S).versions

    def upload_later(self, content: bytes) -> grpc.Future:
        return self.library.UploadLibrary.future(parts(content), timeout=LONG_S)

    def load(self) -> int:
        """Return how many calls are at the worker, or wait for it."""
        device = self.kaas.stats().devices[0]
        return device.running + device.queued


@contextmanager
def bench(root: Path, *settings: str) -> Iterator[Bench]:
    with (
        local_daemon("--device", "emulator", "--library-root", str(root), "--log-level", "INFO", *settings) as address,
        Client(address) as kaas,
        grpc.insecure_channel(address) as channel,
    ):
        stubs = executor_pb2_grpc.ExecutorServiceStub(channel), library_pb2_grpc.LibraryServiceStub(channel)
        opened = Bench(address, root, kaas, *stubs)
        put_dot_inputs(kaas)
        opened.run_dot()
        yield opened


def refusal(address: str, call: Callable[[], object]) -> InvalidLibraryError:
    """Return the error of a call that names what cannot be compiled."""
    with pytest.raises(grpc.RpcError) as failed:
        call()
    error = as_kaas_error(failed.value, address)
    assert isinstance(error, InvalidLibraryError)
    return error


def test_a_short_deadline_costs_no_worker(library_root: Path, tmp_path: Path) -> None:
    count = 150
    (library_root / "slow.ptx").write_text(slow_ptx(count))
    slow = fault_request(str(library_root / "slow.ptx"), "slowKern", use("out", types_pb2.Access.ACCESS_OUTPUT))
    with bench(library_root) as daemon:
        before = daemon.worker
        with pytest.raises(grpc.RpcError) as failed:
            daemon.executor.Submit(slow, timeout=0.1)
        assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
        daemon.run_dot()
        assert "out" in daemon.executor.Submit(slow, timeout=LONG_S).versions
        assert daemon.kaas.get("out", dtype="u4")[0] == slow_result(count)
        assert daemon.worker == before


def test_neighbours_are_served_while_code_is_compiled(library_root: Path) -> None:
    """Also where more calls wait for code than the worker has places, and they end when they are to."""
    function = executor_pb2.RegisterFunctionRequest(name="f", request=dot_request(str(library_root / "dot2.ptx")).request)
    (library_root / "dot2.ptx").write_bytes((KERNELS / "dot.ptx").read_bytes() + b"// another\n")
    with bench(library_root) as daemon:
        before = daemon.worker
        os.kill(daemon.compiler, signal.SIGSTOP)
        contents = [HISTOGRAM + b"// %d\n" % number for number in range(4)]
        uploads = [daemon.upload_later(content) for content in (*contents, contents[0])]
        wait_until(lambda: daemon.load() >= 5)
        for _ in range(20):
            daemon.run_dot()
        for call in (
            lambda: daemon.executor.RegisterFunction(function, timeout=0.5),
            lambda: daemon.library.InspectLibrary(
                library_pb2.InspectLibraryRequest(library=str(library_root / "dot2.ptx")), timeout=0.5
            ),
        ):
            with pytest.raises(grpc.RpcError) as failed:
                call()
            assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
        uploads[1].cancel()
        wait_until(lambda: daemon.load() == 4)
        assert not any(upload.done() for upload in (uploads[0], *uploads[2:]))
        os.kill(daemon.compiler, signal.SIGCONT)
        assert len({upload.result().library.id for upload in (uploads[0], *uploads[2:])}) == 3
        daemon.executor.RegisterFunction(function, timeout=LONG_S)
        assert daemon.worker == before


def test_what_is_compiled_for_nobody_is_kept(library_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with bench(library_root) as daemon:
        os.kill(daemon.compiler, signal.SIGSTOP)
        upload = daemon.upload_later(HISTOGRAM)
        wait_until(lambda: daemon.load() == 1)
        upload.cancel()
        wait_until(lambda: daemon.load() == 0)
        os.kill(daemon.compiler, signal.SIGCONT)
        uploaded = daemon.upload_later(HISTOGRAM).result().library
    assert len(re.findall(f"the library of {uploaded.id}: compiled", capfd.readouterr().err)) == 1


MANY = """.version 8.0
.target sm_90
.address_size 64
.visible .global .u32 counter = 5;
.func (.reg .b32 %sum) plus(.reg .b32 %a) { add.u32 %sum, %a, 2; ret; }
""" + "".join(
    f""".visible .entry kernel{number}(.param .u64 out) {{
.reg .b64 %at; .reg .b32 %r<3>; .shared .b32 word;
ld.param.u64 %at, [out]; ld.global.u32 %r1, [%at]; st.shared.u32 [word], %r1; ld.shared.u32 %r2, [word];
call (%r1), plus, (%r2); st.global.u32 [%at], %r1;
{"frobnicate.u32 %r1;" if number == 3 else "// "}
{"add.u32 %r1 %r2;" if number == 4 else ""}
ret; }}
"""
    for number in range(6)
)  # fmt: skip


def test_only_what_is_launched_is_compiled(library_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wrong = {
        "kernel3": "PTX line 31: frobnicate.u32: the emulated device has no",
        "kernel4": "PTX line 39: expected ',', found '%r2'",
    }
    output = use("out", types_pb2.Access.ACCESS_INOUT)
    with bench(library_root) as daemon:
        uploaded = daemon.upload_later(MANY.encode()).result().library
        inspected = daemon.library.InspectLibrary(library_pb2.InspectLibraryRequest(library=uploaded.id), timeout=LONG_S)
        assert [(kernel.name, kernel.static_shared_memory_bytes) for kernel in inspected.kernels] == [
            (f"kernel{number}", 4) for number in range(6)
        ]
        daemon.kaas.put("out", b"\1\0\0\0")
        request = fault_request(uploaded.id, "kernel2", output)
        request.request.kernels.append(fault_request(uploaded.id, "kernel5", output).request.kernels[0])
        daemon.executor.Submit(request, timeout=LONG_S)
        assert daemon.kaas.get("out", dtype="u4")[0] == 5
        for name, message in wrong.items():
            submitted = fault_request(uploaded.id, "kernel2", output)
            submitted.request.kernels.append(fault_request(uploaded.id, name, output).request.kernels[0])
            registered = executor_pb2.RegisterFunctionRequest(name="f", request=submitted.request)
            for call in (
                lambda request=submitted: daemon.executor.Submit(request, timeout=LONG_S),
                lambda request=registered: daemon.executor.RegisterFunction(request, timeout=LONG_S),
            ):
                assert refusal(daemon.address, call).message.startswith(f"kernels[1].library: {message}")
        assert daemon.kaas.get("out", dtype="u4")[0] == 5
    assert re.findall(f"kernel '(\\w+)' of {uploaded.id}: compiled", capfd.readouterr().err) == ["kernel2", "kernel5"]


def test_a_compiler_that_is_killed_is_replaced(library_root: Path) -> None:
    with bench(library_root) as daemon:
        before = daemon.worker
        first = daemon.compiler
        os.kill(first, signal.SIGSTOP)
        upload = daemon.upload_later(HISTOGRAM)
        wait_until(lambda: daemon.load() == 1)
        os.kill(first, signal.SIGKILL)
        assert upload.result().library.size_bytes == len(HISTOGRAM)
        assert daemon.worker == before
        assert daemon.compiler != first


def test_what_costs_compilers_again_and_again_is_refused(library_root: Path) -> None:
    with bench(library_root) as daemon:
        before = daemon.worker
        killed = [daemon.compiler]
        os.kill(killed[0], signal.SIGSTOP)
        upload = daemon.upload_later(HISTOGRAM)
        wait_until(lambda: daemon.load() == 1)
        os.kill(killed[0], signal.SIGKILL)
        wait_until(lambda: bool(children(before[0]) - set(killed)))
        os.kill(daemon.compiler, signal.SIGKILL)  # It has not even started.
        assert "the compiler ended 2 times (SIGKILL)" in refusal(daemon.address, upload.result).message
        daemon.upload_later(HISTOGRAM).result()
        assert daemon.worker == before


def test_a_compiler_that_stands_still(library_root: Path) -> None:
    with bench(library_root, "--max-compile-time", "20s") as daemon:
        before = daemon.worker
        stopped = daemon.compiler
        os.kill(stopped, signal.SIGSTOP)
        upload = daemon.upload_later(HISTOGRAM)
        wait_until(lambda: daemon.load() == 1)
        daemon.run_dot()
        error = refusal(daemon.address, upload.result)
        assert "longer to compile than this server allows, 20 s (--max-compile-time)" in error.message
        assert error.metadata["limit"] == "max_compile_time"
        daemon.upload_later(HISTOGRAM).result()
        assert daemon.worker == before
        assert daemon.compiler != stopped


def test_more_memory_than_is_allowed(library_root: Path) -> None:
    (library_root / "slow.ptx").write_text(slow_ptx(20_000))
    slow = fault_request(str(library_root / "slow.ptx"), "slowKern", use("out", types_pb2.Access.ACCESS_OUTPUT))
    with bench(library_root, "--max-compile-memory", "320MiB") as daemon:
        before = daemon.worker
        error = refusal(daemon.address, lambda: daemon.executor.Submit(slow, timeout=LONG_S))
        assert "more memory to compile than this server allows, 320 MiB (--max-compile-memory)" in error.message
        daemon.upload_later(HISTOGRAM).result()
        assert daemon.worker == before


def test_it_ends_with_its_worker(library_root: Path) -> None:
    with bench(library_root) as daemon:
        compiler = daemon.compiler
        os.kill(compiler, signal.SIGSTOP)
        os.kill(daemon.worker[0], signal.SIGKILL)
        wait_until(lambda: not Path(f"/proc/{compiler}").exists())
        daemon.run_dot()
        assert daemon.worker[1] == 1


def test_a_spare_compiles_nothing_twice(library_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with bench(library_root, "--spare", "1") as daemon:
        wait_until(lambda: len(children(front_of(daemon.kaas))) == 2)
        uploaded = daemon.upload_later(HISTOGRAM).result().library
        (library_root / "again.ptx").write_bytes((KERNELS / "dot.ptx").read_bytes() + b"// again\n")
        again = dot_request(str(library_root / "again.ptx"))
        daemon.executor.Submit(again, timeout=LONG_S)
        os.kill(daemon.worker[0], signal.SIGKILL)
        wait_until(lambda: daemon.worker[1] == 1)
        daemon.executor.Submit(again, timeout=LONG_S)
    compiled = re.findall("(the library|kernel '\\w+') of (sha256:\\w+): compiled", capfd.readouterr().err)
    assert len(compiled) == len(set(compiled)) == 7
    assert uploaded.id in {library for _, library in compiled}


class TestCache:
    def test_a_daemon_that_starts_again_compiles_nothing(self, library_root: Path, tmp_path: Path) -> None:
        settings = ("--store", str(tmp_path / "store"))
        with bench(library_root, *settings) as daemon:
            assert daemon.compiler
        with bench(library_root, *settings) as daemon:
            assert children(daemon.worker[0]) == set()
            os.kill(daemon.worker[0], signal.SIGKILL)
            wait_until(lambda: daemon.worker[1] == 1)
            daemon.run_dot()
            assert children(daemon.worker[0]) == set()
            assert [entry.key for entry in daemon.kaas.list()] == ["a", "b", "c"]

    def test_what_is_damaged_is_compiled_again(self, library_root: Path, tmp_path: Path) -> None:
        settings = ("--store", str(tmp_path / "store"))
        with bench(library_root, *settings):
            pass
        lmdb_settings = {"max_dbs": 10, "lib_version": LMDB_MAJOR_VERSION, "lock": False}
        with (
            lmdb.open(str(tmp_path / "store"), **lmdb_settings) as environment,
            environment.begin(write=True) as txn,
            txn.cursor(environment.open_db(b"compiled", txn=txn)) as cursor,
        ):
            damaged = 0
            for key, value in cursor:
                cursor.put(key, value[:-1] + bytes([value[-1] ^ 1]))
                damaged += 1
        assert damaged == 3
        for expected in ([True], []):
            with bench(library_root, *settings) as daemon:
                assert [True for _ in children(daemon.worker[0])] == expected
                assert daemon.kaas.check_store().damaged == ()

    def test_daemons_that_share_a_directory_compile_once(self, library_root: Path, tmp_path: Path) -> None:
        settings = ("--code-cache", str(tmp_path / "code"))
        with bench(library_root, *settings) as first:
            assert first.compiler
            with bench(library_root, *settings) as second:
                assert children(second.worker[0]) == set()
        damaged = [path for path in (tmp_path / "code" / "emulator").iterdir() if path.stat().st_size]
        assert len(damaged) == 4  # a library, two kernels, and what every device needs
        for path in damaged:
            path.write_bytes(path.read_bytes()[:-1])
        for expected in ([True], []):
            with bench(library_root, *settings) as daemon:
                assert [True for _ in children(daemon.worker[0])] == expected

    def test_a_directory_that_others_may_write_to_is_refused(self, library_root: Path, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        with pytest.raises(RuntimeError, match="exit code 1"), bench(library_root, "--code-cache", str(tmp_path)):
            pass
