"""Bulk copies, reductions and counted stores. What a copy to all blocks of a cluster does: tests/conformance."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, KernelFault, Launch
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.request.device_checks import LaunchAttributes
from tests.devices.emulator.runner import HEADER, Array, array_of, buffer_of, load_all, run_launches

BEGIN = """
    .reg .pred %q; .reg .b32 %r, %x, %t, %to, %at; .reg .b64 %a, %o, %p;
    .shared .align 16 .b8 tile[256]; .shared .align 8 .b64 cell;
    ld.param.u64 %a, [a]; ld.param.u64 %o, [o]; mov.u32 %r, %cluster_ctarank; mov.u32 %x, %tid.x; mov.u32 %t, tile;
    setp.eq.u32 %q, %x, 0; @%q mbarrier.init.shared.b64 [cell], 1; bar.sync 0;
    barrier.cluster.arrive; barrier.cluster.wait;
"""
EXPECT = "@%q mbarrier.arrive.expect_tx.shared.b64 _, [cell], {};"
SYNC = "barrier.cluster.arrive; barrier.cluster.wait;"
WAIT = f"AGAIN: mbarrier.try_wait.parity.shared.b64 %q, [cell], 0; @!%q bra AGAIN; setp.eq.u32 %q, %x, 0; {SYNC}"
OUT = """
    mul.wide.u32 %p, %ctaid.x, 256; add.u64 %p, %o, %p; @%q cp.async.bulk.global.shared::cta.bulk_group [%p], [%t], 256;
    cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;"""
BYTES = "mbarrier::complete_tx::bytes"


@pytest.fixture(params=[(), ("races", "init")], ids=["plain", "checked"])
def device(request: pytest.FixtureRequest) -> Iterator[EmulatedDevice]:
    opened = EmulatedDevice(checks=request.param)
    yield opened
    opened.close()


def run(device: EmulatedDevice, body: str, a: Array, o: Array, blocks: int = 1) -> Array:
    """Return ``o`` after lines of PTX, run by a cluster of so many blocks of 32 threads."""
    body = body.replace("%ctaid.x", "%r")
    code = f"{HEADER}.visible .entry k(.param .u64 a, .param .u64 o) {{ {BEGIN} {body} ret; }}"
    module = load_all(device, code.encode())
    source, target = buffer_of(device, a), buffer_of(device, o)
    arguments = (BufferRef("a", source, Access.INPUT), BufferRef("o", target, Access.INOUT))
    attributes = LaunchAttributes(cluster=(blocks, 1, 1))
    run_launches(device, [Launch(module.kernels["k"], (blocks, 1, 1), (32, 1, 1), 0, arguments, attributes)])
    return array_of(target, o.dtype)


def load(size: int = 256) -> str:
    return f"{EXPECT.format(size)} @%q cp.async.bulk.shared::cluster.global.{BYTES} [%t], [%a], {size}, [cell];"


A = np.arange(1, 65, dtype="u4")


def test_there_and_back(device: EmulatedDevice) -> None:
    np.testing.assert_array_equal(run(device, f"{load()} {WAIT} {OUT}", A, np.zeros(64, "u4")), A)


def test_to_another_block(device: EmulatedDevice) -> None:
    to = """
    xor.b32 %x, %r, 1; mapa.shared::cluster.u32 %to, %t, %x; mov.u32 %at, cell; mapa.shared::cluster.u32 %at, %at, %x;
    mov.u32 %x, %tid.x;"""
    body = f"""
    {load()} {WAIT} shl.b32 %x, %x, 3; add.u32 %x, %x, %t; .reg .b32 %y; ld.shared.u32 %y, [%x]; add.u32 %y, %y, %r;
    bar.warp.sync -1; st.shared.u32 [%x], %y; mov.u32 %x, %tid.x; bar.sync 0;
    @%q mbarrier.arrive.expect_tx.shared.b64 _, [cell], 128; {to}
    barrier.cluster.arrive; barrier.cluster.wait;
    @%q cp.async.bulk.shared::cluster.shared::cta.{BYTES} [%to+128], [%t], 128, [%at];
    MORE: mbarrier.try_wait.parity.shared.b64 %q, [cell], 1; @!%q bra MORE; setp.eq.u32 %q, %x, 0; {OUT}"""
    result = run(device, body, A, np.zeros(128, "u4"), blocks=2).reshape(2, 64)
    changed = A + np.array([[0], [1]], "u4") * (np.arange(64) % 2 == 0)
    np.testing.assert_array_equal(result[:, :32], changed[:, :32])
    np.testing.assert_array_equal(result[:, 32:], changed[::-1, :32])


@pytest.mark.parametrize(
    ("words", "kind", "expected"),
    [
        ("add.u32", "u4", lambda o, a: o + a),
        ("min.s32", "i4", np.minimum),
        ("max.u64", "u8", np.maximum),
        ("xor.b32", "u4", np.bitwise_xor),
        ("inc.u32", "u4", lambda o, a: np.where(o >= a, 0, o + 1)),
        ("add.f32", "f4", np.add),
        ("add.f64", "f8", np.add),
        ("add.noftz.f16", "f2", np.add),
        ("min.f16", "f2", np.minimum),
    ],
)
def test_reductions(device: EmulatedDevice, words: str, kind: str, expected: Callable[[Array, Array], Array]) -> None:
    numbers = np.random.default_rng(1).integers(0, 100, (2, 256 // np.dtype(kind).itemsize)).astype(kind)
    body = f"{load()} {WAIT} @%q cp.reduce.async.bulk.global.shared::cta.bulk_group.{words} [%o], [%t], 256;"
    np.testing.assert_array_equal(run(device, body, numbers[0], numbers[1]), expected(numbers[1], numbers[0]))


def test_a_reduction_in_another_blocks_memory(device: EmulatedDevice) -> None:
    body = f"""
    {load()} {WAIT} @%q mbarrier.arrive.expect_tx.shared.b64 _, [cell], 256; barrier.cluster.arrive; barrier.cluster.wait;
    xor.b32 %x, %r, 1; mapa.shared::cluster.u32 %to, %t, %x; mov.u32 %at, cell; mapa.shared::cluster.u32 %at, %at, %x;
    setp.eq.and.u32 %q, %r, 0, %q; @%q cp.reduce.async.bulk.shared::cluster.shared::cta.{BYTES}.add.u32 [%to], [%t], 256, [%at];
    setp.eq.u32 %q, %r, 0; @%q bra DONE;
    MORE: mbarrier.try_wait.parity.shared.b64 %q, [cell], 1; @!%q bra MORE;
    DONE: barrier.cluster.arrive; barrier.cluster.wait; mov.u32 %x, %tid.x; setp.eq.u32 %q, %x, 0; {OUT}"""
    result = run(device, body, A, np.zeros(128, "u4"), blocks=2).reshape(2, 64)
    np.testing.assert_array_equal(result, np.stack([A, 2 * A]))


def test_stores_that_an_mbarrier_counts(device: EmulatedDevice) -> None:
    body = f"""
    {load()} {WAIT} @%q mbarrier.arrive.expect_tx.shared.b64 _, [cell], 28; barrier.cluster.arrive; barrier.cluster.wait;
    .reg .b32 %y; xor.b32 %y, %r, 1; mapa.shared::cluster.u32 %to, %t, %y;
    mov.u32 %at, cell; mapa.shared::cluster.u32 %at, %at, %y;
    @%q st.async.shared::cluster.{BYTES}.u32 [%to], %r, [%at]; add.u32 %y, %r, 10;
    @%q st.async.shared::cluster.{BYTES}.v4.u32 [%to+16], {{%y, %r, %y, %r}}, [%at];
    @%q st.async.shared::cluster.{BYTES}.u32 [%to+32], %y, [%at];
    @%q red.async.relaxed.cluster.shared::cluster.{BYTES}.add.u32 [%to+36], %y, [%at];
    MORE: mbarrier.try_wait.parity.shared.b64 %q, [cell], 1; @!%q bra MORE; setp.eq.u32 %q, %x, 0; {OUT}"""
    result = run(device, body, A, np.zeros(128, "u4"), blocks=2).reshape(2, 64)
    expected = np.stack([A, A])
    for own, other in ((0, 1), (1, 0)):
        expected[own, [0, 4, 5, 6, 7, 8]] = [other, other + 10, other, other + 10, other, other + 10]
        expected[own, 9] += other + 10
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("copy", "fault", "words"),
    [
        (
            f"cp.async.bulk.shared::cluster.global.{BYTES} [%t], [%a], 24, [cell];",
            "ILLEGAL_INSTRUCTION",
            "no multiple of 16 bytes",
        ),
        (f"cp.async.bulk.shared::cluster.global.{BYTES} [%t], [%a+8], 16, [cell];", "MISALIGNED_ADDRESS", "not aligned to 16"),
        (f"cp.async.bulk.shared::cluster.global.{BYTES} [%t], [%a], 272, [cell];", "ILLEGAL_ADDRESS", "16 bytes past its end"),
        (f"cp.async.bulk.shared::cluster.global.{BYTES} [%t+16], [%a], 256, [cell];", "ILLEGAL_ADDRESS", "shared memory"),
        ("cp.async.bulk.global.shared::cta.bulk_group [%a], [%t], 16;", "WRITE_TO_INPUT", "it is input only"),
    ],
)
def test_a_wrong_copy(copy: str, fault: str, words: str) -> None:
    device = EmulatedDevice()
    with pytest.raises(KernelFault, match=words) as caught:
        run(device, f"@%q {copy}", A, A)
    assert caught.value.fault.endswith(fault)
    device.close()
