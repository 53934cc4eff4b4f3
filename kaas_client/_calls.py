"""Every call once, for both kinds of client: which RPC, what to send, and what to make of the answer. Does no I/O."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

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
from kaas_client._status import from_stream_error
from kaas_client._transfer import Bytes, Data, Download, Progress, Source, Upload, flat_view
from kaas_client.builders import Request
from kaas_client.types import Key
from kaas_core.protobuf import request_to_proto

T = TypeVar("T")

DEFAULT_MAX_MESSAGE_BYTES = 256 << 20
"""What one message may hold on this side; the server has a limit of its own. Larger values travel in chunks."""
PAGE_SIZE = 1000
"""The most a server gives: a page is one round trip."""

Binding: TypeAlias = "Bytes | Key"
"""What an invocation puts in a buffer's place: bytes to load, or another key."""


def channel_options(max_message_bytes: int) -> list[tuple[str, Any]]:
    """Return the options of a channel."""
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # gRPC's own back-off grows to two minutes; a restarted server should be found within a second.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
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
class Call(Generic[T]):
    """A call that is about to be made."""

    method: Callable[[Stubs], Any]
    """Picks the RPC."""
    request: Any
    """Its message, or its messages."""
    convert: Callable[[Any], T]
    """Makes the caller's result of the answer."""


Page: TypeAlias = "tuple[list[T], str]"
"""Some items, and the token of the next page; empty on the last."""


def submit(request: Request, inputs: Mapping[str, Bytes], returns: Iterable[str], device: str, trace: bool) -> Call[types.Result]:
    message = executor_pb2.SubmitRequest(
        request=request_to_proto(request.spec), return_buffers=_names(returns), device=device, trace=trace
    )
    for name, data in inputs.items():
        message.inputs[name] = _bytes(data)
    return Call(_SUBMIT, message, _convert.result)


def register(name: str, request: Request) -> Call[_convert.FunctionFields]:
    message = executor_pb2.RegisterFunctionRequest(name=name, request=request_to_proto(request.spec))
    return Call(attrgetter("executor.RegisterFunction"), message, lambda reply: _convert.function(reply.function))


def function(name: str) -> Call[_convert.FunctionFields]:
    message = executor_pb2.GetFunctionRequest(name=name)
    return Call(attrgetter("executor.GetFunction"), message, lambda reply: _convert.function(reply.function))


def functions(prefix: str, token: str) -> Call[Page[_convert.FunctionFields]]:
    message = executor_pb2.ListFunctionsRequest(prefix=prefix, page_size=PAGE_SIZE, page_token=token)
    return Call(
        attrgetter("executor.ListFunctions"),
        message,
        lambda reply: ([_convert.function(f) for f in reply.functions], reply.next_page_token),
    )


def delete_function(name: str) -> Call[None]:
    return Call(attrgetter("executor.DeleteFunction"), executor_pb2.DeleteFunctionRequest(name=name), _nothing)


def invoke(name: str, bindings: Mapping[str, Binding], returns: Iterable[str], device: str, trace: bool) -> Call[types.Result]:
    return Call(_INVOKE, invoke_message(name, bindings, returns, device, trace), _convert.result)


def invoke_message(
    name: str, bindings: Mapping[str, Binding], returns: Iterable[str], device: str, trace: bool
) -> executor_pb2.InvokeRequest:
    """Return the message of one invocation, for a call of its own or for a stream."""
    message = executor_pb2.InvokeRequest(function=name, return_buffers=_names(returns), device=device, trace=trace)
    for buffer, binding in bindings.items():
        if isinstance(binding, Key):
            message.bindings[buffer].key = binding.name
        else:
            message.bindings[buffer].value = _bytes(binding)
    return message


def stream_message(id: int, invoke: executor_pb2.InvokeRequest, timeout: float | None) -> executor_pb2.InvokeStreamRequest:
    """Return one message of a stream; ``timeout`` in seconds."""
    # On the wire 0 stands for none, so that the shortest timeout is 1 ns.
    timeout_ns = 0 if timeout is None else max(1, int(timeout * 1e9))
    return executor_pb2.InvokeStreamRequest(id=id, invoke=invoke, timeout_ns=timeout_ns)


def stream_answer(answer: executor_pb2.InvokeStreamResponse) -> types.Result | errors.KaasError:
    """Return how one invocation of a stream ended."""
    if answer.WhichOneof("result") == "response":
        return _convert.result(answer.response)
    return from_stream_error(answer.error)


def library_name(data: Data, file_name: str | None) -> str:
    """Return the name that a library is uploaded under: ``file_name``, else the last part of its path."""
    if file_name is not None:
        return file_name
    return Path(data).name if isinstance(data, os.PathLike) else ""


def upload(source: Source, file_name: str, progress: Progress | None) -> Call[str]:
    header = library_pb2.UploadLibraryHeader(file_name=file_name, size_bytes=source.size_bytes)
    messages = Upload(
        source,
        library_pb2.UploadLibraryRequest(header=header),
        lambda chunk: library_pb2.UploadLibraryRequest(chunk=chunk),
        progress,
    )
    return Call(attrgetter("library.UploadLibrary"), messages, lambda reply: str(reply.library.id))


def inspect(library: str) -> Call[types.LibraryInspection]:
    message = library_pb2.InspectLibraryRequest(library=library)
    return Call(attrgetter("library.InspectLibrary"), message, _convert.inspection)


def libraries(token: str) -> Call[Page[types.Library]]:
    message = library_pb2.ListLibrariesRequest(page_size=PAGE_SIZE, page_token=token)
    return Call(
        attrgetter("library.ListLibraries"),
        message,
        lambda reply: ([_convert.library(item) for item in reply.libraries], reply.next_page_token),
    )


def delete_library(id: str) -> Call[None]:
    return Call(attrgetter("library.DeleteLibrary"), library_pb2.DeleteLibraryRequest(id=id), _nothing)


def put(key: str, source: Source, progress: Progress | None) -> Call[types.Entry]:
    header = kv_pb2.PutHeader(key=key, size_bytes=source.size_bytes)
    messages = Upload(source, kv_pb2.PutRequest(header=header), lambda chunk: kv_pb2.PutRequest(chunk=chunk), progress)
    return Call(attrgetter("kv.Put"), messages, lambda reply: _convert.entry(reply.entry))


def get(key: str, offset_bytes: int, size_bytes: int | None, download: Download) -> Call[Any]:
    """The answer's messages go to ``download``, and so the conversion is its result."""
    message = kv_pb2.GetRequest(key=key, offset_bytes=offset_bytes, size_bytes=size_bytes)
    return Call(attrgetter("kv.Get"), message, lambda _: download.result())


def stat(key: str) -> Call[types.Entry]:
    return Call(attrgetter("kv.Stat"), kv_pb2.StatRequest(key=key), lambda reply: _convert.entry(reply.entry))


def list_keys(prefix: str, token: str) -> Call[Page[types.Entry]]:
    message = kv_pb2.ListRequest(prefix=prefix, page_size=PAGE_SIZE, page_token=token)
    return Call(attrgetter("kv.List"), message, lambda reply: ([_convert.entry(e) for e in reply.entries], reply.next_page_token))


def delete(key: str) -> Call[None]:
    return Call(attrgetter("kv.Delete"), kv_pb2.DeleteRequest(key=key), _nothing)


def server_info() -> Call[types.ServerInfo]:
    return Call(attrgetter("admin.GetServerInfo"), admin_pb2.GetServerInfoRequest(), _convert.server_info)


def devices() -> Call[tuple[types.DeviceInfo, ...]]:
    return Call(
        attrgetter("admin.ListDevices"),
        admin_pb2.ListDevicesRequest(),
        lambda reply: tuple(_convert.device(d) for d in reply.devices),
    )


def stats() -> Call[types.Stats]:
    return Call(attrgetter("admin.GetStats"), admin_pb2.GetStatsRequest(), _convert.stats)


def drain() -> Call[None]:
    return Call(attrgetter("admin.Drain"), admin_pb2.DrainRequest(), _nothing)


def health(service: str) -> Call[str]:
    message = health_pb2.HealthCheckRequest(service=service)
    return Call(
        attrgetter("health.Check"), message, lambda reply: health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    )


_SUBMIT = attrgetter("executor.Submit")
_INVOKE = attrgetter("executor.Invoke")


def _nothing(_: Message) -> None:
    return None


def _bytes(data: Bytes) -> bytes:
    return data if isinstance(data, bytes) else bytes(flat_view(data))


def _names(returns: Iterable[str]) -> list[str]:
    if isinstance(returns, str):
        raise TypeError(f"returns is a list of names of buffers: [{returns!r}]")
    return list(returns)
