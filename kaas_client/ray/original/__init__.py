"""Runs programs that were written for the original KaaS (github.com/NathanTP/kaas): ``import kaas_client.ray.original as kaas``.

Its modules are here under their names, with what programs use of them. The executors, the engine and the scheduler are ours;
docs/ray-original.md says what differs.
"""

from kaas_client.ray.original import local, pool, profiling, ray
from kaas_client.ray.original.specs import (
    KaasError,
    bufferSpec,
    builtins,
    denseBuf,
    denseKern,
    denseLiteral,
    kaasReq,
    kaasReqDense,
    kernelSpec,
    literalSpec,
)

__all__ = [
    "KaasError", "bufferSpec", "builtins", "denseBuf", "denseKern", "denseLiteral", "kaasReq", "kaasReqDense", "kernelSpec",
    "literalSpec", "local", "pool", "profiling", "ray",
]  # fmt: skip
