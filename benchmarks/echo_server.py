"""An empty gRPC echo on a server of the same make as kaasd's: the yardstick of ``benchmarks.echo``.

It takes the messages of an invocation and answers each with a ready-made reply of the usual size, so that all it spends is
gRPC's and protobuf's.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import uvloop

from examples.local_daemon import server_process
from kaas.v1.executor_pb2 import InvokeRequest, InvokeResponse, InvokeStreamRequest, InvokeStreamResponse
from kaas.v1.types_pb2 import Timing

SERVICE = "kaas.benchmarks.Echo"
UNARY_METHOD = f"/{SERVICE}/Unary"
STREAM_METHOD = f"/{SERVICE}/Stream"

REPLY = InvokeResponse(
    outputs={"c": bytes(4)},
    device="emulator",
    timing=Timing(queue_ns=10_000, plan_ns=1_000, load_ns=10_000, run_ns=10_000, commit_ns=10_000, total_ns=200_000),
)


@contextmanager
def echo_server() -> Iterator[str]:
    """Run the server in a process of its own for the time of a ``with`` block; yield its address."""
    with tempfile.TemporaryDirectory(prefix="kaasd-echo-") as directory:
        address = f"unix:{directory}/echo.sock"
        with server_process([sys.executable, "-m", __name__, address], {}):
            yield address


async def answer(request: InvokeRequest, context: Any) -> InvokeResponse:
    """Answer one call."""
    return REPLY


async def answer_stream(requests: AsyncIterator[InvokeStreamRequest], context: Any) -> AsyncIterator[InvokeStreamResponse]:
    """Answer every message of a stream."""
    async for request in requests:
        yield InvokeStreamResponse(id=request.id, response=REPLY)


async def serve(address: str) -> None:
    """Serve until SIGTERM."""
    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(answer, InvokeRequest.FromString, InvokeResponse.SerializeToString),
        "Stream": grpc.stream_stream_rpc_method_handler(
            answer_stream, InvokeStreamRequest.FromString, InvokeStreamResponse.SerializeToString
        ),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    server.add_insecure_port(address)
    await server.start()
    print(f"listening on {address}", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(grace=None)


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
