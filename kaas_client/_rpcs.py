"""Every RPC once, for both kinds of client: what to send, and how to read the answer. Does no I/O."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kaas.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    executor_pb2,
    executor_pb2_grpc,
    kv_pb2,
    kv_pb2_grpc,
    library_pb2,
    library_pb2_grpc,
)
from kaas_client import _convert, errors, types
from kaas_client._orders import columns_of, in_their_order
from kaas_client._retry import Repeat
from kaas_client._status import from_stream_error
from kaas_client._transfer import (
    BackupDownload,
    Bytes,
    CheckAnswers,
    Data,
    Download,
    Progress,
    Source,
    Upload,
    flat_view,
    says_its_form,
)
from kaas_client.builders import Request
from kaas_client.types import Key
from kaas_core import request as core
from kaas_core.address import CONNECTION_AGENT
from kaas_core.array_form import ArrayForm
from kaas_core.protobuf import request_to_proto

T = TypeVar("T")

DEFAULT_MAX_MESSAGE_BYTES = 256 << 20
"""The largest message that this side sends or accepts; the server has its own limit. Larger values travel in chunks."""
PAGE_SIZE = 1000
"""The most that a server returns at once: each page is a round trip."""

Binding: TypeAlias = "Bytes | Key"
"""What an invocation puts in a buffer's place: bytes to load, or another key."""


def channel_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    """Return the options of a channel."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # gRPC's own back-off grows to two minutes; a restarted server should be found within a second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # This is not the least back-off, but what an attempt may take: a busy server answers late.
        ("grpc.min_reconnect_backoff_ms", 10_000),
        ("grpc.primary_user_agent", f"{CONNECTION_AGENT}{secrets.token_hex(8)}"),
    ]


class Stubs:
    """The stubs of all services on one channel, of ``grpc`` or of ``grpc.aio``."""

    def __init__(self, channel: Any) -> None:
        self.executor = executor_pb2_grpc.ExecutorServiceStub(channel)
        self.library = library_pb2_grpc.LibraryServiceStub(channel)
        self.kv = kv_pb2_grpc.KvServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)


@dataclass(frozen=True, slots=True)
class Rpc(Generic[T]):
    """One call of an RPC, before it is made."""

    method: Callable[[Stubs], Any]
    """Picks the method of a stub."""
    request: Any
    """The message to send, or the messages."""
    convert: Callable[[Any], T]
    """Makes the caller's result of the answer."""
    repeat: Repeat = Repeat.UNSENT
    """When it may be made again."""

    @property
    def is_local(self) -> bool:
        """Whether it may travel over the local channel."""
        return self.method in (_SUBMIT, _INVOKE)

    def read(self, answer: Any, tries: int = 1) -> T:
        """Return the caller's result. Raises ``InternalError`` for an answer that cannot be converted.

        ``tries`` is how often the call was made.
        """
        try:
            if tries > 1 and isinstance(answer, _REPLIES):
                answer.attempts = max(answer.attempts, 1) + tries - 1
            return self.convert(answer)
        except (errors.KaasError, MemoryError):
            raise
        except Exception as error:
            raise unreadable(error) from error


def unreadable(error: Exception) -> errors.InternalError:
    """Return the exception for an answer that failed to convert with ``error``."""
    return errors.InternalError(f"cannot read the server's answer: {type(error).__name__}: {error}")


Page: TypeAlias = "tuple[list[T], str]"
"""Some items, and the token of the next page; empty on the last."""


def submit(
    request: Request,
    inputs: Mapping[str, Bytes],
    returns: Iterable[str],
    device: str,
    trace: bool,
    request_id: str,
    group: str,
    priority: int,
) -> Rpc[types.Result]:
    message = executor_pb2.SubmitRequest(
        request=request_to_proto(request.spec),
        return_buffers=_names(returns),
        device=device,
        trace=trace,
        request_id=request_id,
        group=group,
        priority=priority,
    )
    for name, data in in_their_order(columns_of(request.spec), inputs).items():
        message.inputs[name] = _bytes(name, data)
    return Rpc(_SUBMIT, message, _convert.result, Repeat.ALWAYS if request_id else Repeat.UNSENT)


def register(name: str, request: Request, group: str) -> Rpc[_convert.FunctionFields]:
    message = executor_pb2.RegisterFunctionRequest(name=name, request=request_to_proto(request.spec), group=group)
    return Rpc(attrgetter("executor.RegisterFunction"), message, lambda reply: _convert.function(reply.function), Repeat.REFUSED)


def function(name: str, group: str) -> Rpc[_convert.FunctionFields]:
    message = executor_pb2.GetFunctionRequest(name=name, group=group)
    return Rpc(attrgetter("executor.GetFunction"), message, lambda reply: _convert.function(reply.function), Repeat.ALWAYS)


def functions(prefix: str, group: str, token: str) -> Rpc[Page[_convert.FunctionFields]]:
    message = executor_pb2.ListFunctionsRequest(prefix=prefix, page_size=PAGE_SIZE, page_token=token, group=group)
    return Rpc(
        attrgetter("executor.ListFunctions"),
        message,
        lambda reply: (_convert.functions(reply), reply.next_page_token),
        Repeat.ALWAYS,
    )


def delete_function(name: str, group: str) -> Rpc[None]:
    return Rpc(attrgetter("executor.DeleteFunction"), executor_pb2.DeleteFunctionRequest(name=name, group=group), _nothing)


def invoke(
    name: str,
    bindings: Mapping[str, Binding],
    returns: Iterable[str],
    device: str,
    trace: bool,
    request_id: str,
    group: str,
    priority: int,
) -> Rpc[types.Result]:
    message = invoke_message(name, bindings, returns, device, trace, request_id, group, priority)
    return Rpc(_INVOKE, message, _convert.result, Repeat.ALWAYS if request_id else Repeat.UNSENT)


def invoke_message(
    name: str,
    bindings: Mapping[str, Binding],
    returns: Iterable[str],
    device: str,
    trace: bool,
    request_id: str,
    group: str,
    priority: int,
) -> executor_pb2.InvokeRequest:
    """Return the message of one invocation, for ``Invoke`` or for ``InvokeStream``."""
    message = executor_pb2.InvokeRequest(
        function=name,
        return_buffers=_names(returns),
        device=device,
        trace=trace,
        request_id=request_id,
        group=group,
        priority=priority,
    )
    for buffer, binding in bindings.items():
        if isinstance(binding, Key):
            message.bindings[buffer].key = binding.name
        else:
            message.bindings[buffer].value = _bytes(buffer, binding)
    return message


def dropped_outputs(
    spec: core.Request, keys: Mapping[str, str], returns: Iterable[str], versions: Mapping[str, int], group: str
) -> Mapping[str, tuple[Download, Rpc[Any]]]:
    """Return what brings the outputs that a reply lacks, by buffer; ``keys`` re-bind buffers by name.

    Raises ``OutputsDroppedError`` where one was not stored.
    """
    buffers = {buffer.name: buffer for buffer in spec.buffers}
    found = {}
    for name in dict.fromkeys(returns):
        buffer = buffers[name]
        key = keys.get(name, buffer.store_key)
        if buffer.ephemeral or key not in versions:
            raise _dropped(name, "was not stored")
        download = Download(None, buffer.offset_bytes, buffer.size_bytes, None, None)
        found[name] = download, get(key, buffer.offset_bytes, buffer.size_bytes, download, group)
    return found


def fetched_output(name: str, download: Download, versions: Mapping[str, int]) -> bytes:
    """Return an output that was fetched. Raises ``OutputsDroppedError`` where it has not the version that it must have."""
    entry = download.entry
    if entry is None or versions[entry.key] != entry.version:
        raise _dropped(name, "was overwritten since")
    content = download.result()
    assert isinstance(content, bytes)
    return content


def _dropped(name: str, why: str) -> errors.OutputsDroppedError:
    return errors.OutputsDroppedError(
        f"the request has run, and its reply was lost, and too large to be kept: buffer {name!r} {why}", {"buffer": name}
    )


def gone(name: str) -> errors.OutputsDroppedError:
    """Return the error for an output whose key has not what it had."""
    return _dropped(name, "was overwritten or deleted since")


def stream_message(id: int, invoke: executor_pb2.InvokeRequest, timeout: float | None) -> executor_pb2.InvokeStreamRequest:
    """Return one message of a stream; ``timeout`` in seconds."""
    return executor_pb2.InvokeStreamRequest(id=id, invoke=invoke, timeout_ns=0 if timeout is None else timeout_ns(timeout))


def timeout_ns(timeout: float) -> int:
    """Return a timeout in seconds as it is sent: 0 on the wire means none, so the shortest one is 1 ns."""
    return max(1, int(timeout * 1e9))


def read_stream_answer(answer: executor_pb2.InvokeStreamResponse, tries: int = 1) -> types.Result | errors.KaasError:
    """Return how one invocation of a stream ended, which was sent so often. Raises nothing: the stream goes on for the others."""
    try:
        if answer.WhichOneof("result") != "response":
            return from_stream_error(answer.error)
        if tries > 1:
            answer.response.attempts = max(answer.response.attempts, 1) + tries - 1
        return _convert.result(answer.response)
    except Exception as error:
        return unreadable(error)


def library_name(data: Data, file_name: str | None) -> str:
    """Return the name that a library is uploaded under: ``file_name``, else the last part of its path."""
    if file_name is not None:
        return file_name
    return Path(data).name if isinstance(data, os.PathLike) else ""


def upload(source: Source, file_name: str, progress: Progress | None, group: str) -> Rpc[str]:
    header = library_pb2.UploadLibraryHeader(file_name=file_name, size_bytes=source.size_bytes, group=group)
    messages = Upload(
        source,
        library_pb2.UploadLibraryRequest(header=header),
        lambda chunk: library_pb2.UploadLibraryRequest(chunk=chunk),
        progress,
    )
    return Rpc(attrgetter("library.UploadLibrary"), messages, lambda reply: str(reply.library.id))


def inspect(library: str, group: str) -> Rpc[types.LibraryInspection]:
    message = library_pb2.InspectLibraryRequest(library=library, group=group)
    return Rpc(attrgetter("library.InspectLibrary"), message, _convert.inspection, Repeat.ALWAYS)


def libraries(group: str, token: str) -> Rpc[Page[types.Library]]:
    message = library_pb2.ListLibrariesRequest(page_size=PAGE_SIZE, page_token=token, group=group)
    return Rpc(
        attrgetter("library.ListLibraries"),
        message,
        lambda reply: ([_convert.library(item) for item in reply.libraries], reply.next_page_token),
        Repeat.ALWAYS,
    )


def delete_library(id: str, group: str) -> Rpc[None]:
    return Rpc(attrgetter("library.DeleteLibrary"), library_pb2.DeleteLibraryRequest(id=id, group=group), _nothing)


def storable(key: str, data: Data, order: Literal["C", "F"]) -> tuple[Data, ArrayForm | None]:
    """Return what is sent to store ``data``, and what it is as an array: None for bytes and files."""
    if order not in ("C", "F"):
        raise ValueError(f"order must be 'C' or 'F', not {order!r:.20}")
    if says_its_form(data):
        from kaas_client import _arrays

        return _arrays.storable(key, data, order)
    return data, data.form if isinstance(data, types.Value) else None


def put(key: str, source: Source, form: ArrayForm | None, progress: Progress | None, group: str) -> Rpc[types.Entry]:
    header = kv_pb2.PutHeader(key=key, size_bytes=source.size_bytes, group=group)
    if form is not None:
        header.dtype, header.fortran_order = form.dtype, form.fortran_order
        header.shape.extend(form.shape)
    messages = Upload(source, kv_pb2.PutRequest(header=header), lambda chunk: kv_pb2.PutRequest(chunk=chunk), progress)
    return Rpc(attrgetter("kv.Put"), messages, lambda reply: _convert.entry(reply.entry))


def get(key: str, offset_bytes: int, size_bytes: int | None, download: Download, group: str) -> Rpc[Any]:
    """The answer's messages go to ``download``, and so the conversion is its result."""
    message = kv_pb2.GetRequest(key=key, offset_bytes=offset_bytes, size_bytes=size_bytes, group=group)
    return Rpc(attrgetter("kv.Get"), message, lambda _: download.result(), Repeat.ALWAYS)


def stat(key: str, group: str) -> Rpc[types.Entry]:
    return Rpc(
        attrgetter("kv.Stat"), kv_pb2.StatRequest(key=key, group=group), lambda reply: _convert.entry(reply.entry), Repeat.ALWAYS
    )


def list_keys(prefix: str, group: str, token: str) -> Rpc[Page[types.Entry]]:
    message = kv_pb2.ListRequest(prefix=prefix, page_size=PAGE_SIZE, page_token=token, group=group)
    return Rpc(
        attrgetter("kv.List"),
        message,
        lambda reply: ([_convert.entry(e) for e in reply.entries], reply.next_page_token),
        Repeat.ALWAYS,
    )


def delete(key: str, group: str) -> Rpc[None]:
    return Rpc(attrgetter("kv.Delete"), kv_pb2.DeleteRequest(key=key, group=group), _nothing)


def server_info() -> Rpc[types.ServerInfo]:
    return Rpc(attrgetter("admin.GetServerInfo"), admin_pb2.GetServerInfoRequest(), _convert.server_info, Repeat.ALWAYS)


def devices() -> Rpc[tuple[types.DeviceInfo, ...]]:
    return Rpc(
        attrgetter("admin.ListDevices"),
        admin_pb2.ListDevicesRequest(),
        lambda reply: tuple(_convert.device(d) for d in reply.devices),
        Repeat.ALWAYS,
    )


def stats() -> Rpc[types.Stats]:
    return Rpc(attrgetter("admin.GetStats"), admin_pb2.GetStatsRequest(), _convert.stats, Repeat.ALWAYS)


def drain() -> Rpc[None]:
    return Rpc(attrgetter("admin.Drain"), admin_pb2.DrainRequest(), _nothing)


def resume() -> Rpc[None]:
    return Rpc(attrgetter("admin.Resume"), admin_pb2.ResumeRequest(), _nothing)


def requests(token: str) -> Rpc[Page[types.RequestInfo]]:
    message = admin_pb2.ListRequestsRequest(page_size=PAGE_SIZE, page_token=token)
    return Rpc(
        attrgetter("admin.ListRequests"),
        message,
        lambda reply: ([_convert.request(item) for item in reply.requests], reply.next_page_token),
        Repeat.ALWAYS,
    )


def cancel_request(id: str) -> Rpc[None]:
    return Rpc(attrgetter("admin.CancelRequest"), admin_pb2.CancelRequestRequest(id=id), _nothing)


def quarantine(token: str) -> Rpc[Page[types.QuarantinedRequest]]:
    message = admin_pb2.ListQuarantineRequest(page_size=PAGE_SIZE, page_token=token)
    return Rpc(
        attrgetter("admin.ListQuarantine"),
        message,
        lambda reply: ([_convert.quarantined(item) for item in reply.requests], reply.next_page_token),
        Repeat.ALWAYS,
    )


def release_quarantine(id: str) -> Rpc[None]:
    return Rpc(attrgetter("admin.ReleaseQuarantine"), admin_pb2.ReleaseQuarantineRequest(id=id), _nothing)


def drain_device(name: str) -> Rpc[None]:
    return Rpc(attrgetter("admin.DrainDevice"), admin_pb2.DrainDeviceRequest(name=name), _nothing)


def resume_device(name: str) -> Rpc[None]:
    return Rpc(attrgetter("admin.ResumeDevice"), admin_pb2.ResumeDeviceRequest(name=name), _nothing)


def set_group(group: types.Group) -> Rpc[types.Group]:
    message = admin_pb2.SetGroupRequest(group=admin_pb2.Group(**asdict(group)))
    return Rpc(attrgetter("admin.SetGroup"), message, lambda reply: _convert.group(reply.group), Repeat.REFUSED)


def group(name: str) -> Rpc[types.GroupInfo]:
    return Rpc(attrgetter("admin.GetGroup"), admin_pb2.GetGroupRequest(name=name), _convert.group_info, Repeat.ALWAYS)


def groups(token: str) -> Rpc[Page[types.Group]]:
    message = admin_pb2.ListGroupsRequest(page_size=PAGE_SIZE, page_token=token)
    return Rpc(
        attrgetter("admin.ListGroups"),
        message,
        lambda reply: ([_convert.group(item) for item in reply.groups], reply.next_page_token),
        Repeat.ALWAYS,
    )


def delete_group(name: str) -> Rpc[None]:
    return Rpc(attrgetter("admin.DeleteGroup"), admin_pb2.DeleteGroupRequest(name=name), _nothing)


def check_store(answers: CheckAnswers) -> Rpc[types.StoreCheck]:
    """The answer's messages go to ``answers``, and so the conversion is its result."""
    return Rpc(attrgetter("admin.CheckStore"), admin_pb2.CheckStoreRequest(), lambda _: answers.result())


def backup_store(download: BackupDownload) -> Rpc[int]:
    """The answer's messages go to ``download``, and so the conversion is its result."""
    return Rpc(attrgetter("admin.BackupStore"), admin_pb2.BackupStoreRequest(), lambda _: download.result())


def compact_store() -> Rpc[types.Compaction]:
    return Rpc(attrgetter("admin.CompactStore"), admin_pb2.CompactStoreRequest(), _convert.compaction)


def health(service: str) -> Rpc[str]:
    message = health_pb2.HealthCheckRequest(service=service)
    return Rpc(attrgetter("health.Check"), message, _convert.health, Repeat.ALWAYS)


_SUBMIT = attrgetter("executor.Submit")
_INVOKE = attrgetter("executor.Invoke")
_REPLIES = (executor_pb2.SubmitResponse, executor_pb2.InvokeResponse)


def _nothing(_: Message) -> None:
    return None


def _bytes(name: str, data: Bytes) -> bytes:
    if isinstance(data, bytes):
        return data
    if says_its_form(data):
        from kaas_client import _arrays

        data = _arrays.on_host(name, data)
        _arrays.warn_of_strides(name, data)
    try:
        return bytes(flat_view(data))
    except TypeError as error:
        raise TypeError(f"buffer {name!r}: {error}") from None


def _names(returns: Iterable[str]) -> list[str]:
    if isinstance(returns, str):
        raise TypeError(f"returns must be a list of names of buffers: [{returns!r}]")
    return list(returns)
