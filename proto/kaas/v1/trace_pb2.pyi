from kaas.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SpanKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SPAN_KIND_UNSPECIFIED: _ClassVar[SpanKind]
    SPAN_KIND_STAGE: _ClassVar[SpanKind]
    SPAN_KIND_KERNEL: _ClassVar[SpanKind]
    SPAN_KIND_COPY_TO_DEVICE: _ClassVar[SpanKind]
    SPAN_KIND_ZERO: _ClassVar[SpanKind]
    SPAN_KIND_COPY_TO_HOST: _ClassVar[SpanKind]
SPAN_KIND_UNSPECIFIED: SpanKind
SPAN_KIND_STAGE: SpanKind
SPAN_KIND_KERNEL: SpanKind
SPAN_KIND_COPY_TO_DEVICE: SpanKind
SPAN_KIND_ZERO: SpanKind
SPAN_KIND_COPY_TO_HOST: SpanKind

class Span(_message.Message):
    __slots__ = ("kind", "name", "start_ns", "duration_ns", "stream", "kernel_index", "iteration", "size_bytes")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    START_NS_FIELD_NUMBER: _ClassVar[int]
    DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    KERNEL_INDEX_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    kind: SpanKind
    name: str
    start_ns: int
    duration_ns: int
    stream: int
    kernel_index: int
    iteration: int
    size_bytes: int
    def __init__(self, kind: _Optional[_Union[SpanKind, str]] = ..., name: _Optional[str] = ..., start_ns: _Optional[int] = ..., duration_ns: _Optional[int] = ..., stream: _Optional[int] = ..., kernel_index: _Optional[int] = ..., iteration: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class TracedKernel(_message.Message):
    __slots__ = ("name", "grid", "block")
    NAME_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    name: str
    grid: _types_pb2.Dim3
    block: _types_pb2.Dim3
    def __init__(self, name: _Optional[str] = ..., grid: _Optional[_Union[_types_pb2.Dim3, _Mapping]] = ..., block: _Optional[_Union[_types_pb2.Dim3, _Mapping]] = ...) -> None: ...

class Trace(_message.Message):
    __slots__ = ("spans", "streams", "kernels", "launches_left_out", "notes")
    SPANS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    LAUNCHES_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    NOTES_FIELD_NUMBER: _ClassVar[int]
    spans: _containers.RepeatedCompositeFieldContainer[Span]
    streams: _containers.RepeatedScalarFieldContainer[str]
    kernels: _containers.RepeatedCompositeFieldContainer[TracedKernel]
    launches_left_out: int
    notes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, spans: _Optional[_Iterable[_Union[Span, _Mapping]]] = ..., streams: _Optional[_Iterable[str]] = ..., kernels: _Optional[_Iterable[_Union[TracedKernel, _Mapping]]] = ..., launches_left_out: _Optional[int] = ..., notes: _Optional[_Iterable[str]] = ...) -> None: ...
