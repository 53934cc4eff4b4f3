"""How the arguments of a kernel become its parameters: what is common to all compilers' calling conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from kaas_client.arguments import BufferSpec, Literal, Packed, Size, TextureSpec, numbers
from kaas_client.forms import Form
from kaas_core.errors import InvalidRequestError
from kaas_core.request import Dim3
from kaas_core.violations import shown

if TYPE_CHECKING:
    import numpy as np

Argument: TypeAlias = "BufferSpec | Literal | Packed | TextureSpec | int | float | complex | bool | np.generic | tuple[Any, ...]"
"""What a launch is called with. A number of Python needs a compiler that tells its type."""
Passed: TypeAlias = "BufferSpec | Literal | Packed | TextureSpec"
"""What a parameter gets."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of an entry point, as the image declares it."""

    name: str
    """Of the source, where its compiler tells; with what it is of an array behind a dot, as in ``x.shape[0]``."""
    size_bytes: int
    alignment_bytes: int
    role: str
    """``value``, ``address``, ``struct``; ``scratch`` for what the compiler added."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What is known of a launch when its arguments are passed."""

    place: str
    """The launch's path in its request, for errors."""
    kernel: str
    grid: Dim3
    block: Dim3
    dim: tuple[int, ...]
    """The first size in the square brackets, as it was given."""
    forms: Mapping[str, Form]
    """Of the buffers that have one."""

    def argument(self, position: int) -> str:
        """Return the path of an argument, for errors."""
        return f"{self.place}.arguments[{position}]"

    def form(self, buffer: BufferSpec, position: int) -> Form:
        """Return the form of an array. Raises ``InvalidRequestError`` where nothing tells it."""
        if buffer.name in self.forms:
            return self.forms[buffer.name]
        place = self.argument(position)
        raise InvalidRequestError.at(place, f"buffer {shown(buffer.name)} needs a dtype and a shape, or an array in the call")


class Passing(Protocol):
    """How the arguments of a kernel become its parameters: the calling convention of its compiler."""

    def sizes(self, grid: Size, block: Size | None, entry: EntryPoint, place: str) -> tuple[Dim3, Dim3]:
        """Return grid and block of a launch, in blocks and threads. Raises ``InvalidRequestError``."""

    def passed(self, arguments: Sequence[Argument], situation: Situation) -> list[Passed]:
        """Return what each parameter gets, in order. Raises ``InvalidRequestError``, ``TypeError``."""


@runtime_checkable
class LaunchPassing(Passing, Protocol):
    """A calling convention in which the arguments of a launch decide its sizes too."""

    def at_launch(self, entry: EntryPoint, arguments: Sequence[Argument], situation: Situation) -> EntryPoint:
        """Return the entry point with the sizes of this launch. Raises ``InvalidRequestError``, ``TypeError``."""


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """One kernel of an image, and how its arguments become what its parameters are."""

    name: str
    parameters: tuple[Parameter, ...] | None
    """None where the image does not tell."""
    passing: Passing
    block: Dim3 | None = None
    """Threads, where the image has one size only."""
    shared_memory_bytes: int = 0
    """Dynamic shared memory, as far as its compiler tells."""
    cluster: Dim3 | None = None
    cooperative: bool = False
    programmatic_dependent_launch: bool = False
    """As its compiler says, as the two before it."""
    grid: Dim3 | None = None
    """Blocks, where its compiler chooses them."""


class Plain:
    """One argument for each parameter: CUDA C++, and PTX of any origin."""

    def sizes(self, grid: Size, block: Size | None, entry: EntryPoint, place: str) -> tuple[Dim3, Dim3]:
        if block is None and entry.block is None:
            raise InvalidRequestError.at(f"{place}.block", "say how many threads a block has: kernel[grid, block]")
        return dim3(grid, f"{place}.grid"), dim3(block, f"{place}.block") if block is not None else entry.block or (1, 1, 1)

    def passed(self, arguments: Sequence[Argument], situation: Situation) -> list[Passed]:
        passed: list[Passed] = []
        for position, argument in enumerate(arguments):
            if not isinstance(argument, BufferSpec | Literal | Packed | TextureSpec):
                raise TypeError(
                    f"argument {position} of kernel {situation.kernel!r} is {argument!r:.60}: expected inp(…), inout(…), out(…), "
                    "tmp(…), texture(…), surface(…), packed(…), or a number with its type, such as u64(…)"
                )
            passed.append(argument)
        return passed


def dim3(size: Size, place: str) -> Dim3:
    """Return a size with all its dimensions. Raises ``InvalidRequestError``, with its path, where it is none."""
    found = whole_numbers(size, place)
    if not 1 <= len(found) <= 3:
        raise InvalidRequestError.at(place, f"a size has one to three numbers, not {len(found)}")
    x, y, z = (*found, 1, 1)[:3]
    return x, y, z


def whole_numbers(size: Size, place: str) -> list[int]:
    """Return the numbers of a size. Raises ``InvalidRequestError``, with its path, for what is no whole number."""
    try:
        return numbers(size)
    except TypeError:
        raise InvalidRequestError.at(place, f"a size is made of whole numbers, not {size!r:.60}") from None
