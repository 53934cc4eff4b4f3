"""What a request is checked against: a device's limits and a kernel's signature."""

from __future__ import annotations

from dataclasses import dataclass

from kaasd.request.types import Dim3


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """What a device is and what it allows. The defaults are an H100's."""

    name: str
    """``cuda:0``, ``emulator``."""
    model: str
    """As the driver calls it."""
    memory_bytes: int
    compute_capability: tuple[int, int] = (9, 0)
    multiprocessor_count: int = 132
    warp_size: int = 32
    max_threads_per_block: int = 1024
    max_block: Dim3 = (1024, 1024, 64)
    max_grid: Dim3 = (2**31 - 1, 65535, 65535)
    max_shared_memory_bytes: int = 227 * 1024
    """Most shared memory of a block, static and dynamic together, opt-in included."""


@dataclass(frozen=True, slots=True)
class KernelAttributes:
    """What a loaded kernel needs and allows, from the driver or from the PTX."""

    name: str
    parameter_size_bytes: tuple[int, ...] | None
    """Size of each parameter, in order; None for host code, which declares none."""
    static_shared_memory_bytes: int
    max_threads_per_block: int
    required_block: Dim3 | None = None
    """``.reqntid``, where the kernel has one."""
