from google.protobuf import any_pb2 as _any_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_INVALID_REQUEST: _ClassVar[Reason]
    REASON_INVALID_LIBRARY: _ClassVar[Reason]
    REASON_KEY_NOT_FOUND: _ClassVar[Reason]
    REASON_LIBRARY_NOT_FOUND: _ClassVar[Reason]
    REASON_KERNEL_NOT_FOUND: _ClassVar[Reason]
    REASON_FUNCTION_NOT_FOUND: _ClassVar[Reason]
    REASON_VALUE_TOO_SHORT: _ClassVar[Reason]
    REASON_OUT_OF_DEVICE_MEMORY: _ClassVar[Reason]
    REASON_STORE_FULL: _ClassVar[Reason]
    REASON_QUEUE_FULL: _ClassVar[Reason]
    REASON_DEADLINE_EXCEEDED: _ClassVar[Reason]
    REASON_KERNEL_FAULT: _ClassVar[Reason]
    REASON_DRAINING: _ClassVar[Reason]
    REASON_WORKER_RESTARTING: _ClassVar[Reason]
    REASON_INVALID_NAME: _ClassVar[Reason]
    REASON_UPLOAD_INCOMPLETE: _ClassVar[Reason]
    REASON_NOT_ENABLED: _ClassVar[Reason]
    REASON_INTERNAL: _ClassVar[Reason]
    REASON_CANCELLED: _ClassVar[Reason]
    REASON_MESSAGE_TOO_LARGE: _ClassVar[Reason]
    REASON_STORE_FOREIGN: _ClassVar[Reason]
    REASON_STORE_GONE: _ClassVar[Reason]
    REASON_DATA_DAMAGED: _ClassVar[Reason]
    REASON_WORKER_BUSY: _ClassVar[Reason]
    REASON_GROUP_NOT_FOUND: _ClassVar[Reason]
    REASON_GROUP_LIMIT: _ClassVar[Reason]
    REASON_QUARANTINED: _ClassVar[Reason]
    REASON_REQUEST_NOT_FOUND: _ClassVar[Reason]
    REASON_REQUEST_ID_REUSED: _ClassVar[Reason]
REASON_UNSPECIFIED: Reason
REASON_INVALID_REQUEST: Reason
REASON_INVALID_LIBRARY: Reason
REASON_KEY_NOT_FOUND: Reason
REASON_LIBRARY_NOT_FOUND: Reason
REASON_KERNEL_NOT_FOUND: Reason
REASON_FUNCTION_NOT_FOUND: Reason
REASON_VALUE_TOO_SHORT: Reason
REASON_OUT_OF_DEVICE_MEMORY: Reason
REASON_STORE_FULL: Reason
REASON_QUEUE_FULL: Reason
REASON_DEADLINE_EXCEEDED: Reason
REASON_KERNEL_FAULT: Reason
REASON_DRAINING: Reason
REASON_WORKER_RESTARTING: Reason
REASON_INVALID_NAME: Reason
REASON_UPLOAD_INCOMPLETE: Reason
REASON_NOT_ENABLED: Reason
REASON_INTERNAL: Reason
REASON_CANCELLED: Reason
REASON_MESSAGE_TOO_LARGE: Reason
REASON_STORE_FOREIGN: Reason
REASON_STORE_GONE: Reason
REASON_DATA_DAMAGED: Reason
REASON_WORKER_BUSY: Reason
REASON_GROUP_NOT_FOUND: Reason
REASON_GROUP_LIMIT: Reason
REASON_QUARANTINED: Reason
REASON_REQUEST_NOT_FOUND: Reason
REASON_REQUEST_ID_REUSED: Reason

class StreamError(_message.Message):
    __slots__ = ("code", "message", "details")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    details: _containers.RepeatedCompositeFieldContainer[_any_pb2.Any]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., details: _Optional[_Iterable[_Union[_any_pb2.Any, _Mapping]]] = ...) -> None: ...
