"""CuTe DSL of CUTLASS, whose compiler needs no GPU."""

from __future__ import annotations

import ctypes
import inspect
import re
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from typing import Any

import numpy as np

from kaas_client import _dtypes
from kaas_client.arguments import BufferSpec, Packed, TextureSpec
from kaas_client.forms import Form
from kaas_client.kernels._compiled import CompileError, Image, LayoutError
from kaas_client.kernels._files import parameters_of, too_new
from kaas_client.kernels._host import ADDRESS_BYTES, Host, HostError, Layout, Recorded
from kaas_client.kernels._numbers import literal
from kaas_client.kernels._passing import Argument, EntryPoint, Passed, Plain, Situation
from kaas_core import ptx_entries
from kaas_core.errors import InvalidRequestError
from kaas_core.violations import shown

try:
    import cutlass
    from cutlass import cute
    from cutlass.cute import runtime
    from cutlass.cutlass_dsl import CuTeDSL
except ImportError as error:
    raise ImportError(f"kernels.cute needs CuTe DSL: pip install 'kaasd[kernels-cute]' ({error})") from error

_PREFIX = "kaas"
_MOST_ALIGNED = 256
"""What every buffer begins at a multiple of."""
_LETTERS = {"f16": "e", "f32": "f", "f64": "d", "i1": "?", "i8": "b", "i16": "h", "i32": "i", "i64": "q"}
_NAMES_OF_DTYPES = {"Boolean": "bool", "BFloat16": "bfloat16"}
_TOKEN = re.compile(r"struct<\(|\)>|array<\d+x|>|ptr(?:<\d+>)?|(?:i(?:1|8|16|32|64)|f(?:16|32|64))\b|,")
_COLOURS = re.compile(r"\x1b\[\d*m")
_numbers = count()


class CuteSource:
    """A function of ``@cute.jit`` that launches a kernel, with an example of each of its arguments."""

    has_own_block = True

    def __init__(self, host: Callable[..., Any], example: Sequence[Any]) -> None:
        """Raises ``TypeError`` where an example cannot be passed."""
        self._host = host
        self._name = getattr(host, "__name__", "host")
        self._example = tuple(example)
        self._number = next(_numbers)
        try:
            given = inspect.signature(host).bind(*example).arguments
        except TypeError as error:
            raise TypeError(f"{self._name}: {error}") from None
        self._given = dict(given)

    def key(self) -> Sequence[object]:
        """Return its own number: a kernel is made of all that its functions call."""
        return "cute", cutlass.__version__, self._number

    def compile(self, target: str, ptx_version: int, entry: str) -> Image:
        """Raises ``CompileError``, ``LayoutError``."""
        version = f"CuTe DSL {cutlass.__version__}"
        with tempfile.TemporaryDirectory(prefix="kaas-cute-") as folder:
            options = f"--keep-ptx --gpu-arch={target} --dump-dir={folder}"
            try:
                _load_runtime()
                made = cute.compile(self._host, *self._example, options=options)
                text, host = made.artifacts.PTX, made.dump_to_object(_PREFIX)
                told = made.execution_args.signature.parameters
                module = str(made.ir_module)
            except Exception as error:  # of many kinds, its own and MLIR's
                words = _COLOURS.sub("", str(error))
                raise CompileError(f"{self._name}: CuTe DSL, for {target}: {type(error).__name__}: {words}") from error
        types = host_types(module, made.function_name)
        header = ptx_entries.header_of(text or "")
        if not header.version or len(told) != len(types):
            raise LayoutError(f"{self._name}: {version} gives no PTX, or other arguments than are known")
        if ptx_version and header.version > ptx_version:
            raise CompileError(too_new(self._name, header.version, ptx_version))
        entries = ptx_entries.entries_of([text])
        if len(entries) != 1:
            raise CompileError(f"{self._name} launches {len(entries)} kernels: give each a function with @cute.jit of its own")
        ((name, declared),) = entries.items()
        parameters = parameters_of(declared)
        layouts = [layout_of(each) for each in launched_types(module, made.function_name)]
        if parameters is None or [each.size_bytes for each in parameters] != [each.size_bytes for each in layouts]:
            raise LayoutError(f"{name}: {version} passes other parameters than its entry point declares")
        arguments = [
            _argument(each, told[each].annotation, self._given.get(each), kind) for each, kind in zip(told, types, strict=True)
        ]
        functions = f"_mlir_{_PREFIX}_cuda_load", f"_mlir_{_PREFIX}__mlir_ciface_{made.function_name}"
        try:
            half = Host(host, *functions, layouts)
        except HostError as error:
            raise CompileError(f"{self._name}: {error}") from None
        point = EntryPoint(name, parameters, CutePassing(arguments, half), declared.required_block)
        return Image(text.encode(), {self._name: point}, f"{self._name}.ptx", header.version, header.target, version)


class CutePassing(Plain):
    """What the host function passes: it is run for each launch."""

    def __init__(self, arguments: Sequence[HostArgument], host: Host, recorded: Sequence[Passed] = ()) -> None:
        """``recorded`` is what one launch passes."""
        self._arguments = arguments
        self._host = host
        self._recorded = recorded

    def at_launch(self, entry: EntryPoint, arguments: Sequence[Argument], situation: Situation) -> EntryPoint:
        """Return the entry point as one launch has it. Raises ``InvalidRequestError``, ``TypeError``."""
        wanted = [each for each in self._arguments if each.is_given]
        if len(arguments) != len(wanted):
            names = ", ".join(each.name for each in wanted)
            words = f"it takes {names}: {len(wanted)}, not {len(arguments)}"
            raise InvalidRequestError.at(f"{situation.place}.arguments", words)
        rest, buffers, values = iter(enumerate(arguments)), list[BufferSpec](), list[Callable[[Sequence[int]], bytes]]()
        sizes: dict[int, int] = {}
        for each in self._arguments:
            position, argument = next(rest) if each.is_given else (0, 0)
            if isinstance(argument, BufferSpec):
                buffers.append(argument)
            values.append(each.value(argument, situation, position, len(buffers) - 1, sizes))
        try:
            made = self._host.record(lambda addresses: [value(addresses) for value in values], len(buffers))
        except HostError as error:
            raise InvalidRequestError.at(situation.place, f"{error}") from None
        if made.kernel != entry.name:
            raise LayoutError(f"{entry.name}: its host function launches {made.kernel!r}")
        return replace(
            entry,
            passing=CutePassing(self._arguments, self._host, list(_passed(made, buffers))),
            grid=made.grid,
            block=made.block,
            shared_memory_bytes=made.shared_memory_bytes,
            cluster=made.cluster,
            cooperative=made.cooperative,
            programmatic_dependent_launch=made.programmatic_dependent_launch,
        )

    def passed(self, arguments: Sequence[Argument], situation: Situation) -> list[Passed]:
        return list(self._recorded)


@cache
def _load_runtime() -> None:
    """Make the names of CuTe DSL's runtime known to its own linker, which needs them for targets other than this machine's."""
    for library in CuTeDSL._get_dsl().get_shared_libs():
        ctypes.CDLL(library, ctypes.RTLD_GLOBAL)


def _passed(made: Recorded, buffers: Sequence[BufferSpec]) -> Iterator[Passed]:
    for data, addresses in zip(made.parameters, made.addresses, strict=True):
        if len(data) == ADDRESS_BYTES and addresses:
            yield buffers[addresses[0][1]]
        else:
            yield Packed(data, tuple((offset, buffers[which]) for offset, which in addresses))


@dataclass(frozen=True, slots=True)
class HostArgument:
    """An argument of the host function: how its bytes are made."""

    name: str
    is_given: bool = True
    """By the caller; a stream is not."""

    def value(
        self, argument: Any, situation: Situation, position: int, buffer: int, sizes: dict[int, int]
    ) -> Callable[[Sequence[int]], bytes]:
        """Return what makes its bytes of the addresses of all buffers, of which ``buffer`` is its own.

        ``sizes`` are those of symbols so far, which have one value in a launch. Raises ``InvalidRequestError``, ``TypeError``.
        """
        return lambda _: bytes(ADDRESS_BYTES)


@dataclass(frozen=True, slots=True)
class Number(HostArgument):
    """A number by value."""

    letter: str = "i"

    def value(self, argument: Any, situation: Situation, position: int, buffer: int, sizes: dict[int, int]) -> Any:
        place = situation.argument(position)
        if isinstance(argument, BufferSpec | Packed | TextureSpec):
            raise TypeError(f"{place}: parameter {self.name!r} is a number, not {argument!r:.60}")
        made = literal(self.letter, argument, place)
        data = struct.pack(f"<{made.type}", made.value)
        return lambda _: data


@dataclass(frozen=True, slots=True)
class Array(HostArgument):
    """A tensor or a bare address."""

    tensor: Any = None
    """Of the example; None for an address."""
    leaves: tuple[tuple[int, str], ...] = ()
    """Offset and letter of each size and stride that is not fixed."""

    def value(self, argument: Any, situation: Situation, position: int, buffer: int, sizes: dict[int, int]) -> Any:
        place = situation.argument(position)
        if not isinstance(argument, BufferSpec):
            kind = "an address" if self.tensor is None else "a tensor"
            raise TypeError(f"{place}: parameter {self.name!r} is {kind}, and takes inp(…), inout(…), out(…) or tmp(…)")
        numbers: list[int] = []
        if self.tensor is not None:
            numbers = _dynamic(self.tensor, situation.form(argument, position), argument.name, sizes, place)
        data = bytearray(max((offset + struct.calcsize(letter) for offset, letter in self.leaves), default=ADDRESS_BYTES))
        for (offset, letter), number in zip(self.leaves, numbers, strict=True):
            struct.pack_into(f"<{letter}", data, offset, literal(letter, number, place).value)
        return lambda addresses: struct.pack("<Q", addresses[buffer]) + bytes(data[ADDRESS_BYTES:])


def _dynamic(tensor: Any, form: Form, name: str, sizes: dict[int, int], place: str) -> list[int]:
    """Return the sizes and strides, in elements, that are not fixed. Raises ``InvalidRequestError`` where another one differs."""
    wanted = dtype_of(tensor.element_type)
    has = f"buffer {shown(name)} is {form.dtype} of shape {list(form.shape)}" + (
        " in Fortran's order" if form.fortran_order else ""
    )
    if form.dtype != wanted or len(form.shape) != len(tensor.shape):
        raise InvalidRequestError.at(place, f"it takes {len(tensor.shape)} dimensions of {wanted}, and {has}")
    strides = [stride // form.dtype.itemsize for stride in form.strides]
    found: list[int] = []
    for which, kept, numbers in (("shape", tensor.shape, form.shape), ("stride", tensor.stride, strides)):
        for i, (one, number) in enumerate(zip(kept, numbers, strict=True)):
            if isinstance(one, cute.SymInt):
                found.append(number)
                known = sizes.setdefault(id(one), number)
                if number % one.divisibility:
                    raise InvalidRequestError.at(
                        place, f"{which}[{i}] is promised to be divisible by {one.divisibility}, and {has}"
                    )
                if known != number:
                    raise InvalidRequestError.at(place, f"{which}[{i}] is {known} in another tensor, and {has}")
            elif one != number and not (which == "stride" and form.shape[i] <= 1):
                raise InvalidRequestError.at(place, f"{which}[{i}] is compiled to be {one}, and {has}")
    return found


def _argument(name: str, declared: Any, example: Any, kind: str) -> HostArgument:
    """Return an argument of the host function whose type in LLVM is ``kind``. Raises ``TypeError``, ``LayoutError``."""
    if isinstance(example, runtime._FakeStream):
        return HostArgument(name, is_given=False)
    if isinstance(example, runtime._FakeTensor):
        _check_alignment(name, example._assumed_align)
        tensor: Any = example
        dynamic = sum(isinstance(each, cute.SymInt) for each in (*tensor.shape, *tensor.stride))
        leaves = tuple(struct_leaves(kind))
        if not leaves or leaves[0] != (0, "P") or len(leaves) != 1 + dynamic or "P" in (each[1] for each in leaves[1:]):
            raise LayoutError(f"tensor {name!r} is passed as {kind}, which is not known")
        return Array(name, tensor=example, leaves=leaves[1:])
    if isinstance(example, runtime._Pointer) and kind.startswith("!llvm.ptr"):
        _check_alignment(name, example._assumed_align)
        return Array(name)
    if kind in _LETTERS and isinstance(example, int | float | cutlass.Numeric):
        signed = getattr(declared, "signed", getattr(type(example), "signed", True))
        return Number(name, letter=_LETTERS[kind] if signed else _LETTERS[kind].upper())
    raise TypeError(
        f"argument {name!r} is {type(example).__name__}; its example can be a number, "
        "cute.runtime.make_fake_tensor(…), make_fake_compact_tensor(…), make_fake_stream() or make_ptr(…)"
    )


def _check_alignment(name: str, alignment: int | None) -> None:
    if (alignment or 1) > _MOST_ALIGNED:
        raise TypeError(
            f"argument {name!r} is promised to be aligned to {alignment} bytes; buffers are aligned to {_MOST_ALIGNED}"
        )


def dtype_of(kind: Any) -> np.dtype[Any]:
    """Return NumPy's dtype, or that of ml_dtypes, of a type of CuTe. Raises ``TypeError`` where there is none."""
    name = str(kind.__name__)
    return _dtypes.dtype_from_text(
        _NAMES_OF_DTYPES.get(name) or re.sub(r"(?<=E\d)M", "m", name).lower().replace("float8e", "float8_e")
    )


def host_types(module: str, function: str) -> list[str]:
    """Return the types of a function's arguments in a module of MLIR's LLVM dialect. Raises ``LayoutError``."""
    line = re.search(rf"llvm\.func @{re.escape(function)}\((.*)\) -> i32", module)
    if line is None:
        raise LayoutError(f"there is no host function {function}")
    found = re.split(r"(?:^|, )%arg\d+: ", line[1])[1:]
    return [re.sub(r" \{llvm\.[^}]*\}$", "", each) for each in found]


def launched_types(module: str, function: str) -> list[str]:
    """Return the types of what the host function passes to its kernel. Raises ``LayoutError``."""
    body = re.search(rf"llvm\.func @{re.escape(function)}\(.*?\n  }}", module, re.DOTALL)
    text = body[0] if body is not None else ""
    calls = re.findall(r"llvm\.call @_cudaLaunchKernelEx\(%\w+, %\w+, (%\w+)\)", text)
    found = {tuple(_stored_types(text, each)) for each in calls}
    if len(found) != 1:
        raise LayoutError("what the host function passes to its kernel is not known")
    return list(found.pop())


def _stored_types(module: str, places: str) -> Iterator[str]:
    """Yield the types of which addresses are stored in an array of addresses, in order."""
    elements = re.findall(rf"(%\w+) = llvm\.getelementptr {places}\[(%\w+)\]", module)
    for expected, (element, index) in enumerate(elements):
        number = re.search(rf"{index} = llvm\.mlir\.constant\((\d+) : i32\)", module)
        stored = re.search(rf"llvm\.store (%\w+), {element} :", module)
        kind = stored and re.search(rf"{stored[1]} = llvm\.alloca %\w+ x (.*) : \(i32\) -> !llvm\.ptr$", module, re.MULTILINE)
        if number is None or int(number[1]) != expected or not kind:
            raise LayoutError("what the host function passes to its kernel is not known")
        yield kind[1]


def layout_of(kind: str) -> Layout:
    """Return size and fields of a type of LLVM. Raises ``LayoutError``."""
    tree = _tree_of(kind)
    return Layout(_measure(tree)[0], tuple((offset, struct.calcsize(letter)) for offset, letter in _placed(tree, 0)))


def struct_leaves(kind: str) -> Iterator[tuple[int, str]]:
    """Yield offset and letter (``P`` for an address) of all that a type of LLVM is made of. Raises ``LayoutError``."""
    yield from _placed(_tree_of(kind), 0)


def _tree_of(kind: str) -> Any:
    """Return a type as a letter, or a list of what it is made of. Raises ``LayoutError``."""
    text = re.sub(r"!llvm\.|\s", "", kind)
    tokens = _TOKEN.findall(text)
    tree = _trees(iter(tokens)) if "".join(tokens) == text and text.count("<") == text.count(">") else []
    if len(tree) != 1:
        raise LayoutError(f"a parameter of type {kind} is not known")
    return tree[0]


def _trees(tokens: Iterator[str]) -> list[Any]:
    found: list[Any] = []
    for token in tokens:
        if token in (")>", ">"):
            break
        if token == "struct<(":
            found.append(_trees(tokens))
        elif token.startswith("array<"):
            found.append(_trees(tokens) * int(token[6:-1]))
        elif token != ",":
            found.append("P" if token.startswith("ptr") else _LETTERS[token])
    return found


def _measure(node: Any) -> tuple[int, int]:
    """Return size and alignment."""
    if isinstance(node, str):
        size = struct.calcsize(node)
        return size, size
    end, alignment = 0, 1
    for each in node:
        size, own = _measure(each)
        end, alignment = -(-end // own) * own + size, max(alignment, own)
    return -(-end // alignment) * alignment, alignment


def _placed(node: Any, start: int) -> Iterator[tuple[int, str]]:
    if isinstance(node, str):
        yield start, node
        return
    for each in node:
        size, own = _measure(each)
        start = -(-start // own) * own
        yield from _placed(each, start)
        start += size
