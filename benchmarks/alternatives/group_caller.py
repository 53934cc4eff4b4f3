"""A process with callers of groups: each keeps requests in flight, compares every answer, and reports when each was given."""

from __future__ import annotations

import asyncio
import base64
import random
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import grpc
import uvloop

from benchmarks.crew import orders, report
from kaas.v1.executor_pb2 import InvokeRequest, InvokeResponse, Placement
from kaas.v1.executor_pb2_grpc import ExecutorServiceStub
from kaas.v1.trace_pb2 import SPAN_KIND_COPY_TO_DEVICE

TIMEOUT_S = 60
BEGINNING = 0.1
"""Of an order's time, in which not all are busy yet."""


class WrongAnswer(Exception):
    """What came back is not what was to come back."""


class Callers:
    """Connections to servers, kept open from one order to the next."""

    def __init__(self) -> None:
        self._stubs: dict[tuple[str, str], Any] = {}

    async def call(self, order: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Let all loads of an order call until its time is over; report each."""
        begin = time.monotonic()
        since, end = begin + BEGINNING * order["seconds"], begin + order["seconds"]
        found = await asyncio.gather(*(self._load(load, end) for load in order["loads"]))
        return [{**each, "since": since, "until": end} for each in found]

    async def _load(self, load: Mapping[str, Any], end: float) -> dict[str, Any]:
        message = InvokeRequest.FromString(base64.b64decode(load["message"]))
        expected = {name: base64.b64decode(value) for name, value in load["expected"].items()}
        begun: list[float] = []
        answered: list[float] = []
        ran_s: list[float] = []
        placements: Counter[str] = Counter()
        devices: Counter[str] = Counter()
        brought: Counter[str] = Counter()
        draw = random.Random(load["connection"])

        async def caller(stub: Any) -> None:
            while True:
                if load["pause_s"]:
                    await asyncio.sleep(draw.uniform(0, 2 * load["pause_s"]))
                begin = time.monotonic()
                if begin >= end:
                    return
                reply: InvokeResponse = await stub.Invoke(message, timeout=TIMEOUT_S)
                answered.append(time.monotonic())
                begun.append(begin)
                ran_s.append(reply.timing.run_ns / 1e9)
                for name, value in expected.items():
                    if reply.outputs[name] != value:
                        raise WrongAnswer(f"{message.function} of group {message.group}: {name} is not as expected")
                placements[Placement.Name(reply.placement).removeprefix("PLACEMENT_").lower()] += 1
                devices[reply.device] += 1
                for span in reply.trace.spans:
                    if span.kind == SPAN_KIND_COPY_TO_DEVICE:
                        brought[span.name] += 1

        stubs = [self._stub(load["address"], f"{load['connection']}/{number}") for number in range(load["connections"])]
        await asyncio.gather(*(caller(stub) for stub in stubs for _ in range(load["outstanding"])))
        counts = {"placements": placements, "devices": devices, "brought": brought}
        return {"begun": begun, "answered": answered, "ran_s": ran_s, **counts}

    def _stub(self, address: str, connection: str) -> Any:
        key = (address, connection)
        if key not in self._stubs:
            # Channels to one address share a connection unless they are told not to.
            channel = grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])
            self._stubs[key] = ExecutorServiceStub(channel)
        return self._stubs[key]


def main() -> None:
    """Follow orders."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        callers = Callers()
        report(ready=True)
        for order in orders():
            report(loads=runner.run(callers.call(order)))


if __name__ == "__main__":
    main()
