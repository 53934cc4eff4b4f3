"""Blocks of one launch on several cores: what they share comes out right, and what each has for itself stays so."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from kaasd.devices.base import KernelFault, Stopped
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.devices.emulator.runner import array_of, buffer_of, kernel, launch, read_write, run_launches

BLOCKS, THREADS = 64, 64
ALL = BLOCKS * THREADS
ROUNDS = 40
"""Of a loop around what is done, so that the others have long been called when the launch ends."""
WORK = f"""
    .reg .b32 %round, %v; .reg .b64 %w; .reg .f32 %f; .reg .f64 %g; .reg .pred %p;
    mov.u32 %round, 0;
LOOP:
    {{body}}
    add.u32 %round, %round, 1; setp.lt.u32 %p, %round, {ROUNDS}; @%p bra LOOP;"""


@pytest.fixture
def device() -> Iterator[EmulatedDevice]:
    with closing(EmulatedDevice(cores=4)) as device:
        yield device


def run_helped(device: EmulatedDevice, text: bytes, *buffers: np.ndarray, grid: int = BLOCKS, threads: int = THREADS) -> list:  # type: ignore[type-arg]
    """Run a kernel until other cores have helped with it, anew each time; return what is in the buffers then."""
    module = device.load(text)
    for _ in range(1000):
        allocated = [buffer_of(device, data) for data in buffers]
        references = [read_write(f"b{index}", buffer) for index, buffer in enumerate(allocated)]
        before = device._processor.cores.team.joined
        run_launches(device, [launch(module, "k", (grid, 1, 1), (threads, 1, 1), *references)])
        results = [array_of(buffer, data.dtype) for buffer, data in zip(allocated, buffers, strict=True)]
        if device._processor.cores.team.joined > before:
            return results
        for buffer in allocated:
            buffer.close()
    raise AssertionError("no other core has helped")


@pytest.mark.parametrize(
    ("body", "kind", "start", "expected"),
    [
        ("red.global.add.u32 [%p0], 1;", "u4", 0, ALL * ROUNDS),
        ("atom.global.add.u64 %w, [%p0], 3;", "u8", 0, 3 * ALL * ROUNDS),
        ("atom.add.u32 %v, [%p0], 1;", "u4", 5, ALL * ROUNDS + 5),
        ("red.global.xor.b32 [%p0], %i;", "u4", 7, 7),
        ("red.global.max.u32 [%p0], %i;", "u4", 7, ALL - 1),
        ("neg.s32 %v, %i; red.global.min.s32 [%p0], %v;", "i4", 7, 1 - ALL),
        ("atom.global.inc.u32 %v, [%p0], 999;", "u4", 0, ALL * ROUNDS % 1000),
        ("atom.global.dec.u32 %v, [%p0], 999;", "u4", 0, -ALL * ROUNDS % 1000),
        ("red.global.add.f32 [%p0], 0f3F800000;", "f4", 0, ALL * ROUNDS),
        ("red.global.add.f64 [%p0], 0d3FF0000000000000;", "f8", 0, ALL * ROUNDS),
        ("atom.acq_rel.gpu.global.add.u32 %v, [%p0], 1;", "u4", 0, ALL * ROUNDS),
    ],
)  # fmt: skip
def test_atomic_operations(device: EmulatedDevice, body: str, kind: str, start: int, expected: int) -> None:
    (found,) = run_helped(device, kernel(WORK.format(body=body)), np.full(1, start, kind))
    assert found[0] == expected


@pytest.mark.parametrize("bits", [32, 64, 128])
def test_compare_and_swap_takes_a_lock(device: EmulatedDevice, bits: int) -> None:
    """What the lock guards is neither atomic nor volatile."""
    narrow = f"atom.acquire.gpu.global.cas.b{bits} %old, [%p0], %zero, %one;"
    ends = {
        32: "mov.b32 %zero, 0; mov.b32 %one, 1;",
        64: "mov.b64 %zero, 0; mov.b64 %one, 1;",
        128: "mov.b64 %w, 0; mov.b128 %zero, {%w, %w}; mov.b64 %w2, 1; mov.b128 %one, {%w2, %w};",
    }
    taken = {32: "%old", 64: "%old", 128: "%w"}[bits]
    body = f"""
        .reg .b{bits} %old, %zero, %one; .reg .b64 %w, %w2; .reg .b32 %v; .reg .pred %p;
        setp.ne.u32 %p, %n, 0; @%p ret;
        {ends[bits]}
    AGAIN: {narrow} {"mov.b128 {%w, %w2}, %old;" if bits == 128 else ""}
        setp.ne.b{min(bits, 64)} %p, {taken}, 0; @%p bra AGAIN;
        ld.global.u32 %v, [%p0+16]; add.u32 %v, %v, 1; st.global.u32 [%p0+16], %v;
        membar.gl; mov.u32 %v, 0; st.volatile.global.u32 [%p0], %v;"""
    (found,) = run_helped(device, kernel(body), np.zeros(8, "u4"), grid=4096, threads=32)
    assert found[4] == 4096


@pytest.mark.parametrize(
    ("store", "load"),
    [("st.release.gpu.global.u32", "ld.acquire.gpu.global.u32"), ("membar.gl; st.volatile.global.u32", "ld.volatile.global.u32")],
)
def test_a_block_waits_for_the_one_before(device: EmulatedDevice, store: str, load: str) -> None:
    """As in a scan in one pass: its sum is plain, its flag is not."""
    body = f"""
        .reg .b32 %v, %f, %block; .reg .b64 %before; .reg .pred %p;
        setp.ne.u32 %p, %n, 0; @%p ret;
        mov.u32 %block, %ctaid.x; mul.wide.u32 %at, %block, 8; add.u64 %at, %at, %p0; mov.u32 %v, 0;
        setp.eq.u32 %p, %block, 0; @%p bra FIRST;
    AGAIN: {load} %f, [%at+-8]; setp.eq.u32 %p, %f, 0; @%p bra AGAIN;
        ld.global.u32 %v, [%at+-4];
    FIRST: add.u32 %v, %v, %block; st.global.u32 [%at+4], %v; mov.u32 %f, 1; {store} [%at], %f;"""
    (found,) = run_helped(device, kernel(body), np.zeros(2 * 512, "u4"), grid=512, threads=32)
    assert np.array_equal(found[1::2], np.cumsum(np.arange(512, dtype="u4"), dtype="u4"))


def test_all_blocks_meet(device: EmulatedDevice) -> None:
    """Each counts itself in, waits for all, and then reads what its neighbour left, several times over."""
    body = f"""
        .reg .b32 %v, %goal, %block, %next; .reg .b64 %to; .reg .pred %p;
        mov.u32 %block, %ctaid.x; mov.u32 %goal, 0;
        mul.wide.u32 %at, %block, 4; add.u64 %at, %at, %p0;
        add.u32 %next, %block, 1; rem.u32 %next, %next, {BLOCKS}; mul.wide.u32 %to, %next, 4; add.u64 %to, %to, %p0;
    ROUND: add.u32 %goal, %goal, {BLOCKS};
        setp.ne.u32 %p, %n, 0; @%p bra MEET;
        ld.global.u32 %v, [%to+1024]; add.u32 %v, %v, 1; st.global.u32 [%at+2048], %v;
        membar.gl; red.global.add.u32 [%p0], 1;
    W1: ld.volatile.global.u32 %v, [%p0]; setp.lt.u32 %p, %v, %goal; @%p bra W1;
        membar.gl; ld.global.u32 %v, [%at+2048]; st.global.u32 [%at+1024], %v;
        membar.gl; red.global.add.u32 [%p0+512], 1;
    W2: ld.volatile.global.u32 %v, [%p0+512]; setp.lt.u32 %p, %v, %goal; @%p bra W2;
        membar.gl;
    MEET: bar.sync 0;
        setp.lt.u32 %p, %goal, {5 * BLOCKS}; @%p bra ROUND;"""
    (found,) = run_helped(device, kernel(body), np.zeros(1024, "u4"), threads=64)
    assert np.all(found[256 : 256 + BLOCKS] == 5)


def test_memory_of_blocks_and_threads_is_their_own(device: EmulatedDevice) -> None:
    """By its own address and by a generic one; parameters too."""
    body = f"""
        .reg .b32 %v, %l, %round; .reg .b64 %g, %h; .reg .pred %p;
        .local .align 4 .b8 mine[8]; .shared .align 4 .b8 ours[{4 * THREADS}];
        cvta.local.u64 %g, mine; mul.wide.u32 %at, %n, 4; mov.u64 %h, ours; cvta.shared.u64 %h, %h; add.u64 %h, %h, %at;
        mov.u32 %round, 0; st.u32 [%g+4], %i; st.u32 [%h], %i;
    LOOP: bar.sync 0;
        ld.local.u32 %l, [mine+4]; ld.u32 %v, [%h]; add.u32 %l, %l, 1; add.u32 %v, %v, 2;
        st.local.u32 [mine+4], %l; st.u32 [%h], %v;
        add.u32 %round, %round, 1; setp.lt.u32 %p, %round, {ROUNDS}; @%p bra LOOP;
        ld.u32 %l, [%g+4]; add.u32 %v, %v, %l; mul.wide.u32 %at, %i, 4; ld.param.u64 %g, [p0]; add.u64 %at, %at, %g;
        st.global.u32 [%at], %v;"""
    (found,) = run_helped(device, kernel(body), np.zeros(ALL, "u4"))
    assert np.array_equal(found, 2 * np.arange(ALL) + 3 * ROUNDS)


def test_a_fault_on_any_core_is_reported(device: EmulatedDevice) -> None:
    """The others end, which would go on for ever otherwise."""
    body = """
        .reg .b32 %v, %block; .reg .pred %p;
        mov.u32 %block, %ctaid.x; setp.eq.u32 %p, %block, 3; @%p bra BAD;
    AGAIN: ld.volatile.global.u32 %v, [%p0]; setp.eq.u32 %p, %v, 0; @%p bra AGAIN; ret;
    BAD: st.global.u32 [%p0+4], %block;"""
    module = device.load(kernel(body))
    buffer = buffer_of(device, np.zeros(1, "u4"))
    for _ in range(20):
        with pytest.raises(KernelFault) as error:
            run_launches(device, [launch(module, "k", (8, 1, 1), (64, 1, 1), read_write("x", buffer))])
        assert "4 bytes past its end" in error.value.report and "by thread (0, 0, 0) of block (3, 0, 0)" in error.value.report
    done = device.load(kernel("red.global.add.u32 [%p0], 1;"))
    run_launches(device, [launch(done, "k", (8, 1, 1), (64, 1, 1), read_write("x", buffer))])
    assert array_of(buffer, "u4")[0] == 512


def test_all_cores_stop(device: EmulatedDevice) -> None:
    module = device.load(kernel("LOOP: bra LOOP;"))
    buffer = buffer_of(device, np.zeros(1, "u4"))
    run = device.prepare([launch(module, "k", (64, 1, 1), (64, 1, 1), read_write("x", buffer))], 1)
    over = threading.Event()

    def stop() -> None:
        while not over.wait(0.02):
            device.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        with pytest.raises(Stopped):
            run.start()
    finally:
        over.set()
        thread.join()


def test_what_prints_does_so_in_the_order_of_blocks(device: EmulatedDevice) -> None:
    body = """
        .reg .b64 %text, %list; .reg .b32 %block, %r; .local .align 8 .b8 arguments[8];
        mov.u32 %block, %ctaid.x; st.local.u32 [arguments], %block;
        mov.u64 %text, format; cvta.global.u64 %text, %text; cvta.local.u64 %list, arguments;
        {
        .param .b64 a; .param .b64 b; .param .b32 c;
        st.param.b64 [a], %text; st.param.b64 [b], %list;
        call.uni (c), vprintf, (a, b);
        }"""
    before = ".extern .func (.param .b32 c) vprintf (.param .b64 a, .param .b64 b);\n"
    before += ".global .align 1 .b8 format[4] = {37, 117, 10, 0};"
    module = device.load(kernel(body, before=before))
    buffer = buffer_of(device, np.zeros(1, "u4"))
    printed = run_launches(device, [launch(module, "k", (2000, 1, 1), (1, 1, 1), read_write("x", buffer))])
    assert printed == "".join(f"{block}\n" for block in range(2000))


@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "forgotten"])
def test_threads_end_with_the_device(is_closed: bool) -> None:
    device = EmulatedDevice(cores=3)
    module = device.load(kernel("red.global.add.u32 [%p0], 1;"))
    buffer = buffer_of(device, np.zeros(1, "u4"))
    before = set(threading.enumerate())
    run_launches(device, [launch(module, "k", (1, 1, 1), (64, 1, 1), read_write("x", buffer))])
    assert set(threading.enumerate()) == before
    run_launches(device, [launch(module, "k", (2, 1, 1), (64, 1, 1), read_write("x", buffer))])
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    if is_closed:
        device.close()
    del device, module, buffer
    gc.collect()
    assert not any(thread.is_alive() for thread in started)
