"""Pipelined invocations, for threads and for asyncio: answers in any order, failures, limits and ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from kaas.v1 import executor_pb2, trace_pb2
from kaas.v1.errors_pb2 import StreamError
from kaas_client import AsyncClient, Client, errors
from tests.client.fake_server import Failure, FakeServer


def answer(request: executor_pb2.InvokeStreamRequest) -> executor_pb2.InvokeStreamResponse:
    """Return the input ``a`` doubled as the output ``c``."""
    value = request.invoke.bindings["a"].value
    return executor_pb2.InvokeStreamResponse(id=request.id, response=executor_pb2.InvokeResponse(outputs={"c": value * 2}))


def echo(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
    return map(answer, requests)


def backwards(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
    """Answer every three invocations in the opposite order."""
    while batch := [request for _, request in zip(range(3), requests, strict=False)]:
        yield from map(answer, reversed(batch))


def failing(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
    """Fail the second invocation and answer the others."""
    fault = Failure("ABORTED", "it trapped", "KERNEL_FAULT", {"kernel_index": "0"})
    for position, request in enumerate(requests):
        if position == 1:
            error = StreamError.FromString(fault.status().SerializeToString())
            yield executor_pb2.InvokeStreamResponse(id=request.id, error=error)
        else:
            yield answer(request)


def breaking(requests: Any, context: Any) -> Failure:
    """Take two invocations, then end the whole stream with a failure."""
    next(requests)
    next(requests)
    return Failure("UNAVAILABLE", "draining", "DRAINING")


def ending(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
    """Answer the first invocation and end as if all were well."""
    yield answer(next(requests))
    next(requests)


def unreadable(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
    """Answer the second invocation with a trace that lacks the kernel it speaks of, and the others as they should be."""
    span = trace_pb2.Span(kind=trace_pb2.SPAN_KIND_KERNEL, kernel_index=7)
    for position, request in enumerate(requests):
        if position == 1:
            response = executor_pb2.InvokeResponse(trace=trace_pb2.Trace(spans=[span], streams=["kernels"]))
            yield executor_pb2.InvokeStreamResponse(id=request.id, response=response)
        else:
            yield answer(request)


def test_answers_find_their_futures_in_any_order(client: Any, server: FakeServer) -> None:
    server.expect("InvokeStream", backwards)
    with client.stream() as stream:
        futures = [stream.submit("f", {"a": b"%d" % i}, returns=["c"]) for i in range(6)]
        assert [future.result(60)["c"] for future in futures] == [b"00", b"11", b"22", b"33", b"44", b"55"]


def test_what_goes_over_the_wire(client: Any, server: FakeServer) -> None:
    sent: list[executor_pb2.InvokeStreamRequest] = []

    def record(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
        for request in requests:
            sent.append(request)
            yield answer(request)

    server.expect("InvokeStream", record)
    with client.stream() as stream:
        stream.submit("f", {"a": b"x"}, returns=["c"], device="emulator", timeout=1.5).result(60)
        stream.submit("f").result(60)
    assert [request.id for request in sent] == [1, 2]
    assert [request.timeout_ns for request in sent] == [1_500_000_000, 0]
    assert sent[0].invoke == executor_pb2.InvokeRequest(
        function="f", bindings={"a": executor_pb2.Binding(value=b"x")}, return_buffers=["c"], device="emulator"
    )


def test_map_keeps_the_order_and_the_limit(client: Any, server: FakeServer) -> None:
    in_flight: list[int] = []

    def counting(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
        for request in requests:
            in_flight.append(request.id)
            yield answer(request)

    server.expect("InvokeStream", counting)
    taken = 0
    with client.stream(max_in_flight=4) as stream:
        for taken, result in enumerate(stream.map("f", ({"a": b"%d" % i} for i in range(100)), returns=["c"])):
            assert result["c"] == b"%d%d" % (taken, taken)
            assert len(in_flight) <= taken + 1 + 4
    assert taken == 99


def test_submit_blocks_at_the_limit(server: FakeServer, address: str) -> None:
    release = threading.Event()

    def held(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
        first, second = next(requests), next(requests)
        release.wait(60)
        yield answer(first)
        yield answer(second)
        yield from map(answer, requests)

    server.expect("InvokeStream", held)
    with Client(address) as client, client.stream(max_in_flight=2) as stream:
        early = [stream.submit("f", {"a": b"1"}), stream.submit("f", {"a": b"2"})]
        third_is_in = threading.Event()

        def submit_third() -> None:
            stream.submit("f", {"a": b"3"})
            third_is_in.set()

        thread = threading.Thread(target=submit_third)
        thread.start()
        assert not any(future.done() for future in early)
        # Whether it blocks is seen by what it waits for: no permit is left while both are unanswered.
        assert not stream._permits.acquire(blocking=False)
        assert not third_is_in.is_set()
        release.set()
        assert third_is_in.wait(60)
        thread.join()


def test_a_message_that_cannot_be_built_takes_no_place(client: Any, server: FakeServer) -> None:
    server.expect("InvokeStream", echo)
    with client.stream(max_in_flight=1) as stream:
        for _ in range(2):
            with pytest.raises(ValueError):
                stream.submit("f", timeout=1e30)
        assert stream.submit("f", {"a": b"x"}).result(60)["c"] == b"xx"


def test_an_answer_that_is_not_a_message_fails_everything(connect: Any, address: str) -> None:
    """gRPC does not tell the asynchronous reader what it could not parse; the stream must still end."""

    def garble(requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        next(requests)
        yield b"\xff"
        yield from (b"" for _ in requests)

    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.stream_stream_rpc_method_handler(garble)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("kaas.v1.ExecutorService", {"InvokeStream": handler})])
    server.add_insecure_port(address)
    server.start()
    try:
        with connect().stream() as stream, pytest.raises(errors.InternalError):
            stream.submit("f").result(20)
    finally:
        server.stop(None).wait()


def test_a_failed_invocation_is_an_answer(client: Any, server: FakeServer) -> None:
    server.expect("InvokeStream", failing)
    with client.stream() as stream:
        first, second, third = (stream.submit("f", {"a": b"x"}) for _ in range(3))
        assert first.result(60)["c"] == third.result(60)["c"] == b"xx"
        with pytest.raises(errors.KernelFaultError, match="it trapped") as caught:
            second.result(60)
        assert caught.value.metadata == {"kernel_index": "0"}


def test_an_answer_that_cannot_be_read_fails_its_own_invocation(client: Any, server: FakeServer) -> None:
    server.expect("InvokeStream", unreadable)
    with client.stream() as stream:
        first, second, third = (stream.submit("f", {"a": b"x"}) for _ in range(3))
        assert first.result(60)["c"] == third.result(60)["c"] == b"xx"
        with pytest.raises(errors.InternalError, match="cannot read the server's answer: IndexError"):
            second.result(60)
        assert stream.submit("f", {"a": b"y"}).result(60)["c"] == b"yy"


def test_a_broken_stream_fails_everything(client: Any, server: FakeServer) -> None:
    server.expect("InvokeStream", breaking)
    with client.stream() as stream:
        for future in [stream.submit("f"), stream.submit("f")]:
            with pytest.raises(errors.DrainingError):
                future.result(60)
        with pytest.raises(errors.DrainingError):
            stream.submit("f")


def test_a_broken_stream_wakes_a_blocked_submit(client: Any, server: FakeServer) -> None:
    def take_one(requests: Any, context: Any) -> Failure:
        next(requests)
        return Failure("UNAVAILABLE", "draining", "DRAINING")

    server.expect("InvokeStream", take_one)
    with client.stream(max_in_flight=1) as stream, pytest.raises(errors.DrainingError):
        while True:
            stream.submit("f")


def test_a_stream_that_the_server_ends_early(client: Any, server: FakeServer) -> None:
    server.expect("InvokeStream", ending)
    with client.stream() as stream:
        first, second = stream.submit("f", {"a": b"x"}), stream.submit("f")
        assert first.result(60)["c"] == b"xx"
        with pytest.raises(errors.CancelledError):
            second.result(60)


def test_leaving_waits_for_the_answers(client: Any, server: FakeServer) -> None:
    server.expect("InvokeStream", echo)
    with client.stream() as stream:
        futures = [stream.submit("f", {"a": b"x"}) for _ in range(20)]
    assert all(future.done() and future.result(60)["c"] == b"xx" for future in futures)
    with pytest.raises(errors.CancelledError):
        stream.submit("f")


def test_leaving_by_an_exception_cancels(client: Any, server: FakeServer) -> None:
    entered, cancelled = threading.Event(), threading.Event()

    def hang(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
        context.add_callback(cancelled.set)
        entered.set()
        cancelled.wait(60)
        return iter(())

    server.expect("InvokeStream", hang)
    with pytest.raises(ZeroDivisionError), client.stream() as stream:
        future = stream.submit("f")
        assert entered.wait(60)
        raise ZeroDivisionError
    assert cancelled.wait(60)
    with pytest.raises(errors.CancelledError):
        future.result(60)


def test_many_threads_share_a_stream(server: FakeServer, address: str) -> None:
    found: dict[bytes, list[bytes]] = {}

    def use(stream: Any, mark: bytes) -> None:
        found[mark] = [result["c"] for result in stream.map("f", ({"a": mark} for _ in range(50)))]

    server.expect("InvokeStream", echo)
    # Room for all: eight threads that each may hold back answers must not starve one another.
    with Client(address) as client, client.stream(max_in_flight=400) as stream:
        threads = [threading.Thread(target=use, args=(stream, b"%d" % i)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {b"%d" % i: [b"%d%d" % (i, i)] * 50 for i in range(8)}


def test_a_cancelled_future_leaves_the_others_alone(server: FakeServer, address: str) -> None:
    """Of asyncio alone: a future of threads cannot be cancelled."""

    async def run() -> bytes:
        async with AsyncClient(address) as client, client.stream() as stream:
            cancelled, other = await stream.submit("f"), await stream.submit("f", {"a": b"x"})
            cancelled.cancel()
            return (await other)["c"]

    server.expect("InvokeStream", echo)
    assert asyncio.run(run()) == b"xx"


def test_a_task_that_is_cancelled_while_it_leaves_ends_as_cancelled(server: FakeServer, address: str) -> None:
    """Of asyncio alone: a thread cannot be cancelled."""
    entered = threading.Event()

    def hang(requests: Any, context: Any) -> Iterator[executor_pb2.InvokeStreamResponse]:
        entered.set()
        ended = threading.Event()
        context.add_callback(ended.set)
        ended.wait(60)
        return iter(())

    async def run() -> None:
        async with AsyncClient(address) as client:

            async def use() -> None:
                async with client.stream() as stream:
                    await stream.submit("f")

            task = asyncio.create_task(use())
            assert await asyncio.to_thread(entered.wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 20)

    server.expect("InvokeStream", hang)
    asyncio.run(run())


def test_the_limit_must_be_positive(connect: Any) -> None:
    with pytest.raises(ValueError, match="max_in_flight"):
        connect().stream(max_in_flight=0)
