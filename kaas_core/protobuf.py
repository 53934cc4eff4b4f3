"""The protobuf form of a request: ``kaas.v1.Request`` to ``Request`` and back."""

from __future__ import annotations

from collections.abc import Mapping

from kaas.v1 import types_pb2
from kaas_core.request import (
    FLOAT_TYPES,
    INTEGER_TYPES,
    Access,
    Argument,
    BufferArgument,
    BufferSpec,
    Dim3,
    KernelSpec,
    Literal,
    Packed,
    PackedBuffer,
    Request,
    TextureArgument,
)
from kaas_core.texture import AddressMode, FilterMode, Texture
from kaas_core.uses import with_implied_ephemeral
from kaas_core.validation import validate
from kaas_core.violations import Violations, shown

_ACCESS_FROM_PROTO: Mapping[int, Access] = {
    types_pb2.ACCESS_INPUT: Access.INPUT,
    types_pb2.ACCESS_OUTPUT: Access.OUTPUT,
    types_pb2.ACCESS_INOUT: Access.INOUT,
    types_pb2.ACCESS_TEMPORARY: Access.TEMPORARY,
}
_ACCESS_TO_PROTO: Mapping[Access, types_pb2.Access] = {
    Access.INPUT: types_pb2.ACCESS_INPUT,
    Access.OUTPUT: types_pb2.ACCESS_OUTPUT,
    Access.INOUT: types_pb2.ACCESS_INOUT,
    Access.TEMPORARY: types_pb2.ACCESS_TEMPORARY,
}
_ADDRESS_MODE_TO_PROTO: Mapping[AddressMode, types_pb2.AddressMode] = {
    AddressMode.WRAP: types_pb2.ADDRESS_MODE_WRAP,
    AddressMode.CLAMP: types_pb2.ADDRESS_MODE_CLAMP,
    AddressMode.MIRROR: types_pb2.ADDRESS_MODE_MIRROR,
    AddressMode.BORDER: types_pb2.ADDRESS_MODE_BORDER,
}
_ADDRESS_MODES: Mapping[int, AddressMode] = {
    types_pb2.ADDRESS_MODE_UNSPECIFIED: AddressMode.CLAMP,
    **{number: mode for mode, number in _ADDRESS_MODE_TO_PROTO.items()},
}
_FILTER_MODE_TO_PROTO: Mapping[FilterMode, types_pb2.FilterMode] = {
    FilterMode.POINT: types_pb2.FILTER_MODE_POINT,
    FilterMode.LINEAR: types_pb2.FILTER_MODE_LINEAR,
}
_FILTER_MODES: Mapping[int, FilterMode] = {
    types_pb2.FILTER_MODE_UNSPECIFIED: FilterMode.POINT,
    **{number: mode for mode, number in _FILTER_MODE_TO_PROTO.items()},
}
_VALUE_FIELD: Mapping[str, str] = {
    **{letter: "uint_value" if letter.isupper() else "int_value" for letter in INTEGER_TYPES},
    **dict.fromkeys(FLOAT_TYPES, "float_value"),
}
"""The field of ``Literal.value`` that suits each literal type."""


def request_from_proto(message: types_pb2.Request) -> Request:
    """Return the validated request, defaults filled in. Raises ``InvalidRequestError`` with every violation."""
    found = Violations()
    request = Request(
        kernels=tuple(_kernel_from_proto(found, f"kernels[{i}]", kernel) for i, kernel in enumerate(message.kernels)),
        buffers=tuple(
            BufferSpec(
                name=buffer.name,
                size_bytes=buffer.size_bytes,
                key=buffer.key,
                offset_bytes=buffer.offset_bytes,
                ephemeral=buffer.ephemeral,
                constant=buffer.constant,
                dtype=buffer.dtype,
                shape=tuple(buffer.shape),
                fortran_order=buffer.fortran_order,
            )
            for buffer in message.buffers
        ),
        iterations=message.iterations or 1,
    )
    found.raise_if_any()
    request = with_implied_ephemeral(request)
    validate(request)
    return request


def request_to_proto(request: Request) -> types_pb2.Request:
    """Return the message of a valid request."""
    return types_pb2.Request(
        kernels=[_kernel_to_proto(kernel) for kernel in request.kernels],
        buffers=[
            types_pb2.BufferSpec(
                name=spec.name,
                size_bytes=spec.size_bytes,
                key=spec.key,
                offset_bytes=spec.offset_bytes,
                ephemeral=spec.ephemeral,
                constant=spec.constant,
                dtype=spec.dtype,
                shape=spec.shape,
                fortran_order=spec.fortran_order,
            )
            for spec in request.buffers
        ],
        iterations=request.iterations,
    )


def _kernel_from_proto(found: Violations, path: str, message: types_pb2.KernelSpec) -> KernelSpec:
    for field in ("grid", "block"):
        if not message.HasField(field):
            found.add(f"{path}.{field}", "is required")
    return KernelSpec(
        library=message.library,
        name=message.name,
        grid=_dim3_from_proto(message.grid),
        block=_dim3_from_proto(message.block),
        arguments=tuple(
            _argument_from_proto(found, f"{path}.arguments[{i}]", argument) for i, argument in enumerate(message.arguments)
        ),
        shared_memory_bytes=message.shared_memory_bytes,
        cluster=_dim3_from_proto(message.cluster) if message.HasField("cluster") else None,
        cooperative=message.cooperative,
        programmatic_dependent_launch=message.programmatic_dependent_launch,
    )


def _dim3_from_proto(message: types_pb2.Dim3) -> Dim3:
    return message.x, message.y or 1, message.z or 1


def _argument_from_proto(found: Violations, path: str, message: types_pb2.Argument) -> Argument:
    kind = message.WhichOneof("kind")
    if kind == "buffer":
        return _buffer_argument_from_proto(found, path, message.buffer)
    if kind == "packed":
        return _packed_from_proto(found, path, message.packed)
    if kind == "texture":
        return _texture_from_proto(found, path, message.texture)
    if kind is None:
        found.add(path, "is neither a buffer nor a literal, nor packed, nor a texture")
    return _literal_from_proto(found, path, message.literal)


def _buffer_argument_from_proto(found: Violations, path: str, message: types_pb2.BufferArgument) -> BufferArgument:
    return BufferArgument(message.buffer, _access_from_proto(found, path, message.access))


def _access_from_proto(found: Violations, path: str, value: types_pb2.Access) -> Access:
    access = _ACCESS_FROM_PROTO.get(value)
    if access is None:
        what = "is not set" if value == types_pb2.ACCESS_UNSPECIFIED else f"has the unknown value {value}"
        found.add(path, f"access {what}; expected INPUT, OUTPUT, INOUT or TEMPORARY")
    return access or Access.INPUT


def _texture_from_proto(found: Violations, path: str, message: types_pb2.TextureArgument) -> TextureArgument:
    address_mode, filter_mode = _ADDRESS_MODES.get(message.address_mode), _FILTER_MODES.get(message.filter_mode)
    for field, mode in (("address_mode", address_mode), ("filter_mode", filter_mode)):
        if mode is None:
            found.add(f"{path}.{field}", f"has the unknown value {getattr(message, field)}")
    given = (message.extent.x, message.extent.y, message.extent.z)
    texture = Texture(
        dtype=message.dtype,
        channels=message.channels or 1,
        extent=given[: max((axis + 1 for axis, number in enumerate(given) if number), default=1)],
        layers=message.layers,
        address_mode=address_mode or AddressMode.CLAMP,
        filter_mode=filter_mode or FilterMode.POINT,
        normalized_coordinates=message.normalized_coordinates,
    )
    return TextureArgument(message.buffer, _access_from_proto(found, path, message.access), texture)


def _packed_from_proto(found: Violations, path: str, message: types_pb2.Packed) -> Packed:
    return Packed(
        message.data,
        tuple(
            PackedBuffer(each.offset_bytes, _buffer_argument_from_proto(found, f"{path}.buffers[{i}]", each.argument))
            for i, each in enumerate(message.buffers)
        ),
    )


def _literal_from_proto(found: Violations, path: str, message: types_pb2.Literal) -> Literal:
    given = message.WhichOneof("value")
    expected = _VALUE_FIELD.get(message.type)
    # Validation reports an unknown type, with or without a value.
    if expected is not None and given != expected:
        found.add(path, f"a literal of type {shown(message.type)} needs {expected}, but {given or 'no value'} is set")
    return Literal(message.type, 0 if given is None else getattr(message, given))


def _kernel_to_proto(kernel: KernelSpec) -> types_pb2.KernelSpec:
    return types_pb2.KernelSpec(
        library=kernel.library,
        name=kernel.name,
        grid=dim3_to_proto(kernel.grid),
        block=dim3_to_proto(kernel.block),
        shared_memory_bytes=kernel.shared_memory_bytes,
        arguments=[_argument_to_proto(argument) for argument in kernel.arguments],
        cluster=None if kernel.cluster is None else dim3_to_proto(kernel.cluster),
        cooperative=kernel.cooperative,
        programmatic_dependent_launch=kernel.programmatic_dependent_launch,
    )


def dim3_to_proto(size: Dim3) -> types_pb2.Dim3:
    """Return the message of a size."""
    x, y, z = size
    return types_pb2.Dim3(x=x, y=y, z=z)


def _buffer_argument_to_proto(argument: BufferArgument) -> types_pb2.BufferArgument:
    return types_pb2.BufferArgument(buffer=argument.buffer, access=_ACCESS_TO_PROTO[argument.access])


def _texture_to_proto(argument: TextureArgument) -> types_pb2.TextureArgument:
    texture = argument.texture
    x, y, z = (*texture.extent, 0, 0)[:3]
    message = types_pb2.TextureArgument(
        buffer=argument.buffer,
        access=_ACCESS_TO_PROTO[argument.access],
        dtype=texture.dtype,
        channels=texture.channels,
        extent=types_pb2.Dim3(x=x, y=y, z=z),
        layers=texture.layers,
        normalized_coordinates=texture.normalized_coordinates,
    )
    if not argument.is_surface:
        message.address_mode = _ADDRESS_MODE_TO_PROTO[texture.address_mode]
        message.filter_mode = _FILTER_MODE_TO_PROTO[texture.filter_mode]
    return message


def _argument_to_proto(argument: Argument) -> types_pb2.Argument:
    if isinstance(argument, BufferArgument):
        return types_pb2.Argument(buffer=_buffer_argument_to_proto(argument))
    if isinstance(argument, Packed):
        buffers = [
            types_pb2.PackedBuffer(offset_bytes=each.offset_bytes, argument=_buffer_argument_to_proto(each.argument))
            for each in argument.buffers
        ]
        return types_pb2.Argument(packed=types_pb2.Packed(data=argument.data, buffers=buffers))
    if isinstance(argument, TextureArgument):
        return types_pb2.Argument(texture=_texture_to_proto(argument))
    literal = types_pb2.Literal(type=argument.type)
    setattr(literal, _VALUE_FIELD[argument.type], argument.value)
    return types_pb2.Argument(literal=literal)
