"""``kaas.v1.ExecutorService``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Mapping
from contextlib import asynccontextmanager
from functools import partial

import grpc

from kaas.v1 import executor_pb2
from kaas_core.errors import DeadlineExceededError, InvalidRequestError, KaasError, MessageTooLargeError
from kaasd.api.core import Core
from kaasd.api.errors import to_stream_error
from kaasd.api.rpc import deadline_of, sender_of
from kaasd.api.shared import page
from kaasd.front.functions import ValidatedRequest, describe, item_path
from kaasd.front.request_ids import fingerprint

REPLY_OVERHEAD_BYTES = 64 << 10
"""Room in a reply for what is not a buffer's bytes."""
TRACE_BYTES = 512 << 10
"""Room for a trace: 10,000 launches of 20 to 30 bytes each, and the rest of it."""

UNREAD_BYTES = 32 << 20
"""Of the replies of one stream that its reader has not taken, or is going to have: no further call is begun. One always is."""
UNREAD_S = 60.0
"""A stream whose reader takes nothing of a reply for so long, or up to twice that, is ended."""


class UnreadReplies:
    """The replies of one stream, from when their calls begin until the reader has taken them."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self._context = context
        self._bytes = 0
        self._taken = asyncio.Event()
        self._writing = asyncio.Lock()  # gRPC takes one write of a call at a time.
        self._written = 0

    async def room_for(self, reply_bytes: int) -> None:
        """Return when a reply of this size may come."""
        while self._bytes and self._bytes + reply_bytes > UNREAD_BYTES:
            self._taken.clear()
            await self._taken.wait()
        self._bytes += reply_bytes

    async def write(self, response: executor_pb2.InvokeStreamResponse, reply_bytes: int) -> None:
        """Send a reply for which there was room."""
        async with self._writing:
            await self._context.write(response)
        self._written += 1
        if reply_bytes:
            self._bytes -= reply_bytes
            self._taken.set()

    @asynccontextmanager
    async def are_taken(self) -> AsyncIterator[None]:
        """Raise ``DeadlineExceededError`` in the ``with`` block where the reader takes nothing."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def look(written: int) -> None:
            nonlocal timer
            if self._writing.locked() and written == self._written:
                limit.reschedule(loop.time())
            else:
                timer = loop.call_later(UNREAD_S, look, self._written)

        timer = loop.call_later(UNREAD_S, look, 0)
        try:
            async with asyncio.timeout(None) as limit:
                yield
        except TimeoutError:
            raise DeadlineExceededError(f"the reader of the stream took nothing for {UNREAD_S:g} s") from None
        finally:
            timer.cancel()


class ExecutorServicer:
    """Runs and registers requests."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def Submit(self, request: executor_pb2.SubmitRequest, context: grpc.aio.ServicerContext) -> executor_pb2.SubmitResponse:
        room, sender = partial(self._core.replies.take_for, context), partial(sender_of, context)
        execution = self.submit(request, deadline_of(context), sender, room)
        del request
        return executor_pb2.SubmitResponse.FromString((await execution).SerializeToString())

    async def RegisterFunction(
        self, request: executor_pb2.RegisterFunctionRequest, context: grpc.aio.ServicerContext
    ) -> executor_pb2.RegisterFunctionResponse:
        self._core.refuse_if_draining()
        group = self._core.group_of(request.group)
        size, name, limits = request.ByteSize(), request.name, self._core.limits
        registered = await self._core.aside.call(size, describe, name, request.request, limits)
        await self._core.dispatcher.prepare(registered.validated.serialized, deadline_of(context))
        await self._core.write(self._core.functions.register(registered, group))
        return executor_pb2.RegisterFunctionResponse(function=registered.function)

    async def GetFunction(
        self, request: executor_pb2.GetFunctionRequest, context: grpc.aio.ServicerContext
    ) -> executor_pb2.GetFunctionResponse:
        self._core.group_of(request.group)
        return executor_pb2.GetFunctionResponse(function=self._core.functions.get(request.name).function)

    async def ListFunctions(
        self, request: executor_pb2.ListFunctionsRequest, context: grpc.aio.ServicerContext
    ) -> executor_pb2.ListFunctionsResponse:
        self._core.group_of(request.group)
        functions, token = page(
            request.page_size,
            request.page_token,
            request.prefix,
            lambda after, limit: self._core.functions.list(request.prefix, after, limit),
            lambda function: function.name,
            executor_pb2.Function.ByteSize,
        )
        return executor_pb2.ListFunctionsResponse(
            functions=[function for function in functions if function.HasField("request")],
            next_page_token=token,
            damaged_names=[function.name for function in functions if not function.HasField("request")],
        )

    async def DeleteFunction(
        self, request: executor_pb2.DeleteFunctionRequest, context: grpc.aio.ServicerContext
    ) -> executor_pb2.DeleteFunctionResponse:
        self._core.refuse_if_draining()
        self._core.group_of(request.group)
        await self._core.write(self._core.functions.delete(request.name))
        return executor_pb2.DeleteFunctionResponse()

    def Invoke(
        self, request: executor_pb2.InvokeRequest, context: grpc.aio.ServicerContext
    ) -> Awaitable[executor_pb2.InvokeResponse]:
        room = partial(self._core.replies.take_for, context)
        return self.invoke(request, deadline_of(context), partial(sender_of, context), room)

    async def InvokeStream(
        self, requests: AsyncIterator[executor_pb2.InvokeStreamRequest], context: grpc.aio.ServicerContext
    ) -> None:
        loop = asyncio.get_running_loop()
        stream_deadline = deadline_of(context)
        places = asyncio.Semaphore(self._core.settings.max_in_flight)
        replies = UnreadReplies(context)
        sender = partial(sender_of, context, stream=object())

        async def answer(request: executor_pb2.InvokeStreamRequest, deadline: float | None, reply_bytes: int) -> None:
            id, taken_bytes = request.id, 0

            def take(size_bytes: int) -> None:
                nonlocal taken_bytes
                self._core.replies.take(size_bytes)
                taken_bytes = size_bytes

            try:
                try:
                    execution = self.invoke(request.invoke, deadline, sender, take)
                    del request
                    response = executor_pb2.InvokeStreamResponse(id=id, response=await execution)
                except Exception as error:
                    failure = to_stream_error(self._core.failed(error))
                    response = executor_pb2.InvokeStreamResponse(id=id, error=failure)
                await replies.write(response, reply_bytes)
            finally:
                self._core.replies.give(taken_bytes)
            places.release()

        try:
            async with replies.are_taken(), asyncio.TaskGroup() as running:
                await places.acquire()
                async for request in requests:
                    deadline = stream_deadline
                    if request.timeout_ns:
                        own = loop.time() + request.timeout_ns / 1e9
                        deadline = own if deadline is None else min(own, deadline)
                    reply_bytes = self.reply_bytes(request.invoke)
                    if reply_bytes:
                        await replies.room_for(reply_bytes)
                    running.create_task(answer(request, deadline, reply_bytes))
                    await places.acquire()
        except ExceptionGroup as group:  # The stream itself failed, which ended the rest.
            raise group.exceptions[0] from None

    # The same calls for those who come by another way than gRPC.

    def reply_bytes(self, request: executor_pb2.InvokeRequest) -> int:
        """Return what a reply will hold of buffers; 0 where there will be none."""
        if not request.return_buffers:
            return 0
        try:
            return self._core.functions.get(request.function).validated.check_return_buffers(request.return_buffers)
        except KaasError:
            return 0  # which the call itself will say

    async def submit(
        self,
        request: executor_pb2.SubmitRequest,
        deadline: float | None,
        sender: Callable[[], Hashable],
        take_room: Callable[[int], None],
    ) -> executor_pb2.InvokeResponse:
        """Run a request; the reply has the fields of a ``SubmitResponse``."""
        group = self._core.group_of(request.group)
        validated = await self._core.validator.validate(request.request)
        inputs = dict(request.inputs)
        validated.check_inputs(inputs)
        execution = self._run(validated, {}, inputs, request, group, deadline, sender, take_room)
        del request, inputs
        return await execution

    def invoke(
        self,
        request: executor_pb2.InvokeRequest,
        deadline: float | None,
        sender: Callable[[], Hashable],
        take_room: Callable[[int], None],
    ) -> Awaitable[executor_pb2.InvokeResponse]:
        """Check an invocation; return its execution. No coroutine: its frame would hold the inputs once more while they wait."""
        group = self._core.group_of(request.group)
        validated = self._core.functions.get(request.function).validated
        keys: dict[str, str] = {}
        inputs: dict[str, bytes] = {}
        for name in request.bindings:  # its items() are made in Python
            binding = request.bindings[name]
            source = binding.WhichOneof("source")
            if source == "value":
                inputs[name] = binding.value
            elif source == "key":
                keys[name] = binding.key
            else:
                raise InvalidRequestError.at(item_path("bindings", name), "neither a key nor a value is set")
        validated.check_inputs(inputs, "bindings")
        if keys:
            validated.check_keys(keys)
        return self._run(validated, keys, inputs, request, group, deadline, sender, take_room, request.function)

    def _run(
        self,
        validated: ValidatedRequest,
        keys: Mapping[str, str],
        inputs: Mapping[str, bytes],
        request: executor_pb2.SubmitRequest | executor_pb2.InvokeRequest,
        group: str,
        deadline: float | None,
        sender: Callable[[], Hashable],
        take_room: Callable[[int], None],
        function: str = "",
    ) -> Awaitable[executor_pb2.InvokeResponse]:
        """Check what is to be returned; return the execution, which does not hold ``request`` and ``inputs`` while it waits.

        ``take_room`` is for the buffers in its reply.
        """
        limit = self._core.settings.max_message_bytes
        wanted = validated.check_return_buffers(request.return_buffers)
        overhead = REPLY_OVERHEAD_BYTES + request.trace * TRACE_BYTES
        if wanted > limit - min(overhead, limit // 2):
            raise MessageTooLargeError(
                f"return_buffers: {wanted} bytes do not fit into a message of at most {limit}; read them from the store"
            )
        if wanted:
            take_room(wanted)
        identified = None
        if request.request_id:
            self._core.watch.refuse_if_lost()
            content = fingerprint(validated.serialized.digest, keys, inputs, request.return_buffers, request.device)
            identified = self._core.request_ids.identify(request.request_id, content, group)
        execution = self._core.dispatcher.execute(
            validated.serialized,
            keys=keys,
            inputs=inputs,
            return_buffers=request.return_buffers,
            device=request.device,
            deadline=deadline,
            trace=request.trace,
            function=function,
            sender=sender,
            identified=identified,
            stays=validated.stays,
            device_bytes=validated.device_bytes,
            group=group,
            priority=request.priority,
        )
        if identified is None:
            return execution
        input_bytes = sum(map(len, inputs.values()))
        return self._core.request_ids.once(identified, execution, deadline, input_bytes=input_bytes, reply_bytes=wanted)
