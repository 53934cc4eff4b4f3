"""A gRPC server of the same make as kaasd's around any function: the frame of the servers that kaasd is measured against.

It has one unary and one streaming method, which take and return the messages of an invocation.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import uvloop

from examples.local_daemon import server_process
from kaas.v1.executor_pb2 import InvokeRequest, InvokeResponse, InvokeStreamRequest, InvokeStreamResponse
from kaasd.api import grpc_experiments

SERVICE = "kaas.benchmarks.Alternative"
UNARY_METHOD = f"/{SERVICE}/Unary"
STREAM_METHOD = f"/{SERVICE}/Stream"

MAX_MESSAGE_BYTES = 16 << 20
"""As kaasd has it."""
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]

Answer = Callable[[InvokeRequest], InvokeResponse]


@contextmanager
def alternative_server(module: str) -> Iterator[str]:
    """Run the server of a module in a process of its own for the time of a ``with`` block; yield its address."""
    with tempfile.TemporaryDirectory(prefix="kaasd-bench-") as directory:
        address = f"unix:{directory}/server.sock"
        with server_process([sys.executable, "-m", module, address], {"GRPC_EXPERIMENTS": grpc_experiments()}):
            yield address


def serve(answer: Answer) -> None:
    """Serve on the address of the command line until SIGTERM."""
    uvloop.run(_serve(sys.argv[1], answer))


async def _serve(address: str, answer: Answer) -> None:
    async def unary(request: InvokeRequest, context: Any) -> InvokeResponse:
        return answer(request)

    async def stream(requests: AsyncIterator[InvokeStreamRequest], context: Any) -> AsyncIterator[InvokeStreamResponse]:
        async for request in requests:
            yield InvokeStreamResponse(id=request.id, response=answer(request.invoke))

    methods = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary, InvokeRequest.FromString, InvokeResponse.SerializeToString),
        "Stream": grpc.stream_stream_rpc_method_handler(
            stream, InvokeStreamRequest.FromString, InvokeStreamResponse.SerializeToString
        ),
    }
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
    server.add_insecure_port(address)
    await server.start()
    print(f"listening on {address}", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(grace=None)
