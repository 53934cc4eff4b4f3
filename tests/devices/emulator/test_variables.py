"""Module variables of every size and place start each run anew."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.conformance.launching import Call, launch, out

KERNEL = """
.version 8.0
.target sm_75
.address_size 64
{outside}
.visible .entry countKern(.param .u64 y) {{
    .reg .b64 %rd<2>;
    .reg .b32 %r<3>;
    {inside}
    ld.param.u64 %rd1, [y];
    ld.global.u32 %r1, [x+{offset}];
    add.u32 %r1, %r1, 1;
    st.global.u32 [x+{offset}], %r1;
    ld.global.u32 %r2, [z];
    st.global.v2.u32 [%rd1], {{%r1, %r2}};
    ret;
}}
"""
CASES = {
    "small": (".global .u32 x;", "", 0, 1),
    "with a value": (".global .u32 x = 40;", "", 0, 41),
    "with fewer values than places": (".global .u32 x[9] = {5, 6};", "", 8, 1),
    "the first of them": (".global .u32 x[9] = {5, 6};", "", 4, 7),
    "inside a function": ("", ".global .u32 x[2] = {5, 6};", 4, 7),
    "of pages of its own": (".global .b8 x[100000];", "", 99996, 1),
    "large": (".global .align 4 .b8 x[8388608];", "", 8388604, 1),
    "large with a value": (".global .align 4 .b8 x[8388608] = {3};", "", 0, 4),
}


@pytest.mark.parametrize("checks", [(), ("races", "init")])
@pytest.mark.parametrize("case", CASES)
def test_each_run_starts_anew(case: str, checks: tuple[str, ...]) -> None:
    outside, inside, offset, expected = CASES[case]
    text = KERNEL.format(outside=f".global .u32 z = 77;\n{outside}", inside=inside, offset=offset).encode()
    zeros = {"y": np.zeros(2, np.uint32)}
    with closing(EmulatedDevice(checks=checks)) as device, closing(device.load(text)) as module:
        assert sum(len(unit.resets) for unit in module) == 1  # what is only read needs none
        for iterations in (1, 3, 1):
            results = launch(device, module, [Call("countKern", 1, 1, [out("y")])], zeros, iterations)
            assert results["y"].tolist() == [expected + iterations - 1, 77]
