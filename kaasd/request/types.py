"""What a request is. Frozen and pure: nothing here knows the wire, the store or a device."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

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
        """Whether a buffer used so is written back to its key (unless ephemeral)."""
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


Argument = BufferArgument | Literal


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


@dataclass(frozen=True, slots=True)
class Request:
    """Kernels in order, ``iterations`` times, and the buffers that they use."""

    kernels: tuple[KernelSpec, ...]
    buffers: tuple[BufferSpec, ...] = ()
    iterations: int = 1
