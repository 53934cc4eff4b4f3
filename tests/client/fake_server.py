"""A real gRPC server on a unix socket whose answers a test writes down beforehand.

It records every call, refuses one that no test expected, and complains at its end of expectations that nothing used.
"""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

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

SERVICES = {
    executor_pb2.DESCRIPTOR.services_by_name["ExecutorService"]: executor_pb2_grpc.add_ExecutorServiceServicer_to_server,
    library_pb2.DESCRIPTOR.services_by_name["LibraryService"]: library_pb2_grpc.add_LibraryServiceServicer_to_server,
    kv_pb2.DESCRIPTOR.services_by_name["KvService"]: kv_pb2_grpc.add_KvServiceServicer_to_server,
    admin_pb2.DESCRIPTOR.services_by_name["AdminService"]: admin_pb2_grpc.add_AdminServiceServicer_to_server,
    health_pb2.DESCRIPTOR.services_by_name["Health"]: health_pb2_grpc.add_HealthServicer_to_server,
}


@dataclass
class Failure:
    """An answer that ends a call with a ``google.rpc.Status``, as kaasd's own do; with no reason it has no details."""

    code: str
    message: str = "it failed"
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    violations: list[tuple[str, str]] = field(default_factory=list)
    retry_after_s: int = 0

    def status(self) -> status_pb2.Status:
        details: list[Message] = []
        if self.reason:
            details.append(error_details_pb2.ErrorInfo(reason=self.reason, domain="kaas", metadata=self.metadata))
        if self.violations:
            fields = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in self.violations]
            details.append(error_details_pb2.BadRequest(field_violations=fields))
        if self.retry_after_s:
            details.append(error_details_pb2.RetryInfo(retry_delay=Duration(seconds=self.retry_after_s)))
        packed = [AnyMessage() for _ in details]
        for box, detail in zip(packed, details, strict=True):
            box.Pack(detail)
        return status_pb2.Status(code=code_pb2.Code.Value(self.code), message=self.message, details=packed)


@dataclass
class Recorded:
    """One call that came in."""

    rpc: str
    request: Any
    """The message; a list of them for a stream."""
    time_remaining_s: float | None


Answer = Message | list[Message] | Failure | Callable[[Any, grpc.ServicerContext], Any]


class FakeServer:
    """See the module's text. ``expect`` adds one answer for one call; the calls are in ``calls``."""

    def __init__(self, address: str, max_message_bytes: int = 4 << 20) -> None:
        self.address = address
        self.calls: list[Recorded] = []
        self.info = admin_pb2.GetServerInfoResponse()
        """What clients get that look for a local channel, which is no call that is recorded: there is none."""
        self._expected: dict[str, deque[Answer]] = defaultdict(deque)
        self._unexpected: list[str] = []
        self._lock = threading.Lock()
        limit = [("grpc.max_receive_message_length", max_message_bytes)]
        self._server = grpc.server(ThreadPoolExecutor(8), options=limit)
        for service, add in SERVICES.items():
            add(_Servicer(self, service), self._server)

    def __enter__(self) -> Self:
        self._server.add_insecure_port(self.address)
        self._server.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        if kind is None:
            assert not self._unexpected, f"calls that nothing expected: {self._unexpected}"
            unused = [name for name, answers in self._expected.items() for _ in answers]
            assert not unused, f"expected calls that never came: {unused}"

    def stop(self) -> None:
        self._server.stop(None).wait()

    def expect(self, rpc: str, answer: Answer) -> None:
        """Answer the next call of ``rpc`` so: a message, messages of a stream, a failure, or what a function makes of it."""
        self._expected[rpc].append(answer)

    def expects(self, rpc: str) -> bool:
        """Whether the next call of ``rpc`` has an answer."""
        return bool(self._expected[rpc])

    def only_call(self, rpc: str) -> Recorded:
        """Return the one call of ``rpc``."""
        (call,) = [call for call in self.calls if call.rpc == rpc]
        return call

    def take(self, rpc: str, context: grpc.ServicerContext) -> Answer:
        with self._lock:
            if not self._expected[rpc]:
                self._unexpected.append(rpc)
                context.abort(grpc.StatusCode.UNIMPLEMENTED, f"nothing expected {rpc}")
            return self._expected[rpc].popleft()


class _Servicer:
    """Implements every RPC of one service."""

    def __init__(self, server: FakeServer, service: Any) -> None:
        for method in service.methods:
            setattr(self, method.name, _behaviour(server, method))


def _behaviour(server: FakeServer, method: Any) -> Callable[[Any, grpc.ServicerContext], Any]:
    def answer(request: Any, context: grpc.ServicerContext) -> Any:
        if method.name == "GetServerInfo" and not server.expects(method.name):
            return server.info
        planned = server.take(method.name, context)
        live = callable(planned) and method.client_streaming
        received = request if live or not method.client_streaming else list(request)
        server.calls.append(Recorded(method.name, received, context.time_remaining()))
        if callable(planned):
            planned = planned(request, context)
        if isinstance(planned, Failure):
            context.abort_with_status(rpc_status.to_status(planned.status()))
        return planned

    def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from answer(request, context)

    return stream if method.server_streaming else answer
