import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from kaas.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LibraryKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LIBRARY_KIND_UNSPECIFIED: _ClassVar[LibraryKind]
    LIBRARY_KIND_PTX: _ClassVar[LibraryKind]
    LIBRARY_KIND_CUBIN: _ClassVar[LibraryKind]
    LIBRARY_KIND_FATBIN: _ClassVar[LibraryKind]
    LIBRARY_KIND_SHARED_OBJECT: _ClassVar[LibraryKind]
    LIBRARY_KIND_WRAPPER: _ClassVar[LibraryKind]
LIBRARY_KIND_UNSPECIFIED: LibraryKind
LIBRARY_KIND_PTX: LibraryKind
LIBRARY_KIND_CUBIN: LibraryKind
LIBRARY_KIND_FATBIN: LibraryKind
LIBRARY_KIND_SHARED_OBJECT: LibraryKind
LIBRARY_KIND_WRAPPER: LibraryKind

class Library(_message.Message):
    __slots__ = ("id", "file_name", "size_bytes", "kind", "create_time", "damaged")
    ID_FIELD_NUMBER: _ClassVar[int]
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    id: str
    file_name: str
    size_bytes: int
    kind: LibraryKind
    create_time: _timestamp_pb2.Timestamp
    damaged: bool
    def __init__(self, id: _Optional[str] = ..., file_name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., kind: _Optional[_Union[LibraryKind, str]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., damaged: bool = ...) -> None: ...

class UploadLibraryRequest(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: UploadLibraryHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[UploadLibraryHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class UploadLibraryHeader(_message.Message):
    __slots__ = ("file_name", "size_bytes", "group")
    FILE_NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    file_name: str
    size_bytes: int
    group: str
    def __init__(self, file_name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., group: _Optional[str] = ...) -> None: ...

class UploadLibraryResponse(_message.Message):
    __slots__ = ("library",)
    LIBRARY_FIELD_NUMBER: _ClassVar[int]
    library: Library
    def __init__(self, library: _Optional[_Union[Library, _Mapping]] = ...) -> None: ...

class InspectLibraryRequest(_message.Message):
    __slots__ = ("library", "group")
    LIBRARY_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    library: str
    group: str
    def __init__(self, library: _Optional[str] = ..., group: _Optional[str] = ...) -> None: ...

class KernelInfo(_message.Message):
    __slots__ = ("name", "parameter_size_bytes", "static_shared_memory_bytes", "max_threads_per_block", "parameter_alignment_bytes", "parameter_names", "required_block", "cluster")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATIC_SHARED_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_THREADS_PER_BLOCK_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_ALIGNMENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_NAMES_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_BLOCK_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameter_size_bytes: _containers.RepeatedScalarFieldContainer[int]
    static_shared_memory_bytes: int
    max_threads_per_block: int
    parameter_alignment_bytes: _containers.RepeatedScalarFieldContainer[int]
    parameter_names: _containers.RepeatedScalarFieldContainer[str]
    required_block: _types_pb2.Dim3
    cluster: _types_pb2.Dim3
    def __init__(self, name: _Optional[str] = ..., parameter_size_bytes: _Optional[_Iterable[int]] = ..., static_shared_memory_bytes: _Optional[int] = ..., max_threads_per_block: _Optional[int] = ..., parameter_alignment_bytes: _Optional[_Iterable[int]] = ..., parameter_names: _Optional[_Iterable[str]] = ..., required_block: _Optional[_Union[_types_pb2.Dim3, _Mapping]] = ..., cluster: _Optional[_Union[_types_pb2.Dim3, _Mapping]] = ...) -> None: ...

class InspectLibraryResponse(_message.Message):
    __slots__ = ("id", "kind", "kernels", "device")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: LibraryKind
    kernels: _containers.RepeatedCompositeFieldContainer[KernelInfo]
    device: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[LibraryKind, str]] = ..., kernels: _Optional[_Iterable[_Union[KernelInfo, _Mapping]]] = ..., device: _Optional[str] = ...) -> None: ...

class ListLibrariesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "group")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    group: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., group: _Optional[str] = ...) -> None: ...

class ListLibrariesResponse(_message.Message):
    __slots__ = ("libraries", "next_page_token")
    LIBRARIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    libraries: _containers.RepeatedCompositeFieldContainer[Library]
    next_page_token: str
    def __init__(self, libraries: _Optional[_Iterable[_Union[Library, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteLibraryRequest(_message.Message):
    __slots__ = ("id", "group")
    ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    id: str
    group: str
    def __init__(self, id: _Optional[str] = ..., group: _Optional[str] = ...) -> None: ...

class DeleteLibraryResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
