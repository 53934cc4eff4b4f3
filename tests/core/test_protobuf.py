"""The protobuf form: defaults, and what is refused that the wire can say but a request cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from kaas.v1 import types_pb2
from kaas_core.errors import InvalidRequestError
from kaas_core.protobuf import request_from_proto, request_to_proto
from kaas_core.request import (
    Access,
    BufferArgument,
    BufferSpec,
    KernelSpec,
    Literal,
    Packed,
    PackedBuffer,
    Request,
    TextureArgument,
)
from kaas_core.texture import AddressMode, Texture

PACKED = types_pb2.Packed(
    data=bytes(range(17)),
    buffers=[
        types_pb2.PackedBuffer(offset_bytes=8, argument=types_pb2.BufferArgument(buffer="x", access=types_pb2.ACCESS_INPUT))
    ],
)


def message() -> types_pb2.Request:
    """Return a valid message with one argument of every kind."""
    return types_pb2.Request(
        kernels=[
            types_pb2.KernelSpec(
                library="/k.ptx",
                name="k",
                grid=types_pb2.Dim3(x=3),
                block=types_pb2.Dim3(x=32, y=2),
                shared_memory_bytes=16,
                cluster=types_pb2.Dim3(x=3),
                cooperative=True,
                programmatic_dependent_launch=True,
                arguments=[
                    types_pb2.Argument(literal=types_pb2.Literal(type="h", int_value=-2)),
                    types_pb2.Argument(literal=types_pb2.Literal(type="I", uint_value=7)),
                    types_pb2.Argument(literal=types_pb2.Literal(type="e", float_value=0.5)),
                    types_pb2.Argument(buffer=types_pb2.BufferArgument(buffer="x", access=types_pb2.ACCESS_INOUT)),
                    types_pb2.Argument(buffer=types_pb2.BufferArgument(buffer="t", access=types_pb2.ACCESS_TEMPORARY)),
                    types_pb2.Argument(packed=PACKED),
                ],
            )
        ],
        buffers=[
            types_pb2.BufferSpec(name="x", size_bytes=8, key="key", offset_bytes=16),
            types_pb2.BufferSpec(name="t", size_bytes=4),
        ],
    )


REQUEST = Request(
    kernels=(
        KernelSpec(
            library="/k.ptx",
            name="k",
            grid=(3, 1, 1),
            block=(32, 2, 1),
            arguments=(
                Literal("h", -2),
                Literal("I", 7),
                Literal("e", 0.5),
                BufferArgument("x", Access.INOUT),
                BufferArgument("t", Access.TEMPORARY),
                Packed(bytes(range(17)), (PackedBuffer(8, BufferArgument("x", Access.INPUT)),)),
            ),
            shared_memory_bytes=16,
            cluster=(3, 1, 1),
            cooperative=True,
            programmatic_dependent_launch=True,
        ),
    ),
    buffers=(BufferSpec("x", 8, key="key", offset_bytes=16), BufferSpec("t", 4, ephemeral=True)),
    iterations=1,
)


def test_defaults_are_filled_in() -> None:
    assert request_from_proto(message()) == REQUEST


def test_written_message() -> None:
    expected = message()
    expected.iterations = 1
    expected.buffers[1].ephemeral = True
    for size in (expected.kernels[0].grid, expected.kernels[0].block, expected.kernels[0].cluster):
        size.y, size.z = size.y or 1, size.z or 1
    assert request_to_proto(REQUEST) == expected


def test_an_integer_is_a_value_of_a_floating_point_literal() -> None:
    kernel = KernelSpec("/k.ptx", "k", (1, 1, 1), (1, 1, 1), (Literal("d", 3),))
    assert request_to_proto(Request((kernel,))).kernels[0].arguments[0].literal.float_value == 3.0


def clear_grid(request: types_pb2.Request) -> None:
    request.kernels[0].ClearField("grid")


def zero_grid(request: types_pb2.Request) -> None:
    request.kernels[0].grid.x = 0


def clear_argument(request: types_pb2.Request) -> None:
    request.kernels[0].arguments[3].Clear()


def clear_access(request: types_pb2.Request) -> None:
    request.kernels[0].arguments[3].buffer.ClearField("access")


def unknown_access(request: types_pb2.Request) -> None:
    # Field 2 of Argument.buffer as a newer client might send it.
    request.kernels[0].arguments[3].buffer.MergeFromString(b"\x10\x63")


def clear_value(request: types_pb2.Request) -> None:
    request.kernels[0].arguments[0].literal.ClearField("int_value")


def wrong_value(request: types_pb2.Request) -> None:
    request.kernels[0].arguments[1].literal.int_value = 7


def unknown_type(request: types_pb2.Request) -> None:
    request.kernels[0].arguments[1].literal.type = "uint"


def forget_packed_buffer(request: types_pb2.Request) -> None:
    request.kernels[0].arguments[5].packed.buffers[0].argument.buffer = "y"


def clear_packed_access(request: types_pb2.Request) -> None:
    request.kernels[0].arguments[5].packed.buffers[0].argument.ClearField("access")


def clear_kernels(request: types_pb2.Request) -> None:
    request.ClearField("kernels")


def clear_size(request: types_pb2.Request) -> None:
    request.buffers[0].ClearField("size_bytes")


def repeat_buffer(request: types_pb2.Request) -> None:
    request.buffers.append(request.buffers[0])


def forget_buffer(request: types_pb2.Request) -> None:
    del request.buffers[0]
    request.kernels[0].arguments[5].packed.buffers[0].argument.buffer = "t"


def seen(**fields: object) -> types_pb2.Request:
    request = message()
    argument = types_pb2.TextureArgument(
        **{"buffer": "x", "access": types_pb2.ACCESS_INPUT, "dtype": "uint8", "extent": types_pb2.Dim3(x=8), **fields}  # type: ignore[arg-type]
    )
    request.kernels[0].arguments[4].texture.CopyFrom(argument)
    request.kernels[0].arguments[3].texture.CopyFrom(argument)
    return request


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Texture("uint8", 1, (8,))),
        ({"extent": types_pb2.Dim3(x=4, y=1), "channels": 2}, Texture("uint8", 2, (4, 1))),
        ({"extent": types_pb2.Dim3(x=4, y=1, z=2)}, Texture("uint8", 1, (4, 1, 2))),
        ({"extent": types_pb2.Dim3(x=4), "layers": 2}, Texture("uint8", 1, (4,), 2)),
        (
            {"address_mode": types_pb2.ADDRESS_MODE_WRAP, "normalized_coordinates": True},
            Texture("uint8", 1, (8,), 0, AddressMode.WRAP, normalized_coordinates=True),
        ),
    ],
)
def test_textures(fields: dict[str, object], expected: Texture) -> None:
    request = request_from_proto(seen(**fields))
    assert request.kernels[0].arguments[3] == TextureArgument("x", Access.INPUT, expected)
    assert request_from_proto(request_to_proto(request)) == request


@pytest.mark.parametrize(
    ("fields", "path", "fragment"),
    [
        ({"access": 0}, "", "access is not set"),
        ({"address_mode": 9}, ".address_mode", "has the unknown value 9"),
        ({"filter_mode": 9}, ".filter_mode", "has the unknown value 9"),
        ({"extent": None}, ".extent[0]", "must be at least 1, not 0"),
        ({"extent": types_pb2.Dim3(x=4, z=2)}, ".extent[1]", "must be at least 1, not 0"),
    ],
)
def test_bad_textures(fields: dict[str, object], path: str, fragment: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request_from_proto(seen(**fields))
    assert [violation.field for violation in caught.value.violations] == [f"kernels[0].arguments[{i}]{path}" for i in (3, 4)]
    assert all(fragment in violation.description for violation in caught.value.violations)


@pytest.mark.parametrize(
    ("spoil", "path", "fragment"),
    [
        (clear_grid, "kernels[0].grid", "is required"),
        (zero_grid, "kernels[0].grid[0]", "at least 1, not 0"),
        (clear_argument, "kernels[0].arguments[3]", "neither a buffer nor a literal"),
        (clear_access, "kernels[0].arguments[3]", "access is not set"),
        (unknown_access, "kernels[0].arguments[3]", "unknown value 99"),
        (clear_value, "kernels[0].arguments[0]", "needs int_value, but no value is set"),
        (wrong_value, "kernels[0].arguments[1]", "needs uint_value, but int_value is set"),
        (unknown_type, "kernels[0].arguments[1]", "unknown literal type 'uint'"),
        (forget_packed_buffer, "kernels[0].arguments[5].buffers[0]", "no buffer 'y'"),
        (clear_packed_access, "kernels[0].arguments[5].buffers[0]", "access is not set"),
        (clear_kernels, "kernels", "at least one kernel"),
        (clear_size, "buffers[0].size", "at least 1, not 0"),
        (repeat_buffer, "buffers[2].name", "already the name of buffers[0]"),
        (forget_buffer, "kernels[0].arguments[3]", "no buffer 'x'"),
    ],
)
def test_bad_messages(spoil: Callable[[types_pb2.Request], None], path: str, fragment: str) -> None:
    bad = message()
    spoil(bad)
    with pytest.raises(InvalidRequestError) as caught:
        request_from_proto(bad)
    (violation,) = caught.value.violations
    assert violation.field == path
    assert fragment in violation.description
