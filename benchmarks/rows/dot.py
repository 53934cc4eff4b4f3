"""A small request's latency: a warm dot product of 1024 uint32, 4 KB in and 4 B out, by one caller over a unix socket.

* unary: one call a request; the result comes back in the reply and is not stored
* local channel: the same without gRPC, and the same way with nothing asked
* stored: the same, and the result is committed to the store
* stream: over one open stream, one request at a time
* pipelined: over one open stream, many in flight
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import grpc
from numpy.typing import NDArray

from benchmarks.alternatives import ray_dot
from benchmarks.bench import NO_GPU, TIMEOUT_S, Bench, Rivals, event_loop, stages, start_rivals
from benchmarks.problems import DOT_PTX, dot_of, dot_vectors
from benchmarks.report import Row, compare, targets
from benchmarks.requests import dot_request
from benchmarks.turns import Contender, Turns, take_turns, timed
from kaas.v1.executor_pb2 import Binding, InvokeRequest, InvokeStreamRequest
from kaas.v1.local_pb2 import Hello
from kaas.v1.types_pb2 import Timing
from kaas_client import Client
from kaas_client._async.local import LocalTransport
from kaas_client._local import Transport
from kaas_client._local_asyncio import LocalChannel
from kaas_client._rpcs import DEFAULT_MAX_MESSAGE_BYTES, Stubs

IN_FLIGHT = 32

ECHO = "empty echo"
HAND_WRITTEN = "gRPC + CuPy"
RAY = "Ray actor + CuPy"
IN_PROCESS = "in process"
BY_GRPC = "kaasd by gRPC"
WITHOUT_KERNELS = "kaasd without kernels"

Sample = tuple[float, Timing]
"""Seconds of a call, and where the server says that they went."""


async def one_by_one(method: Any, message: InvokeRequest, calls: int) -> list[Sample]:
    """Call a unary method again and again."""
    samples = []
    for _ in range(calls):
        start = time.perf_counter()
        reply = await method(message, timeout=TIMEOUT_S)
        samples.append((time.perf_counter() - start, reply.timing))
    return samples


async def ping_pong(stream: Any, message: InvokeStreamRequest, calls: int) -> list[Sample]:
    """Send the next message of a stream when the answer to the one before has come."""
    samples = []
    for _ in range(calls):
        start = time.perf_counter()
        await stream.write(message)
        reply = await stream.read()
        samples.append((time.perf_counter() - start, reply.response.timing))
    return samples


async def pipelined(stream: Any, message: InvokeStreamRequest, calls: int) -> list[Sample]:
    """Keep ``IN_FLIGHT`` messages of a stream on their way; a call's time is its share of the block's."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def send() -> None:
        for _ in range(calls):
            await room.acquire()
            await stream.write(message)

    start = time.perf_counter()
    sender = asyncio.create_task(send())
    timings = []
    for _ in range(calls):
        timings.append((await stream.read()).response.timing)
        room.release()
    await sender
    share = (time.perf_counter() - start) / calls
    return [(share, timing) for timing in timings]


Measure = Callable[[Any, Any, int], Awaitable[list[Sample]]]


async def by_channel(channel: LocalChannel, message: InvokeRequest, timeout: float) -> Any:
    """Call over the local channel, as a unary method is called."""
    return await channel.call(message, timeout)


async def greetings(channel: LocalChannel, calls: int) -> list[float]:
    """Return the seconds of each round trip that asks for nothing."""
    samples = []
    for _ in range(calls):
        start = time.perf_counter()
        await channel.call(Hello(), TIMEOUT_S)
        samples.append(time.perf_counter() - start)
    return samples


async def seconds_of(method: Any, message: InvokeRequest, calls: int) -> list[float]:
    """Return the seconds of each call."""
    return [seconds for seconds, _ in await one_by_one(method, message, calls)]


class Kaasd:
    """The contender that also keeps what the server said of its time."""

    def __init__(self, measure: Callable[[], list[Sample]]) -> None:
        self._measure = measure
        self.blocks: list[list[Sample]] = []

    def __call__(self) -> list[float]:
        block = self._measure()
        self.blocks.append(block)
        return [seconds for seconds, _ in block]

    def without_kernels(self, turns: Turns) -> Turns:
        """Return the turns with what is left of each call when the time in kernels is taken away."""
        blocks = self.blocks[-len(turns.rounds["kaasd"]) :]
        own = [[seconds - timing.run_ns / 1e9 for seconds, timing in block] for block in blocks]
        return Turns({**turns.rounds, WITHOUT_KERNELS: own})


def dot_rows(bench: Bench) -> Iterator[Row]:
    """Measure every way of calling in turns."""
    a, b = dot_vectors()
    with ExitStack() as stack:
        rivals = start_rivals(bench, stack)
        with Client(rivals.servers["kaasd"].address, timeout=TIMEOUT_S) as kaas:
            kaas.put("b", b)
            library = kaas.upload(DOT_PTX)
            kaas.register("dot", dot_request(library))
            kaas.register("dot-stored", dot_request(library, stored=True))
        run = stack.enter_context(event_loop())
        message = invocation("dot", a)
        methods, streams = run(connect(rivals))
        run(check(methods, message, dot_of(a, b)))
        calls, rounds, seconds = bench.pick((200, 20, 8.0), (100, 4, 1.0))

        def contest(
            measure: Measure, callees: Mapping[str, Any], what: Any, more: Mapping[str, Contender]
        ) -> tuple[Turns, Kaasd]:
            kaasd = Kaasd(lambda: run(measure(callees["kaasd"], what, calls)))

            def contender(callee: Any) -> Contender:
                return lambda: [elapsed for elapsed, _ in run(measure(callee, what, calls))]

            others = {name: contender(callee) for name, callee in callees.items() if name != "kaasd"}
            turns = take_turns({"kaasd": kaasd, **others, **more}, rounds=rounds, seconds=seconds)
            return (turns if bench.cuda else kaasd.without_kernels(turns)), kaasd

        in_process, missing = start_in_process(bench, stack, a, b, calls)
        missing = {**rivals.missing, **missing}
        turns, kaasd = contest(one_by_one, methods, message, in_process)
        yield latency_row(bench, "dot request, unary", turns, kaasd, missing)
        channel = run(open_channel(rivals.servers["kaasd"].address))
        ways = {"kaasd": partial(by_channel, channel), BY_GRPC: methods["kaasd"], ECHO: methods[ECHO]}
        turns, kaasd = contest(one_by_one, ways, message, {})
        yield local_row(bench, "dot request, local channel", turns, notes(kaasd))
        empty = {"kaasd": lambda: run(greetings(channel, calls)), ECHO: lambda: run(seconds_of(methods[ECHO], message, calls))}
        yield local_row(bench, "empty call, local channel", take_turns(empty, rounds=rounds, seconds=seconds), {})
        channel.close()
        echo_only = {name: methods[name] for name in ("kaasd", ECHO)}
        turns, kaasd = contest(one_by_one, echo_only, invocation("dot-stored", a), {})
        yield latency_row(bench, "dot request, unary, result stored", turns, kaasd, {}, held=False)
        in_stream = InvokeStreamRequest(id=1, invoke=message)
        turns, kaasd = contest(ping_pong, streams, in_stream, {})
        yield latency_row(bench, "dot request, stream, one at a time", turns, kaasd, rivals.missing)
        turns, kaasd = contest(pipelined, streams, in_stream, {})
        yield rate_row(bench, f"dot request, stream, {IN_FLIGHT} in flight", turns, kaasd, rivals.missing)
        run(close(streams))


def invocation(function: str, a: NDArray[Any]) -> InvokeRequest:
    """Return the message that calls a dot product and has it returned."""
    return InvokeRequest(function=function, bindings={"a": Binding(value=a.tobytes())}, return_buffers=["c"])


async def connect(rivals: Rivals) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return each server's unary method and an open stream."""
    channels = {name: grpc.aio.insecure_channel(server.address) for name, server in rivals.servers.items()}
    methods = {name: server.call(channels[name]) for name, server in rivals.servers.items()}
    return methods, {name: server.open(channels[name]) for name, server in rivals.servers.items()}


async def open_channel(address: str) -> LocalChannel:
    """Return a connection to kaasd's local channel."""
    async with grpc.aio.insecure_channel(address) as channel:
        transport = LocalTransport(address, Stubs(channel), DEFAULT_MAX_MESSAGE_BYTES, Transport.LOCAL)
        opened = await transport.open({"timeout": TIMEOUT_S})
    assert opened is not None
    return opened


async def check(methods: Mapping[str, Any], message: InvokeRequest, expected: bytes) -> None:
    """Raise ``AssertionError`` where a server's answer is not NumPy's; the echo computes nothing."""
    for name, method in methods.items():
        found = (await method(message, timeout=TIMEOUT_S)).outputs["c"]
        assert name == ECHO or found == expected, f"{name} answers {found.hex()}, not {expected.hex()}"


async def close(streams: Mapping[str, Any]) -> None:
    """End the streams."""
    for stream in streams.values():
        await stream.done_writing()


def start_in_process(
    bench: Bench, stack: ExitStack, a: NDArray[Any], b: NDArray[Any], calls: int
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the contenders that are no gRPC servers, checked, and why others are missing."""
    if not bench.cuda:
        return {}, {RAY: NO_GPU, IN_PROCESS: NO_GPU}
    from benchmarks.alternatives import raw
    from benchmarks.alternatives.raw_jobs import raw_dot

    gpu = stack.enter_context(raw.Gpu())
    job, a_host = raw_dot(gpu, b)

    def in_process() -> bytes:
        a_host[:] = a
        job.enqueue(job.stream)
        raw.wait(job.stream)
        return job.result.tobytes()

    assert in_process() == dot_of(a, b)
    contenders: dict[str, Contender] = {IN_PROCESS: timed(in_process, calls)}
    absent = ray_dot.missing()
    if absent:
        return contenders, {RAY: absent}
    ray = stack.enter_context(ray_dot.RayClient())
    # A quarter of the calls: an actor is several times slower.
    return {**contenders, RAY: lambda: ray.calls(calls // 4)}, {}


def latency_row(bench: Bench, what: str, turns: Turns, kaasd: Kaasd, missing: Mapping[str, str], held: bool = True) -> Row:
    """Return a row in microseconds, held to 1.3 times the echo and to less than a server written by hand."""
    figure, beside = compare(turns, scale=1e6, missing=missing)
    if not bench.cuda:
        goals = targets(turns, at_most={ECHO: 1.5}, name=WITHOUT_KERNELS)
    else:
        goals = targets(turns, at_most={ECHO: 1.3, HAND_WRITTEN: 1.0}) if held else []
    return Row("dot", what, "µs", figure, beside, goals, notes(kaasd))


def local_row(bench: Bench, what: str, turns: Turns, notes: Mapping[str, Any]) -> Row:
    """Return a row in microseconds, held to half of the echo: what a call costs where gRPC does nothing."""
    figure, beside = compare(turns, scale=1e6)
    name = WITHOUT_KERNELS if WITHOUT_KERNELS in turns.rounds else "kaasd"
    return Row("dot", what, "µs", figure, beside, targets(turns, at_most={ECHO: 0.5}, name=name), notes)


def rate_row(bench: Bench, what: str, turns: Turns, kaasd: Kaasd, missing: Mapping[str, str]) -> Row:
    """Return a row in requests a second, held to 0.7 of the echo's."""
    rates = Turns({name: [[1 / x for x in block] for block in blocks] for name, blocks in turns.rounds.items()})
    figure, beside = compare(rates, missing=missing)
    goals = targets(rates, at_least={ECHO: 0.7 if bench.cuda else 0.6}, name="kaasd" if bench.cuda else WITHOUT_KERNELS)
    return Row("dot", what, "/s", figure, beside, goals, notes(kaasd))


def notes(kaasd: Kaasd) -> dict[str, Any]:
    """Return where the server's time goes."""
    return {"server, p50": stages(timing for block in kaasd.blocks for _, timing in block)}
