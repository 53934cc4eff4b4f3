"""Host code through the real daemon: refused unless it is allowed, and then by the emulated device, each with its reason."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from examples.local_daemon import local_daemon
from kaas_client import Client, Kernel, Request, i32, inp, out, tmp, u32, u64
from kaas_core.errors import (
    InvalidLibraryError,
    KaasError,
    KernelFaultError,
    KernelNotFoundError,
    NotEnabledError,
    QuarantinedError,
)
from tests.faults.support import contents

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "libraries" / "data"
WRAPPER = ROOT / "examples" / "wrappers" / "sum.so"
EMULATED = ("--device", "emulator", "--log-level", "ERROR", "--library-root", str(DATA))


@pytest.fixture(scope="module")
def off() -> Iterator[Client]:
    """A client of a daemon as it is by default."""
    with local_daemon(*EMULATED) as address, Client(address) as kaas:
        yield kaas


@pytest.fixture(scope="module")
def on() -> Iterator[Client]:
    """A client of a daemon that allows host code, but has only the emulated device."""
    with local_daemon(*EMULATED, "--allow-host-wrappers") as address, Client(address) as kaas:
        yield kaas


def request(library: str, name: str) -> Request:
    return Request([Kernel(str(DATA / library), name, grid=1, block=1, args=[u32(0), out("c", 4)])])


CALLS: dict[str, Callable[[Client, str, str], object]] = {
    "submit": lambda kaas, library, name: kaas.submit(request(library, name)),
    "register": lambda kaas, library, name: kaas.register("f", request(library, name)),
    "inspect": lambda kaas, library, name: kaas.inspect(str(DATA / library)),
    "upload": lambda kaas, library, name: kaas.upload(DATA / library),
}


def failure(kaas: Client, call: str, library: str, name: str = "give") -> KaasError:
    """Return how a call fails, and check that it changes nothing."""
    before = state(kaas)
    with pytest.raises(KaasError) as caught:
        CALLS[call](kaas, library, name)
    assert state(kaas) == before
    return caught.value


def state(kaas: Client) -> tuple[object, ...]:
    return contents(kaas), [function.name for function in kaas.functions()], list(kaas.libraries())


@pytest.mark.parametrize("name", ["give", "nothing"])
@pytest.mark.parametrize("call", CALLS)
def test_host_code_is_refused_by_default(call: str, name: str, off: Client) -> None:
    error = failure(off, call, "convention.so", name)
    assert isinstance(error, NotEnabledError)
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "NOT_ENABLED")
    assert "--allow-host-wrappers" in error.message
    assert "host code" in error.message
    if call != "upload":
        assert str(DATA / "convention.so") in error.message
    if call in ("submit", "register"):
        assert error.message.startswith("kernels[0].library: ")


@pytest.mark.parametrize("call", ["submit", "register"])
def test_the_host_code_of_a_library_with_kernels_is_refused_by_default(call: str, off: Client) -> None:
    error = failure(off, call, "mixed.so")
    assert isinstance(error, NotEnabledError)
    assert "--allow-host-wrappers" in error.message


@pytest.mark.parametrize("call", CALLS)
def test_the_emulated_device_has_no_host_code(call: str, on: Client) -> None:
    error = failure(on, call, "convention.so")
    assert isinstance(error, InvalidLibraryError)
    assert "host code launches its kernels on a CUDA GPU; the emulated device runs none" in error.message


@pytest.mark.parametrize("kaas", ["off", "on"])
@pytest.mark.parametrize("call", CALLS)
def test_a_damaged_shared_object(call: str, kaas: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    daemon: Client = request.getfixturevalue(kaas)
    if call == "upload":
        with pytest.raises(InvalidLibraryError, match="truncated ELF"):
            daemon.upload((DATA / "convention.so").read_bytes()[:-1], file_name="cut.so")
    else:
        error = failure(daemon, call, "relocatable.so")
        assert isinstance(error, InvalidLibraryError)
        assert "not linked" in error.message


def test_an_unknown_function(on: Client) -> None:
    error = failure(on, "submit", "convention.so", "take")
    assert isinstance(error, KernelNotFoundError)
    assert error.message.endswith("has no kernel 'take'; it has crash, give, record")


@pytest.mark.parametrize("kaas", ["off", "on"])
def test_the_kernels_beside_host_code_need_no_leave(kaas: str, request: pytest.FixtureRequest) -> None:
    daemon: Client = request.getfixturevalue(kaas)
    library = daemon.upload(DATA / "mixed.so")
    assert [kernel.name for kernel in daemon.inspect(library).kernels] == ["histogramKern"]
    data = np.random.default_rng(3).integers(0, 256, 1000, dtype=np.uint8)
    n = Kernel(library, "histogramKern", grid=4, block=256, args=[u64(data.size), inp("data", data.nbytes), out("bins", 1024)])
    result = daemon.submit(Request([n]), inputs={"data": data}, returns=["bins"])
    np.testing.assert_array_equal(result.array("bins", "u4"), np.bincount(data, minlength=256))


@pytest.fixture(scope="module")
def gpu() -> Iterator[Client]:
    """A client of a daemon that allows host code and has a GPU."""
    arguments = ("--device", "cuda:0", "--log-level", "ERROR", "--library-root", str(DATA), "--allow-host-wrappers")
    with local_daemon(*arguments) as address, Client(address, timeout=90) as kaas:
        yield kaas


def total_request(library: str, n: int, *more: Kernel) -> Request:
    arguments = [inp("a", 4 * n), tmp("partial", 4 * n), out("c", 4), u64(n)]
    return Request([Kernel(library, "sum", grid=1, block=256, args=arguments), *more])


@pytest.mark.gpu
def test_a_wrapper_runs(gpu: Client) -> None:
    library = gpu.upload(WRAPPER)
    found = gpu.inspect(library)
    assert (found.kind, [kernel.name for kernel in found.kernels]) == ("wrapper", ["sum"])
    a = np.random.default_rng(5).integers(0, 2**32, 1_000_003, dtype=np.uint32)
    total = gpu.register("sum", total_request(library, a.size))
    for value in (a, a[::-1] * np.uint32(3), a):
        assert total(a=value).array("c", "u4")[0] == np.sum(value, dtype=np.uint32)
        assert gpu.get("c", dtype="u4")[0] == np.sum(value, dtype=np.uint32)


@pytest.mark.gpu
@pytest.mark.parametrize("code", [1, -3, 700])
def test_a_wrapper_that_fails_changes_nothing(code: int, gpu: Client) -> None:
    """Another kernel of the request has written ``c`` by then."""
    gpu.put("a", np.ones(1000, np.uint32))
    gpu.put("c", np.zeros(1, np.uint32))
    give = Kernel(str(DATA / "convention.so"), "give", grid=1, block=1, args=[i32(code)])
    before = contents(gpu)
    with pytest.raises(KernelFaultError, match=f"give returned {code}") as caught:
        gpu.submit(total_request(gpu.upload(WRAPPER), 1000, give))
    assert caught.value.code == "ABORTED"
    metadata = dict(caught.value.metadata)
    assert (metadata["fault"], metadata["kernel_index"], metadata["kernel"]) == ("WRAPPER_FAILED", "1", "give")
    assert contents(gpu) == before
    assert gpu.devices()[0].restarts == 0


@pytest.mark.gpu
def test_a_wrapper_that_crashes_takes_the_worker_with_it() -> None:
    with local_daemon("--device", "cuda:0", "--log-level", "ERROR", "--allow-host-wrappers") as address, Client(address) as kaas:
        kaas.put("a", np.ones(1000, np.uint32))
        crash = Kernel(kaas.upload(DATA / "convention.so"), "crash", grid=1, block=1, args=[])
        wrapper = kaas.upload(WRAPPER)
        before = contents(kaas)
        with pytest.raises(QuarantinedError, match="running each time when 3 workers died"):
            kaas.submit(total_request(wrapper, 1000, crash), timeout=100)
        assert contents(kaas) == before
        assert kaas.submit(total_request(wrapper, 1000), returns=["c"], timeout=600).array("c", "u4")[0] == 1000
        assert kaas.devices()[0].restarts == 1, "what it costs after the first worker it costs in a process of its own"


@pytest.mark.gpu
def test_the_example_of_the_documentation(gpu: Client) -> None:
    text = (ROOT / "docs/wrappers.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "KAAS_ADDRESS": gpu.address},
        capture_output=True,
        check=True,
        timeout=100,
    )
    expected = np.sum(np.arange(1_000_003, dtype=np.uint32), dtype=np.uint32)
    assert done.stdout.decode().split() == [str(expected), "NumPy", "says", str(expected)]


@pytest.mark.gpu
def test_what_cannot_be_loaded(gpu: Client) -> None:
    for call in CALLS:
        error = failure(gpu, call, "incomplete.so")
        assert isinstance(error, InvalidLibraryError)
        assert "undefined symbol: not_there" in error.message


@pytest.mark.gpu
def test_host_code_beside_kernels_that_cannot_be_loaded(gpu: Client) -> None:
    """It was linked without CUDA's runtime, which it calls when it is loaded."""
    assert [kernel.name for kernel in gpu.inspect(str(DATA / "mixed.so")).kernels] == ["histogramKern"]
    error = failure(gpu, "submit", "mixed.so")
    assert isinstance(error, InvalidLibraryError)
    assert "undefined symbol: __cuda" in error.message
