"""What the emulated device has not got: refused, with the instruction, its line and why, before a kernel with it is launched."""

from __future__ import annotations

from contextlib import closing

import pytest

from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.libraries import UnsupportedLibrary
from kaasd.request.device_checks import DeviceProperties
from tests.devices.emulator.runner import HEADER, kernel, load_all

COPIES = "such copies are not"
TEXTURES = "textures and surfaces are not"
TENSOR_CORES = "fifth-generation tensor cores are not"

INSTRUCTIONS = {
    "tex.1d.v4.s32.s32 {%n, %n, %n, %n}, [t, {%n}];": "t is not declared",
    "tex.1d.v4.s32.s32 {%n, %n, %n, %n}, [%p0, %p0, {%n}];": "samplers apart from their textures are not",
    "tex.cube.v4.s32.f32 {%n, %n, %n, %n}, [%p0, {%n, %n, %n, %n}];": "no form of 'tex'",
    "tex.2d.v4.s32.s32 {%n, %n, %n, %n}, [%p0, {%n}];": "too few coordinates for .2d",
    "tex.2d.v4.s32.s32 {%n, %n, %n, %n}, [%p0];": "needs coordinates in its operand texel",
    "txq.width.b32 %n, [%p0, {%n}];": "takes no coordinates in its operand t",
    "suld.b.1d.v4.b64.trap {%p0, %p0, %p0, %p0}, [%p0, {%n}];": "reads 16 bytes at most",
    "sust.b.1d.v2.b32.trap [%p0, {%n}], %n;": "not as many elements",
    "sured.b.add.1d.u32.trap [%p0, {%n}], %n;": "reductions on surfaces are not",
    "tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%n], 32;": TENSOR_CORES,
    "cp.reduce.async.bulk.tensor.1d.global.shared::cta.add.tile.bulk_group [%p0, {%n}], [%n];": COPIES,
    "cp.async.bulk.tensor.3d.global.shared::cta.im2col_no_offs.bulk_group [%p0, {%n, %n, %n}], [%n];": COPIES,
    "tensormap.replace.tile.swizzle_atomicity.global.b1024.b32 [%p0], 0;": COPIES,
    "ld.global.u32 %n, [%p0, {%n}];": "takes no coordinates in its operand a",
    "st.bulk.weak [%p0], 128, 0;": "such stores are not",
    "multimem.ld_reduce.add.u32 %n, [%p0];": "memory that several devices share is not",
    "fma.rn.oob.f16x2 %n, %n, %n, %n;": "out-of-bounds NaNs, which only tensor-map copies make, are not",
    "redux.sync.min.abs.NaN.f32 %n, %n, -1;": "no form of 'redux'",
    "mov.u64 %p0, k;": "k is a kernel: its address is for dynamic parallelism, which is not",
    "call (%n), cudaLaunchDeviceV2, (%p0);": "dynamic parallelism is not",
    "add.u32 %n, %n.b1, %n;": "takes neither parts of registers nor negated ones",
    "vadd.u32.u32.u32 %n.b4, %n, %n, %n;": ".b4 of a result needs",
    "vadd.u32.u32.u32.add %n.b1, %n, %n, %n;": "no second operation",
    "vadd2.u32.u32.u32 %n, %n.b3210, %n, %n;": ".b3210 does not select 2 lanes",
    "vadd4.u32.u32.u32 %n.b12, %n, %n, %n;": ".b12 is not a mask of 4 lanes",
    "vmad.s32.s32.s32.po %n, %n, -%n, %n;": "nothing with .po",
    "vadd.u32.u32.u32 %n, %n.b9, %n;": "%n.b9 is not a part of a register",
    "mov.u32 %n, %tid.x+1;": "%tid.x plus a constant cannot be an operand",
    "mov.b32 %n+1, %n;": "%n plus a constant cannot be an operand",
    "tcgen05.wait::ld.sync.aligned;": TENSOR_CORES,
    "add.u33 %n, %n, %n;": "no form of 'add'",
    "frobnicate %n;": "no instruction 'frobnicate'",
    "add.u32 %n, %n;": "too few operands",
    "add.u32 %n, %n, %n, %n;": "too many operands",
    "add.u32 %n, %n, %undeclared;": "neither declared",
    "add.u64 %p0, %n, %p0;": "does not fit",
    "ld.global.u32 %n, %p0;": "does not take an operand",
    "bra NOWHERE;": "NOWHERE is not declared",
    "mov.u32 %n, %envreg0;": "%envreg0 is set by no launch",
    "mov.u32 %n, %pm0;": "%pm0 counts what a GPU's profiler is set to",
    "mov.u64 %p0, %pm1_64;": "%pm1_64 counts what a GPU's profiler is set to",
    "mov.u32 %n, %temperature;": "neither declared nor a special register",
}

DECLARATIONS = {
    ".visible .entry e() .reqntid 32 .reqnctapercluster 2 .blocksareclusters { ret; }": "grids in clusters are not",
    ".global .texref t;": TEXTURES,
    ".global .surfref t;": TEXTURES,
    ".global .samplerref t = {addr_mode_0 = wrap, filter_mode = linear};": TEXTURES,
    ".extern .global .u32 t;": "defined in another module",
    ".visible .entry e() { ret; } .global .u64 t = e;": "not a variable or function",
}


def device_of(capability: tuple[int, int]) -> EmulatedDevice:
    return EmulatedDevice(DeviceProperties("emulator", "a test's", 1 << 30, compute_capability=capability))


def refusal(source: str, capability: tuple[int, int] = (9, 0)) -> str:
    device = device_of(capability)
    try:
        with pytest.raises(UnsupportedLibrary) as caught:
            load_all(device, source.encode())
    finally:
        device.close()
    return str(caught.value)


@pytest.mark.parametrize("text", INSTRUCTIONS)
def test_instructions(text: str) -> None:
    source = kernel(text, before=".extern .func (.reg .b32 r) cudaLaunchDeviceV2 (.reg .b64 x);").decode()
    message = refusal(source)
    assert INSTRUCTIONS[text] in message
    assert message.startswith(f"PTX line {source.split(chr(10)).index(text) + 1}: ")
    opcode = text.partition(" ")[0].rstrip(";")
    assert opcode in message


@pytest.mark.parametrize("text", DECLARATIONS)
def test_declarations(text: str) -> None:
    message = refusal(f"{HEADER}{text}\n.visible .entry k() {{ ret; }}\n")
    assert DECLARATIONS[text] in message
    assert message.startswith(f"PTX line {HEADER.count(chr(10)) + 1}: ")


def empty_module(target: str) -> str:
    return f".version 9.0\n.target {target}\n.address_size 64\n.visible .entry k() {{ ret; }}\n"


TOO_NEW = [
    ("sm_90", (7, 0)), ("sm_75", (7, 2)), ("sm_100", (9, 0)), ("sm_90a", (8, 9)), ("sm_90a", (10, 0)), ("sm_100a", (10, 3)),
    ("sm_103f", (10, 0)), ("sm_100f", (12, 0)), ("sm_100f", (9, 0)), ("sm_80, debug", (7, 5)),
]  # fmt: skip


@pytest.mark.parametrize(("target", "capability"), TOO_NEW)
def test_targets_of_another_architecture(target: str, capability: tuple[int, int]) -> None:
    message = refusal(empty_module(target), capability)
    name = target.partition(",")[0]
    assert message.startswith(f"PTX is for {name}, the device is sm_{capability[0]}{capability[1]}")
    number = name[3:].rstrip("af")
    assert f"--emulator-compute-capability {number[:-1]}.{number[-1]}" in message


RUNS = [
    ("sm_20", (7, 0)), ("sm_70", (7, 0)), ("sm_70", (9, 0)), ("sm_90", (12, 1)), ("sm_90a", (9, 0)), ("sm_100a", (10, 0)),
    ("sm_100f", (10, 0)), ("sm_100f", (10, 3)), ("sm_90, texmode_independent", (9, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("target", "capability"), RUNS)
def test_targets_that_run(target: str, capability: tuple[int, int]) -> None:
    device = device_of(capability)
    try:
        assert set(device.load(empty_module(target).encode()).kernels) == {"k"}
    finally:
        device.close()


@pytest.mark.parametrize(
    ("version", "newest"), [("99.0", None), ("9.6", None), ("8.8", (8, 7)), ("9.0", (8, 9)), ("10.0", (9, 9))]
)
def test_versions_that_are_too_new(version: str, newest: tuple[int, int] | None) -> None:
    device = EmulatedDevice() if newest is None else EmulatedDevice(ptx_version=newest)
    takes = "{}.{}".format(*(newest or (9, 5)))
    with (
        closing(device),
        pytest.raises(UnsupportedLibrary, match=f"^PTX has version {version}, the device takes at most {takes};"),
    ):
        device.load(empty_module("sm_90").replace("9.0", version, 1).encode())


@pytest.mark.parametrize(("version", "newest"), [("9.5", None), ("8.7", (8, 7)), ("7.8", (8, 7)), ("8.9", (9, 0))])
def test_versions_that_are_taken(version: str, newest: tuple[int, int] | None) -> None:
    with closing(EmulatedDevice() if newest is None else EmulatedDevice(ptx_version=newest)) as device:
        assert list(device.load(empty_module("sm_90").replace("9.0", version, 1).encode()).kernels) == ["k"]
