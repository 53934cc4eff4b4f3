"""What is wrong with a ``wgmma``. Results: tests/conformance/test_warpgroup.py."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from kaasd.devices.base import KernelFault
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.libraries import UnsupportedLibrary
from tests.conformance.launching import Call, inout, inp, launch, u32, u64
from tests.conformance.test_warpgroup import IMAGE, PTX
from tests.devices.emulator.runner import load_all

HEAD = """.version 8.0
.target sm_90a
.address_size 64
.visible .entry k() { .reg .f32 f<4>; .reg .b64 d<2>; .reg .pred p; .reg .b32 r<4>;
"""


@pytest.mark.parametrize(
    ("form", "fault", "words"),
    [
        (1 << 49, "ILLEGAL_INSTRUCTION", "a matrix descriptor has a base offset"),
        (0x3FFF << 32 | 1 << 62, "ILLEGAL_ADDRESS", "of shared memory of 16384 bytes"),
    ],
)
def test_a_wrong_descriptor(form: int, fault: str, words: str) -> None:
    with closing(EmulatedDevice()) as device, closing(device.load(PTX.read_bytes())) as module:
        image = np.zeros(IMAGE, "u1")
        call = Call("halfKern00", 1, 128, [inp("a"), inp("b"), u64(form), u64(8 << 16), u32(0), inout("d")])
        with pytest.raises(KernelFault, match=words) as caught:
            launch(device, module, [call], {"a": image, "b": image, "d": np.zeros((128, 32), "f4")})
        assert caught.value.fault.endswith(fault)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("m64n8k16.f32.f16.f16 {f0, f1, f2, f3}, d0, d1, p, 2, 1, 0, 0;", "a constant is needed here, one of 1, -1"),
        ("m64n8k16.f32.f16.f16 {f0, f1, f2, f3}, d0, d1, p, 1, 1, 0;", "one in memory takes two"),
        ("m64n8k16.f32.f16.f16 {f0, f1, f2, f3}, {r0, r1, r2, r3}, d1, p, 1, 1, 0, 0;", "a matrix in registers takes one number"),
        ("m64n8k16.f32.f16.f16 {f0, f1}, d0, d1, p, 1, 1, 0, 0;", "a matrix of 4 registers is needed, not of 2"),
        ("m64n40k32.s32.s8.s8 {f0, f1, f2, f3}, d0, d1, p;", "no form of 'wgmma'"),
        ("m64n8k256.s32.b1.b1.and.popc {r0, r1, r2, r3}, d0, d1, p;", "no form of 'wgmma'"),
    ],
)
def test_what_is_refused(line: str, words: str) -> None:
    source = f"{HEAD}wgmma.mma_async.sync.aligned.{line} ret; }}"
    with closing(EmulatedDevice()) as device, pytest.raises(UnsupportedLibrary, match=words):
        load_all(device, source.encode())
