"""The emulated device as a device: checks, faults, stopping, scheduling, limits."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, KernelFault, Launch, OutOfMemory
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.libraries import UnsupportedLibrary
from kaasd.request.device_checks import DeviceProperties
from tests.devices.emulator.runner import HEADER, Array, array_of, buffer_of, kernel, launch, read_write, run_launches


@pytest.fixture
def device() -> Iterator[EmulatedDevice]:
    device = EmulatedDevice()
    yield device
    device.close()


def run(
    device: EmulatedDevice, body: str, data: Array, block: int = 1, grid: int = 1, access: Access = Access.INOUT, before: str = ""
) -> Array:
    module = device.load(kernel(body, before=before))
    buffer = buffer_of(device, data)
    run_launches(device, [launch(module, "k", (grid, 1, 1), (block, 1, 1), BufferRef("data", buffer, access))])
    return array_of(buffer, data.dtype)


def fault_of(device: EmulatedDevice, body: str, **options: object) -> KernelFault:
    with pytest.raises(KernelFault) as caught:
        run(device, body, np.zeros(16, "u4"), **options)  # type: ignore[arg-type]
    return caught.value


STORE_AT = ".reg .b64 %a; add.s64 %a, %p0, {}; st.global.u32 [%a], 1;"


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (64, "offset 64 of buffer 'data' of 64 bytes: 4 bytes past its end"),
        (1 << 30, "past its end"),
        (-4, "offset -4 of buffer 'data' of 64 bytes: 4 bytes before its start"),
    ],
)
def test_access_outside_a_buffer(device: EmulatedDevice, offset: int, words: str) -> None:
    fault = fault_of(device, STORE_AT.format(offset))
    assert fault.fault == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert words in fault.message


@pytest.mark.parametrize(
    ("size", "offset", "fits"), [(8, 56, True), (8, 64, False), (16, 48, True), (16, 64, False), (1, 63, True)]
)
def test_bounds_are_exact(device: EmulatedDevice, size: int, offset: int, fits: bool) -> None:
    body = {
        1: f"ld.global.u8 %n, [%p0+{offset}];",
        8: f"ld.global.u64 %at, [%p0+{offset}];",
        16: f".reg .b64 %x; ld.global.v2.u64 {{%at, %x}}, [%p0+{offset}];",
    }[size]
    if fits:
        run(device, body, np.zeros(16, "u4"))
    else:
        assert fault_of(device, body).fault == "CUDA_ERROR_ILLEGAL_ADDRESS"


def test_partly_outside(device: EmulatedDevice) -> None:
    module = device.load(kernel("ld.global.u64 %at, [%p0+8];"))
    buffer = device.allocate(12)
    with pytest.raises(KernelFault, match="4 bytes past its end"):
        run_launches(device, [launch(module, "k", (1, 1, 1), (1, 1, 1), read_write("data", buffer))])


@pytest.mark.parametrize("address", [0, 8, 0xFFFFFFFFFFFFFFF8, 0x123456789ABCDEF0, 1 << 62])
def test_wild_pointers(device: EmulatedDevice, address: int) -> None:
    for body in (f"ld.global.u32 %n, [{address}];", f".reg .b64 %a; mov.u64 %a, {address}; st.u64 [%a], %a;"):
        assert fault_of(device, body).fault == "CUDA_ERROR_ILLEGAL_ADDRESS"


def test_use_after_free(device: EmulatedDevice) -> None:
    module = device.load(kernel(".reg .b64 %a; ld.global.u64 %a, [%p0]; ld.global.u32 %n, [%a];"))
    freed = device.allocate(64)
    holder = buffer_of(device, np.array([freed.address], "u8"))
    freed.close()
    with pytest.raises(KernelFault, match="where there is no buffer"):
        run_launches(device, [launch(module, "k", (1, 1, 1), (1, 1, 1), read_write("holder", holder))])


def test_misaligned(device: EmulatedDevice) -> None:
    fault = fault_of(device, STORE_AT.format(2))
    assert fault.fault == "CUDA_ERROR_MISALIGNED_ADDRESS"
    assert "not aligned to 4 bytes" in fault.message


def test_write_to_input(device: EmulatedDevice) -> None:
    for body in ("st.global.u32 [%p0], 1;", "red.global.add.u32 [%p0], 1;"):
        fault = fault_of(device, body, access=Access.INPUT)
        assert fault.fault == "KAAS_ERROR_WRITE_TO_INPUT"
        assert "'data'" in fault.message
    run(device, "ld.global.u32 %n, [%p0];", np.zeros(1, "u4"), access=Access.INPUT)


def test_input_that_is_also_an_output_may_be_written(device: EmulatedDevice) -> None:
    module = device.load(kernel(".reg .b64 %o; ld.param.u64 %o, [p1]; st.global.u32 [%p0], 5;", ".param .u64 p0, .param .u64 p1"))
    buffer = buffer_of(device, np.zeros(1, "u4"))
    both = [BufferRef("x", buffer, Access.INPUT), BufferRef("x", buffer, Access.OUTPUT)]
    run_launches(device, [launch(module, "k", (1, 1, 1), (1, 1, 1), *both)])
    assert array_of(buffer, "u4")[0] == 5


def test_read_only_holds_for_one_launch(device: EmulatedDevice) -> None:
    module = device.load(kernel("st.global.u32 [%p0], 5;") + b"\n.visible .entry r(.param .u64 p) { ret; }")
    buffer = buffer_of(device, np.zeros(1, "u4"))
    reads = launch(module, "r", (1, 1, 1), (1, 1, 1), BufferRef("x", buffer, Access.INPUT))
    writes = launch(module, "k", (1, 1, 1), (1, 1, 1), read_write("x", buffer))
    run_launches(device, [reads, writes, reads], 2)
    assert array_of(buffer, "u4")[0] == 5


def test_shared_and_local_bounds(device: EmulatedDevice) -> None:
    shared = ".shared .b32 s[4]; .reg .b32 %a; mov.u32 %a, s; st.shared.u32 [%a+16], 1;"
    assert "shared memory of 16 bytes" in fault_of(device, shared).message
    local = ".local .align 16 .b8 l[16]; .reg .b64 %a; mov.u64 %a, l; st.local.u32 [%a+16], 1;"
    assert "local memory" in fault_of(device, local).message
    far = ".shared .b32 s[4]; .reg .b64 %a; mov.u64 %a, -4; st.shared.u32 [%a], 1;"
    assert fault_of(device, far).fault == "CUDA_ERROR_ILLEGAL_ADDRESS"


def test_constants_cannot_be_written(device: EmulatedDevice) -> None:
    body = ".reg .b64 %a; mov.u64 %a, c; cvta.const.u64 %a, %a; st.u32 [%a], 1;"
    fault = fault_of(device, body, before=".const .b32 c = 1;")
    assert fault.fault == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert "variable c" in fault.message


def test_report_names_thread_line_and_source(device: EmulatedDevice) -> None:
    body = ".reg .pred %w; setp.ne.u32 %w, %i, 37;\n@%w ret;\n.loc 1 12 5\nst.global.u32 [%p0+64], 1;"
    with pytest.raises(KernelFault) as caught:
        run(device, body, np.zeros(16, "u4"), block=32, grid=2, before='.file 1 "/src/mine.cu"')
    report = caught.value.report
    line = kernel(body, before='.file 1 "/src/mine.cu"').decode().split("\n").index("st.global.u32 [%p0+64], 1;") + 1
    assert f"PTX line {line}: st.global.u32" in report
    assert "/src/mine.cu:12:5" in report
    assert "thread (5, 0, 0) of block (1, 0, 0)" in report


def test_launch_index_of_a_fault(device: EmulatedDevice) -> None:
    module = device.load(kernel(".reg .pred %z; ld.global.u32 %n, [%p0]; setp.eq.u32 %z, %n, 0; @%z ret; trap;"))
    good, bad = (buffer_of(device, np.array([v], "u4")) for v in (0, 1))
    launches = [launch(module, "k", (1, 1, 1), (1, 1, 1), read_write("x", b)) for b in (good, good, bad, good)]
    with pytest.raises(KernelFault) as caught:
        run_launches(device, launches)
    assert (caught.value.launch_index, caught.value.fault) == (2, "CUDA_ERROR_LAUNCH_FAILED")


def test_arithmetic_that_would_trap_a_cpu(device: EmulatedDevice) -> None:
    body = """
    .reg .b32 %a, %z; .reg .b64 %w; mov.u32 %z, 0; mov.u32 %a, 0x80000000; div.s32 %n, %a, -1; rem.s32 %n, %a, -1;
    div.u32 %n, %a, %z; rem.u32 %n, %a, %z; mov.u64 %w, 0x8000000000000000; div.s64 %w, %w, -1; st.global.u64 [%p0], %w;"""
    assert run(device, body, np.zeros(1, "u8"))[0] == 1 << 63


def test_endless_recursion(device: EmulatedDevice) -> None:
    before = ".func f () { .local .b8 big[512]; call f; ret; }"
    assert fault_of(device, "call f;", before=before).fault == "CUDA_ERROR_HARDWARE_STACK_ERROR"


def test_wild_indirect_call(device: EmulatedDevice) -> None:
    body = ".reg .b64 %f; mov.u64 %f, 0x4000000000128; P: .callprototype _ (); call %f, P;"
    before = ".func g () { ret; }"
    assert fault_of(device, body, before=before).fault == "CUDA_ERROR_INVALID_PC"


def test_deadlock_is_found_and_told(device: EmulatedDevice) -> None:
    body = ".reg .pred %l; setp.lt.u32 %l, %i, 32; @%l bra A; bar.sync 1; A: bar.sync 0;"
    fault = fault_of(device, body, block=64)
    assert fault.fault == "CUDA_ERROR_LAUNCH_FAILED"
    assert "deadlock" in fault.message
    assert fault.report.count("32 threads wait") == 2


def test_warp_operation_without_all_its_threads(device: EmulatedDevice) -> None:
    body = """.reg .pred %l; setp.lt.u32 %l, %i, 16; @%l bra A; bar.sync 0;
    A: shfl.sync.idx.b32 %n, %i, 0, 31, 0xFFFFFFFF; bar.sync 0;"""
    fault = fault_of(device, body, block=32)
    assert "deadlock" in fault.message
    assert "16 threads wait at PTX line" in fault.report
    outside = fault_of(device, "shfl.sync.idx.b32 %n, %i, 0, 31, 0xFFFFFFFE;", block=32)
    assert "not in the member mask" in outside.message


def test_barrier_out_of_range(device: EmulatedDevice) -> None:
    assert fault_of(device, "bar.sync 16;").fault == "CUDA_ERROR_ILLEGAL_INSTRUCTION"
    assert fault_of(device, "bar.sync 1, 33;").fault == "CUDA_ERROR_ILLEGAL_INSTRUCTION"


LOCKED_COUNTER = """
.reg .pred %got; .reg .b32 %v;
TRY: atom.global.cas.b32 %v, [%p0], 0, 1; setp.eq.u32 %got, %v, 0; @!%got bra TRY;
ld.volatile.global.u32 %v, [%p0+4]; {inside} add.u32 %v, %v, 1; st.volatile.global.u32 [%p0+4], %v;
membar.gl; atom.global.exch.b32 %v, [%p0], 0;
"""


@pytest.mark.parametrize("inside", ["", "nanosleep.u32 100;", "bar.warp.sync 0xFFFFFFFF;"])
def test_spin_locks(device: EmulatedDevice, inside: str) -> None:
    block = 1 if "warp" in inside else 32  # threads of one warp must not meet while one holds the lock
    result = run(device, LOCKED_COUNTER.format(inside=inside), np.zeros(2, "u4"), block=block, grid=4)
    assert list(result) == [0, block * 4]


def test_blocks_may_wait_for_each_other(device: EmulatedDevice) -> None:
    body = """
    .reg .pred %all; .reg .b32 %v; red.global.add.u32 [%p0], 1;
    WAIT: ld.volatile.global.u32 %v, [%p0]; setp.eq.u32 %all, %v, 640; @!%all bra WAIT;
    bar.sync 0; red.global.add.u32 [%p0+4], 1;"""
    assert list(run(device, body, np.zeros(2, "u4"), block=64, grid=10)) == [640, 640]


def test_order_on_one_core_is_fixed() -> None:
    body = """
    .reg .b32 %v; shfl.sync.bfly.b32 %v, %i, 1, 31, 0xFFFFFFFF; atom.global.add.u32 %v, [%p0], 1;
    mad.wide.u32 %at, %v, 4, %p0; st.global.u32 [%at+4], %i;"""
    with closing(EmulatedDevice(cores=1)) as device:
        first, second = (run(device, body, np.zeros(257, "u4"), block=64, grid=4) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.sort(first[1:]), np.arange(256))


def test_many_launches(device: EmulatedDevice) -> None:
    module = device.load(kernel("red.global.add.u32 [%p0], 1;"))
    buffer = buffer_of(device, np.zeros(1, "u4"))
    one = launch(module, "k", (2, 1, 1), (32, 1, 1), read_write("x", buffer))
    run_launches(device, [one] * 3, 1000)
    assert array_of(buffer, "u4")[0] == 3 * 1000 * 64


def test_grid_and_block_in_three_dimensions(device: EmulatedDevice) -> None:
    names = [f"%{v}.{a}" for v in ("tid", "ntid", "ctaid", "nctaid") for a in "xyz"]
    body = "\n".join(f"mov.u32 %n, {name}; st.global.u32 [%at+{4 * i}], %n;" for i, name in enumerate(names))
    place = """
    .reg .b32 %x, %y, %z, %w; mov.u32 %x, %ctaid.z; mad.lo.u32 %x, %x, 3, 0; mov.u32 %y, %ctaid.y; add.u32 %x, %x, %y;
    mul.lo.u32 %x, %x, 2; mov.u32 %y, %ctaid.x; add.u32 %x, %x, %y;
    mul.lo.u32 %x, %x, 24; mov.u32 %y, %tid.z; mul.lo.u32 %y, %y, 3; mov.u32 %z, %tid.y; add.u32 %y, %y, %z;
    mul.lo.u32 %y, %y, 4; mov.u32 %z, %tid.x; add.u32 %y, %y, %z; add.u32 %x, %x, %y; mad.wide.u32 %at, %x, 48, %p0;"""
    for extra in ("", "bar.sync 0;"):
        module = device.load(kernel(place + body + extra))
        buffer = buffer_of(device, np.zeros(2 * 3 * 2 * 24 * 12, "u4"))
        run_launches(device, [launch(module, "k", (2, 3, 2), (4, 3, 2), read_write("x", buffer))])
        rows = array_of(buffer, "u4").reshape(2, 3, 2, 2, 3, 4, 12)
        for index in np.ndindex(2, 3, 2, 2, 3, 4):
            bz, by, bx, tz, ty, tx = index
            assert list(rows[index]) == [tx, ty, tz, 4, 3, 2, bx, by, bz, 2, 3, 2]


def test_memory_limit() -> None:
    device = EmulatedDevice(DeviceProperties("emulator", "small", 1 << 20))
    first = device.allocate(600 << 10)
    with pytest.raises(OutOfMemory, match="asked"):
        device.allocate(600 << 10)
    first.close()
    first.close()
    device.allocate(600 << 10)
    device.close()
    device.close()


def test_buffers_read_and_write_ranges(device: EmulatedDevice) -> None:
    buffer = device.allocate(16)
    buffer.zero()
    buffer.write(b"abcd", 6)
    out = bytearray(8)
    buffer.read(out, 4)
    assert out == b"\0\0abcd\0\0"
    for offset in (-1, 13):
        with pytest.raises(ValueError, match="outside"):
            buffer.write(b"abcd", offset)


def test_attributes(device: EmulatedDevice) -> None:
    text = f"""{HEADER}
    .shared .align 4 .b8 mine[100]; .shared .b32 unused[1000]; .extern .shared .align 16 .b8 dynamic[];
    .visible .entry a(.param .u32 x, .param .align 8 .b8 s[24], .param .u8 c) .reqntid 64, 2, 1
    {{ .reg .b32 %r; mov.u32 %r, mine; mov.u32 %r, dynamic; ret; }}
    .entry b() .maxntid 128 {{ ret; }}"""
    kernels = device.load(text.encode()).kernels
    a, b = kernels["a"].attributes, kernels["b"].attributes
    assert (a.parameter_size_bytes, a.static_shared_memory_bytes, a.max_threads_per_block) == ((4, 24, 1), 112, 128)
    assert (a.parameter_alignment_bytes, a.parameter_names) == ((4, 8, 1), ("x", "s", "c"))
    assert a.required_block == (64, 2, 1)
    assert (b.parameter_size_bytes, b.static_shared_memory_bytes, b.max_threads_per_block) == ((), 0, 128)
    assert b.required_block is None


def test_parameters_of_all_kinds(device: EmulatedDevice) -> None:
    parameters = ".param .u64 p0, .param .u8 a, .param .u16 b, .param .align 8 .b8 s[16], .param .f64 d"
    body = """
    .reg .b16 %h; .reg .b64 %w, %q2;
    ld.param.u8 %h, [a]; st.global.u16 [%p0], %h; ld.param.u16 %h, [b]; st.global.u16 [%p0+2], %h;
    ld.param.u64 %w, [s+8]; st.global.u64 [%p0+8], %w; ld.param.f64 %w, [d]; st.global.f64 [%p0+16], %w;
    mov.b64 %q2, s; ld.param.u64 %w, [%q2]; st.global.u64 [%p0+24], %w; cvta.param.u64 %q2, %q2; ld.u32 %n, [%q2+12];
    st.global.u32 [%p0+4], %n;"""
    module = device.load(kernel(body, parameters))
    buffer = buffer_of(device, np.zeros(4, "u8"))
    arguments = (read_write("x", buffer), b"\xff", struct.pack("<H", 515), struct.pack("<QQ", 7, 1 << 40), struct.pack("<d", 2.5))
    run_launches(device, [Launch(module.kernels["k"], (1, 1, 1), (1, 1, 1), 0, arguments)])
    content = array_of(buffer, "u1").tobytes()
    assert struct.unpack("<HHIQdQ", content) == (255, 515, 256, 1 << 40, 2.5, 7)


@pytest.mark.parametrize("image", [b"", b"hello", b"\x7fELF", b"// only a comment", f"{HEADER}.visible .entry k(".encode()])
def test_what_is_no_library(device: EmulatedDevice, image: bytes) -> None:
    with pytest.raises(UnsupportedLibrary):
        device.load(image)


def test_failed_load_leaves_nothing(device: EmulatedDevice) -> None:
    with pytest.raises(UnsupportedLibrary):
        device.load(kernel("ret;", before=".global .b8 big[1000000]; .global .u64 bad = big2;"))
    assert not list(device._space)
