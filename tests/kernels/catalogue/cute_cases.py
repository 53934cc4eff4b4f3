"""CuTe DSL, in the manner of its documentation's examples."""

from __future__ import annotations

import cutlass
import numpy as np
from cutlass.cute import runtime

from kaas_client import inout, inp, out
from kaas_client.kernels import cute
from tests.kernels import cute_kernels
from tests.kernels.catalogue import Case, Shows, shows


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@shows(Shows.VIEWS, Shows.STRUCTS)
def saxpy() -> Case:
    """A tensor whose length is known at the call only: a struct by value."""
    x, y = rng(1).random((2, 700), np.float32)
    kernel = cute(cute_kernels.saxpy, 1.0, cute_kernels.vector(), cute_kernels.vector())
    return Case(kernel(2.0, inp("x"), inout("y")), {"x": x, "y": y}, {"y": 2 * x + y}, 1e-7)


@shows(Shows.VIEWS, Shows.STRUCTS)
def transpose() -> Case:
    x = rng(2).random((30, 40), np.float32)
    kernel = cute(cute_kernels.transpose, cute_kernels.matrix(), cute_kernels.matrix())
    return Case(kernel(inp("x"), out("y", dtype="f4", shape=(40, 30))), {"x": x}, {"y": np.ascontiguousarray(x.T)})


@shows(Shows.POINTERS, Shows.DYNAMIC)
def reverse() -> Case:
    """Tensors of a length that the compiler knows: their addresses alone are passed."""
    x = np.arange(64, dtype=np.int32)
    fixed = runtime.make_fake_compact_tensor(cutlass.Int32, (64,), assumed_align=16)
    kernel = cute(cute_kernels.reverse, fixed, fixed, 64, runtime.make_fake_stream())
    return Case(kernel(inp("x"), out("y", dtype="i4", shape=64)), {"x": x}, {"y": x[::-1].copy()})


@shows(Shows.VIEWS, Shows.STRUCTS, Shows.CLUSTER)
def clusters() -> Case:
    x, y = rng(3).random((2, 200), np.float32)
    kernel = cute(cute_kernels.clustered, cute_kernels.vector(), cute_kernels.vector(), 1).compile(target="sm_90")
    return Case(kernel(inp("x"), inout("y"), 200), {"x": x, "y": y}, {"y": x + y})
