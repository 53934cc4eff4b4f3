"""An empty echo: answers every invocation with a ready-made reply of the usual size, so that all it spends is gRPC's."""

from __future__ import annotations

from benchmarks.alternatives.server import serve
from kaas.v1.executor_pb2 import InvokeRequest, InvokeResponse
from kaas.v1.types_pb2 import Timing

REPLY = InvokeResponse(
    outputs={"c": bytes(4)},
    device="emulator",
    timing=Timing(queue_ns=10_000, plan_ns=1_000, load_ns=10_000, run_ns=10_000, commit_ns=10_000, total_ns=200_000),
)


def answer(request: InvokeRequest) -> InvokeResponse:
    """Answer one call."""
    return REPLY


if __name__ == "__main__":
    serve(answer)
