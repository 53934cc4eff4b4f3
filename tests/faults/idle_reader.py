"""A client that makes calls with large replies: ``python -m tests.faults.idle_reader ADDRESS CALLS``. It waits to be stopped.

Each call has a connection of its own. It prints a line when all were sent, and in the end how each of them went.
"""

from __future__ import annotations

import sys

import grpc

from kaas.v1 import executor_pb2, executor_pb2_grpc

FUNCTION, OUTPUT = "large", "out"
"""A function that is there, and its output."""


def main(address: str, count: int) -> None:
    """Make all calls."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    channels = [grpc.insecure_channel(address, options) for _ in range(count)]
    for channel in channels:
        grpc.channel_ready_future(channel).result()
    request = executor_pb2.InvokeRequest(function=FUNCTION, return_buffers=[OUTPUT])
    calls = [executor_pb2_grpc.ExecutorServiceStub(channel).Invoke.future(request, timeout=600) for channel in channels]
    print("sent", flush=True)
    for call in calls:
        print(len(call.result().outputs[OUTPUT]) if call.exception() is None else call.code().name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
