"""What only the emulated device tells, through the real daemon: what device code printed, and what its checks found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.local_daemon import local_daemon
from kaas_client import Client, Kernel, Request, inout, tmp
from kaas_client.errors import KernelFaultError
from tests.devices.emulator.runner import kernel

PRINT = """
.extern .func (.param .b32 r) vprintf (.param .b64 f, .param .b64 a);
.global .align 1 .b8 fmt[10] = {116, 104, 114, 101, 97, 100, 32, 37, 100, 0};
"""
"""``thread %d``."""
CALL = """
    .local .align 8 .b8 depot[8]; .reg .b64 %l, %args, %f; .reg .b32 %r; mov.u64 %l, depot; cvta.local.u64 %args, %l;
    st.local.u32 [depot], %n; mov.u64 %f, fmt; cvta.global.u64 %f, %f; call (%r), vprintf, (%f, %args);
"""


@pytest.fixture(scope="module")
def checked() -> Iterator[str]:
    """A daemon whose emulated device checks all it can, in a random order."""
    checks = ["--emulator-check", "races", "--emulator-check", "init", "--emulator-seed", "1"]
    properties = ["--emulator-compute-capability", "12.0", "--emulator-shared-memory", "99KiB"]
    with local_daemon("--device", "emulator", "--log-level", "WARNING", *checks, *properties) as address:
        yield address


@pytest.fixture
def kaas(checked: str) -> Iterator[Client]:
    with Client(checked) as client:
        yield client


def test_what_was_printed_comes_back(kaas: Client, checked: str, tmp_path: Path) -> None:
    library = kaas.upload(kernel(CALL, before=PRINT))
    request = Request([Kernel(library, "k", grid=1, block=1, args=[tmp("x", 4)])])
    assert kaas.submit(request).printed == "thread 0"
    kaas.register("print", request)
    assert kaas.invoke("print").printed == "thread 0"

    (tmp_path / "request.json").write_text(request.to_json())
    for arguments in (["submit", "request.json"], ["function", "invoke", "print"]):
        done = subprocess.run(
            [sys.executable, "-m", "kaas_client.cli.main", "-o", "json", *arguments],
            cwd=tmp_path, env={**os.environ, "KAAS_ADDRESS": checked}, capture_output=True, timeout=100, check=True,
        )  # fmt: skip
        assert done.stderr.decode() == "thread 0\n"
        assert json.loads(done.stdout)["device"] == "emulator"


def test_a_request_that_prints_nothing(kaas: Client) -> None:
    library = kaas.upload(kernel("st.global.u32 [%p0], %n;"))
    assert kaas.submit(Request([Kernel(library, "k", grid=1, block=1, args=[tmp("x", 4)])])).printed == ""


def test_what_was_printed_before_a_fault(kaas: Client) -> None:
    library = kaas.upload(kernel(CALL + "trap;", before=PRINT))
    with pytest.raises(KernelFaultError) as caught:
        kaas.submit(Request([Kernel(library, "k", grid=1, block=1, args=[tmp("x", 4)])]))
    assert caught.value.metadata["report"].endswith("printed before:\nthread 0")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("st.global.u32 [%p0], %n;", "KAAS_ERROR_DATA_RACE"),
        (".reg .b32 %v; mad.wide.u32 %at, %n, 4, %p0; ld.global.u32 %v, [%at];", "KAAS_ERROR_UNINITIALIZED_READ"),
    ],
)
def test_checks(kaas: Client, body: str, fault: str) -> None:
    library = kaas.upload(kernel(body))
    with pytest.raises(KernelFaultError) as caught:
        kaas.submit(Request([Kernel(library, "k", grid=1, block=64, args=[tmp("x", 256)])]))
    assert caught.value.metadata["fault"] == fault
    assert "at PTX line" in caught.value.metadata["report"]


def test_what_is_right_passes_the_checks(kaas: Client) -> None:
    body = ".reg .b32 %v; mad.wide.u32 %at, %n, 4, %p0; ld.global.u32 %v, [%at]; add.u32 %v, %v, 1; st.global.u32 [%at], %v;"
    library = kaas.upload(kernel(body))
    kaas.put("x", bytes(256))
    kaas.submit(Request([Kernel(library, "k", grid=1, block=64, args=[inout("x", 256)])]))
    assert kaas.get("x", dtype="u4").tolist() == [1] * 64


def test_properties(kaas: Client) -> None:
    (device,) = kaas.devices()
    assert (device.compute_capability, device.max_shared_memory_bytes) == ("12.0", 99 << 10)
