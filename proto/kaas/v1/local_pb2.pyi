from kaas.v1 import errors_pb2 as _errors_pb2
from kaas.v1 import executor_pb2 as _executor_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LocalFrame(_message.Message):
    __slots__ = ("id", "timeout_ns", "hello", "invoke", "submit", "cancel", "invoked", "submitted", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_NS_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    INVOKE_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    INVOKED_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    timeout_ns: int
    hello: Hello
    invoke: _executor_pb2.InvokeRequest
    submit: _executor_pb2.SubmitRequest
    cancel: Cancel
    invoked: _executor_pb2.InvokeResponse
    submitted: _executor_pb2.SubmitResponse
    error: _errors_pb2.StreamError
    def __init__(self, id: _Optional[int] = ..., timeout_ns: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., invoke: _Optional[_Union[_executor_pb2.InvokeRequest, _Mapping]] = ..., submit: _Optional[_Union[_executor_pb2.SubmitRequest, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., invoked: _Optional[_Union[_executor_pb2.InvokeResponse, _Mapping]] = ..., submitted: _Optional[_Union[_executor_pb2.SubmitResponse, _Mapping]] = ..., error: _Optional[_Union[_errors_pb2.StreamError, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("store_id",)
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    store_id: str
    def __init__(self, store_id: _Optional[str] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
