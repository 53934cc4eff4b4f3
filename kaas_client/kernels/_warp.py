"""NVIDIA Warp, whose compiler needs no GPU."""

from __future__ import annotations

import ast
import ctypes
import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kaas_client.arguments import BufferSpec, Literal, Packed, Size, TextureSpec, packed
from kaas_client.kernels._compiled import CompileError, Image, LayoutError
from kaas_client.kernels._files import parameters_of, too_new
from kaas_client.kernels._numbers import letter_of, literal
from kaas_client.kernels._passing import Argument, EntryPoint, Passed, Situation, dim3, whole_numbers
from kaas_core import ptx_entries
from kaas_core.errors import InvalidRequestError
from kaas_core.request import Dim3
from kaas_core.violations import shown

try:
    import warp as _warp
except ImportError as error:
    raise ImportError(f"kernels.warp needs Warp: pip install 'kaasd[kernels-warp]' ({error})") from error

BLOCK = 256
"""Threads of a block where the launch does not say: Warp's own number."""
_MOST_DIMENSIONS = 4


class ArrayStruct(ctypes.Structure):
    """Warp's ``array_t``."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("grad", ctypes.c_uint64),
        ("shape", ctypes.c_int32 * _MOST_DIMENSIONS),
        ("strides", ctypes.c_int32 * _MOST_DIMENSIONS),
        ("ndim", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
    )


def bounds(rank: int, dim: Sequence[int]) -> ctypes.Structure:
    """Return Warp's ``launch_bounds_t`` of a kernel that asks for its thread's place in ``rank`` dimensions."""

    class LaunchBounds(ctypes.Structure):
        _fields_ = (("shape", ctypes.c_uint32 * rank), ("size", ctypes.c_uint64), ("coord_mult", ctypes.c_uint64))

    made = LaunchBounds(size=math.prod(dim), coord_mult=1)
    made.shape[: len(dim)] = dim
    made.shape[len(dim) :] = [1] * (rank - len(dim))
    return made


class WarpSource:
    """A kernel of Warp, with the module that it is part of."""

    has_own_block = True

    def __init__(self, kernel: Any) -> None:
        """Raises ``TypeError`` for what is none."""
        if not isinstance(kernel, _warp.Kernel):
            raise TypeError(f"warp(…) takes a function with @wp.kernel, not {kernel!r:.60}")
        self._kernel = kernel

    def key(self) -> Sequence[object]:
        return "warp", _warp.__version__, self._kernel.module.name, self._kernel.module.hash_module().hex(), self._kernel.key

    def compile(self, target: str, ptx_version: int, entry: str) -> Image:
        """Raises ``CompileError``, ``LayoutError``."""
        kernel = self._kernel
        architecture = int("".join(filter(str.isdigit, target)))
        with tempfile.TemporaryDirectory(prefix="kaas-warp-") as folder:
            try:
                files = _warp.compile_aot_module(
                    kernel.module, arch=architecture, module_dir=folder, use_ptx=True, strip_hash=True
                )
            except Exception as error:  # of many kinds, its own and NVRTC's
                raise CompileError(f"{kernel.key}: Warp: {type(error).__name__}: {error}") from error
            text = next(Path(each) for each in files if str(each).endswith(".ptx")).read_bytes().rstrip(b"\0").decode()
            facts = json.loads(next(Path(folder).glob("*.meta")).read_text())
        header = ptx_entries.header_of(text)
        if ptx_version and header.version > ptx_version:
            raise CompileError(too_new(kernel.key, header.version, ptx_version))
        name = f"{kernel.key}_cuda_kernel_forward"
        declared = ptx_entries.entries_of([text]).get(name)
        passing = WarpPassing(kernel)
        parameters = None if declared is None else parameters_of(declared, ("dim", *passing.names))
        if parameters is None or [each.size_bytes for each in parameters] != passing.sizes_bytes():
            raise LayoutError(f"{kernel.key}: Warp {_warp.__version__} has other parameters than are known")
        point = EntryPoint(name, parameters, passing, None, int(facts.get(f"{name}_smem_bytes", 0)))
        version = f"Warp {_warp.__version__}"
        return Image(text.encode(), {kernel.key: point}, f"{kernel.key}.ptx", header.version, header.target, version)


class WarpPassing:
    """The launch's bounds, then a struct for each array, and numbers and vectors by value."""

    def __init__(self, kernel: Any) -> None:
        self._rank = max(1, int(kernel.adj.kernel_dim))
        self._kinds = {each.label: each.type for each in kernel.adj.args}
        self._key = kernel.key
        self._own_block = int(kernel.module.options["block_dim"]) if _is_of_one_block(kernel) else None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the kernel's parameters."""
        return tuple(self._kinds)

    def sizes_bytes(self) -> list[int]:
        """Return the size of each parameter of the image."""
        return [ctypes.sizeof(bounds(self._rank, [1])), *map(_size_bytes, self._kinds.values())]

    def sizes(self, grid: Size, block: Size | None, entry: EntryPoint, place: str) -> tuple[Dim3, Dim3]:
        dim = whole_numbers(grid, f"{place}.grid")
        if not 1 <= len(dim) <= self._rank:
            words = f"Warp's dim of this kernel has at most {self._rank} numbers, not {len(dim)}"
            raise InvalidRequestError.at(f"{place}.grid", words)
        threads = dim3((self._own_block or BLOCK) if block is None else block, f"{place}.block")
        if self._own_block and threads != (self._own_block, 1, 1):
            words = f"Warp compiles tiles for one size of block, here {self._own_block}: wp.set_module_options sets block_dim"
            raise InvalidRequestError.at(f"{place}.block", words)
        return (max(1, -(-math.prod(dim) // math.prod(threads))), 1, 1), threads

    def passed(self, arguments: Sequence[Argument], situation: Situation) -> list[Passed]:
        if len(arguments) != len(self._kinds):
            place = f"{situation.place}.arguments"
            raise InvalidRequestError.at(place, f"it takes {', '.join(self._kinds)}: {len(self._kinds)}, not {len(arguments)}")
        passed: list[Passed] = [packed(bounds(self._rank, situation.dim))]
        for position, (kind, argument) in enumerate(zip(self._kinds.values(), arguments, strict=True)):
            place = situation.argument(position)
            if isinstance(kind, _warp.array):
                passed.append(_array(kind, argument, situation, position, place))
            elif isinstance(argument, BufferSpec | Packed | TextureSpec):
                raise TypeError(f"{place}: it takes {_warp.types.type_repr(kind)}, not {argument!r:.60}")
            elif _is_vector(kind):
                value = argument if isinstance(argument, kind) else kind(*_values(argument, place))
                passed.append(packed(bytes(value)))
            else:
                passed.append(literal(_letter(kind), argument, place))
        return passed


def _array(kind: Any, argument: Argument, situation: Situation, position: int, place: str) -> Packed:
    if not isinstance(argument, BufferSpec):
        raise TypeError(f"{place}: an array is passed by inp(…), inout(…), out(…) or tmp(…), not as {argument!r:.60}")
    form = situation.form(argument, position)
    scalar = _warp.dtype_to_numpy(getattr(kind.dtype, "_wp_scalar_type_", kind.dtype))
    inner = tuple(getattr(kind.dtype, "_shape_", ()))
    rank = len(form.shape) - len(inner)
    if form.dtype != scalar or rank != kind.ndim or form.shape[rank:] != inner or form.fortran_order:
        has = f"{form.dtype} of shape {list(form.shape)}" + (" in Fortran's order" if form.fortran_order else "")
        takes = f"{kind.ndim} dimensions of {_warp.types.type_repr(kind.dtype)}"
        raise InvalidRequestError.at(place, f"it takes an array of {takes}, and buffer {shown(argument.name)} is {has}")
    made = ArrayStruct(ndim=kind.ndim)
    made.shape[: kind.ndim] = form.shape[: kind.ndim]
    made.strides[: kind.ndim] = form.strides[: kind.ndim]
    return packed(made, {"data": argument})


def _values(argument: Argument, place: str) -> tuple[Any, ...]:
    if isinstance(argument, Literal) or not hasattr(argument, "__iter__"):
        raise TypeError(f"{place}: a vector takes its numbers, not {argument!r:.60}")
    return tuple(argument)


def _is_vector(kind: Any) -> bool:
    """Return whether a type is one of Warp's vectors, matrices, quaternions or transformations."""
    return isinstance(kind, type) and issubclass(kind, ctypes.Array)


def _is_of_one_block(kernel: Any) -> bool:
    """Return whether a kernel, or a function that it calls, has code that is compiled for one size of block: that of tiles."""
    seen, left = set(), [kernel]
    while left:
        each = left.pop()
        if id(each) in seen or getattr(each, "adj", None) is None:
            continue
        seen.add(id(each))
        for node in ast.walk(each.adj.tree):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            if name.startswith("tile") or name in ("block_dim", "untile") or "_query_" in name:
                return True
        left += each.adj.get_references()[2]
    return False


def _size_bytes(kind: Any) -> int:
    if isinstance(kind, _warp.array):
        return ctypes.sizeof(ArrayStruct)
    if _is_vector(kind):
        return ctypes.sizeof(kind)
    return int(_warp.types.type_size_in_bytes(kind))


def _letter(kind: Any) -> str:
    own = {int: "i", float: "f", bool: "?"}.get(kind)
    return own or letter_of(np.dtype(_warp.dtype_to_numpy(kind)))
