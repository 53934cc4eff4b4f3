"""numba-cuda, whose compiler needs no GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kaas_client.arguments import BufferSpec, Literal, Packed, TextureSpec
from kaas_client.kernels._compiled import CompileError, Image, LayoutError
from kaas_client.kernels._files import parameters_of, too_new
from kaas_client.kernels._numbers import letter_of, literal
from kaas_client.kernels._passing import Argument, EntryPoint, Passed, Plain, Situation
from kaas_core import ptx_entries
from kaas_core.errors import InvalidRequestError
from kaas_core.violations import shown

try:
    import numba_cuda
    from numba import cuda, types
    from numba.core import sigutils
    from numba.np import numpy_support
except ImportError as error:
    raise ImportError(f"kernels.numba needs numba-cuda: pip install 'kaasd[kernels-numba]' ({error})") from error

_BEFORE_SHAPE = ("meminfo", "parent", "nitems", "itemsize", "data")
"""What an array begins with, of which the first two are of its host alone."""


class NumbaSource:
    """A Python function with the Numba types of its parameters."""

    has_own_block = False

    def __init__(self, fn: Callable[..., Any], signature: Any) -> None:
        """Raises ``TypeError`` where a type cannot be passed."""
        self._fn = getattr(fn, "py_func", fn)
        self._types = tuple(sigutils.normalize_signature(signature)[0])
        names = self._fn.__code__.co_varnames[: self._fn.__code__.co_argcount]
        if len(names) != len(self._types):
            raise TypeError(f"{self._fn.__name__} takes {', '.join(names)}: the signature has {len(self._types)} types")
        self._names = names
        for name, kind in zip(names, self._types, strict=True):
            parts_of(name, kind)

    def key(self) -> Sequence[object]:
        code = self._fn.__code__
        closure = [cell.cell_contents for cell in self._fn.__closure__ or ()]
        return "numba", numba_cuda.__version__, code.co_code, code.co_consts, code.co_names, closure, id(self._fn), self._types

    def compile(self, target: str, ptx_version: int, entry: str) -> Image:
        """Raises ``CompileError``, ``LayoutError``."""
        name = self._fn.__name__
        number = "".join(filter(str.isdigit, target))
        capability = int(number[:-1]), int(number[-1])
        try:
            text, _ = cuda.compile(  # type: ignore[attr-defined]
                self._fn, self._types, device=False, abi="numba", cc=capability, abi_info={"abi_name": name}, output="ptx"
            )
        except Exception as error:  # of many kinds, its own and NVVM's
            raise CompileError(f"{name}: Numba: {type(error).__name__}: {error}") from error
        text = text.decode() if isinstance(text, bytes) else text
        header = ptx_entries.header_of(text)
        if ptx_version and header.version > ptx_version:
            raise CompileError(too_new(name, header.version, ptx_version))
        parts = [part for name, kind in zip(self._names, self._types, strict=True) for part in parts_of(name, kind)]
        declared = ptx_entries.entries_of([text]).get(name)
        parameters = None if declared is None else parameters_of(declared, [part.name for part in parts])
        if parameters is None or [each.size_bytes for each in parameters] != [part.size_bytes for part in parts]:
            raise LayoutError(f"{name}: numba-cuda {numba_cuda.__version__} has other parameters than are known")
        assert declared is not None
        point = EntryPoint(name, parameters, NumbaPassing(self._names, self._types), declared.required_block)
        version = f"numba-cuda {numba_cuda.__version__}"
        return Image(text.rstrip("\0").encode(), {name: point}, f"{name}.ptx", header.version, header.target, version)


@dataclass(frozen=True, slots=True)
class Part:
    """A parameter of the image."""

    name: str
    size_bytes: int


def parts_of(name: str, kind: Any) -> list[Part]:
    """Return what a parameter of this Numba type becomes. Raises ``TypeError`` where that is not known."""
    if isinstance(kind, types.Array):
        dimensions = range(kind.ndim)
        fields = (*_BEFORE_SHAPE, *(f"shape[{i}]" for i in dimensions), *(f"strides[{i}]" for i in dimensions))
        return [Part(f"{name}.{field}", 8) for field in fields]
    if isinstance(kind, types.Complex):
        return [Part(f"{name}.{field}", kind.bitwidth // 16) for field in ("real", "imag")]
    if isinstance(kind, types.Boolean):
        return [Part(name, 1)]
    if isinstance(kind, types.Integer | types.Float):
        return [Part(name, np.dtype(numpy_support.as_dtype(kind)).itemsize)]
    raise TypeError(
        f"parameter {name!r} has Numba's type {kind}; arrays, integers, floats, complex numbers and bool can be passed"
    )


class NumbaPassing(Plain):
    """An array is its address, sizes and strides, each a parameter; a complex number is two."""

    def __init__(self, names: Sequence[str], kinds: Sequence[Any]) -> None:
        self._names = names
        self._kinds = kinds

    def passed(self, arguments: Sequence[Argument], situation: Situation) -> list[Passed]:
        if len(arguments) != len(self._names):
            place = f"{situation.place}.arguments"
            raise InvalidRequestError.at(place, f"it takes {', '.join(self._names)}: {len(self._names)}, not {len(arguments)}")
        passed: list[Passed] = []
        for position, (kind, argument) in enumerate(zip(self._kinds, arguments, strict=True)):
            place = situation.argument(position)
            if isinstance(kind, types.Array):
                passed += _array(kind, argument, situation, position, place)
            elif isinstance(argument, BufferSpec | Packed | TextureSpec):
                raise TypeError(f"{place}: parameter {self._names[position]!r} is a number, not {argument!r:.60}")
            elif isinstance(kind, types.Complex):
                number: Any = argument.value if isinstance(argument, Literal) else argument
                letter = "f" if kind.bitwidth == 64 else "d"
                passed += [literal(letter, part, place) for part in (complex(number).real, complex(number).imag)]
            else:
                passed.append(literal(_letter(kind), argument, place))
        return passed


def _array(kind: Any, argument: Argument, situation: Situation, position: int, place: str) -> list[Passed]:
    if not isinstance(argument, BufferSpec):
        raise TypeError(f"{place}: an array is passed by inp(…), inout(…), out(…) or tmp(…), not as {argument!r:.60}")
    form = situation.form(argument, position)
    wanted = numpy_support.as_dtype(kind.dtype)
    is_ordered = kind.layout == "A" or len(form.shape) < 2 or (kind.layout == "F") == form.fortran_order
    if form.dtype != wanted or len(form.shape) != kind.ndim or not is_ordered:
        has = f"{form.dtype} of shape {list(form.shape)}" + (" in Fortran's order" if form.fortran_order else "")
        raise InvalidRequestError.at(place, f"it takes {kind}, and buffer {shown(argument.name)} is {has}")
    items = int(np.prod(form.shape, dtype=np.int64))
    before: list[Passed] = [Literal("Q", 0), Literal("Q", 0), Literal("Q", items), Literal("Q", form.dtype.itemsize), argument]
    return [*before, *(Literal("q", number) for number in (*form.shape, *form.strides))]


def _letter(kind: Any) -> str:
    """Return the letter of Python's ``struct`` of a number's type."""
    return "?" if isinstance(kind, types.Boolean) else letter_of(np.dtype(numpy_support.as_dtype(kind)))
