"""Device code that prints without end is stopped as any other, and fills neither the daemon's log nor anybody's time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kaas_client import Client, Kernel, Request, tmp
from kaas_client.errors import DeadlineExceededError
from tests.cli.test_emulated_device import PRINT
from tests.devices.emulator.runner import kernel

LIMIT_BYTES = 1 << 20
PRINT_ON = """
    .local .align 8 .b8 depot[8]; .reg .b64 %l, %args, %f; .reg .b32 %r; .reg .pred %go;
    mov.u64 %l, depot; cvta.local.u64 %args, %l; mov.u64 %f, fmt; cvta.global.u64 %f, %f; mov.u32 %n, 0;
again:
    st.local.u32 [depot], %n; call (%r), vprintf, (%f, %args); add.u32 %n, %n, 1;
"""
ENDLESS = PRINT_ON + "bra again;"
A_LOT = PRINT_ON + "setp.lt.u32 %go, %n, 1000000; @%go bra again;"


def request(library: str) -> Request:
    return Request([Kernel(library, "k", grid=1, block=1, args=[tmp("x", 4)])])


def test_printing_without_end(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/kaasd.sock"
    command = [sys.executable, "-m", "kaasd", "--listen", address, "--store", f"{tmp_path}/store", "--device", "emulator"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as daemon:
        try:
            assert daemon.stdout is not None and daemon.stdout.readline() == f"listening on {address}\n"
            with Client(address) as kaas:
                endless, a_lot = (kaas.upload(kernel(body, before=PRINT)) for body in (ENDLESS, A_LOT))
                with pytest.raises(DeadlineExceededError):
                    kaas.submit(request(endless), timeout=1)
                printed = kaas.submit(request(a_lot)).printed
                assert printed.startswith("thread 0thread 1thread 2")
                assert len(printed) < LIMIT_BYTES + 200
                shown = printed.count("thread ")
                assert printed.endswith(f"[{1000000 - shown} calls of printf did not fit the buffer of {LIMIT_BYTES} bytes]\n")
                assert [device.restarts for device in kaas.devices()] == [0]
        finally:
            daemon.terminate()
        assert daemon.stderr is not None
        log = daemon.stderr.read()
    assert "draining" in log
    assert "thread" not in log
