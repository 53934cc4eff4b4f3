"""Routines that are several functions in LLVM, and registers with places in a frame, do what short ones do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from kaasd.devices.base import KernelFault
from kaasd.devices.emulator.codegen import routine_code
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.devices.emulator.runner import array_of, buffer_of, kernel, launch, read_write, run_launches

LIMITS = {"short": (10**9, 10**9, 10**9), "homes": (0, 10**9, 10**9), "parts": (0, 6, 4)}
"""``LEAST_WITH_HOMES``, ``LONG`` and ``PART``."""


@pytest.fixture(params=LIMITS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedDevice]:
    for name, limit in zip(("LEAST_WITH_HOMES", "LONG", "PART"), LIMITS[request.param], strict=True):
        monkeypatch.setattr(routine_code, name, limit)
    with closing(EmulatedDevice()) as opened:
        yield opened


def run(device: EmulatedDevice, body: str, size: int, block: int, before: str = "") -> np.ndarray:
    """Return the words that a kernel leaves in a buffer of zeros."""
    buffer = buffer_of(device, np.zeros(size, np.uint32))
    module = device.load(kernel(body, before=before))
    run_launches(device, [launch(module, "k", (1, 1, 1), (block, 1, 1), read_write("x", buffer))])
    return array_of(buffer, np.uint32)


STORE = "mul.wide.u32 %at, %i, 4; add.u64 %at, %at, %p0; st.global.u32 [%at], %sum;"


def test_loops_barriers_and_conditions(device: EmulatedDevice) -> None:
    body = f"""
    .shared .b32 box[64]; .reg .b32 %sum, %r, %k, %a, %u, %box;
    mov.u32 %sum, 1; mov.u32 %r, %i; mov.u32 %k, 0; mov.u32 %a, %tid.x; shl.b32 %a, %a, 2; mov.u32 %box, box;
    LOOP:
    mad.lo.u32 %sum, %sum, 3, %r; and.b32 %u, %sum, 1; setp.eq.u32 %q, %u, 1;
    @%q add.u32 %sum, %sum, 7;
    @!%q mov.u32 %r, 5;
    xor.b32 %r, %r, %k; add.u32 %u, %box, %a; st.shared.u32 [%u], %sum; bar.sync 0;
    xor.b32 %u, %a, 132; add.u32 %u, %u, %box; ld.shared.u32 %u, [%u]; bar.sync 0;
    add.u32 %sum, %sum, %u; add.u32 %k, %k, 1; setp.lt.u32 %q, %k, 5;
    @%q bra LOOP;
    {STORE}"""
    sums, r = np.ones(64, np.uint32), np.arange(64, dtype=np.uint32)
    for k in range(5):
        sums = sums * np.uint32(3) + r
        odd = sums % 2 == 1
        sums, r = np.where(odd, sums + np.uint32(7), sums), np.where(odd, r, np.uint32(5)) ^ np.uint32(k)
        sums = sums + sums[np.arange(64) ^ 33]
    assert (run(device, body, 64, 64) == sums).all()


def test_a_warp_that_waits_for_another(device: EmulatedDevice) -> None:
    body = f"""
    .reg .b32 %sum, %u, %k; mov.u32 %k, 0;
    mov.u32 %u, %tid.x; setp.ge.u32 %q, %u, 32; @%q bra GIVE;
    WAIT:
    ld.volatile.global.u32 %sum, [%p0+252]; add.u32 %k, %k, 1; mul.lo.u32 %k, %k, 3; add.u32 %k, %k, 2; xor.b32 %k, %k, %i;
    add.u32 %k, %k, 1; setp.eq.u32 %q, %sum, 0; @%q bra WAIT;
    bra DONE;
    GIVE: mov.u32 %sum, 77; st.volatile.global.u32 [%p0+252], %sum;
    DONE: {STORE}"""
    assert (run(device, body, 64, 64) == 77).all()


def test_recursion(device: EmulatedDevice) -> None:
    before = """.func (.reg .b32 %result) factorial(.reg .b32 %n)
    {
    .reg .pred %p; .reg .b32 %less;
    mov.u32 %result, 1; setp.le.u32 %p, %n, 1; @%p bra OUT;
    sub.u32 %less, %n, 1; call (%result), factorial, (%less); mul.lo.u32 %result, %result, %n;
    OUT: ret;
    }"""
    body = f".reg .b32 %sum; call (%sum), factorial, (%i); {STORE}"
    assert run(device, body, 12, 12, before).tolist() == [math.factorial(n) for n in range(12)]


def test_a_fault_is_where_it_was(device: EmulatedDevice) -> None:
    body = ".reg .b32 %u;\n" + "add.u32 %n, %n, 1;\n" * 20 + "ld.global.u32 %u, [%p0+4096];\nst.global.u32 [%p0], %u;"
    with pytest.raises(KernelFault) as caught:
        run(device, body, 4, 1)
    line = kernel(body).decode().split("\n").index("ld.global.u32 %u, [%p0+4096];") + 1
    assert f"at PTX line {line}: ld.global.u32" in caught.value.report


def test_registers_start_as_zeros(device: EmulatedDevice) -> None:
    body = f""".reg .b32 %sum, %other;
    setp.ne.u32 %q, %i, 0; @%q mov.u32 %sum, %i; bar.sync 0; add.u32 %sum, %sum, %other; add.u32 %sum, %sum, 1; bar.sync 0;
    {STORE}"""
    assert run(device, body, 8, 8).tolist() == list(range(1, 9))
