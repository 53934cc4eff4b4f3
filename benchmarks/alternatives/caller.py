"""A process with several callers of a server, each with a connection and a message of its own, that call without a pause."""

from __future__ import annotations

import asyncio
import base64
import time
from typing import Any

import grpc
import uvloop

from benchmarks.crew import orders, report
from kaas.v1.executor_pb2 import InvokeRequest, InvokeResponse

TIMEOUT_S = 60


class Callers:
    """Connections to servers, kept open from one order to the next."""

    def __init__(self) -> None:
        self._channels: dict[tuple[str, int], grpc.aio.Channel] = {}

    async def call(self, order: dict[str, Any]) -> dict[str, Any]:
        """Call until the order's time is over; report how many calls were answered and how long it took."""
        messages = [InvokeRequest.FromString(base64.b64decode(message)) for message in order["messages"]]
        methods = [self._method(order["address"], i, order["method"]) for i in range(len(messages))]
        start = time.perf_counter()
        end = start + order["seconds"]

        async def caller(method: Any, message: InvokeRequest) -> int:
            calls = 0
            while time.perf_counter() < end:
                await method(message, timeout=TIMEOUT_S)
                calls += 1
            return calls

        calls = sum(await asyncio.gather(*map(caller, methods, messages)))
        return {"calls": calls, "seconds": time.perf_counter() - start}

    def _method(self, address: str, number: int, method: str) -> Any:
        key = (address, number)
        if key not in self._channels:
            # Channels to one address share a connection unless they are told not to.
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._channels[key] = grpc.aio.insecure_channel(address, options)
        return self._channels[key].unary_unary(method, InvokeRequest.SerializeToString, InvokeResponse.FromString)


def main() -> None:
    """Follow orders."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        callers = Callers()
        report(ready=True)
        for order in orders():
            report(**runner.run(callers.call(order)))


if __name__ == "__main__":
    main()
