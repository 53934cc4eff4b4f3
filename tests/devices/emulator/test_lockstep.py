"""How the threads of a warp advance: together as far as that can be told, but none waits for ever for one that waits for it."""

from __future__ import annotations

import struct
from contextlib import closing

import numpy as np
import pytest

from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.conformance.launching import Call, execute, inout, inp, out
from tests.conformance.lockstep_programs import check
from tests.conformance.test_lockstep import BLOCKS, CODE, words
from tests.devices.emulator.runner import Array, array_of, buffer_of, kernel, launch, read_write, run_launches


def run(body: str, data: Array, *, block: tuple[int, int, int] = (32, 1, 1), seed: int | None = None, before: str = "") -> Array:
    """Run a kernel with one block and a buffer."""
    with closing(EmulatedDevice(seed=seed)) as device:
        module = device.load(kernel(body, before=before))
        buffer = buffer_of(device, data)
        run_launches(device, [launch(module, "k", (1, 1, 1), block, read_write("x", buffer))])
        return array_of(buffer, data.dtype)


@pytest.mark.parametrize("space", ["shared", "global"])
@pytest.mark.parametrize("seed", range(40))
def test_random_program(seed: int, space: str) -> None:
    """A GPU may run the sides of a branch the other way about: an H200 gave the same answers for 42 of these 80."""
    with closing(EmulatedDevice()) as device:
        check(device, seed, space, most_depth=0)


LINEAR = "mov.u32 %i, %tid.y; mov.u32 %n, %ntid.x; mul.lo.u32 %i, %i, %n; mov.u32 %n, %tid.x; add.u32 %i, %i, %n;"
SHIFT = LINEAR + ".reg .b32 %v; mad.wide.u32 %at, %i, 4, %p0; ld.global.u32 %v, [%at]; st.global.u32 [%at+4], %v;"


@pytest.mark.parametrize("block", [(32, 1, 1), (8, 4, 1), (16, 2, 1), (2, 16, 1), (20, 1, 1)])
def test_all_read_before_any_writes(block: tuple[int, int, int]) -> None:
    count = block[0] * block[1]
    result = run(SHIFT, np.arange(count + 1, dtype="u4"), block=block)
    np.testing.assert_array_equal(result, [0, *range(count)])


@pytest.mark.parametrize("block", [(32, 1, 1), (4, 8, 1)])
def test_threads_that_touch_one_place(block: tuple[int, int, int]) -> None:
    """With a block four threads wide, threads of a warp have the same column: it is increased once, and not eight times."""
    body = ".reg .b32 %v; mad.wide.u32 %at, %n, 4, %p0; ld.global.u32 %v, [%at]; add.u32 %v, %v, 1; st.global.u32 [%at], %v;"
    result = run(body, np.zeros(block[0], "u4"), block=block)
    np.testing.assert_array_equal(result, np.ones(block[0]))


@pytest.mark.parametrize(("step", "width"), [(32, 32), (16, 32), (1, 32), (5, 32)])
def test_rounds_of_a_loop(step: int, width: int) -> None:
    """``for (k = lane; k < 128; k += step) x[k + 1] = x[k] + 1``: each round reads what the one before wrote."""
    body = f""".reg .b32 %v, %k; mov.u32 %k, %n;
    L: mad.wide.u32 %at, %k, 4, %p0; ld.global.u32 %v, [%at]; add.u32 %v, %v, 1; st.global.u32 [%at+4], %v;
    add.u32 %k, %k, {step}; setp.lt.u32 %q, %k, 128; @%q bra L;"""
    expected = np.zeros(160, "u4")
    places = np.arange(width)
    while (places := places[places < 128]).size:
        expected[places + 1] = expected[places] + 1
        places = places + step
    np.testing.assert_array_equal(run(body, np.zeros(160, "u4"), block=(width, 1, 1)), expected)


@pytest.mark.parametrize("rounds", [3, 5000, 200_000])
@pytest.mark.parametrize("inner", ["", "ld.volatile.global.u32 %w, [%p0]; st.volatile.global.u32 [%p0], %k;"])
def test_the_others_wait_for_one_in_a_long_loop(rounds: int, inner: str) -> None:
    rounds = min(rounds, 20_000) if inner else rounds
    body = f""".reg .b32 %k, %w; mov.u32 %k, 0; setp.ne.u32 %q, %n, 3; @%q bra OUT;
    L: add.u32 %k, %k, 1; {inner} setp.lt.u32 %q, %k, {rounds}; @%q bra L; st.global.u32 [%p0], %k;
    OUT: ld.global.u32 %k, [%p0]; mad.wide.u32 %at, %n, 4, %p0; st.global.u32 [%at+4], %k;"""
    np.testing.assert_array_equal(run(body, np.zeros(33, "u4")), np.full(33, rounds))


@pytest.mark.parametrize("seed", [None, 1, 2])
@pytest.mark.parametrize(
    "wait",
    [
        "W: ld.volatile.global.u32 %v, [%at]; setp.eq.u32 %q, %v, 0; @%q bra W;",
        # What counts its rounds, and what does nothing for a while.
        "W: add.u32 %k, %k, 1; ld.volatile.global.u32 %v, [%at]; setp.eq.u32 %q, %v, 0; @%q bra W;",
        "W: add.u32 %k, %k, 1; nanosleep.u32 %k; ld.volatile.global.u32 %v, [%at]; setp.eq.u32 %q, %v, 0; @%q bra W;",
        # What stores something in each round.
        "W: add.u32 %k, %k, 1; st.global.u32 [%p0+200], %k; ld.volatile.global.u32 %v, [%at]; setp.eq.u32 %q, %v, 0; @%q bra W;",
        "W: atom.global.cas.b32 %v, [%at], 0, 0; setp.eq.u32 %q, %v, 0; @%q bra W;",
    ],
)
def test_a_thread_that_waits_for_the_next_one(wait: str, seed: int | None) -> None:
    """Thread 31 begins, and each of the others goes on when the one above it has left something."""
    body = f""".reg .b32 %v, %k; mov.u32 %k, 0; mov.u32 %v, 0; mad.wide.u32 %at, %n, 4, %p0; add.u64 %at, %at, 4;
    setp.eq.u32 %q, %n, 31; @%q bra GO; {wait} GO: add.u32 %v, %v, 1; st.volatile.global.u32 [%at+-4], %v;"""
    result = run(body, np.zeros(64, "u4"), seed=seed)
    np.testing.assert_array_equal(result[:32], np.arange(32, 0, -1))


def test_a_function_that_some_call() -> None:
    """Who did not call it waits for those that did."""
    before = """.func leave (.reg .u64 to, .reg .u32 what) { .reg .pred %big; setp.gt.u32 %big, what, 20; @%big bra SKIP;
        st.global.u32 [to], what; SKIP: ret; }"""
    body = """.reg .b32 %v; mad.wide.u32 %at, %n, 4, %p0; and.b32 %v, %n, 1; setp.eq.u32 %q, %v, 0; @%q bra OUT;
        call leave, (%at, %n); OUT: xor.b32 %v, %n, 1; mad.wide.u32 %at, %v, 4, %p0; ld.global.u32 %v, [%at];
        mad.wide.u32 %at, %n, 4, %p0; st.global.u32 [%at+128], %v;"""
    lanes = np.arange(32)
    left = np.where((lanes & 1 == 1) & (lanes <= 20), lanes, 0)
    np.testing.assert_array_equal(run(body, np.zeros(64, "u4"), before=before)[32:], left[lanes ^ 1])


def test_only_by_a_seed_do_threads_go_apart() -> None:
    """A sum that counts on the threads of a warp advancing together is right without a seed, and wrong with one or another."""
    x = words()
    buffers = {"x": x, "out": np.zeros(BLOCKS, "u4")}
    call = Call("sharedSum", BLOCKS, 64, [inp("x"), out("out")])
    sums = []
    for seed in (None, *range(10)):
        with closing(EmulatedDevice(seed=seed)) as device:
            sums.append(execute(device, CODE, [call], buffers)["out"])
    np.testing.assert_array_equal(sums[0], x.sum(axis=1, dtype="u4"))
    assert any((each != sums[0]).any() for each in sums[1:])
    with closing(EmulatedDevice(seed=4)) as device:
        np.testing.assert_array_equal(execute(device, CODE, [call], buffers)["out"], sums[5])


SYNCED = """.reg .b32 %v, %w, %d; mad.wide.u32 %at, %n, 4, %p0; mov.u32 %d, 16;
    L: mad.wide.u32 %at, %d, 4, %at; ld.global.u32 %v, [%at]; mad.wide.u32 %at, %n, 4, %p0; ld.global.u32 %w, [%at];
    add.u32 %v, %v, %w; bar.warp.sync -1; st.global.u32 [%at], %v; bar.warp.sync -1;
    shr.u32 %d, %d, 1; setp.ne.u32 %q, %d, 0; @%q bra L;"""


@pytest.mark.parametrize("seed", range(8))
def test_what_is_ordered_is_right_with_any_seed(seed: int) -> None:
    data = np.arange(64, dtype="u4")
    data[32:] = 0
    assert run(SYNCED, data, seed=seed)[0] == 496
    buffers = {"lock": np.zeros(1, "u4"), "word": np.zeros(1, "u4")}
    with closing(EmulatedDevice(seed=seed)) as device:
        word = execute(device, CODE, [Call("spinLock", 2, 64, [inout("lock"), inout("word")])], buffers)["word"][0]
    expected = 0
    for _ in range(128):
        expected = (expected * 5 + 1) % (1 << 32)
    assert word == expected


@pytest.mark.parametrize("by_number", [False, True])
def test_two_pointers_to_one_buffer(by_number: bool) -> None:
    """The second is the buffer again; or a number that happens to be an address in it, in front of what the first reads."""
    body = """.reg .b64 %p1; ld.param.u64 %p1, [p1]; .reg .b32 %v; mad.wide.u32 %at, %n, 4, %p0; ld.global.u32 %v, [%at];
        mad.wide.u32 %at, %n, 4, %p1; st.global.u32 [%at], %v;"""
    data = np.arange(1, 65, dtype="u4")
    with closing(EmulatedDevice()) as device:
        module = device.load(kernel(body, ".param .u64 p0, .param .u64 p1"))
        buffer = buffer_of(device, data)
        first = read_write("x", buffer)
        second = struct.pack("<Q", buffer.address + 4) if by_number else first
        run_launches(device, [launch(module, "k", (1, 1, 1), (32, 1, 1), first, second)])
        result = array_of(buffer, "u4")
    data[1 * by_number : 32 + by_number] = np.arange(1, 33)
    np.testing.assert_array_equal(result, data)


@pytest.mark.parametrize("seed", range(40))
def test_votes_of_those_that_are_there(seed: int) -> None:
    """Within branches and loops, those that take part are those that came there together."""
    with closing(EmulatedDevice()) as device:
        check(device, seed + 1000, "shared", most_depth=3)
