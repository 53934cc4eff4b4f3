"""What a request is. Frozen and pure: nothing here knows the wire, the store or a device."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum

from kaas_core.array_form import ArrayForm
from kaas_core.texture import Texture

Dim3 = tuple[int, int, int]
"""A size in three dimensions, as CUDA's ``dim3``: ``(x, y, z)``."""


class Access(Enum):
    """How a kernel uses a buffer; the values are the letters of the JSON form."""

    INPUT = "i"
    OUTPUT = "o"
    INOUT = "io"
    TEMPORARY = "t"

    @property
    def reads(self) -> bool:
        """Whether a first use of this kind loads the buffer."""
        return self in (Access.INPUT, Access.INOUT)

    @property
    def writes(self) -> bool:
        """Whether such a use writes the buffer back to its key (unless ephemeral)."""
        return self in (Access.OUTPUT, Access.INOUT)


@dataclass(frozen=True, slots=True)
class Literal:
    """A scalar passed by value."""

    type: str
    """A letter of Python's ``struct``: ``b B h H i I q Q e f d``."""
    value: int | float


@dataclass(frozen=True, slots=True)
class BufferArgument:
    """One use of a buffer as a kernel's argument."""

    buffer: str
    """The name of one of the request's buffers."""
    access: Access


@dataclass(frozen=True, slots=True)
class PackedBuffer:
    """A buffer whose address stands among the bytes of a packed argument."""

    offset_bytes: int
    """Where: the 8 bytes from there on are the address, whatever they were."""
    argument: BufferArgument


@dataclass(frozen=True, slots=True)
class Packed:
    """Bytes passed by value, such as a struct, with addresses of buffers among them."""

    data: bytes
    """As long as the parameter."""
    buffers: tuple[PackedBuffer, ...] = ()


@dataclass(frozen=True, slots=True)
class TextureArgument:
    """The handle of a texture, or of a surface where the kernel writes it, as an argument: 8 bytes."""

    buffer: str
    """Whose bytes it has."""
    access: Access
    texture: Texture

    @property
    def is_surface(self) -> bool:
        """Whether the kernel may write it."""
        return self.access is not Access.INPUT


Argument = BufferArgument | Literal | Packed | TextureArgument


def buffer_arguments(argument: Argument) -> Iterator[BufferArgument]:
    """Yield each use of a buffer that an argument is, or has among its bytes."""
    if isinstance(argument, BufferArgument):
        yield argument
    elif isinstance(argument, Packed):
        for packed in argument.buffers:
            yield packed.argument
    elif isinstance(argument, TextureArgument):
        yield BufferArgument(argument.buffer, argument.access)


@dataclass(frozen=True, slots=True)
class BufferSpec:
    """Bytes on the device for the time of a request."""

    name: str
    size_bytes: int
    key: str = ""
    """The store's key; empty: the name."""
    offset_bytes: int = 0
    """Where the buffer starts in the key's value."""
    ephemeral: bool = False
    """Never touches the store."""
    constant: bool = False
    """The caller's promise that the key's value does not change."""
    dtype: str = ""
    """What its elements are to its users, by NumPy's name or that of ml_dtypes, or the ``descr`` of a structured type as JSON;
    empty: nothing is said. Kept with the value, as the next two, and never interpreted by a device."""
    shape: tuple[int, ...] = ()
    fortran_order: bool = False

    @property
    def form(self) -> ArrayForm | None:
        """What its bytes are to its users, where the request says so."""
        return ArrayForm(self.dtype, self.shape, self.fortran_order) if self.dtype else None

    @property
    def store_key(self) -> str:
        """The key that backs this buffer (unless ephemeral)."""
        return self.key or self.name


@dataclass(frozen=True, slots=True)
class KernelSpec:
    """One launch of one ``__global__`` entry point."""

    library: str
    """An absolute path, or ``sha256:`` and 64 hex digits."""
    name: str
    grid: Dim3
    block: Dim3
    arguments: tuple[Argument, ...] = ()
    shared_memory_bytes: int = 0
    """Dynamic shared memory."""
    cluster: Dim3 | None = None
    """Blocks in a thread block cluster; None: the kernel's own, or none."""
    cooperative: bool = False
    """All blocks run at once."""
    programmatic_dependent_launch: bool = False
    """May begin before the launch before it has ended."""


@dataclass(frozen=True, slots=True)
class Request:
    """Kernels in order, ``iterations`` times, and the buffers that they use."""

    kernels: tuple[KernelSpec, ...]
    buffers: tuple[BufferSpec, ...] = ()
    iterations: int = 1


ADDRESS_BYTES = 8
"""A buffer's address as a kernel's parameter, or as a part of one."""

INTEGER_TYPES = frozenset("bBhHiIqQ")
"""8 to 64 bits; lower case is signed."""
FLOAT_TYPES = frozenset("efd")
"""Half, single, double."""

_PACKERS: Mapping[str, struct.Struct] = {letter: struct.Struct(f"<{letter}") for letter in INTEGER_TYPES | FLOAT_TYPES}


def literal_problem(literal: Literal) -> str | None:
    """Return what is wrong with a literal, or None. Infinities and NaN are valid for every floating-point type."""
    letter, value = literal.type, literal.value
    if letter not in _PACKERS:
        return f"unknown literal type {letter!r:.20}; expected one of b B h H i I q Q e f d"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"a literal's value must be a number, not {type(value).__name__}"
    if letter in INTEGER_TYPES and not isinstance(value, int):
        return f"a literal of type '{letter}' must be an integer, not {value!r}"
    try:
        _PACKERS[letter].pack(value)
    except (struct.error, OverflowError):
        return f"the value is out of range for type '{letter}'{_range(letter)}"
    return None


def literal_size(letter: str) -> int:
    """Return the size in bytes of a literal of this type."""
    return _PACKERS[letter].size


def pack_literal(literal: Literal) -> bytes:
    """Return the bytes of a valid literal, little-endian as on every device."""
    return _PACKERS[literal.type].pack(literal.value)


def _range(letter: str) -> str:
    if letter in FLOAT_TYPES:
        return f" ({8 * literal_size(letter)} bits)"
    bits = 8 * literal_size(letter)
    low, high = (0, 2**bits - 1) if letter.isupper() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return f" ({low} to {high})"
