"""A process that calls a function at a given rate, whatever becomes of the calls before."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import grpc
import uvloop

from benchmarks.crew import orders, report
from kaas.v1.executor_pb2 import InvokeRequest
from kaas.v1.executor_pb2_grpc import ExecutorServiceStub

TIMEOUT_S = 60
CHANNELS = 8


async def flood(order: dict[str, Any]) -> dict[str, Any]:
    """Call ``rate`` times a second; report how each call ended, and how long the ones took that were answered."""
    request, interval = InvokeRequest(function=order["function"]), 1 / order["rate"]
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(order["address"], options) for _ in range(CHANNELS)]
    for channel in channels:
        await channel.channel_ready()
    stubs = [ExecutorServiceStub(channel) for channel in channels]
    codes: Counter[str] = Counter()
    answered: list[float] = []
    refused: list[float] = []
    begin = time.perf_counter()
    end = begin + order["seconds"]
    in_time = 0

    async def call(stub: Any, due: float) -> None:
        nonlocal in_time
        try:
            await stub.Invoke(request, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            codes[error.code().name] += 1
            refused.append(time.perf_counter() - due)
        else:
            codes["OK"] += 1
            now = time.perf_counter()
            answered.append(now - due)
            in_time += now <= end

    calls = []
    due, number = begin, 0
    while due < end:
        if (wait_s := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        calls.append(asyncio.create_task(call(stubs[number % CHANNELS], due)))
        number += 1
        due = begin + number * interval
    offered_s = time.perf_counter() - begin
    await asyncio.gather(*calls)
    for channel in channels:
        await channel.close()
    return {"codes": codes, "answered": answered, "refused": refused, "in_time": in_time, "rate": number / offered_s}


def main() -> None:
    """Follow orders."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report(ready=True)
        for order in orders():
            report(**runner.run(flood(order)))


if __name__ == "__main__":
    main()
