"""A hand-written gRPC server around the dot product with CuPy: what one would deploy without kaasd."""

from __future__ import annotations

from benchmarks.alternatives.cupy_dot import CupyDot
from benchmarks.alternatives.server import serve
from kaas.v1.executor_pb2 import InvokeRequest, InvokeResponse


def main() -> None:
    """Serve dot products."""
    dot = CupyDot()

    def answer(request: InvokeRequest) -> InvokeResponse:
        return InvokeResponse(outputs={"c": dot(request.bindings["a"].value)})

    serve(answer)


if __name__ == "__main__":
    main()
