from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Access(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACCESS_UNSPECIFIED: _ClassVar[Access]
    ACCESS_INPUT: _ClassVar[Access]
    ACCESS_OUTPUT: _ClassVar[Access]
    ACCESS_INOUT: _ClassVar[Access]
    ACCESS_TEMPORARY: _ClassVar[Access]

class AddressMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ADDRESS_MODE_UNSPECIFIED: _ClassVar[AddressMode]
    ADDRESS_MODE_WRAP: _ClassVar[AddressMode]
    ADDRESS_MODE_CLAMP: _ClassVar[AddressMode]
    ADDRESS_MODE_MIRROR: _ClassVar[AddressMode]
    ADDRESS_MODE_BORDER: _ClassVar[AddressMode]

class FilterMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FILTER_MODE_UNSPECIFIED: _ClassVar[FilterMode]
    FILTER_MODE_POINT: _ClassVar[FilterMode]
    FILTER_MODE_LINEAR: _ClassVar[FilterMode]
ACCESS_UNSPECIFIED: Access
ACCESS_INPUT: Access
ACCESS_OUTPUT: Access
ACCESS_INOUT: Access
ACCESS_TEMPORARY: Access
ADDRESS_MODE_UNSPECIFIED: AddressMode
ADDRESS_MODE_WRAP: AddressMode
ADDRESS_MODE_CLAMP: AddressMode
ADDRESS_MODE_MIRROR: AddressMode
ADDRESS_MODE_BORDER: AddressMode
FILTER_MODE_UNSPECIFIED: FilterMode
FILTER_MODE_POINT: FilterMode
FILTER_MODE_LINEAR: FilterMode

class Dim3(_message.Message):
    __slots__ = ("x", "y", "z")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    x: int
    y: int
    z: int
    def __init__(self, x: _Optional[int] = ..., y: _Optional[int] = ..., z: _Optional[int] = ...) -> None: ...

class Literal(_message.Message):
    __slots__ = ("type", "int_value", "uint_value", "float_value")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    INT_VALUE_FIELD_NUMBER: _ClassVar[int]
    UINT_VALUE_FIELD_NUMBER: _ClassVar[int]
    FLOAT_VALUE_FIELD_NUMBER: _ClassVar[int]
    type: str
    int_value: int
    uint_value: int
    float_value: float
    def __init__(self, type: _Optional[str] = ..., int_value: _Optional[int] = ..., uint_value: _Optional[int] = ..., float_value: _Optional[float] = ...) -> None: ...

class BufferArgument(_message.Message):
    __slots__ = ("buffer", "access")
    BUFFER_FIELD_NUMBER: _ClassVar[int]
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    buffer: str
    access: Access
    def __init__(self, buffer: _Optional[str] = ..., access: _Optional[_Union[Access, str]] = ...) -> None: ...

class PackedBuffer(_message.Message):
    __slots__ = ("offset_bytes", "argument")
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARGUMENT_FIELD_NUMBER: _ClassVar[int]
    offset_bytes: int
    argument: BufferArgument
    def __init__(self, offset_bytes: _Optional[int] = ..., argument: _Optional[_Union[BufferArgument, _Mapping]] = ...) -> None: ...

class Packed(_message.Message):
    __slots__ = ("data", "buffers")
    DATA_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    buffers: _containers.RepeatedCompositeFieldContainer[PackedBuffer]
    def __init__(self, data: _Optional[bytes] = ..., buffers: _Optional[_Iterable[_Union[PackedBuffer, _Mapping]]] = ...) -> None: ...

class TextureArgument(_message.Message):
    __slots__ = ("buffer", "access", "dtype", "channels", "extent", "layers", "address_mode", "filter_mode", "normalized_coordinates")
    BUFFER_FIELD_NUMBER: _ClassVar[int]
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    EXTENT_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_MODE_FIELD_NUMBER: _ClassVar[int]
    FILTER_MODE_FIELD_NUMBER: _ClassVar[int]
    NORMALIZED_COORDINATES_FIELD_NUMBER: _ClassVar[int]
    buffer: str
    access: Access
    dtype: str
    channels: int
    extent: Dim3
    layers: int
    address_mode: AddressMode
    filter_mode: FilterMode
    normalized_coordinates: bool
    def __init__(self, buffer: _Optional[str] = ..., access: _Optional[_Union[Access, str]] = ..., dtype: _Optional[str] = ..., channels: _Optional[int] = ..., extent: _Optional[_Union[Dim3, _Mapping]] = ..., layers: _Optional[int] = ..., address_mode: _Optional[_Union[AddressMode, str]] = ..., filter_mode: _Optional[_Union[FilterMode, str]] = ..., normalized_coordinates: bool = ...) -> None: ...

class Argument(_message.Message):
    __slots__ = ("buffer", "literal", "packed", "texture")
    BUFFER_FIELD_NUMBER: _ClassVar[int]
    LITERAL_FIELD_NUMBER: _ClassVar[int]
    PACKED_FIELD_NUMBER: _ClassVar[int]
    TEXTURE_FIELD_NUMBER: _ClassVar[int]
    buffer: BufferArgument
    literal: Literal
    packed: Packed
    texture: TextureArgument
    def __init__(self, buffer: _Optional[_Union[BufferArgument, _Mapping]] = ..., literal: _Optional[_Union[Literal, _Mapping]] = ..., packed: _Optional[_Union[Packed, _Mapping]] = ..., texture: _Optional[_Union[TextureArgument, _Mapping]] = ...) -> None: ...

class KernelSpec(_message.Message):
    __slots__ = ("library", "name", "grid", "block", "shared_memory_bytes", "arguments", "cluster", "cooperative", "programmatic_dependent_launch")
    LIBRARY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    COOPERATIVE_FIELD_NUMBER: _ClassVar[int]
    PROGRAMMATIC_DEPENDENT_LAUNCH_FIELD_NUMBER: _ClassVar[int]
    library: str
    name: str
    grid: Dim3
    block: Dim3
    shared_memory_bytes: int
    arguments: _containers.RepeatedCompositeFieldContainer[Argument]
    cluster: Dim3
    cooperative: bool
    programmatic_dependent_launch: bool
    def __init__(self, library: _Optional[str] = ..., name: _Optional[str] = ..., grid: _Optional[_Union[Dim3, _Mapping]] = ..., block: _Optional[_Union[Dim3, _Mapping]] = ..., shared_memory_bytes: _Optional[int] = ..., arguments: _Optional[_Iterable[_Union[Argument, _Mapping]]] = ..., cluster: _Optional[_Union[Dim3, _Mapping]] = ..., cooperative: bool = ..., programmatic_dependent_launch: bool = ...) -> None: ...

class BufferSpec(_message.Message):
    __slots__ = ("name", "size_bytes", "key", "offset_bytes", "ephemeral", "constant", "dtype", "shape", "fortran_order")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    EPHEMERAL_FIELD_NUMBER: _ClassVar[int]
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    FORTRAN_ORDER_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    key: str
    offset_bytes: int
    ephemeral: bool
    constant: bool
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    fortran_order: bool
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., key: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., ephemeral: bool = ..., constant: bool = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., fortran_order: bool = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("kernels", "buffers", "iterations")
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    BUFFERS_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    kernels: _containers.RepeatedCompositeFieldContainer[KernelSpec]
    buffers: _containers.RepeatedCompositeFieldContainer[BufferSpec]
    iterations: int
    def __init__(self, kernels: _Optional[_Iterable[_Union[KernelSpec, _Mapping]]] = ..., buffers: _Optional[_Iterable[_Union[BufferSpec, _Mapping]]] = ..., iterations: _Optional[int] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ns", "plan_ns", "load_ns", "run_ns", "commit_ns", "total_ns")
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    PLAN_NS_FIELD_NUMBER: _ClassVar[int]
    LOAD_NS_FIELD_NUMBER: _ClassVar[int]
    RUN_NS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_NS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_NS_FIELD_NUMBER: _ClassVar[int]
    queue_ns: int
    plan_ns: int
    load_ns: int
    run_ns: int
    commit_ns: int
    total_ns: int
    def __init__(self, queue_ns: _Optional[int] = ..., plan_ns: _Optional[int] = ..., load_ns: _Optional[int] = ..., run_ns: _Optional[int] = ..., commit_ns: _Optional[int] = ..., total_ns: _Optional[int] = ...) -> None: ...
