from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Compile(_message.Message):
    __slots__ = ("kind", "target", "image", "kernel")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    KERNEL_FIELD_NUMBER: _ClassVar[int]
    kind: str
    target: str
    image: bytes
    kernel: str
    def __init__(self, kind: _Optional[str] = ..., target: _Optional[str] = ..., image: _Optional[bytes] = ..., kernel: _Optional[str] = ...) -> None: ...

class Compiled(_message.Message):
    __slots__ = ("content", "unsupported", "out_of_memory", "failed")
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    UNSUPPORTED_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_MEMORY_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    content: bytes
    unsupported: str
    out_of_memory: bool
    failed: bool
    def __init__(self, content: _Optional[bytes] = ..., unsupported: _Optional[str] = ..., out_of_memory: bool = ..., failed: bool = ...) -> None: ...

class CompiledLibrary(_message.Message):
    __slots__ = ("description", "heap_users")
    class HeapUsersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    HEAP_USERS_FIELD_NUMBER: _ClassVar[int]
    description: bytes
    heap_users: _containers.ScalarMap[str, str]
    def __init__(self, description: _Optional[bytes] = ..., heap_users: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CudaLibrary(_message.Message):
    __slots__ = ("codes",)
    CODES_FIELD_NUMBER: _ClassVar[int]
    codes: _containers.RepeatedCompositeFieldContainer[CudaCode]
    def __init__(self, codes: _Optional[_Iterable[_Union[CudaCode, _Mapping]]] = ...) -> None: ...

class CudaCode(_message.Message):
    __slots__ = ("digest", "cubin")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CUBIN_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    cubin: bytes
    def __init__(self, digest: _Optional[bytes] = ..., cubin: _Optional[bytes] = ...) -> None: ...

class EmulatedLibrary(_message.Message):
    __slots__ = ("units", "host_functions")
    UNITS_FIELD_NUMBER: _ClassVar[int]
    HOST_FUNCTIONS_FIELD_NUMBER: _ClassVar[int]
    units: _containers.RepeatedCompositeFieldContainer[EmulatedUnit]
    host_functions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, units: _Optional[_Iterable[_Union[EmulatedUnit, _Mapping]]] = ..., host_functions: _Optional[_Iterable[str]] = ...) -> None: ...

class EmulatedUnit(_message.Message):
    __slots__ = ("variables", "kernels", "files")
    class FilesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: str
        def __init__(self, key: _Optional[int] = ..., value: _Optional[str] = ...) -> None: ...
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    variables: _containers.RepeatedCompositeFieldContainer[EmulatedVariable]
    kernels: _containers.RepeatedCompositeFieldContainer[EmulatedKernel]
    files: _containers.ScalarMap[int, str]
    def __init__(self, variables: _Optional[_Iterable[_Union[EmulatedVariable, _Mapping]]] = ..., kernels: _Optional[_Iterable[_Union[EmulatedKernel, _Mapping]]] = ..., files: _Optional[_Mapping[int, str]] = ...) -> None: ...

class EmulatedVariable(_message.Message):
    __slots__ = ("name", "size_bytes", "constant", "written", "initial", "addresses")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CONSTANT_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_FIELD_NUMBER: _ClassVar[int]
    INITIAL_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    constant: bool
    written: bool
    initial: bytes
    addresses: _containers.RepeatedCompositeFieldContainer[EmulatedAddress]
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., constant: bool = ..., written: bool = ..., initial: _Optional[bytes] = ..., addresses: _Optional[_Iterable[_Union[EmulatedAddress, _Mapping]]] = ...) -> None: ...

class EmulatedAddress(_message.Message):
    __slots__ = ("offset_bytes", "size_bytes", "variable", "addend", "shift")
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    VARIABLE_FIELD_NUMBER: _ClassVar[int]
    ADDEND_FIELD_NUMBER: _ClassVar[int]
    SHIFT_FIELD_NUMBER: _ClassVar[int]
    offset_bytes: int
    size_bytes: int
    variable: int
    addend: int
    shift: int
    def __init__(self, offset_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ..., variable: _Optional[int] = ..., addend: _Optional[int] = ..., shift: _Optional[int] = ...) -> None: ...

class EmulatedKernel(_message.Message):
    __slots__ = ("name", "parameters", "parameters_size_bytes", "static_shared_bytes", "required_block", "max_threads", "cluster", "needs_cluster", "max_cluster_blocks")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATIC_SHARED_BYTES_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_BLOCK_FIELD_NUMBER: _ClassVar[int]
    MAX_THREADS_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    NEEDS_CLUSTER_FIELD_NUMBER: _ClassVar[int]
    MAX_CLUSTER_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameters: _containers.RepeatedCompositeFieldContainer[EmulatedParameter]
    parameters_size_bytes: int
    static_shared_bytes: int
    required_block: _containers.RepeatedScalarFieldContainer[int]
    max_threads: int
    cluster: _containers.RepeatedScalarFieldContainer[int]
    needs_cluster: bool
    max_cluster_blocks: int
    def __init__(self, name: _Optional[str] = ..., parameters: _Optional[_Iterable[_Union[EmulatedParameter, _Mapping]]] = ..., parameters_size_bytes: _Optional[int] = ..., static_shared_bytes: _Optional[int] = ..., required_block: _Optional[_Iterable[int]] = ..., max_threads: _Optional[int] = ..., cluster: _Optional[_Iterable[int]] = ..., needs_cluster: bool = ..., max_cluster_blocks: _Optional[int] = ...) -> None: ...

class EmulatedParameter(_message.Message):
    __slots__ = ("name", "offset_bytes", "size_bytes", "alignment_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALIGNMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    offset_bytes: int
    size_bytes: int
    alignment_bytes: int
    def __init__(self, name: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ..., alignment_bytes: _Optional[int] = ...) -> None: ...

class EmulatedCode(_message.Message):
    __slots__ = ("object", "meets_as_grid", "variables", "waits", "frame_stride", "local_stride", "exchange_bytes", "sites", "words", "by_lane", "by_lane_waits", "pointers", "one_core", "saved_stride")
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    MEETS_AS_GRID_FIELD_NUMBER: _ClassVar[int]
    VARIABLES_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    FRAME_STRIDE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_STRIDE_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SITES_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    BY_LANE_FIELD_NUMBER: _ClassVar[int]
    BY_LANE_WAITS_FIELD_NUMBER: _ClassVar[int]
    POINTERS_FIELD_NUMBER: _ClassVar[int]
    ONE_CORE_FIELD_NUMBER: _ClassVar[int]
    SAVED_STRIDE_FIELD_NUMBER: _ClassVar[int]
    object: bytes
    meets_as_grid: bool
    variables: _containers.RepeatedScalarFieldContainer[int]
    waits: bool
    frame_stride: int
    local_stride: int
    exchange_bytes: int
    sites: _containers.RepeatedCompositeFieldContainer[EmulatedSite]
    words: _containers.RepeatedScalarFieldContainer[str]
    by_lane: bool
    by_lane_waits: bool
    pointers: _containers.RepeatedScalarFieldContainer[int]
    one_core: bool
    saved_stride: int
    def __init__(self, object: _Optional[bytes] = ..., meets_as_grid: bool = ..., variables: _Optional[_Iterable[int]] = ..., waits: bool = ..., frame_stride: _Optional[int] = ..., local_stride: _Optional[int] = ..., exchange_bytes: _Optional[int] = ..., sites: _Optional[_Iterable[_Union[EmulatedSite, _Mapping]]] = ..., words: _Optional[_Iterable[str]] = ..., by_lane: bool = ..., by_lane_waits: bool = ..., pointers: _Optional[_Iterable[int]] = ..., one_core: bool = ..., saved_stride: _Optional[int] = ...) -> None: ...

class EmulatedSite(_message.Message):
    __slots__ = ("routine", "mnemonic", "line", "size_bytes", "location", "inlined_at")
    ROUTINE_FIELD_NUMBER: _ClassVar[int]
    MNEMONIC_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    INLINED_AT_FIELD_NUMBER: _ClassVar[int]
    routine: int
    mnemonic: int
    line: int
    size_bytes: int
    location: EmulatedLocation
    inlined_at: EmulatedLocation
    def __init__(self, routine: _Optional[int] = ..., mnemonic: _Optional[int] = ..., line: _Optional[int] = ..., size_bytes: _Optional[int] = ..., location: _Optional[_Union[EmulatedLocation, _Mapping]] = ..., inlined_at: _Optional[_Union[EmulatedLocation, _Mapping]] = ...) -> None: ...

class EmulatedLocation(_message.Message):
    __slots__ = ("file", "line", "column")
    FILE_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    file: int
    line: int
    column: int
    def __init__(self, file: _Optional[int] = ..., line: _Optional[int] = ..., column: _Optional[int] = ...) -> None: ...
