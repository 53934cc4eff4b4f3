"""The dot product as one would write it with CuPy: vector ``b`` and the kernels are on the device, ``a`` comes with the call."""

from __future__ import annotations

import cupy
import numpy as np

from benchmarks.problems import DOT_N, DOT_PTX, dot_vectors


class CupyDot:
    """The kernels of kaasd's dot request, on memory that CuPy holds."""

    def __init__(self) -> None:
        module = cupy.RawModule(path=str(DOT_PTX))
        self._product = module.get_function("prodKern")
        self._sum = module.get_function("sumKern")
        _, b = dot_vectors()
        self._b = cupy.asarray(b)
        self._p = cupy.empty(DOT_N, dtype=cupy.uint32)
        self._c = cupy.empty(1, dtype=cupy.uint32)

    def __call__(self, a: bytes) -> bytes:
        """Return the dot product of ``a`` and ``b`` as its four bytes."""
        a_device = cupy.asarray(np.frombuffer(a, dtype=np.uint32))
        self._product((1,), (DOT_N,), (np.uint64(DOT_N), a_device, self._b, self._p))
        self._sum((1,), (DOT_N // 2,), (self._p, self._c))
        result: bytes = self._c.get().tobytes()
        return result
