from kaas.v1 import admin_pb2 as _admin_pb2
from kaas.v1 import executor_pb2 as _executor_pb2
from kaas.v1 import library_pb2 as _library_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ToWorker(_message.Message):
    __slots__ = ("id", "execute", "prepare", "inspect", "cancel", "forget_library", "configure", "hold_pages", "ping", "reserve", "only_call")
    ID_FIELD_NUMBER: _ClassVar[int]
    EXECUTE_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    INSPECT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    FORGET_LIBRARY_FIELD_NUMBER: _ClassVar[int]
    CONFIGURE_FIELD_NUMBER: _ClassVar[int]
    HOLD_PAGES_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    RESERVE_FIELD_NUMBER: _ClassVar[int]
    ONLY_CALL_FIELD_NUMBER: _ClassVar[int]
    id: int
    execute: Execute
    prepare: Prepare
    inspect: Inspect
    cancel: Cancel
    forget_library: ForgetLibrary
    configure: WorkerConfig
    hold_pages: HoldPages
    ping: Ping
    reserve: Reserve
    only_call: bool
    def __init__(self, id: _Optional[int] = ..., execute: _Optional[_Union[Execute, _Mapping]] = ..., prepare: _Optional[_Union[Prepare, _Mapping]] = ..., inspect: _Optional[_Union[Inspect, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., forget_library: _Optional[_Union[ForgetLibrary, _Mapping]] = ..., configure: _Optional[_Union[WorkerConfig, _Mapping]] = ..., hold_pages: _Optional[_Union[HoldPages, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., reserve: _Optional[_Union[Reserve, _Mapping]] = ..., only_call: bool = ...) -> None: ...

class SerializedRequest(_message.Message):
    __slots__ = ("digest", "content")
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    content: bytes
    def __init__(self, digest: _Optional[bytes] = ..., content: _Optional[bytes] = ...) -> None: ...

class Execute(_message.Message):
    __slots__ = ("request", "keys", "inputs", "return_buffers", "trace_from_ns", "keep_as", "group", "priority", "max_device_memory_bytes", "awaited")
    class KeysEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    RETURN_BUFFERS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FROM_NS_FIELD_NUMBER: _ClassVar[int]
    KEEP_AS_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MAX_DEVICE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    AWAITED_FIELD_NUMBER: _ClassVar[int]
    request: SerializedRequest
    keys: _containers.ScalarMap[str, str]
    inputs: _containers.ScalarMap[str, bytes]
    return_buffers: _containers.RepeatedScalarFieldContainer[str]
    trace_from_ns: int
    keep_as: KeepAs
    group: str
    priority: int
    max_device_memory_bytes: int
    awaited: _containers.RepeatedCompositeFieldContainer[ResidentValue]
    def __init__(self, request: _Optional[_Union[SerializedRequest, _Mapping]] = ..., keys: _Optional[_Mapping[str, str]] = ..., inputs: _Optional[_Mapping[str, bytes]] = ..., return_buffers: _Optional[_Iterable[str]] = ..., trace_from_ns: _Optional[int] = ..., keep_as: _Optional[_Union[KeepAs, _Mapping]] = ..., group: _Optional[str] = ..., priority: _Optional[int] = ..., max_device_memory_bytes: _Optional[int] = ..., awaited: _Optional[_Iterable[_Union[ResidentValue, _Mapping]]] = ...) -> None: ...

class KeepAs(_message.Message):
    __slots__ = ("key", "fingerprint")
    KEY_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    key: str
    fingerprint: bytes
    def __init__(self, key: _Optional[str] = ..., fingerprint: _Optional[bytes] = ...) -> None: ...

class KeptReply(_message.Message):
    __slots__ = ("fingerprint", "keys", "reply")
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    fingerprint: bytes
    keys: _containers.RepeatedScalarFieldContainer[str]
    reply: _executor_pb2.InvokeResponse
    def __init__(self, fingerprint: _Optional[bytes] = ..., keys: _Optional[_Iterable[str]] = ..., reply: _Optional[_Union[_executor_pb2.InvokeResponse, _Mapping]] = ...) -> None: ...

class Prepare(_message.Message):
    __slots__ = ("request",)
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    request: SerializedRequest
    def __init__(self, request: _Optional[_Union[SerializedRequest, _Mapping]] = ...) -> None: ...

class Inspect(_message.Message):
    __slots__ = ("library", "content")
    LIBRARY_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    library: str
    content: bytes
    def __init__(self, library: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("deadline_exceeded", "by_operator")
    DEADLINE_EXCEEDED_FIELD_NUMBER: _ClassVar[int]
    BY_OPERATOR_FIELD_NUMBER: _ClassVar[int]
    deadline_exceeded: bool
    by_operator: bool
    def __init__(self, deadline_exceeded: bool = ..., by_operator: bool = ...) -> None: ...

class ForgetLibrary(_message.Message):
    __slots__ = ("library",)
    LIBRARY_FIELD_NUMBER: _ClassVar[int]
    library: str
    def __init__(self, library: _Optional[str] = ...) -> None: ...

class HoldPages(_message.Message):
    __slots__ = ("allowed",)
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    allowed: bool
    def __init__(self, allowed: bool = ...) -> None: ...

class Reserve(_message.Message):
    __slots__ = ("multiprocessors",)
    class MultiprocessorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MULTIPROCESSORS_FIELD_NUMBER: _ClassVar[int]
    multiprocessors: _containers.ScalarMap[str, int]
    def __init__(self, multiprocessors: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WorkerConfig(_message.Message):
    __slots__ = ("device", "store_path", "store_limit_bytes", "durability", "chunk_bytes", "library_roots", "device_options", "log_level", "busy_poll_s", "busy_poll_beside_others", "concurrency", "device_memory_bytes", "allow_host_wrappers", "store", "max_compile_s", "max_compile_memory_bytes", "code_cache_path")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STORE_PATH_FIELD_NUMBER: _ClassVar[int]
    STORE_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    CHUNK_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_ROOTS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    LOG_LEVEL_FIELD_NUMBER: _ClassVar[int]
    BUSY_POLL_S_FIELD_NUMBER: _ClassVar[int]
    BUSY_POLL_BESIDE_OTHERS_FIELD_NUMBER: _ClassVar[int]
    CONCURRENCY_FIELD_NUMBER: _ClassVar[int]
    DEVICE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOW_HOST_WRAPPERS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    MAX_COMPILE_S_FIELD_NUMBER: _ClassVar[int]
    MAX_COMPILE_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CODE_CACHE_PATH_FIELD_NUMBER: _ClassVar[int]
    device: str
    store_path: str
    store_limit_bytes: int
    durability: str
    chunk_bytes: int
    library_roots: _containers.RepeatedScalarFieldContainer[str]
    device_options: str
    log_level: str
    busy_poll_s: float
    busy_poll_beside_others: bool
    concurrency: int
    device_memory_bytes: int
    allow_host_wrappers: bool
    store: StoreIdentity
    max_compile_s: float
    max_compile_memory_bytes: int
    code_cache_path: str
    def __init__(self, device: _Optional[str] = ..., store_path: _Optional[str] = ..., store_limit_bytes: _Optional[int] = ..., durability: _Optional[str] = ..., chunk_bytes: _Optional[int] = ..., library_roots: _Optional[_Iterable[str]] = ..., device_options: _Optional[str] = ..., log_level: _Optional[str] = ..., busy_poll_s: _Optional[float] = ..., busy_poll_beside_others: bool = ..., concurrency: _Optional[int] = ..., device_memory_bytes: _Optional[int] = ..., allow_host_wrappers: bool = ..., store: _Optional[_Union[StoreIdentity, _Mapping]] = ..., max_compile_s: _Optional[float] = ..., max_compile_memory_bytes: _Optional[int] = ..., code_cache_path: _Optional[str] = ...) -> None: ...

class StoreIdentity(_message.Message):
    __slots__ = ("store_id", "files")
    STORE_ID_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    store_id: str
    files: _containers.RepeatedCompositeFieldContainer[FileIdentity]
    def __init__(self, store_id: _Optional[str] = ..., files: _Optional[_Iterable[_Union[FileIdentity, _Mapping]]] = ...) -> None: ...

class FileIdentity(_message.Message):
    __slots__ = ("name", "device", "inode")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    INODE_FIELD_NUMBER: _ClassVar[int]
    name: str
    device: int
    inode: int
    def __init__(self, name: _Optional[str] = ..., device: _Optional[int] = ..., inode: _Optional[int] = ...) -> None: ...

class FromWorker(_message.Message):
    __slots__ = ("id", "ready", "executed", "prepared", "inspected", "failed", "unknown_request", "pages_released", "pong", "compiling")
    ID_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    EXECUTED_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    INSPECTED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_REQUEST_FIELD_NUMBER: _ClassVar[int]
    PAGES_RELEASED_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    COMPILING_FIELD_NUMBER: _ClassVar[int]
    id: int
    ready: Ready
    executed: Executed
    prepared: Prepared
    inspected: _library_pb2.InspectLibraryResponse
    failed: Failed
    unknown_request: UnknownRequest
    pages_released: PagesReleased
    pong: Pong
    compiling: Compiling
    def __init__(self, id: _Optional[int] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., executed: _Optional[_Union[Executed, _Mapping]] = ..., prepared: _Optional[_Union[Prepared, _Mapping]] = ..., inspected: _Optional[_Union[_library_pb2.InspectLibraryResponse, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., unknown_request: _Optional[_Union[UnknownRequest, _Mapping]] = ..., pages_released: _Optional[_Union[PagesReleased, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., compiling: _Optional[_Union[Compiling, _Mapping]] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("device", "multiprocessor_unit", "memory_limit_bytes")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    MULTIPROCESSOR_UNIT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    device: _admin_pb2.Device
    multiprocessor_unit: int
    memory_limit_bytes: int
    def __init__(self, device: _Optional[_Union[_admin_pb2.Device, _Mapping]] = ..., multiprocessor_unit: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ...) -> None: ...

class Executed(_message.Message):
    __slots__ = ("reply", "kernels_launched", "memory_used_bytes", "brought_bytes", "new_program", "dropped", "device_full", "device_ns")
    REPLY_FIELD_NUMBER: _ClassVar[int]
    KERNELS_LAUNCHED_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BROUGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    NEW_PROGRAM_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FULL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NS_FIELD_NUMBER: _ClassVar[int]
    reply: _executor_pb2.InvokeResponse
    kernels_launched: int
    memory_used_bytes: int
    brought_bytes: int
    new_program: bool
    dropped: _containers.RepeatedCompositeFieldContainer[ResidentValue]
    device_full: bool
    device_ns: int
    def __init__(self, reply: _Optional[_Union[_executor_pb2.InvokeResponse, _Mapping]] = ..., kernels_launched: _Optional[int] = ..., memory_used_bytes: _Optional[int] = ..., brought_bytes: _Optional[int] = ..., new_program: bool = ..., dropped: _Optional[_Iterable[_Union[ResidentValue, _Mapping]]] = ..., device_full: bool = ..., device_ns: _Optional[int] = ...) -> None: ...

class ResidentValue(_message.Message):
    __slots__ = ("key", "offset_bytes", "size_bytes")
    KEY_FIELD_NUMBER: _ClassVar[int]
    OFFSET_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    key: str
    offset_bytes: int
    size_bytes: int
    def __init__(self, key: _Optional[str] = ..., offset_bytes: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Prepared(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnknownRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PagesReleased(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Pong(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Compiling(_message.Message):
    __slots__ = ("begins",)
    BEGINS_FIELD_NUMBER: _ClassVar[int]
    begins: bool
    def __init__(self, begins: bool = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("reason", "message", "metadata", "violations", "device_lost")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_LOST_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    metadata: _containers.ScalarMap[str, str]
    violations: _containers.RepeatedCompositeFieldContainer[Violation]
    device_lost: bool
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., violations: _Optional[_Iterable[_Union[Violation, _Mapping]]] = ..., device_lost: bool = ...) -> None: ...

class Violation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...
