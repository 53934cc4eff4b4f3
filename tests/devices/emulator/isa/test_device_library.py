"""What compiled kernels call: assertions, printing, the heap."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from kaasd.devices.base import KernelFault
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.devices.emulator.runner import Array, array_of, buffer_of, kernel, launch, read_write, run_launches

DECLARATIONS = """
.extern .func (.param .b32 r) vprintf (.param .b64 f, .param .b64 a);
.extern .func __assertfail (.param .b64 m, .param .b64 f, .param .b32 l, .param .b64 n, .param .b64 s);
.extern .func (.param .b64 r) malloc (.param .b64 n);
.extern .func (.param .b64 r) __cuda_syscall_aligned_malloc (.param .b64 n, .param .b64 a);
.extern .func free (.param .b64 p);
"""


def text(name: str, value: str) -> str:
    """Return the declaration of a string."""
    data = [*value.encode(), 0]
    return f".global .align 1 .b8 {name}[{len(data)}] = {{{', '.join(map(str, data))}}};\n"


@pytest.fixture
def device() -> Iterator[EmulatedDevice]:
    device = EmulatedDevice()
    yield device
    device.close()


def run(device: EmulatedDevice, body: str, before: str = "", threads: int = 1) -> Array:
    return run_printing(device, body, before, threads)[0]


def run_printing(device: EmulatedDevice, body: str, before: str, threads: int = 1) -> tuple[Array, str]:
    """Return what a kernel left in its buffer, and what it printed."""
    module = device.load(kernel(body, before=DECLARATIONS + before))
    buffer = buffer_of(device, np.zeros(8, "u8"))
    printed = run_launches(device, [launch(module, "k", (1, 1, 1), (threads, 1, 1), read_write("out", buffer))])
    return array_of(buffer, "u8"), printed


CALL_PRINT = "mov.u64 %at, fmt; cvta.global.u64 %at, %at; call (%n), vprintf, (%at, %args); st.global.u32 [%p0], %n;"


def test_printf(device: EmulatedDevice) -> None:
    body = f"""
    .local .align 8 .b8 depot[48]; .reg .b64 %l, %args, %s; mov.u64 %l, depot; cvta.local.u64 %args, %l;
    st.local.u32 [depot], -5; st.local.u32 [depot+4], 7; st.local.f64 [depot+8], 0d4004000000000000;
    st.local.u64 [depot+16], 0xFFFFFFFFFFFF; mov.u64 %s, word; st.local.u64 [depot+24], %s; st.local.u32 [depot+32], 65;
    {CALL_PRINT}"""
    before = text("fmt", "%d|%04u|%.3f|%llx|%s|%c|100%%\n") + text("word", "wörd")
    left, printed = run_printing(device, body, before)
    assert left[0] == 6
    assert printed == "-5|0007|2.500|ffffffffffff|wörd|A|100%\n"


def test_printf_marks_no_zero(device: EmulatedDevice) -> None:
    body = f"""
    .local .align 8 .b8 depot[16]; .reg .b64 %l, %args; mov.u64 %l, depot; cvta.local.u64 %args, %l;
    st.local.v4.u32 [depot], {{0, 0, 16, 8}};
    {CALL_PRINT}"""
    assert run_printing(device, body, text("fmt", "%#x %#o %#X %#o"))[1] == "0 0 0X10 010"  # as C prints them


def test_printf_from_many_threads_in_order(device: EmulatedDevice) -> None:
    body = f"""
    .local .align 8 .b8 depot[8]; .reg .b64 %l, %args; mov.u64 %l, depot; cvta.local.u64 %args, %l; st.local.u32 [depot], %i;
    {CALL_PRINT}"""
    assert run_printing(device, body, text("fmt", "%i "), threads=40)[1] == "".join(f"{i} " for i in range(40))


def test_printf_past_the_buffer(device: EmulatedDevice) -> None:
    body = f"""
    .reg .b64 %args; .reg .b32 %k; .reg .pred %more; mov.u64 %args, 0; mov.u32 %k, 0;
    LOOP: {CALL_PRINT} add.u32 %k, %k, 1; setp.lt.u32 %more, %k, 100000; @%more bra LOOP;"""
    printed = run_printing(device, body, text("fmt", "x"))[1]
    shown = printed.count("x")
    assert shown == (1 << 20) // 16
    assert f"{100000 - shown} calls of printf did not fit" in printed


def test_assertion(device: EmulatedDevice) -> None:
    body = """
    .reg .b64 %m, %f, %s; mov.u64 %m, m; mov.u64 %f, f; mov.u64 %s, s;
    call __assertfail, (%m, %f, 42, %s, 1);"""
    with pytest.raises(KernelFault) as caught:
        run(device, body, text("m", "x > 0") + text("f", "file.cu") + text("s", "void k()"))
    assert caught.value.fault == "CUDA_ERROR_ASSERT"
    assert "file.cu:42: void k(): assertion `x > 0` failed" in caught.value.message


ALLOCATE = ".reg .b64 %h; call (%h), malloc, ({size});"


def test_heap_memory_is_checked(device: EmulatedDevice) -> None:
    head = ALLOCATE.format(size=24)
    assert run(device, head + "st.u64 [%h+16], 77; ld.u64 %at, [%h+16]; st.global.u64 [%p0], %at; call free, (%h);")[0] == 77
    for body in ("st.u64 [%h+24], 1;", "call free, (%h); ld.u64 %at, [%h];"):
        with pytest.raises(KernelFault) as caught:
            run(device, head + body)
        assert caught.value.fault == "CUDA_ERROR_ILLEGAL_ADDRESS"


ALLOCATE_ALIGNED = ".reg .b64 %h; call (%h), __cuda_syscall_aligned_malloc, ({size}, {alignment});"


@pytest.mark.parametrize("alignment", [8, 16, 256, 4096])
def test_aligned_heap_memory(device: EmulatedDevice, alignment: int) -> None:
    head = ALLOCATE_ALIGNED.format(size=24, alignment=alignment) + "st.u64 [%h+16], 5; st.global.u64 [%p0], %h;"
    address, value = run(device, head + "ld.u64 %at, [%h+16]; st.global.u64 [%p0+8], %at; call free, (%h);")[:2]
    assert (address % alignment, value) == (0, 5)
    with pytest.raises(KernelFault, match="write of 8 bytes"):
        run(device, head + "st.u64 [%h+24], 5;")


@pytest.mark.parametrize("alignment", [0, 24])
def test_heap_memory_of_no_alignment(device: EmulatedDevice, alignment: int) -> None:
    body = ALLOCATE_ALIGNED.format(size=24, alignment=alignment) + "st.global.u64 [%p0], %h; st.global.u64 [%p0+8], 3;"
    assert list(run(device, body)[:2]) == [0, 3]


@pytest.mark.parametrize(
    "body", ["call free, (%h); call free, (%h);", "add.u64 %h, %h, 8; call free, (%h);", "call free, (%p0);"]
)
def test_wrong_free(device: EmulatedDevice, body: str) -> None:
    with pytest.raises(KernelFault, match="free of a pointer"):
        run(device, ALLOCATE.format(size=24) + body)


def test_heap_has_a_limit_and_is_emptied_after_a_run(device: EmulatedDevice) -> None:
    body = ALLOCATE.format(size=5 << 20) + "st.global.u64 [%p0], %h; call (%h), malloc, (5242880); st.global.u64 [%p0+8], %h;"
    for _ in range(3):
        first, second = run(device, body)[:2]
        assert first != 0
        assert second == 0
    assert run(device, "call free, (0); st.global.u64 [%p0], 1;")[0] == 1
