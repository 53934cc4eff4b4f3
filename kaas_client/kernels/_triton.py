"""Triton, whose compiler needs no GPU."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kaas_client.arguments import BufferSpec, Literal, Packed, Size, TextureSpec, tmp
from kaas_client.kernels._compiled import CompileError, Image, LayoutError
from kaas_client.kernels._files import parameters_of, too_new
from kaas_client.kernels._numbers import literal
from kaas_client.kernels._passing import Argument, EntryPoint, Passed, Situation, dim3
from kaas_core import ptx_entries
from kaas_core.errors import InvalidRequestError
from kaas_core.request import Dim3

try:
    import triton as _triton
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDAOptions
    from triton.compiler import ASTSource
except ImportError as error:
    raise ImportError(f"kernels.triton needs Triton: pip install 'kaasd[kernels-triton]' ({error})") from error

SCRATCH = 2
"""Addresses that the compiler adds behind the parameters: of memory for all programs, and of a profiler's."""
PROMISED = 16
"""What addresses and numbers with ``:16`` are multiples of."""
_LETTERS = {
    "i1": "?", "i8": "b", "u8": "B", "i16": "h", "u16": "H", "i32": "i", "u32": "I", "i64": "q", "u64": "Q",
    "fp16": "e", "fp32": "f", "f32": "f", "fp64": "d", "f64": "d",
}  # fmt: skip


class TritonSource:
    """A Triton kernel with the types of its parameters."""

    has_own_block = True

    def __init__(
        self, fn: Callable[..., Any], signature: Mapping[str, str], constants: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        """Raises ``TypeError`` for a parameter that is missing or unknown, and for an unknown option."""
        self._fn: Any = fn if isinstance(fn, _triton.runtime.JITFunction) else _triton.jit(fn)
        names = list(inspect.signature(self._fn.fn).parameters)
        if unknown := [name for name in (*signature, *constants) if name not in names]:
            raise TypeError(f"{self._fn.__name__} has no parameter {unknown[0]!r}; it has {', '.join(names)}")
        if missing := [name for name in names if name not in signature and name not in constants]:
            raise TypeError(f"{self._fn.__name__}: {missing[0]!r} has no type in the signature, and no value in constants")
        known = {field.name for field in dataclasses.fields(CUDAOptions)}
        if unknown := [name for name in options if name not in known]:
            raise TypeError(f"Triton has no option {unknown[0]!r}")
        self._types = {name: signature[name].partition(":")[0] for name in names if name not in constants}
        self._divisible = {
            name for name, kind in self._types.items() if kind[0] == "*" or signature[name].endswith(f":{PROMISED}")
        }
        self._names = names
        self._constants = dict(constants)
        self._options = dict(options)

    def key(self) -> Sequence[object]:
        return (
            "triton",
            _triton.__version__,
            self._fn.cache_key,
            self._types,
            sorted(self._divisible),
            self._constants,
            self._options,
        )

    def compile(self, target: str, ptx_version: int, entry: str) -> Image:
        """Raises ``CompileError``, ``LayoutError``."""
        name = self._fn.__name__
        signature = {each: self._types.get(each, "constexpr") for each in self._names}
        attributes = {
            (place,): [["tt.divisibility", PROMISED]] for place, each in enumerate(self._names) if each in self._divisible
        }
        architecture = int("".join(filter(str.isdigit, target)))

        def made(**options: Any) -> Any:
            source = ASTSource(self._fn, signature, self._constants, attributes)
            try:
                return _triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=self._options | options)
            except Exception as error:  # of many kinds, its own and LLVM's
                raise CompileError(f"{name}: Triton: {type(error).__name__}: {error}") from error

        found = made()
        if ptx_version and ptx_entries.header_of(found.asm["ptx"]).version > ptx_version:
            found = made(ptx_version=ptx_version)
        text, facts = found.asm["ptx"], found.metadata
        header = ptx_entries.header_of(text)
        if ptx_version and header.version > ptx_version:
            raise CompileError(too_new(name, header.version, ptx_version))
        declared = ptx_entries.entries_of([text]).get(facts.name)
        parameters = None if declared is None else parameters_of(declared, tuple(self._types), SCRATCH)
        number = len(self._types) + SCRATCH
        if declared is None or parameters is None or len(parameters) != number or declared.required_block is None:
            raise LayoutError(f"{name}: Triton {_triton.__version__} makes something else than an entry of {number} parameters")
        passing = TritonPassing(self._types, self._divisible, facts.global_scratch_size, facts.num_ctas)
        cluster = (facts.num_ctas, 1, 1) if facts.num_ctas > 1 else None
        launched = cluster, bool(facts.launch_cooperative_grid), bool(facts.launch_pdl)
        point = EntryPoint(facts.name, parameters, passing, declared.required_block, facts.shared, *launched)
        version = f"Triton {_triton.__version__}"
        return Image(text.encode(), {name: point}, f"{name}.ptx", header.version, header.target, version)


class TritonPassing:
    """One argument for each parameter that is no constant, then what the compiler adds."""

    def __init__(self, types: Mapping[str, str], divisible: set[str], scratch_bytes: int, blocks_of_a_program: int) -> None:
        """``scratch_bytes`` are those of a program."""
        self._types = types
        self._divisible = divisible
        self._scratch_bytes = scratch_bytes
        self._blocks = blocks_of_a_program

    def sizes(self, grid: Size, block: Size | None, entry: EntryPoint, place: str) -> tuple[Dim3, Dim3]:
        own = entry.block or (1, 1, 1)
        if block is not None and dim3(block, f"{place}.block") != own:
            words = f"Triton gives its blocks {own[0]} threads: leave the block out, as in kernel[grid]"
            raise InvalidRequestError.at(f"{place}.block", words)
        x, y, z = dim3(grid, f"{place}.grid")
        return (x * self._blocks, y, z), own

    def passed(self, arguments: Sequence[Argument], situation: Situation) -> list[Passed]:
        if len(arguments) != len(self._types):
            place = f"{situation.place}.arguments"
            raise InvalidRequestError.at(place, f"it takes {', '.join(self._types)}: {len(self._types)}, not {len(arguments)}")
        passed: list[Passed] = []
        for position, (name, argument) in enumerate(zip(self._types, arguments, strict=True)):
            place = situation.argument(position)
            kind = self._types[name]
            if kind.startswith("*"):
                if not isinstance(argument, BufferSpec):
                    raise TypeError(f"{place}: parameter {name!r} is an address, and takes inp(…), inout(…), out(…) or tmp(…)")
                passed.append(argument)
                continue
            if isinstance(argument, BufferSpec | Packed | TextureSpec) or kind not in _LETTERS:
                raise TypeError(f"{place}: parameter {name!r} is a number of type {kind}, not {argument!r:.60}")
            number = literal(_LETTERS[kind], argument, place)
            if name in self._divisible and number.value % PROMISED:
                raise InvalidRequestError.at(place, f"{name!r} was promised to be divisible by {PROMISED}, and is {number.value}")
            passed.append(number)
        programs = math.prod(situation.grid)
        scratch = tmp(f"{situation.kernel}.scratch", self._scratch_bytes * programs) if self._scratch_bytes else Literal("Q", 0)
        return [*passed, scratch, Literal("Q", 0)]
