"""Texture and surface instructions that compilers write seldom, or never: whole texels, questions, and formatted stores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from kaas_core.texture import AddressMode, FilterMode, Texture
from kaasd.devices.base import KernelFault
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from tests.conformance.launching import Call, Seen, Use, execute, inout, inp, out, tmp
from tests.devices.emulator.runner import HEADER

IMAGE = Texture("float32", 4, (5, 4))
REGISTERS = ".reg .b64 %t, %o, %w<4>; .reg .b32 %r<20>; .reg .f32 %f<20>; .reg .b16 %h<8>; .reg .pred %p<4>;"


@pytest.fixture
def device() -> Iterator[EmulatedDevice]:
    with closing(EmulatedDevice()) as opened:
        yield opened


def kernel(body: str) -> bytes:
    """Return a kernel ``k(t, out)``: ``%t`` is its texture or surface, ``%o`` the place of its thread's four words."""
    return f"""{HEADER}
    .visible .entry k(.param .u64 t, .param .u64 out)
    {{
        {REGISTERS}
        ld.param.u64 %t, [t];
        ld.param.u64 %o, [out];
        mov.u32 %r0, %tid.x;
        mad.wide.u32 %o, %r0, 16, %o;
        {body}
        ret;
    }}""".encode()


def run(
    device: EmulatedDevice, body: str, texture: Texture, use: Use, content: np.ndarray, threads: int = 1, kind: str = "u4"
) -> dict[str, np.ndarray]:
    call = Call("k", 1, threads, [Seen(use, texture), out("out")])
    return execute(device, kernel(body), [call], {use.buffer: content, "out": np.zeros((threads, 4), kind)})


def test_integer_coordinates_name_a_texel_and_there_is_nothing_outside(device: EmulatedDevice) -> None:
    content = np.arange(80, dtype=np.float32).reshape(4, 5, 4)
    body = """
        sub.s32 %r1, %r0, 2;
        tex.2d.v4.f32.s32 {%f0, %f1, %f2, %f3}, [%t, {%r1, 1}];
        st.global.v4.f32 [%o], {%f0, %f1, %f2, %f3};"""
    for mode in (AddressMode.CLAMP, AddressMode.BORDER):
        found = run(device, body, Texture("float32", 4, (5, 4), 0, mode), inp("t"), content, 9, "f4")["out"]
        np.testing.assert_array_equal(found, np.pad(content[1], ((2, 2), (0, 0))))


def test_integer_coordinates_of_layers(device: EmulatedDevice) -> None:
    content = np.arange(24, dtype=np.uint16).reshape(3, 2, 2, 2)
    body = """
        tex.a2d.v4.u32.s32 {%r4, %r5, %r6, %r7}, [%t, {%r0, 1, 0, 0}];
        st.global.v4.u32 [%o], {%r4, %r5, %r6, %r7};"""
    found = run(device, body, Texture("uint16", 2, (2, 2), 3), inp("t"), content, 4)["out"]
    np.testing.assert_array_equal(found[:3, :2], content[:, 0, 1])
    assert not found[3].any()


@pytest.mark.parametrize("place", ["0f7fc00000", "0f7f800000", "0fff800000", "0f7f7fffff", "0fff7fffff"])
@pytest.mark.parametrize("mode", AddressMode)
@pytest.mark.parametrize("filter_mode", FilterMode)
def test_no_place_is_too_far(device: EmulatedDevice, place: str, mode: AddressMode, filter_mode: FilterMode) -> None:
    """NaN, infinities and the largest numbers read something of the texture, or its border."""
    texture = Texture("float32", 1, (7,), 0, mode, filter_mode, True)
    body = f"""
        tex.1d.v4.f32.f32 {{%f0, %f1, %f2, %f3}}, [%t, {{{place}}}];
        st.global.f32 [%o], %f0;"""
    value = run(device, body, texture, inp("t"), np.full(7, 2.5, np.float32), kind="f4")["out"][0, 0]
    assert value == 2.5 or mode is AddressMode.BORDER


@pytest.mark.parametrize(
    ("texture", "answers"),
    [
        (Texture("unorm8", 4, (6, 5), 0, AddressMode.MIRROR, FilterMode.LINEAR, True), (6, 5, 0x10D2, 0x10B5, 1, 1, 1, 1)),
        (Texture("float16", 2, (6, 5), 0, AddressMode.BORDER), (6, 5, 0x10DD, 0x10B2, 0, 0, 4, 1)),
        (Texture("int16", 1, (6,)), (6, 1, 0x10D8, 0x10B0, 0, 0, 3, 1)),
    ],
)
def test_questions_about_a_texture(device: EmulatedDevice, texture: Texture, answers: tuple[int, ...]) -> None:
    words = ("width", "height", "channel_data_type", "channel_order", "normalized_coords", "filter_mode", "addr_mode_0")
    queries = "".join(f"txq.{word}.b32 %r{index + 1}, [%t];\n" for index, word in enumerate(words))
    stores = "".join(f"st.global.u32 [%o+{4 * index}], %r{index + 1};\n" for index in range(8))
    body = f"{queries} txq.num_mipmap_levels.b32 %r8, [%t]; {stores}"
    call = Call("k", 1, 1, [Seen(inp("t"), texture), out("out")])
    buffers = {"t": np.zeros(texture.size_bytes, np.uint8), "out": np.zeros(8, np.uint32)}
    assert execute(device, kernel(body), [call], buffers)["out"].tolist() == list(answers)


def test_questions_about_a_surface(device: EmulatedDevice) -> None:
    surface = Texture("uint32", 2, (6, 5), 3)
    body = """
        suq.width.b32 %r1, [%t]; suq.height.b32 %r2, [%t]; suq.array_size.b32 %r3, [%t]; suq.channel_data_type.b32 %r4, [%t];
        st.global.v4.u32 [%o], {%r1, %r2, %r3, %r4};"""
    found = run(device, body, surface, inout("s"), np.zeros(surface.size_bytes, np.uint8))["out"]
    assert found.tolist() == [[6, 5, 3, 0x10DC]]


@pytest.mark.parametrize(("use", "expected"), [(inp("t"), [1, 0, 0, 0]), (inout("t"), [0, 0, 1, 0])])
def test_what_a_handle_is_of(device: EmulatedDevice, use: Use, expected: list[int]) -> None:
    body = """
        istypep.texref %p0, %t; selp.u32 %r1, 1, 0, %p0;
        istypep.samplerref %p0, %t; selp.u32 %r2, 1, 0, %p0;
        istypep.surfref %p0, %t; selp.u32 %r3, 1, 0, %p0;
        istypep.surfref %p0, %o; selp.u32 %r4, 1, 0, %p0;
        st.global.v4.u32 [%o], {%r1, %r2, %r3, %r4};"""
    found = run(device, body, Texture("float32", 1, (4,)), use, np.zeros(4, np.float32))["out"]
    assert found.tolist() == [expected]


FLOATS = np.float32(
    [0, -0.0, 1, 65504, 65519.996, 65520, -1e9, np.inf, 2**-14, 2**-24, 2**-25, 3 * 2**-25, 1.00048828125, -1e-30]
)


@pytest.mark.parametrize(
    ("dtype", "words", "expected"),
    [
        ("uint8", np.uint32([0, 255, 256, 2**32 - 1]), [0, 255, 255, 255]),
        ("int8", np.int32([-1, -128, -129, 127, 128, 2**31 - 1]), [-1, -128, -128, 127, 127, 127]),
        ("uint16", np.uint32([1, 65535, 65536]), [1, 65535, 65535]),
        ("int16", np.int32([-(2**31), 2**31 - 1, -5]), [-32768, 32767, -5]),
        ("uint32", np.uint32([2**32 - 1, 0]), [2**32 - 1, 0]),
        ("int32", np.int32([-(2**31), 7]), [-(2**31), 7]),
        ("float32", FLOATS, FLOATS),
        ("float16", FLOATS, None),
    ],
)
def test_formatted_stores(device: EmulatedDevice, dtype: str, words: np.ndarray, expected: object) -> None:
    """Each thread stores one word; half precision is rounded to nearest even, integers to the nearest that there is."""
    surface, count = Texture(dtype, 1, (len(words),)), len(words)
    body = "ld.global.u32 %r1, [%o]; sust.p.1d.b32.trap [%t, {%r0}], %r1;"
    given = np.zeros((count, 4), words.dtype)
    given[:, 0] = words
    call = Call("k", 1, count, [Seen(out("s"), surface), inp("out")])
    found = execute(device, kernel(body), [call], {"s": np.zeros(count, dtype), "out": given})["s"]
    with np.errstate(over="ignore"):
        wanted = words.astype(np.float16) if expected is None else np.array(expected, dtype)
    np.testing.assert_array_equal(found.view(f"u{found.itemsize}"), wanted.view(f"u{found.itemsize}"))


def test_formatted_stores_of_several_channels_and_beyond_the_edge(device: EmulatedDevice) -> None:
    surface = Texture("uint8", 4, (3, 2))
    body = """
        sust.p.2d.v4.b32.zero [%t, {3, 0}], {1, 2, 3, 4};
        sust.p.2d.v4.b32.zero [%t, {1, 0}], {5, 6, 7, 8};
        sust.p.2d.v2.b32.clamp [%t, {9, 9}], {9, 10};"""
    found = run(device, body, surface, out("s"), np.full((2, 3, 4), 77, np.uint8))["s"]
    expected = np.full((2, 3, 4), 77, np.uint8)
    expected[0, 1], expected[1, 2] = [5, 6, 7, 8], [9, 10, 0, 0]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("place", ["2", "13", "-4"])
def test_an_access_that_is_not_aligned_or_not_all_within_is_a_fault(device: EmulatedDevice, place: str) -> None:
    surface = Texture("uint8", 1, (15,))
    body = f"suld.b.1d.b32.trap %r1, [%t, {{{place}}}]; st.global.u32 [%o], %r1;"
    with pytest.raises(KernelFault, match="an access outside of a surface, or not aligned to its size") as caught:
        run(device, body, surface, inout("s"), np.zeros(15, np.uint8))
    assert "suld.b.1d.b32.trap" in caught.value.report


def test_a_surface_that_is_smaller_than_an_access(device: EmulatedDevice) -> None:
    with pytest.raises(KernelFault, match="an access outside of a surface"):
        run(device, "suld.b.1d.b32.clamp %r1, [%t, {0}];", Texture("uint8", 1, (3,)), inout("s"), np.zeros(3, np.uint8))


def test_the_checks_leave_surfaces_alone() -> None:
    """They do not see what a surface's stores have written, and say nothing of it."""
    body = """
        shl.b32 %r1, %r0, 2;
        sust.b.1d.b32.trap [%t, {%r1}], %r0;"""
    read = f"""{HEADER}
    .visible .entry read(.param .u64 from, .param .u64 to)
    {{
        {REGISTERS}
        ld.param.u64 %t, [from];
        ld.param.u64 %o, [to];
        ld.global.u32 %r1, [%t+4];
        st.global.u32 [%o], %r1;
        ret;
    }}"""
    surface = Texture("uint32", 1, (32,))
    with closing(EmulatedDevice(checks=["races", "init"])) as device:
        code = kernel(body) + read.removeprefix(HEADER).encode()
        calls = [Call("k", 1, 32, [Seen(tmp("s"), surface), out("out")]), Call("read", 1, 1, [tmp("s"), out("out")])]
        found = execute(device, code, calls, {"s": np.zeros(32, np.uint32), "out": np.zeros(1, np.uint32)})
    assert found["out"].tolist() == [1]


def test_threads_of_a_warp_see_what_others_stored_before(device: EmulatedDevice) -> None:
    body = """
        shl.b32 %r1, %r0, 2;
        sust.b.1d.b32.trap [%t, {%r1}], %r0;
        xor.b32 %r1, %r1, 124;
        suld.b.1d.b32.trap %r2, [%t, {%r1}];
        st.global.u32 [%o], %r2;"""
    found = run(device, body, Texture("uint32", 1, (32,)), inout("s"), np.zeros(32, np.uint32), 32)
    np.testing.assert_array_equal(found["out"][:, 0], np.arange(32)[::-1])
