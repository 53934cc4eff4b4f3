"""Requests built in Python: what they become, how mentions of a buffer merge, and what is refused with which path."""

from __future__ import annotations

import ctypes
import json
import math
from typing import Any

import numpy as np
import pytest

import kaas_client
from kaas_client import (
    Kernel,
    Request,
    f16,
    f32,
    f64,
    i8,
    i16,
    i32,
    i64,
    inout,
    inp,
    out,
    packed,
    surface,
    texture,
    tmp,
    u8,
    u16,
    u32,
    u64,
)
from kaas_client.errors import InvalidRequestError
from kaas_core.request import Access, BufferArgument, BufferSpec, KernelSpec, Literal, Packed, PackedBuffer, TextureArgument
from kaas_core.request import Request as Spec
from kaas_core.texture import AddressMode, FilterMode, Texture

LIBRARY = "sha256:" + "0f" * 32


def only_kernel(*args: Any, **options: Any) -> Request:
    return Request([Kernel(LIBRARY, "k", args=args, **options)])


def test_the_dot_product() -> None:
    size = 4096
    request = Request(
        [
            Kernel(LIBRARY, "prodKern", grid=1, block=1024, args=[u64(1024), inp("a", size), inp("b", size), tmp("p", size)]),
            Kernel(LIBRARY, "sumKern", grid=1, block=512, args=[inp("p", size, ephemeral=True), out("c", 4)]),
        ],
        iterations=3,
    )
    assert request.spec == Spec(
        kernels=(
            KernelSpec(
                LIBRARY,
                "prodKern",
                (1, 1, 1),
                (1024, 1, 1),
                (
                    Literal("Q", 1024),
                    BufferArgument("a", Access.INPUT),
                    BufferArgument("b", Access.INPUT),
                    BufferArgument("p", Access.TEMPORARY),
                ),
            ),
            KernelSpec(
                LIBRARY,
                "sumKern",
                (1, 1, 1),
                (512, 1, 1),
                (BufferArgument("p", Access.INPUT), BufferArgument("c", Access.OUTPUT)),
            ),
        ),
        buffers=(
            BufferSpec("a", size),
            BufferSpec("b", size),
            BufferSpec("p", size, ephemeral=True),
            BufferSpec("c", 4),
        ),
        iterations=3,
    )


def test_every_attribute_of_a_buffer() -> None:
    request = only_kernel(
        inp("a", 8, key="model/a", offset=16, constant=True),
        inout("b", 4, key="state"),
        out("c", 2, offset=np.int64(6)),
        out("d", np.uint64(12), ephemeral=True),
    )
    assert request.spec.buffers == (
        BufferSpec("a", 8, key="model/a", offset_bytes=16, constant=True),
        BufferSpec("b", 4, key="state"),
        BufferSpec("c", 2, offset_bytes=6),
        BufferSpec("d", 12, ephemeral=True),
    )
    assert [a.access for a in request.spec.kernels[0].arguments if isinstance(a, BufferArgument)] == [
        Access.INPUT,
        Access.INOUT,
        Access.OUTPUT,
        Access.OUTPUT,
    ]


def test_mentions_merge_by_name() -> None:
    request = Request([Kernel(LIBRARY, "first", args=[inp("a", 8, key="x")]), Kernel(LIBRARY, "second", args=[inout("a")])])
    assert request.spec.buffers == (BufferSpec("a", 8, key="x"),)


@pytest.mark.parametrize(
    ("make", "letter", "low", "high"),
    [
        (i8, "b", -(2**7), 2**7 - 1),
        (u8, "B", 0, 2**8 - 1),
        (i16, "h", -(2**15), 2**15 - 1),
        (u16, "H", 0, 2**16 - 1),
        (i32, "i", -(2**31), 2**31 - 1),
        (u32, "I", 0, 2**32 - 1),
        (i64, "q", -(2**63), 2**63 - 1),
        (u64, "Q", 0, 2**64 - 1),
    ],
)
def test_integers(make: Any, letter: str, low: int, high: int) -> None:
    request = only_kernel(make(low), make(high), make(np.int8(5)))
    assert request.spec.kernels[0].arguments == (Literal(letter, low), Literal(letter, high), Literal(letter, 5))
    for value in (low - 1, high + 1):
        with pytest.raises(InvalidRequestError) as caught:
            only_kernel(u64(0), make(value))
        (violation,) = caught.value.violations
        assert violation.field.startswith("kernels[0].arguments[1]")
    with pytest.raises(TypeError):
        make(1.5)


@pytest.mark.parametrize(("make", "letter"), [(f16, "e"), (f32, "f"), (f64, "d")])
def test_floats(make: Any, letter: str) -> None:
    request = only_kernel(make(1.5), make(np.float32(0.25)), make(3), make(math.inf), make(-math.inf), make(math.nan))
    *finite, nan = request.spec.kernels[0].arguments
    assert finite == [Literal(letter, v) for v in (1.5, 0.25, 3.0, math.inf, -math.inf)]
    assert isinstance(nan, Literal) and math.isnan(nan.value)


@pytest.mark.parametrize("size", [2, (2,), [2, 3], (2, 3, 4), np.int32(2)])
def test_sizes_of_grids_and_blocks(size: Any) -> None:
    expected = {1: (2, 1, 1), 2: (2, 3, 1), 3: (2, 3, 4)}[len(size) if isinstance(size, (list, tuple)) else 1]
    (kernel,) = only_kernel(grid=size, block=size, shared_memory_bytes=np.int64(64)).spec.kernels
    assert (kernel.grid, kernel.block, kernel.shared_memory_bytes) == (expected, expected, 64)


@pytest.mark.parametrize("size", [2, (2,), [2, 3], (2, 3, 4), np.int32(2)])
def test_launch_attributes(size: Any) -> None:
    expected = {1: (2, 1, 1), 2: (2, 3, 1), 3: (2, 3, 4)}[len(size) if isinstance(size, (list, tuple)) else 1]
    (kernel,) = only_kernel(cluster=size, cooperative=True, programmatic_dependent_launch=True).spec.kernels
    assert (kernel.cluster, kernel.cooperative, kernel.programmatic_dependent_launch) == (expected, True, True)
    (plain,) = only_kernel().spec.kernels
    assert (plain.cluster, plain.cooperative, plain.programmatic_dependent_launch) == (None, False, False)


def test_a_bad_cluster_is_named() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        only_kernel(cluster=(2, 0))
    assert [violation.field for violation in caught.value.violations] == ["kernels[0].cluster[1]"]


def test_the_json_form_loses_nothing() -> None:
    request = Request([Kernel(LIBRARY, "k", grid=(2, 3), args=[f32(math.inf), inp("a", 8, key="x"), tmp("t", 4)])], iterations=7)
    assert Request.from_json(request.to_json()) == request
    assert Request.from_json(request.to_json(indent=2).encode()) == request
    assert Request.from_json(json.loads(request.to_json())) == request


def test_every_bad_field_is_named() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Request(
            [
                Kernel("relative.ptx", "k", args=[inp("a", 8)]),
                Kernel(LIBRARY, "k", grid=0, args=[inp("a", 4), out("b")]),
            ]
        )
    fields = {violation.field for violation in caught.value.violations}
    assert any(field.startswith("kernels[1].arguments[0]") for field in fields), fields
    assert any(field.startswith("kernels[1].arguments[1]") for field in fields), fields
    for kernel, field in (
        (Kernel("relative.ptx", "k"), "kernels[0].library"),
        (Kernel(LIBRARY, "k", grid=0), "kernels[0].grid[0]"),
        (Kernel(LIBRARY, "k", block=(1, 1, 1, 1)), "kernels[0].block"),
        (Kernel(LIBRARY, ""), "kernels[0].name"),
    ):
        with pytest.raises(InvalidRequestError) as caught:
            Request([kernel])
        assert [v.field for v in caught.value.violations] == [field]


def test_no_kernels() -> None:
    with pytest.raises(InvalidRequestError, match="kernels"):
        Request([])


@pytest.mark.parametrize("argument", [5, 1.0, "a", None, b"x"])
def test_a_plain_value_is_no_argument(argument: Any) -> None:
    with pytest.raises(TypeError, match=r"argument 1 of kernel 'k' is .*u64"):
        only_kernel(u64(1), argument)


def test_everything_named_is_there() -> None:
    assert all(hasattr(kaas_client, name) for name in kaas_client.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = kaas_client.nonsense


def test_dtype_and_shape_give_the_size() -> None:
    request = only_kernel(
        inp("a", dtype="f4", shape=(4, 6), fortran_order=True),
        inout("b", 24, dtype=np.int64, shape=3),
        out("c", dtype=np.dtype("f8")),
        tmp("t", dtype="?", shape=[5]),
        inp("a"),
    )
    assert request.spec.buffers == (
        BufferSpec("a", 96, dtype="float32", shape=(4, 6), fortran_order=True),
        BufferSpec("b", 24, dtype="int64", shape=(3,)),
        BufferSpec("c", 8, dtype="float64"),
        BufferSpec("t", 5, ephemeral=True, dtype="bool", shape=(5,)),
    )
    assert Request.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: inp("a", 8, dtype="f4", shape=(4,)), InvalidRequestError, r"'a' is float32 of shape \[4\]: 16 bytes, not 8"),
        (lambda: inp("a", 8, dtype=object), TypeError, "object"),
        (lambda: out("a", dtype="no such type"), TypeError, "no such type"),
        (lambda: only_kernel(out("a", 8, shape=(8,))), InvalidRequestError, "shape: .*without dtype"),
    ],
)
def test_a_dtype_that_does_not_fit_is_refused(build: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


class Inner(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int), ("data", ctypes.c_void_p)]


class Outer(Inner):
    _fields_ = [("inner", Inner), ("factor", ctypes.c_float)]


def arguments(*args: Any) -> tuple[Any, ...]:
    return only_kernel(*args).spec.kernels[0].arguments


def test_packed_bytes() -> None:
    request = only_kernel(packed(bytearray(b"0123456789abcdefg"), {8: inp("x", 4), 0: out("y", 8)}), packed(b"z"))
    uses = (PackedBuffer(8, BufferArgument("x", Access.INPUT)), PackedBuffer(0, BufferArgument("y", Access.OUTPUT)))
    assert request.spec.kernels[0].arguments == (Packed(b"0123456789abcdefg", uses), Packed(b"z"))
    assert request.spec.buffers == (BufferSpec("x", 4), BufferSpec("y", 8))
    assert Request.from_json(request.to_json()) == request


def test_packed_structures_of_ctypes() -> None:
    value = Outer(1, 2, Inner(3, 4), 0.5)
    (argument,) = arguments(packed(value, {"inner.data": inp("x", 4), "data": inout("y", 4)}))
    assert argument.data == bytes(value)
    assert len(argument.data) == 40
    assert [(each.offset_bytes, each.argument.buffer) for each in argument.buffers] == [(24, "x"), (8, "y")]


def test_packed_elements_of_numpy() -> None:
    inner = np.dtype([("data", "u8"), ("flag", "?")], align=True)
    dtype = np.dtype([("count", "i4"), ("inner", inner), ("data", "u8")], align=True)
    array = np.array([(7, (8, True), 9)] * 2, dtype)
    for value in (array[1], array[0]):
        (argument,) = arguments(packed(value, {"inner.data": inp("x", 4), "data": inout("y", 4)}))
        assert argument.data == value.tobytes()
        assert len(argument.data) == 32
        assert [(each.offset_bytes, each.argument.buffer) for each in argument.buffers] == [(8, "x"), (24, "y")]


@pytest.mark.parametrize(
    ("data", "buffers", "error", "text"),
    [
        (Outer(), {"inner": inp("x", 4)}, InvalidRequestError, r"buffers\['inner'\]: an address has 8 bytes, and this field 16"),
        (Outer(), {"factor": inp("x", 4)}, InvalidRequestError, r"buffers\['factor'\]: an address has 8 bytes, and this field 4"),
        (Outer(), {"inner.none": inp("x", 4)}, KeyError, "no field 'inner.none'"),
        (Outer(), {"factor.data": inp("x", 4)}, KeyError, "no field 'factor.data'"),
        (b"12345678", {"data": inp("x", 4)}, KeyError, "no field 'data'"),
        (b"12345678", {0: u64(1)}, TypeError, "has at 0 is Literal"),
        (b"12345678", {0.5: inp("x", 4)}, TypeError, "float"),
        ("text", {}, TypeError, "packed.* takes bytes"),
        (np.float32(1), {}, TypeError, "packed.* takes bytes"),
        (np.zeros(2, "u8,u8"), {}, TypeError, "takes one element"),
        (np.array((1, None), "u8,O")[()], {}, TypeError, "made of bytes"),
    ],
)
def test_what_cannot_be_packed(data: Any, buffers: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        packed(data, buffers)


def test_a_packed_argument_that_is_too_short() -> None:
    with pytest.raises(InvalidRequestError, match=r"kernels\[0\].arguments\[1\].buffers\[0\].offset_bytes: .*ends behind the 12"):
        only_kernel(u64(1), packed(bytes(12), {8: inp("x", 4)}))


def test_textures_and_surfaces() -> None:
    image = texture(
        inp("image"),
        dtype="unorm8",
        extent=(8, 4),
        channels=4,
        address_mode="wrap",
        filter_mode="linear",
        normalized_coordinates=True,
    )
    request = only_kernel(
        image,
        surface(out("result", 64), dtype="float16", extent=[8, 2], layers=2),
        texture(inp("image"), dtype="int32", extent=32),
    )
    assert request.spec.kernels[0].arguments == (
        TextureArgument(
            "image",
            Access.INPUT,
            Texture("unorm8", 4, (8, 4), 0, AddressMode.WRAP, FilterMode.LINEAR, normalized_coordinates=True),
        ),
        TextureArgument("result", Access.OUTPUT, Texture("float16", 1, (8, 2), 2)),
        TextureArgument("image", Access.INPUT, Texture("int32", 1, (32,))),
    )
    assert request.spec.buffers == (BufferSpec("image", 128), BufferSpec("result", 64))
    assert Request.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: texture(out("x"), dtype="uint8", extent=4), TypeError, "what a kernel writes is surface"),
        (lambda: surface(inp("x"), dtype="uint8", extent=4), TypeError, "what a kernel only reads is texture"),
        (lambda: texture(inp("x"), dtype="float64", extent=4), InvalidRequestError, "dtype: texture 'x': is none of uint8"),
        (
            lambda: texture(inp("x", 5), dtype="uint8", extent=4),
            InvalidRequestError,
            "extent: texture 'x': 4 x 1 x 1 bytes are 4, but",
        ),
        (lambda: texture(inp("x"), dtype="uint8", extent=(1,) * 4), InvalidRequestError, "one to three numbers"),
        (
            lambda: texture(inp("x"), dtype="uint8", extent=4, filter_mode="cubic"),
            InvalidRequestError,
            "filter_mode: must be one of point, linear, not 'cubic'",
        ),
        (lambda: surface(out("x"), dtype="unorm8", extent=4), InvalidRequestError, "a surface has integers as they are: uint8"),
    ],
)
def test_what_cannot_be_a_texture(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()
