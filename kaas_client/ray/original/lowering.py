"""What a request of the original means: ours, what it returns, and which values it must be given.

* A buffer that some kernel uses as exactly ``o`` is returned as int8, ephemeral or not; what is only ``io`` is not. They come in
  the order of their first such uses.
* A buffer that is not ephemeral and is read first must be given.
* All other buffers start as zeros.
* Kernels may write to ephemeral buffers that they use as ``i``, as the original's own do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from kaas_client.ray.original.specs import KaasError, Name, denseBuf, denseKern, kaasReq
from kaas_core.request import Access, BufferArgument, BufferSpec, Dim3, KernelSpec, Literal, Request
from kaas_core.uses import Use, buffer_uses
from kaas_core.validation import key_problem, validate

V = TypeVar("V")
Bytes: TypeAlias = NDArray[np.uint8]


class Read(NamedTuple):
    """A buffer that must be given."""

    buffer: str
    """Its name in our request."""
    name: Name
    """Its name in the original's."""
    span: slice
    """Where it lies in the value that is given."""
    shareable: bool
    """No kernel writes it: our request says where it lies in the value, of which one copy serves all that read it."""
    constant: bool


@dataclass(frozen=True, eq=False)
class Lowered:
    """A request of the original as one of ours."""

    request: Request
    """Libraries are named by their paths."""
    returns: tuple[str, ...]
    """The buffers to return: at least one."""
    outputs: tuple[Name, ...]
    """Those of them that the caller sees, the first ones, by their names in the original's."""
    reads: tuple[Read, ...]
    zeros: Mapping[str, int]
    """Sizes in bytes of buffers that must be given as zeros."""

    @property
    def launches(self) -> int:
        """How many kernels are launched."""
        return len(self.request.kernels) * self.request.iterations

    def inputs(self, source: kaasReq, keys: Mapping[Name, Name], find: Callable[[Name, Read], V]) -> dict[str, V | Bytes]:
        """Return the values to call it with: what ``find`` makes of a key and how it is read.

        ``keys`` are in place of those of ``source``, by buffer name.
        """
        values: dict[str, V | Bytes] = {name: np.zeros(size, np.uint8) for name, size in self.zeros.items()}
        for read in self.reads:
            values[read.buffer] = find(keys.get(read.name, source.bufferMap[read.name].key), read)
        return values


_lowered: WeakKeyDictionary[kaasReq, tuple[object, Lowered]] = WeakKeyDictionary()


def lower(source: kaasReq) -> Lowered:
    """Return what a request means, whatever its keys are. Raises ``KaasError``, ``InvalidRequestError``."""
    said = _without_keys(source)
    known, found = _lowered.get(source, (None, None))
    if found is None or known != said:
        found = _lower(source)
        _lowered[source] = said, found
    return found


def _without_keys(source: kaasReq) -> object:
    """Return all that a request says but its keys, to be compared: a program may change it at any time."""
    kernels = [
        (each.library, each.kernel, [*each.gridDim], [*each.blockDim], each.sharedSize, *([*part] for part in each[6:]))
        for each in source.kernels
    ]
    buffers = [(name, *buffer[:3], *buffer[4:]) for name, buffer in source.bufferMap.items()]
    return source.nIter, kernels, buffers


def _lower(source: kaasReq) -> Lowered:
    names = _text_names(source.bufferMap)
    outputs = list(dict.fromkeys(name for kernel in source.kernels for name, use in _uses(kernel) if use == "o"))
    kernels = tuple(_kernel(kernel, source.bufferMap, names, outputs) for kernel in source.kernels)
    uses = buffer_uses(Request(kernels))
    returns = [names[name] for name in outputs] or [name for name, use in uses.items() if use.writes][:1]
    if not returns:
        raise KaasError("the request writes nothing")
    buffers = {names[name]: buffer for name, buffer in source.bufferMap.items()}
    given = {name: not buffer.ephemeral for name, buffer in buffers.items() if uses[name].reads_first}
    request = Request(
        kernels,
        tuple(_buffer(name, buffer, uses[name], name in returns) for name, buffer in buffers.items()),
        int(source.nIter),
    )
    validate(request)
    return Lowered(
        request,
        tuple(returns),
        tuple(outputs),
        tuple(_read(name, buffers[name], uses[name]) for name, needed in given.items() if needed),
        {name: int(buffers[name].size) for name, needed in given.items() if not needed and name in returns},
    )


def _text_names(buffers: Mapping[Name, denseBuf]) -> dict[Name, str]:
    """Return a name for each buffer that ours may have: its own, where that is such."""
    names: dict[Name, str] = {name: name for name in buffers if isinstance(name, str) and not key_problem(name)}
    for index, name in enumerate(buffers):
        if name not in names:
            made = f"buffer{index}"
            while made in names.values():
                made += "_"
            names[name] = made
    return names


def _uses(kernel: denseKern) -> list[tuple[Name, str]]:
    return list(zip(kernel.arguments, kernel.ioTypes, strict=True))


def _kernel(kernel: denseKern, buffers: Mapping[Name, denseBuf], names: Mapping[Name, str], outputs: list[Name]) -> KernelSpec:
    literals = [Literal(kind, value.item() if isinstance(value, np.generic) else value) for kind, value in kernel.literals]
    arguments = [
        BufferArgument(names[name], _access(use, buffers[name].ephemeral, name in outputs)) for name, use in _uses(kernel)
    ]
    return KernelSpec(
        kernel.library,
        kernel.kernel,
        _dim3(kernel.gridDim),
        _dim3(kernel.blockDim),
        (*literals, *arguments),
        int(kernel.sharedSize),
    )


def _access(use: str, ephemeral: bool, returned: bool) -> Access:
    try:
        access = Access(use)
    except ValueError:
        raise KaasError(f"a kernel uses a buffer as {use!r}: there are i, o, io and t") from None
    if access is Access.INPUT and ephemeral:
        return Access.INOUT
    if access is Access.TEMPORARY and returned:
        return Access.OUTPUT
    return access


def _dim3(size: Sequence[int]) -> Dim3:
    if not 1 <= len(size) <= 3:
        raise KaasError(f"a grid or block has one to three dimensions, not {len(size)}")
    x, y, z, *_ = (*map(int, size), 1, 1)
    return x, y, z


def _buffer(name: str, buffer: denseBuf, use: Use, returned: bool) -> BufferSpec:
    spec = BufferSpec(
        name,
        int(buffer.size),
        offset_bytes=int(buffer.offset) if use.reads_first and not use.writes else 0,
        ephemeral=buffer.ephemeral or use.temporary,
        constant=buffer.const and not use.writes,
    )
    return replace(spec, dtype="int8", shape=(spec.size_bytes,)) if returned else spec


def _read(name: str, buffer: denseBuf, use: Use) -> Read:
    span = slice(int(buffer.offset), int(buffer.offset) + int(buffer.size))
    return Read(name, buffer.name, span, not use.writes, buffer.const and not use.writes)
