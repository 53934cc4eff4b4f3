"""Threads of a warp that are run at once, in vectors, and what becomes of them where they part."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kaas_core.request import Access, Dim3
from kaasd.devices.base import BufferRef, KernelFault
from kaasd.devices.emulator.ptx.architecture import PtxSupport
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.devices.emulator.translation.unit import PtxUnit
from tests.devices.emulator.runner import Array, array_of, buffer_of, evaluate, kernel, launch, read_write, run_launches

REPOSITORY = Path(__file__).parents[3]
BLOCKS: list[Dim3] = [(64, 1, 1), (16, 4, 1), (8, 4, 4), (96, 2, 1), (20, 3, 1), (2, 16, 2), (33, 1, 1)]
LINEAR = """
    .reg .b32 %l, %h, %v; .reg .b64 %from;
    mov.u32 %l, %tid.z; mov.u32 %h, %ntid.y; mul.lo.u32 %l, %l, %h; mov.u32 %h, %tid.y; add.u32 %l, %l, %h;
    mov.u32 %h, %ntid.x; mul.lo.u32 %l, %l, %h; mov.u32 %h, %tid.x; add.u32 %l, %l, %h;"""
"""The thread's number in its block, in ``%l``."""


def is_widened(text: str, name: str) -> bool:
    """Whether a kernel has code for whole warps."""
    return PtxUnit(text, PtxSupport((9, 0)), frozenset()).lowered(name).saved_stride > 0


@pytest.mark.parametrize(
    ("file", "name", "expected"),
    [
        ("benchmarks/kernels/emulated.ptx", "saxpyKern", True),
        ("benchmarks/kernels/emulated.ptx", "matmulKern", True),
        ("benchmarks/kernels/emulated.ptx", "reduceKern", True),
        ("examples/kernels/jacobi.ptx", "jacobiKern", True),
        ("benchmarks/kernels/loops.ptx", "fmaKern", True),
        ("benchmarks/kernels/loops.ptx", "collatzKern", False),  # its threads leave the loop one by one
        ("benchmarks/kernels/emulated.ptx", "mandelbrotKern", False),
    ],
)
def test_what_is_widened(file: str, name: str, expected: bool) -> None:
    assert is_widened((REPOSITORY / file).read_text(), name) is expected


def run(
    body: str, *data: Array, block: Dim3 = (64, 1, 1), grid: int = 1, seed: int | None = None, before: str = ""
) -> list[Array]:
    """Run a kernel with these buffers, and return what is in them then."""
    names = [f"p{index}" for index in range(len(data))]
    loads = "".join(f".reg .b64 %p{i}; ld.param.u64 %p{i}, [p{i}];" for i in range(1, len(data)))
    text = kernel(loads + body, ", ".join(f".param .u64 {name}" for name in names), before=before)
    with closing(EmulatedDevice(seed=seed)) as device:
        buffers = [buffer_of(device, each) for each in data]
        arguments = [read_write(name, buffer) for name, buffer in zip(names, buffers, strict=True)]
        run_launches(device, [launch(device.load(text), "k", (grid, 1, 1), block, *arguments)])
        return [array_of(buffer, each.dtype) for buffer, each in zip(buffers, data, strict=True)]


PATTERNS = {
    "row": lambda i: i,
    "halves": lambda i: i ^ 16,
    "one": lambda i: i * 0 + 5,
    "one a half": lambda i: i // 16,
    "backwards": lambda i: 255 - i,
    "every third": lambda i: i * 3 % 256,
    "random": lambda i: np.random.default_rng(1).permutation(256)[i],
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("kind", ["u1", "u2", "u4", "u8"])
def test_places_of_accesses(pattern: str, block: Dim3, kind: str) -> None:
    """Each thread loads from where a table says, and stores there what it has loaded from elsewhere."""
    threads = int(np.prod(block))
    table = PATTERNS[pattern](np.arange(256)).astype("u4")
    source = np.random.default_rng(2).integers(0, 1 << 8 * int(kind[1]), 256, kind)
    bits = 8 * int(kind[1])
    register = f".reg .b{max(bits, 16)} %x;"
    body = f"""{LINEAR}{register}
        mad.wide.u32 %at, %l, 4, %p0; ld.global.u32 %v, [%at];
        mad.wide.u32 %from, %v, {bits // 8}, %p1; ld.global.u{bits} %x, [%from];
        mad.wide.u32 %at, %l, {bits // 8}, %p2; st.global.u{bits} [%at], %x;"""
    gathered = run(body, table, source, np.zeros(256, kind), block=block)[2]
    assert gathered[:threads].tolist() == source[table[:threads]].tolist()
    assert not gathered[threads:].any()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_highest_lane_stays(pattern: str) -> None:
    table = PATTERNS[pattern](np.arange(32)).astype("u4")
    body = f"""{LINEAR}
        mad.wide.u32 %at, %l, 4, %p0; ld.global.u32 %v, [%at];
        mad.wide.u32 %at, %v, 4, %p1; st.global.u32 [%at], %l;"""
    expected = np.full(256, 99, "u4")
    for lane, place in enumerate(table):
        expected[place] = lane
    assert run(body, table, np.full(256, 99, "u4"), block=(32, 1, 1))[1].tolist() == expected.tolist()


@pytest.mark.parametrize("count", [2, 4])
def test_vectors_of_each_thread(count: int) -> None:
    names = ", ".join(f"%w{index}" for index in range(count))
    body = f"""{LINEAR} .reg .b32 {names};
        mad.wide.u32 %at, %l, {4 * count}, %p0; ld.global.v{count}.u32 {{{names}}}, [%at];
        add.u32 %w1, %w1, %l; st.global.v{count}.u32 [%at], {{{names}}};"""
    data = np.arange(64 * count, dtype="u4")
    expected = data.reshape(64, count).copy()
    expected[:, 1] += np.arange(64, dtype="u4")
    assert run(body, data)[0].tolist() == expected.ravel().tolist()


WRONG = {
    "beyond": (lambda i: np.where(i == 37, 256, i), "CUDA_ERROR_ILLEGAL_ADDRESS", "past its end"),
    "far": (lambda i: np.where(i == 37, 1 << 30, i), "CUDA_ERROR_ILLEGAL_ADDRESS", "by thread (37, 0, 0)"),
    "all of a half": (lambda i: i + np.where(i >= 48, 208, 0), "CUDA_ERROR_ILLEGAL_ADDRESS", "by thread (48, 0, 0)"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("access", ["ld.global.u32 %h, [%from];", "st.global.u32 [%from], %l;"])
def test_a_wrong_access_of_one_thread(wrong: str, access: str) -> None:
    """It is that thread's fault, by the report."""
    table, name, words = WRONG[wrong]
    body = f"""{LINEAR} mad.wide.u32 %at, %l, 4, %p0; ld.global.u32 %v, [%at];
        mad.wide.u32 %from, %v, 4, %p1; {access}"""
    with pytest.raises(KernelFault, match=name) as caught:
        run(body, table(np.arange(64)).astype("u4"), np.zeros(256, "u4"))
    assert words in str(caught.value) + caught.value.report
    assert f"by thread ({48 if 'half' in wrong else 37}, 0, 0)" in caught.value.report


def test_misaligned_in_a_row() -> None:
    body = f"{LINEAR} mad.wide.u32 %at, %l, 4, %p0; ld.global.u32 %v, [%at+2];"
    with pytest.raises(KernelFault, match="CUDA_ERROR_MISALIGNED_ADDRESS") as caught:
        run(body, np.zeros(256, "u4"))
    assert "by thread (0, 0, 0)" in caught.value.report


def test_a_write_to_an_input() -> None:
    body = f"{LINEAR} mad.wide.u32 %at, %l, 4, %p0; st.global.u32 [%at], %l;"
    with closing(EmulatedDevice()) as device:
        buffer = buffer_of(device, np.zeros(64, "u4"))
        argument = BufferRef("x", buffer, Access.INPUT)
        with pytest.raises(KernelFault, match="KAAS_ERROR_WRITE_TO_INPUT"):
            run_launches(device, [launch(device.load(kernel(body)), "k", (1, 1, 1), (64, 1, 1), argument)])
        assert not array_of(buffer, "u4").any()


SHARED = ".shared .align 4 .b32 s[256];"
PARTS = f"""{LINEAR} .reg .b32 %sum, %k; .reg .b32 %where; .reg .pred %more, %odd;
    mad.wide.u32 %at, %l, 4, %p0; ld.global.u32 %v, [%at];
    mov.u32 %sum, 0; mov.u32 %k, 0;
ROUND: add.u32 %sum, %sum, %k; add.u32 %k, %k, 1; setp.lt.u32 %more, %k, {{rounds}}; @%more bra ROUND;
    and.b32 %h, %v, 1; setp.eq.u32 %odd, %h, 1;
    @%odd bra ODD;
    add.u32 %sum, %sum, 1000; bra.uni MEET;
ODD: sub.u32 %sum, %sum, %l;
MEET: shl.b32 %where, %l, 2; mov.u32 %h, s; add.u32 %where, %where, %h; st.shared.u32 [%where], %sum;
    bar.sync 0;
    xor.b32 %h, %l, 33; shl.b32 %where, %h, 2; mov.u32 %h, s; add.u32 %where, %where, %h; ld.shared.u32 %sum, [%where];
    @%odd add.u32 %sum, %sum, 7;
    st.global.u32 [%at], %sum;"""


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize("rounds", [3, 5000, 20_000])
@pytest.mark.parametrize("values", ["alike", "mixed"])
def test_threads_part_and_meet(values: str, rounds: int, seed: int | None) -> None:
    """After a loop, longer than a warp may go on in it, a branch that warps take together or not, and a barrier."""
    i = np.arange(128, dtype="u4")
    data = i // 32 if values == "alike" else np.random.default_rng(3).integers(0, 9, 128, "u4")
    total = rounds * (rounds - 1) // 2
    stored = np.where(data % 2 == 1, total - i, total + 1000).astype("u4")
    expected = stored[i ^ 33] + np.where(data % 2 == 1, 7, 0).astype("u4")
    found = run(PARTS.replace("{rounds}", str(rounds)), data, block=(128, 1, 1), seed=seed, before=SHARED)[0]
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("threads", [128, 100])
def test_barriers_with_counts(threads: int) -> None:
    """Warps 0 and 1 meet at barrier 3, all at barrier 0; the last warp may be a part of one."""
    body = f"""{LINEAR} .reg .b32 %where, %two; .reg .pred %first;
        mov.u32 %two, 3; setp.lt.u32 %first, %l, 64;
        shl.b32 %where, %l, 2; mov.u32 %h, s; add.u32 %where, %where, %h; st.shared.u32 [%where], %l;
        @!%first bra LATER;
        bar.sync %two, 64;
        xor.b32 %v, %l, 32; shl.b32 %where, %v, 2; add.u32 %where, %where, %h; ld.shared.u32 %v, [%where];
        mad.wide.u32 %at, %l, 4, %p0; st.global.u32 [%at], %v;
    LATER: bar.sync 0;
        sub.u32 %v, {threads - 1}, %l; shl.b32 %where, %v, 2; add.u32 %where, %where, %h; ld.shared.u32 %v, [%where];
        mad.wide.u32 %at, %l, 4, %p1; st.global.u32 [%at], %v;"""
    first, last = run(body, np.zeros(128, "u4"), np.zeros(128, "u4"), block=(threads, 1, 1), before=SHARED)
    assert first[:64].tolist() == [i ^ 32 for i in range(64)]
    assert last[:threads].tolist() == list(reversed(range(threads)))


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("control", [31, 0, 0x1C1F & 0x1F1F, 0x0F1F & 0x1F0F])
@pytest.mark.parametrize("by", [0, 1, 5, 16, 31, "%b"])
def test_shuffles(mode: str, control: int, by: int | str) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 1 << 32, 64, "u4"), rng.integers(0, 40, 64, "u4")
    code = f".reg .pred %in; shfl.sync.{mode}.b32 %d0|%in, %a, {by}, {control}, -1; selp.u32 %d1, 1, 0, %in;"
    found, inside = evaluate(code, ["u4", "u4"], a, b, block=64)
    clamp, segment = control & 31, control >> 8 & 31
    for i in range(64):
        lane, step = i % 32, int(b[i]) & 31 if by == "%b" else int(by) & 31
        low = lane & segment
        last = low | (clamp & ~segment & 31)
        source = {"up": lane - step, "down": lane + step, "bfly": lane ^ step, "idx": low | (step & ~segment & 31)}[mode]
        is_in = source >= last if mode == "up" else source <= last
        assert bool(inside[i]) == is_in
        assert found[i] == a[i // 32 * 32 + (source if is_in else lane) % 32]


@pytest.mark.parametrize("which", ["none", "all", "some"])
def test_votes(which: str) -> None:
    values = {"none": np.zeros(64), "all": np.ones(64), "some": np.arange(64) % 3 == 0}[which].astype("u4")
    code = """.reg .pred %v, %w; setp.ne.u32 %v, %a, 0; vote.sync.ballot.b32 %d0, %v, -1; bar.warp.sync -1;
        vote.sync.all.pred %w, %v, -1; selp.u32 %d1, 1, 0, %w; vote.sync.any.pred %w, %v, -1; selp.u32 %d2, 1, 0, %w;
        vote.sync.uni.pred %w, !%v, -1; selp.u32 %d3, 1, 0, %w;"""
    ballot, every, some, alike = evaluate(code, ["u4"] * 4, values, block=64)
    for warp in (0, 32):
        bits = [int(value != 0) for value in values[warp : warp + 32]]
        here = slice(warp, warp + 32)
        assert set(ballot[here]) == {sum(bit << lane for lane, bit in enumerate(bits))}
        assert set(every[here]) == {int(all(bits))}
        assert set(some[here]) == {int(any(bits))}
        assert set(alike[here]) == {int(len(set(bits)) == 1)}


def test_a_deadlock_says_where_whole_warps_wait() -> None:
    body = f"""{LINEAR} .reg .pred %first; setp.lt.u32 %first, %l, 32;
        @%first bra OTHER; bar.sync 1, 96; bra.uni END;
    OTHER: bar.sync 2, 96;
    END:"""
    with pytest.raises(KernelFault, match="deadlock") as caught:
        run(body, np.zeros(4, "u4"))
    assert caught.value.report.count("32 threads wait") == 2
