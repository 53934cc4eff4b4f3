"""What a device is: the seam between the engine and whatever runs kernels.

One thread uses a device (it owns the CUDA context); only ``Device.stop`` may be called from another. If an object of this module
exists, what it stands for exists on the device; its owner closes it, and closing the device closes what is left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from kaasd.request.target import DeviceProperties, KernelAttributes
from kaasd.request.types import Access, Dim3

ReadableBuffer: TypeAlias = "bytes | bytearray | memoryview"
"""Contiguous bytes to read from; a memoryview is of format ``B``."""


class DeviceBuffer(Protocol):
    """Device memory."""

    @property
    def size_bytes(self) -> int: ...

    def zero(self) -> None:
        """Fill with zeros."""

    def write(self, data: ReadableBuffer, offset_bytes: int = 0) -> None:
        """Copy ``data`` to the device. It may be reused or unmapped when this returns."""

    def read(self, into: bytearray | memoryview, offset_bytes: int = 0) -> None:
        """Copy ``len(into)`` bytes from the device. They are there when this returns."""

    def close(self) -> None:
        """Free the memory. Idempotent."""


@dataclass(frozen=True, slots=True)
class BufferRef:
    """A buffer as a kernel's argument."""

    name: str
    """For reports."""
    buffer: DeviceBuffer
    access: Access


class Kernel(Protocol):
    """One entry point of a loaded module."""

    @property
    def attributes(self) -> KernelAttributes: ...


class Module(Protocol):
    """Loaded GPU code."""

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        """Every entry point, by name."""

    def close(self) -> None:
        """Unload. Idempotent."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch, checked against the kernel's attributes and the device's properties beforehand."""

    kernel: Kernel
    grid: Dim3
    block: Dim3
    shared_memory_bytes: int
    arguments: tuple[BufferRef | bytes, ...]
    """A buffer's address, or the bytes of a literal (as long as its parameter)."""


@dataclass
class KernelFault(Exception):
    """A kernel faulted during ``Device.run``."""

    fault: str
    """Its standard name, such as ``CUDA_ERROR_ILLEGAL_ADDRESS``."""
    launch_index: int
    """Which of the launches; -1 where the device cannot tell."""
    message: str
    """For a person, one line."""
    report: str = ""
    """For a person, several lines: where, and what was near."""
    device_lost: bool = False
    """The process can use the device no more."""


class Stopped(Exception):
    """``Device.stop`` ended a run."""


class OutOfMemory(Exception):
    """The device has too little memory; freeing some may help."""


class UnsupportedLibrary(Exception):
    """The device cannot load this code; the message names what, and where."""


class DeviceUnavailable(Exception):
    """A device cannot be opened on this machine; the message says why."""


class Device(Protocol):
    """Where kernels run."""

    @property
    def properties(self) -> DeviceProperties: ...

    def load(self, image: bytes) -> Module:
        """Load GPU code: PTX, cubin, fatbin, or an ELF shared object with a fatbin. Raises ``UnsupportedLibrary``."""

    def allocate(self, size_bytes: int) -> DeviceBuffer:
        """Return new memory of unspecified content. Raises ``OutOfMemory``."""

    def run(self, launches: Sequence[Launch], iterations: int) -> None:
        """Run all ``launches`` in order, ``iterations`` times, and wait for the end.

        Raises ``KernelFault``, ``Stopped``, ``OutOfMemory``.
        """

    def stop(self) -> bool:
        """Ask a running ``run`` to raise ``Stopped``, from any thread.

        Returns False where only the end of the process can stop a kernel.
        """

    def close(self) -> None:
        """Free everything. Idempotent."""
