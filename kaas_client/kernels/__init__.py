"""Kernels of any compiler: each function here gives a ``Compiled``, whose launches ``Client.bind`` turns into a function.

    saxpy = kernels.cuda("saxpy.cu")["saxpy"]
    f = kaas.bind(saxpy[grid, block](f32(2.0), inp("x"), inout("y"), u64(n)))
    y = f(x=x, y=y)["y"]

Compilers are imported when they are first used; each is an extra of its own, such as ``kaasd[kernels-cuda]``. None needs a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kaas_client.kernels._compiled import Compiled, CompileError, Launch, LayoutError
from kaas_client.kernels._passing import Parameter

__all__ = [
    "CompileError",
    "Compiled",
    "Launch",
    "LayoutError",
    "Parameter",
    "cuda",
    "cupy",
    "cute",
    "fatbin",
    "numba",
    "ptx",
    "triton",
    "warp",
]


def cuda(
    path: str | os.PathLike[str] | None = None,
    *,
    source: str | None = None,
    options: Sequence[str] = (),
    name_expressions: Iterable[str] = (),
) -> Compiled:
    """Return CUDA C++, of a file or a text, compiled by NVRTC: ``kernels.cuda("saxpy.cu")["saxpy"]``.

    What stands in square brackets is a kernel's name in the source, or a template with its arguments, as ``"scale<float>"``;
    those in ``name_expressions`` are compiled together. ``options`` are NVRTC's, such as ``-I`` and ``-D``. A file's own folder
    is searched for what it includes. Raises ``TypeError`` where not one of both is given, ``OSError``.
    """
    from kaas_client.kernels._cuda import CudaSource

    if (path is None) == (source is None):
        raise TypeError("cuda(…) takes a path or source=…, one of them")
    if path is None:
        assert source is not None
        return Compiled(CudaSource(source, "source.cu", None, tuple(options), tuple(name_expressions)))
    file = Path(path).absolute()
    text = file.read_text(encoding="utf-8")
    return Compiled(CudaSource(text, file.name, str(file.parent), tuple(options), tuple(name_expressions)))


def cupy(raw_kernel: Any) -> Compiled:
    """Return the kernel of a ``cupy.RawKernel``, compiled by NVRTC from its source: it need not have been compiled by CuPy."""
    from kaas_client.kernels._cuda import CudaSource

    name = str(raw_kernel.name)
    return Compiled(CudaSource(raw_kernel.code, f"{name}.cu", None, tuple(raw_kernel.options), ()), name)


def ptx(path: str | os.PathLike[str]) -> Compiled:
    """Return the kernels of a file of PTX. Raises ``OSError``, ``CompileError`` where it is none."""
    from kaas_client.kernels._files import PtxFile

    return Compiled(PtxFile(path))


def fatbin(path: str | os.PathLike[str]) -> Compiled:
    """Return the kernels of a fatbin or a cubin, whose parameters are checked by the server alone. Raises ``OSError``."""
    from kaas_client.kernels._files import FatbinFile

    return Compiled(FatbinFile(path))


def triton(
    fn: Callable[..., Any], signature: Mapping[str, str], constants: Mapping[str, Any] | None = None, **options: Any
) -> Compiled:
    """Return a Triton kernel: ``kernels.triton(add, {"x": "*fp32", "n": "i32"}, {"BLOCK": 256}, num_warps=4)``.

    ``signature`` has Triton's type of each parameter that is no ``constexpr``: ``*fp32`` is an address. With ``:16`` behind it, a
    number is promised to be divisible by 16, which is checked; addresses are by themselves. ``options`` are Triton's, such as
    ``num_warps`` and ``num_stages``. The block is Triton's own, so that ``add[grid]`` is enough. Raises ``TypeError`` for a
    parameter or an option that there is not.
    """
    from kaas_client.kernels._triton import TritonSource

    return Compiled(TritonSource(fn, signature, constants or {}, options))


def numba(fn: Callable[..., Any], signature: Any) -> Compiled:
    """Return a kernel of numba-cuda: a Python function and the Numba types of its parameters, or these as a text.

    Arrays are passed by ``inp``, ``inout`` and ``out`` with their dtype and shape, or as the call's arrays have them.
    """
    from kaas_client.kernels._numba import NumbaSource

    return Compiled(NumbaSource(fn, signature))


def warp(kernel: Any) -> Compiled:
    """Return a kernel of Warp. ``kernel[dim]``, as ``kernel[64, 32]`` or ``kernel[(64, 32), 128]`` with a block, is Warp's."""
    from kaas_client.kernels._warp import WarpSource

    return Compiled(WarpSource(kernel))


def cute(host: Callable[..., Any], *example: Any) -> Compiled:
    """Return the kernel that a function with ``@cute.jit`` launches: ``kernels.cute(host, Float32(1), tensor, tensor)``.

    ``example`` has an argument of ``host`` each: a number, ``make_fake_tensor(…)`` or ``make_fake_compact_tensor(…)``, whose
    sizes are fixed or ``cute.sym_int()``, ``make_ptr(…)``, ``make_fake_stream()``, and constants of ``cutlass.Constexpr``. The
    launch ``compiled(2.0, inp("x"), inout("y"))`` takes the numbers, and a buffer for each tensor and pointer. Grid, block,
    cluster, shared memory and what the kernel gets are as ``host`` says; what was compiled of it runs in this process, for each
    combination of shapes. Raises ``TypeError`` where the example does not fit the function.
    """
    from kaas_client.kernels._cute import CuteSource

    return Compiled(CuteSource(host, example))
