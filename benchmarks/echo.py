"""How much of a small request's time is kaasd, and how much gRPC: ``make bench``.

A warm dot product of 1024 uint32 (4 KB in, 4 B out) is called over a unix socket beside an empty echo, which takes and returns
the same messages on a server of the same make. Both are measured in turns within one run, so that what the machine does
meanwhile hits both. A latency is that of one call, from the client's side; a ratio is that of the medians of two neighbouring
blocks of calls.

Cases:

* ``unary``: one call a request; the result comes back in the reply and is not stored
* ``stored``: the same, and the result is committed to the store
* ``stream``: over one open stream, one request at a time
* ``pipelined``: over one open stream, many in flight; its figure is a request's share of the time, not its latency
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.echo_server import STREAM_METHOD, UNARY_METHOD, echo_server
from examples.local_daemon import local_daemon
from kaas.v1.executor_pb2 import Binding, InvokeRequest, InvokeResponse, InvokeStreamRequest, InvokeStreamResponse
from kaas.v1.executor_pb2_grpc import ExecutorServiceStub
from kaas.v1.types_pb2 import Timing
from kaas_client import Client, Kernel, Request, inp, out, tmp, u64

N = 1024
IN_FLIGHT = 32
TARGET_RATIO = 1.5

STAGES = ("queue", "plan", "load", "run", "commit", "total")
"""As the server times them; the total is from a request's arrival to its reply."""

Sample = tuple[int, Timing]
"""Nanoseconds of a call, and where the server says that they went."""
Measure = Callable[[Any, Any, int], Awaitable[list[Sample]]]
"""Given a callable or an open stream, a message and a number, makes that many calls."""


async def one_by_one(method: Any, message: InvokeRequest, calls: int) -> list[Sample]:
    """Call a unary method again and again."""
    samples = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        reply = await method(message)
        samples.append((time.perf_counter_ns() - start, reply.timing))
    return samples


async def ping_pong(stream: Any, message: InvokeStreamRequest, calls: int) -> list[Sample]:
    """Send the next message of a stream when the answer to the one before has come."""
    samples = []
    for _ in range(calls):
        start = time.perf_counter_ns()
        await stream.write(message)
        reply = await stream.read()
        samples.append((time.perf_counter_ns() - start, reply.response.timing))
    return samples


async def pipelined(stream: Any, message: InvokeStreamRequest, calls: int) -> list[Sample]:
    """Keep ``IN_FLIGHT`` messages of a stream on their way; a call's time is its share of the block's."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def send() -> None:
        for _ in range(calls):
            await room.acquire()
            await stream.write(message)

    start = time.perf_counter_ns()
    sender = asyncio.create_task(send())
    timings = []
    for _ in range(calls):
        timings.append((await stream.read()).response.timing)
        room.release()
    await sender
    share = (time.perf_counter_ns() - start) // calls
    return [(share, timing) for timing in timings]


@dataclass
class Case:
    """One way of calling, measured on kaasd and on the echo."""

    name: str
    measure: Measure
    kaasd: Any
    echo: Any
    message: Any
    kaasd_samples: list[Sample] = field(default_factory=list)
    echo_samples: list[Sample] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    """One a round, kernels included."""
    own_ratios: list[float] = field(default_factory=list)
    """One a round, without the time in kernels."""

    async def warm_up(self, calls: int) -> None:
        """Call both without looking at the clock."""
        await self.measure(self.kaasd, self.message, calls)
        await self.measure(self.echo, self.message, calls)

    async def run_round(self, calls: int) -> None:
        """Measure one block of each."""
        kaasd = await self.measure(self.kaasd, self.message, calls)
        echo = await self.measure(self.echo, self.message, calls)
        self.kaasd_samples += kaasd
        self.echo_samples += echo
        echo_median = statistics.median(total for total, _ in echo)
        self.ratios.append(statistics.median(total for total, _ in kaasd) / echo_median)
        self.own_ratios.append(statistics.median(total - timing.run_ns for total, timing in kaasd) / echo_median)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return the figures, times in microseconds."""
        return {
            "kaasd_us": percentiles([total for total, _ in self.kaasd_samples]),
            "echo_us": percentiles([total for total, _ in self.echo_samples]),
            "stages_us": {stage: self._median_us(stage) for stage in STAGES},
            "ratio": spread(self.ratios),
            "own_ratio": spread(self.own_ratios),
        }

    def _median_us(self, stage: str) -> float:
        median_ns: float = statistics.median(getattr(timing, f"{stage}_ns") for _, timing in self.kaasd_samples)
        return round(median_ns / 1e3, 1)


def percentiles(durations_ns: Sequence[int]) -> dict[str, float]:
    """Return p50 and p99 in microseconds."""
    p50, p99 = np.percentile(durations_ns, [50, 99]) / 1e3
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Return the median and the 10th and 90th percentile."""
    low, median, high = np.percentile(ratios, [10, 50, 90])
    return {"p10": round(float(low), 3), "median": round(float(median), 3), "p90": round(float(high), 3)}


def register_functions(kaas: Client) -> None:
    """Register the dot product as ``dot`` (result in the reply alone) and ``dot-stored``, and put its second vector."""
    size = 4 * N
    kaas.put("b", np.arange(N, dtype=np.uint32))
    library = kaas.upload(Path(__file__).parent.parent / "examples/kernels/dot.ptx")
    for name, in_reply in (("dot", True), ("dot-stored", False)):
        product = Kernel(library, "prodKern", 1, N, [u64(N), inp("a", size), inp("b", size, constant=True), tmp("p", size)])
        total = Kernel(library, "sumKern", 1, N // 2, [inp("p"), out("c", 4, ephemeral=in_reply)])
        kaas.register(name, Request([product, total]))


async def run(daemon: str, echo: str, rounds: int, calls: int) -> dict[str, dict[str, dict[str, float]]]:
    """Measure every case in turns, ``rounds`` times ``calls``; return the summaries by case."""
    a = np.arange(N, dtype=np.uint32)[::-1].copy()
    bindings = {"a": Binding(value=a.tobytes())}
    message = InvokeRequest(function="dot", bindings=bindings, return_buffers=["c"])
    stored = InvokeRequest(function="dot-stored", bindings=bindings, return_buffers=["c"])
    in_stream = InvokeStreamRequest(id=1, invoke=message)

    async with grpc.aio.insecure_channel(daemon) as daemon_channel, grpc.aio.insecure_channel(echo) as echo_channel:
        stub = ExecutorServiceStub(daemon_channel)
        reply = await stub.Invoke(message)
        expected = np.sum(a * np.arange(N, dtype=np.uint32), dtype=np.uint32)
        np.testing.assert_array_equal(np.frombuffer(reply.outputs["c"], dtype=np.uint32), [expected])

        echo_unary = echo_channel.unary_unary(UNARY_METHOD, InvokeRequest.SerializeToString, InvokeResponse.FromString)
        echo_stream = echo_channel.stream_stream(
            STREAM_METHOD, InvokeStreamRequest.SerializeToString, InvokeStreamResponse.FromString
        )()
        stream = stub.InvokeStream()
        cases = [
            Case("unary", one_by_one, stub.Invoke, echo_unary, message),
            Case("stored", one_by_one, stub.Invoke, echo_unary, stored),
            Case("stream", ping_pong, stream, echo_stream, in_stream),
            Case("pipelined", pipelined, stream, echo_stream, in_stream),
        ]
        for case in cases:
            await case.warm_up(calls)
        for _ in range(rounds):
            for case in cases:
                await case.run_round(calls)
        for open_stream in (stream, echo_stream):
            await open_stream.done_writing()
        return {case.name: case.summary() for case in cases}


def machine() -> dict[str, str | int | None]:
    """Return what the figures depend on."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "grpc": grpc.__version__,
    }


def print_tables(console: Console, cases: dict[str, dict[str, dict[str, float]]]) -> None:
    """Print the figures for people."""
    latencies = Table("case", title="kaasd beside an empty echo, µs a request")
    for heading in ("kaasd p50", "p99", "echo p50", "p99", "ratio", "without run"):
        latencies.add_column(heading, justify="right")
    stages = Table("case", title="where the server's time goes, µs, p50")
    for stage in STAGES:
        stages.add_column(stage, justify="right")
    for name, case in cases.items():
        times = (*case["kaasd_us"].values(), *case["echo_us"].values())
        ratios = (f"{r['median']:.2f} ({r['p10']:.2f}-{r['p90']:.2f})" for r in (case["ratio"], case["own_ratio"]))
        latencies.add_row(name, *(f"{value:.0f}" for value in times), *ratios)
        stages.add_row(name, *(f"{value:.0f}" for value in case["stages_us"].values()))
    console.print(latencies, stages)


def main() -> None:
    """Measure, print, and write the figures as JSON."""
    parser = argparse.ArgumentParser(prog="make bench", description="Compare a warm request's latency with an empty gRPC echo's.")
    parser.add_argument("--device", default="emulator", help="emulator (default), cuda:N or auto")
    parser.add_argument("--rounds", type=int, default=20, help="how often the cases take turns; default %(default)s")
    parser.add_argument("--calls", type=int, default=200, help="calls of a block; default %(default)s")
    parser.add_argument("--output", type=Path, default=Path("build/benchmarks/echo.json"), help="default %(default)s")
    options = parser.parse_args()

    with local_daemon("--device", options.device, "--log-level", "WARNING") as daemon, echo_server() as echo:
        with Client(daemon) as kaas:
            register_functions(kaas)
            (device,) = kaas.devices()
        cases = uvloop.run(run(daemon, echo, options.rounds, options.calls))

    console = Console()
    print_tables(console, cases)
    console.print(
        f"device {device.name}: {device.model}; target: a ratio without kernels of at most {TARGET_RATIO}", highlight=False
    )
    report = {"machine": machine(), "device": device.model, "rounds": options.rounds, "calls": options.calls, "cases": cases}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"the figures: {options.output}", highlight=False)


if __name__ == "__main__":
    main()
