"""Checks for data races and for reads of memory that nothing wrote: they find what is wrong, and only that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, KernelFault
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.devices.emulator.runner import Array, array_of, buffer_of, kernel, launch, read_write, run_launches

RACE, UNINITIALIZED = "KAAS_ERROR_DATA_RACE", "KAAS_ERROR_UNINITIALIZED_READ"
SHARED = """
    .shared .align 4 .b8 s[256]; .reg .b32 %v, %warp; .reg .pred %one, %zero; shr.u32 %warp, %n, 5;
    setp.eq.u32 %one, %n, 1; setp.eq.u32 %zero, %n, 0; @%zero st.shared.u32 [s], 0; bar.sync 0;
"""
EXAMPLES = Path(__file__).parents[3] / "examples/kernels"


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[EmulatedDevice]:
    with closing(EmulatedDevice(checks=["races", "init"])) as opened:
        yield opened


def run(
    device: EmulatedDevice, body: str, *, block: int = 64, grid: int = 1, access: Access = Access.INOUT, launches: int = 1
) -> Array:
    """Run a kernel with a buffer of 256 words."""
    module = device.load(kernel(body))
    buffer = buffer_of(device, np.zeros(256, "u4"))
    once = launch(module, "k", (grid, 1, 1), (block, 1, 1), BufferRef("data", buffer, access))
    run_launches(device, [once] * launches)
    return array_of(buffer, "u4")


def fault_of(device: EmulatedDevice, body: str, **shape: int | Access) -> KernelFault:
    with pytest.raises(KernelFault) as caught:
        run(device, body, **shape)  # type: ignore[arg-type]
    return caught.value


WRITE_THEN_READ = SHARED + "@%one st.shared.u32 [s], %n; bar.warp.sync -1; {between} ld.shared.u32 %v, [s];"


def test_shared_memory_without_a_barrier(device: EmulatedDevice) -> None:
    fault = fault_of(device, WRITE_THEN_READ.format(between=""))
    assert fault.fault == RACE
    assert "a data race: 4 bytes at offset 0 of shared memory" in fault.message
    here, before = fault.report.split(" before by ")
    assert "by thread (1, 0, 0) of block (0, 0, 0)" in here  # the other warp was the last at the barrier, and goes on first
    assert "st.shared.u32" in here
    assert 32 <= int(before.split("thread (")[1].split(",")[0]) < 64
    assert "ld.shared.u32" in before


THREADS = np.arange(64, dtype="u4")
KEEP = " mul.wide.u32 %at, %n, 4; add.u64 %at, %at, %p0; st.global.u32 [%at], %v;"


@pytest.mark.parametrize(
    ("body", "right"),
    [
        (WRITE_THEN_READ.format(between="bar.sync 0;"), lambda v: v == 1),
        (WRITE_THEN_READ.format(between="barrier.sync 1, 64;"), lambda v: v == 1),
        # Neighbouring bytes.
        (SHARED + "cvt.u64.u32 %at, %n; st.shared.u8 [%at], %n; ld.shared.u8 %v, [%at];", lambda v: v == THREADS),
        # Atomic all of them.
        (
            SHARED + "atom.shared.exch.b32 %v, [s], 0; red.shared.add.u32 [s], 1; ld.relaxed.cta.shared.u32 %v, [s];",
            lambda v: v <= 64,
        ),
        (SHARED + "st.volatile.shared.u32 [s], %n; bar.warp.sync -1; ld.volatile.shared.u32 %v, [s];", lambda v: v < 64),
        # Read by all, then written by one.
        (SHARED + "ld.shared.u32 %v, [s]; bar.sync 0; @%one st.shared.u32 [s], 1;", lambda v: v == 0),
    ],
)
def test_shared_memory_in_order(device: EmulatedDevice, body: str, right: Callable[[Array], Array]) -> None:
    """No fault, and every thread reads what it must."""
    assert np.all(right(run(device, body + KEEP)[:64]))


def test_read_before_it_is_written(device: EmulatedDevice) -> None:
    """The readers came first, also those of the writer's own warp, which are ordered: one of another is named."""
    body = (
        "ld.shared.u32 %v, [s]; bar.warp.sync -1; setp.eq.u32 %one, %n, 95; @%one nanosleep.u32 9; @%one st.shared.u32 [s], %v;"
    )
    fault = fault_of(device, SHARED + body, block=96)
    assert fault.fault == RACE
    reader = fault.report.split("read before by thread (")[1]
    assert int(reader.split(",")[0]) < 64


NEIGHBOUR = """
    .shared .align 4 .b8 s[256]; .reg .b32 %v, %w, %to; .reg .pred %one; mov.u32 %to, s;
    mad.lo.u32 %w, %n, 4, %to; xor.b32 %to, %w, 4;
    setp.eq.u32 %one, %n, 1; st{kind}.shared.u32 [%w], %n; {between} ld{kind}.shared.u32 %v, [%to];"""


@pytest.mark.parametrize("kind", ["", ".volatile"])
def test_two_threads_of_a_warp(device: EmulatedDevice, kind: str) -> None:
    """They advance together, but nothing promises that."""
    fault = fault_of(device, NEIGHBOUR.format(kind=kind, between=""), block=32)
    assert fault.fault == RACE
    here, before = fault.report.split("written before by ")
    assert f"ld{kind}.shared.u32" in here
    assert "by thread (0, 0, 0)" in here
    assert "thread (1, 0, 0)" in before
    assert f"st{kind}.shared.u32" in before


@pytest.mark.parametrize(
    "between",
    [
        "bar.warp.sync -1;",
        "shfl.sync.idx.b32 %v, %n, 0, 31, -1;",
        "vote.sync.any.pred %one, %one, -1;",
        "bar.sync 0;",
        "barrier.sync 1, 32;",
        "match.any.sync.b32 %v, %n, -1;",
    ],
)
def test_two_threads_of_a_warp_in_order(device: EmulatedDevice, between: str) -> None:
    result = run(device, NEIGHBOUR.format(kind="", between=between) + KEEP, block=32)
    np.testing.assert_array_equal(result[:32], THREADS[:32] ^ 1)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        # Read, then written by another; two that write.
        (".reg .b32 %v; ld.global.u32 %v, [%p0]; setp.eq.u32 %q, %n, {lane}; @%q st.global.u32 [%p0], 1;", "read"),
        (".reg .b32 %v; st.global.u32 [%p0], 1; setp.eq.u32 %q, %n, {lane}; @%q st.global.u32 [%p0], 1;", "written"),
        # In two rounds of a loop.
        (
            """.reg .b32 %v; mov.u32 %v, 0;
            L: setp.eq.u32 %q, %n, %v; @%q st.global.u32 [%p0], %n; add.u32 %v, %v, 1; setp.lt.u32 %q, %v, 32; @%q bra L;""",
            "written",
        ),
        # A fence orders what one thread does, and meets nobody.
        (
            ".reg .b32 %v; setp.eq.u32 %q, %n, {lane}; @%q st.global.u32 [%p0], 1; @%q membar.cta; ld.global.u32 %v, [%p0];",
            "written",
        ),
    ],
)
@pytest.mark.parametrize("lane", [0, 17])
def test_a_warp_at_one_place(device: EmulatedDevice, body: str, kind: str, lane: int) -> None:
    fault = fault_of(device, body.format(lane=lane), block=32)
    assert fault.fault == RACE
    assert f"{kind} before by thread" in fault.report


@pytest.mark.parametrize(
    "body",
    [
        "st.global.u32 [%p0], %n;",  # one instruction, and all at once
        ".reg .b32 %v; atom.global.add.u32 %v, [%p0], 1; atom.global.exch.b32 %v, [%p0], 2;",
        ".reg .b32 %v; ld.global.u32 %v, [%p0]; ld.global.u32 %v, [%p0];",
        # Half a warp by itself.
        """.reg .b32 %v; setp.lt.u32 %q, %n, 16; @!%q bra OUT; st.global.u32 [%p0], 1; bar.warp.sync 0xFFFF;
        ld.global.u32 %v, [%p0]; OUT:""",
    ],
)
def test_a_warp_that_is_right(device: EmulatedDevice, body: str) -> None:
    with closing(EmulatedDevice()) as unchecked:
        np.testing.assert_array_equal(run(device, body, block=32), run(unchecked, body, block=32))


def test_atomic_beside_plain(device: EmulatedDevice) -> None:
    """A plain write races with an atomic operation; a plain read, as before compare and swap, does not."""
    body = "setp.lt.u32 %q, %n, 32; .reg .b32 %v; @%q st.relaxed.gpu.global.u32 [%p0], 1; "
    assert fault_of(device, body + "@!%q st.global.u32 [%p0], 5;").fault == RACE
    run(device, body + "@!%q ld.global.u32 %v, [%p0];")
    run(device, ".reg .b32 %v; ld.global.u32 %v, [%p0]; nanosleep.u32 1; atom.global.cas.b32 %v, [%p0], %v, %n;")


def test_blocks(device: EmulatedDevice) -> None:
    fault = fault_of(device, "st.global.u32 [%p0+8], %i;", grid=3, block=32)
    assert fault.fault == RACE
    assert "4 bytes at offset 8 of buffer 'data' of 1024 bytes" in fault.message
    assert "written before by thread (31, 0, 0) of block (0, 0, 0)" in fault.report
    assert "of block (1, 0, 0)" in fault.report


def test_blocks_apart_and_launches_in_order(device: EmulatedDevice) -> None:
    result = run(device, """
        .reg .b32 %v; mad.wide.u32 %at, %i, 4, %p0; ld.global.u32 %v, [%at]; add.u32 %v, %v, 1; st.global.u32 [%at], %v;
        """, grid=4, launches=3)  # fmt: skip
    assert list(result) == [3] * 256


LOCKED = """
    .reg .b32 %v, %old; .reg .pred %first, %got; and.b32 %v, %n, 31; setp.ne.u32 %first, %v, 0; @%first bra OUT;
    AGAIN: atom.global.cas.b32 %old, [%p0], 0, 1; setp.ne.u32 %got, %old, 0; @%got bra AGAIN; {fence}
    ld.global.u32 %v, [%p0+4]; add.u32 %v, %v, 1; st.global.u32 [%p0+4], %v; {fence}
    atom.global.exch.b32 %old, [%p0], 0; OUT:"""


def test_lock(device: EmulatedDevice) -> None:
    assert list(run(device, LOCKED.format(fence="membar.gl;"), block=128, grid=4)[:2]) == [0, 16]


def test_last_block_sums_what_the_others_left(device: EmulatedDevice) -> None:
    result = run(device, """
        .shared .u32 last; .reg .b32 %v, %old, %sum, %k; .reg .pred %first, %mine, %more; setp.ne.u32 %first, %n, 0;
        mov.u32 %v, %ctaid.x; mad.wide.u32 %at, %v, 4, %p0; add.u32 %v, %v, 1; @!%first st.global.u32 [%at+16], %v; membar.gl;
        @!%first atom.global.add.u32 %old, [%p0], 1; @!%first st.shared.u32 [last], %old; bar.sync 0;
        ld.shared.u32 %old, [last]; setp.ne.u32 %mine, %old, 4; @%mine bra OUT; setp.ne.u32 %first, %n, 63; @%first bra OUT;
        mov.u32 %k, 0; mov.u32 %sum, 0; mov.u64 %at, %p0;
        L: ld.global.u32 %v, [%at+16]; add.u32 %sum, %sum, %v; add.u64 %at, %at, 4; add.u32 %k, %k, 1;
        setp.lt.u32 %more, %k, 5; @%more bra L; st.global.u32 [%p0+4], %sum; OUT:""", grid=5)  # fmt: skip
    assert result[1] == 15


@pytest.mark.parametrize(
    ("body", "place"),
    [
        (SHARED + "ld.shared.u32 %v, [s+12];", "offset 12 of shared memory"),
        (SHARED + "@%zero st.shared.u16 [s+4], 1; bar.sync 0; ld.shared.u32 %v, [s+4];", "offset 4 of shared memory"),
        (".local .b32 x; .reg .b32 %v; ld.local.u32 %v, [x];", "local memory"),
        # What one thread wrote is not what the next one has.
        (".local .b32 x; .reg .b32 %v; setp.eq.u32 %q, %n, 0; @%q st.local.u32 [x], 1; ld.local.u32 %v, [x];", "local memory"),
        (
            ".local .b32 x; .reg .b32 %v; setp.eq.u32 %q, %n, 0; @%q st.local.u32 [x], 1; bar.sync 0; ld.local.u32 %v, [x];",
            "local",
        ),
    ],
)
def test_memory_that_nothing_wrote(device: EmulatedDevice, body: str, place: str) -> None:
    fault = fault_of(device, body, block=32)
    assert fault.fault == UNINITIALIZED
    assert place in fault.message


def test_shared_memory_of_the_block_before(device: EmulatedDevice) -> None:
    body = (
        SHARED
        + """
        mov.u32 %v, %ctaid.x; setp.eq.u32 %one, %v, 0; @%one st.shared.u32 [s+4], %v; bar.sync 0; ld.shared.u32 %v, [s+4];"""
    )
    fault = fault_of(device, body, grid=2, block=32)
    assert fault.fault == UNINITIALIZED
    assert "of block (1, 0, 0)" in fault.report


def test_temporary_buffer(device: EmulatedDevice) -> None:
    body = ".reg .b32 %v; mad.wide.u32 %at, %i, 4, %p0; {store} ld.global.u32 %v, [%at];"
    fault = fault_of(device, body.format(store=""), access=Access.TEMPORARY)
    assert fault.fault == UNINITIALIZED
    assert "buffer 'data'" in fault.message
    run(device, body.format(store="st.global.u32 [%at], %i;"), access=Access.TEMPORARY)
    run(device, body.format(store=""))


def test_temporary_buffer_from_one_launch_to_the_next(device: EmulatedDevice) -> None:
    module = device.load(kernel(".reg .b32 %v; mad.wide.u32 %at, %i, 4, %p0; ld.global.u32 %v, [%at];", name="k"))
    writer = device.load(kernel("mad.wide.u32 %at, %i, 4, %p0; st.global.u32 [%at], %i;", name="w"))
    buffer = buffer_of(device, np.zeros(64, "u4"))
    write = launch(writer, "w", (1, 1, 1), (64, 1, 1), BufferRef("t", buffer, Access.TEMPORARY))
    read = launch(module, "k", (1, 1, 1), (64, 1, 1), BufferRef("t", buffer, Access.INPUT))
    run_launches(device, [write, read], 2)
    with pytest.raises(KernelFault) as caught:
        run_launches(device, [read, write])
    assert caught.value.fault == UNINITIALIZED


def test_arguments_on_the_stack_are_written(device: EmulatedDevice) -> None:
    before = """.func (.param .b32 r) f (.param .b32 a) {
        .reg .b32 %x; ld.param.b32 %x, [a]; add.u32 %x, %x, 1; st.param.b32 [r], %x; ret; }"""
    body = """.reg .b32 %v; .param .b32 a, r; st.param.b32 [a], %i; call (r), f, (a); ld.param.b32 %v, [r];
        mad.wide.u32 %at, %i, 4, %p0; st.global.u32 [%at], %v;"""
    module = device.load(kernel(body, before=before))
    buffer = buffer_of(device, np.zeros(64, "u4"))
    run_launches(device, [launch(module, "k", (1, 1, 1), (64, 1, 1), read_write("data", buffer))])
    assert list(array_of(buffer, "u4")) == list(range(1, 65))


def test_without_checks_nothing_is_reported() -> None:
    with closing(EmulatedDevice()) as device:
        run(device, WRITE_THEN_READ.format(writer=3, between=""))
        run(device, ".local .b32 x; .reg .b32 %v; ld.local.u32 %v, [x];")


def _u8(*values: int) -> Sequence[bytes]:
    return [value.to_bytes(8, "little") for value in values]


def test_correct_kernels_are_left_alone(device: EmulatedDevice) -> None:
    """Compiled kernels with barriers, atomic operations and shuffles, that are known to be right."""
    n = 1024
    a = np.arange(n, dtype="u4")
    buffers = [buffer_of(device, data) for data in (a, a, np.zeros(n, "u4"), np.zeros(1, "u4"))]
    x, y, temporary, out = (read_write(name, buffer) for name, buffer in zip("xypc", buffers, strict=True))
    dot = device.load((EXAMPLES / "dot.ptx").read_bytes())
    run_launches(device, [
        launch(dot, "prodKern", (4, 1, 1), (256, 1, 1), *_u8(n), x, y, BufferRef("p", temporary.buffer, Access.TEMPORARY)),
        launch(dot, "sumKern", (1, 1, 1), (512, 1, 1), temporary, out),
    ], 3)  # fmt: skip
    assert array_of(buffers[3], "u4")[0] == int((a.astype("u8") ** 2).sum()) % 2**32
    data = np.random.default_rng(1).integers(0, 256, 5000, dtype="u1")
    bytes_, bins = buffer_of(device, data), buffer_of(device, np.zeros(256, "u4"))
    histogram = device.load((EXAMPLES / "histogram.ptx").read_bytes())
    arguments = (*_u8(len(data)), read_write("data", bytes_), read_write("bins", bins))
    run_launches(device, [launch(histogram, "histogramKern", (3, 1, 1), (128, 1, 1), *arguments)])
    np.testing.assert_array_equal(array_of(bins, "u4"), np.bincount(data, minlength=256))
