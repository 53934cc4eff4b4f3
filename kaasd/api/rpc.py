"""Wires a servicer to gRPC: one place that parses messages, turns errors into statuses, and counts failures.

A servicer has one coroutine method per RPC of its service, of the RPC's name. It takes the parsed request (or an asynchronous
iterator of them) and the context. It returns its one response, or writes its stream of responses to the context.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from grpc_status import rpc_status

from kaas_core.address import CONNECTION_AGENT
from kaas_core.errors import InvalidRequestError
from kaasd.api.core import Core
from kaasd.api.counting import SMALL_BYTES, count, field_limits
from kaasd.api.errors import to_status
from kaasd.api.groups import Listener, listener_of_call

Behaviour = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Message | None]]

END = object()
DEADLINE_SLACK_S = 0.05
"""A caller counts from when it called, the server from when that arrived."""


def service_handler(servicer: object, service: ServiceDescriptor, core: Core, listener: Listener) -> grpc.GenericRpcHandler:
    """Return the handler of all RPCs of ``service``, for calls that come by ``listener``.

    A servicer that lacks one is an ``AttributeError``.
    """
    handlers = {
        method.name: _method_handler(getattr(servicer, method.name), method, core, listener) for method in service.methods
    }
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


class Parser:
    """Makes messages of bytes that a caller has sent."""

    def __init__(self, descriptor: Descriptor, core: Core) -> None:
        self._descriptor = descriptor
        self._kind = GetMessageClass(descriptor)
        self._core = core
        self._limits = field_limits(core.limits)

    def parse_small(self, data: bytes | memoryview) -> Any:
        """Return the message of at most ``SMALL_BYTES``. Raises ``InvalidRequestError``."""
        try:
            return self._kind.FromString(data)  # type: ignore[arg-type]  # it takes any buffer
        except DecodeError:
            message = f"what was sent is not a valid {self._descriptor.full_name} message; note that strings must be UTF-8"
            raise InvalidRequestError.at("", message) from None

    async def parse(self, data: bytes | memoryview) -> Any:
        """Return the message. Raises ``InvalidRequestError``, ``MessageTooLargeError`` (too much is in it)."""
        if len(data) > SMALL_BYTES:
            counting = count(data, self._descriptor, self._limits)
            if next(counting, END) is not END:
                await self._core.aside.call(len(data), deque, counting, 0)
        return self.parse_small(data)

    async def parse_each(self, messages: AsyncIterator[bytes]) -> AsyncIterator[Any]:
        """Yield the message of each."""
        async for data in messages:
            yield await self.parse(data)


def _method_handler(behaviour: Behaviour, method: MethodDescriptor, core: Core, listener: Listener) -> grpc.RpcMethodHandler:
    response_type = GetMessageClass(method.output_type)
    parser = Parser(method.input_type, core)

    async def call(request: Any, context: grpc.aio.ServicerContext) -> bytes | None:
        listener_of_call.set(listener)  # each call is a task, and so has a context of its own
        try:
            reply = await behaviour(
                parser.parse_each(request) if method.client_streaming else await parser.parse(request), context
            )
            if reply is None:
                return None
            data = reply.SerializeToString()
            core.replies.hold(context, len(data))
            return data
        except asyncio.CancelledError:
            # gRPC cancels both when the caller goes away and when its deadline passes, which it may tell before our clock does.
            left_s = context.time_remaining()
            core.failures["CANCELLED" if left_s is None or left_s > DEADLINE_SLACK_S else "DEADLINE_EXCEEDED"] += 1
            raise
        except Exception as error:
            # Writing to a caller that went away fails before the cancellation arrives here.
            if context.cancelled() or isinstance(error, grpc.aio.InternalError):
                core.failures["CANCELLED"] += 1
                return None
            status = rpc_status.to_status(to_status(core.failed(error)))
        # Not within ``except``, and without the request: the context keeps what ``abort`` raises, that keeps this frame, and this
        # keeps the context. Such a cycle stays in memory until Python next looks for cycles.
        del request
        await context.abort(status.code, status.details, status.trailing_metadata)
        raise AssertionError("abort raises")

    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    # No deserialiser: gRPC answers UNKNOWN, with Python's own words, where one raises. And no serialiser for a single reply: gRPC
    # would hold both the message and its bytes until that is read.
    serializer = response_type.SerializeToString if method.server_streaming else None
    return kinds[method.client_streaming, method.server_streaming](call, response_serializer=serializer)


def deadline_of(context: grpc.aio.ServicerContext) -> float | None:
    """Return a call's deadline in the loop's time, or None."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else asyncio.get_running_loop().time() + remaining


def sender_of(context: grpc.aio.ServicerContext, stream: Hashable = None) -> Hashable:
    """Return who sends a call: callers that wait take turns by this.

    A client of ours names its connection, which is the sender of all that comes by it. Of others the address is known, which all
    share on a unix socket, and which ``stream`` a call came by.
    """
    user_agent = next((value for key, value in context.invocation_metadata() or () if key == "user-agent"), "")
    return (context.peer(), user_agent, None if CONNECTION_AGENT in str(user_agent) else stream)
