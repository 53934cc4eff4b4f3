"""A device's limits and a kernel's signature, and the checks of a request against them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kaas_core.request import ADDRESS_BYTES, Dim3, KernelSpec, Literal, Packed, TextureArgument, literal_size
from kaas_core.violations import Violations, shown


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
    multiprocessor_unit: int = 0
    """Of which number of them a group may have multiples for its own; 0: it may have none."""
    warp_size: int = 32
    max_threads_per_block: int = 1024
    max_block: Dim3 = (1024, 1024, 64)
    max_grid: Dim3 = (2**31 - 1, 65535, 65535)
    max_shared_memory_bytes: int = 227 * 1024
    """Most shared memory of a block, static and dynamic together, opt-in included."""
    max_ptx_version: int = 0
    """The newest PTX that it takes, 87 for version 8.7; 0 where that is not known."""
    targets: tuple[str, ...] = ()
    """Architectures whose PTX it takes, such as ``sm_80``."""


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
    parameter_alignment_bytes: tuple[int, ...] = ()
    """What each parameter's place is a multiple of; empty where only machine code is known."""
    parameter_names: tuple[str, ...] = ()
    """Of each; empty where only machine code is known."""


def check_arguments(found: Violations, path: str, kernel: KernelSpec, signature: KernelAttributes) -> None:
    sizes = signature.parameter_size_bytes
    if sizes is None:
        return
    if len(kernel.arguments) != len(sizes):
        found.add(
            f"{path}.arguments",
            f"kernel {shown(kernel.name)} takes {len(sizes)} arguments, but {len(kernel.arguments)} are given",
        )
        return
    for index, (argument, size) in enumerate(zip(kernel.arguments, sizes, strict=True)):
        if isinstance(argument, Literal):
            given, what = literal_size(argument.type), f"a literal of type '{argument.type}'"
        elif isinstance(argument, Packed):
            given, what = len(argument.data), "the packed argument"
            _check_alignment(found, f"{path}.arguments[{index}]", kernel, argument, signature.parameter_alignment_bytes[index:])
        elif isinstance(argument, TextureArgument):
            given, what = ADDRESS_BYTES, f"the handle of texture {shown(argument.buffer)}"
        else:
            given, what = ADDRESS_BYTES, f"the address of buffer {shown(argument.buffer)}"
        if given != size:
            found.add(
                f"{path}.arguments[{index}]",
                f"kernel {shown(kernel.name)} takes {size} bytes here, but {what} has {given}",
            )


def _check_alignment(found: Violations, path: str, kernel: KernelSpec, packed: Packed, alignments: tuple[int, ...]) -> None:
    """Check that addresses are where a kernel can read them as such; ``alignments`` begin with the parameter's, if known."""
    if packed.buffers and alignments and alignments[0] % ADDRESS_BYTES:
        found.add(
            f"{path}.buffers[0]",
            f"kernel {shown(kernel.name)} aligns its parameter to {alignments[0]} bytes here, so that no address can be in it",
        )


def check_shape(
    found: Violations, path: str, kernel: KernelSpec, signature: KernelAttributes, properties: DeviceProperties
) -> None:
    for field, size, limits in (
        ("grid", kernel.grid, properties.max_grid),
        ("block", kernel.block, properties.max_block),
    ):
        for axis, (number, limit) in enumerate(zip(size, limits, strict=True)):
            if number > limit:
                found.add(f"{path}.{field}[{axis}]", f"device {properties.name} allows at most {limit}, not {number}")
    threads = math.prod(kernel.block)
    if threads > properties.max_threads_per_block:
        found.add(
            f"{path}.block",
            f"device {properties.name} allows at most {properties.max_threads_per_block} threads in a block, not {threads}",
        )
    elif threads > signature.max_threads_per_block:
        found.add(
            f"{path}.block",
            f"kernel {shown(kernel.name)} allows at most {signature.max_threads_per_block} threads in a block, not {threads}",
        )
    if signature.required_block not in (None, kernel.block):
        found.add(
            f"{path}.block", f"kernel {shown(kernel.name)} requires a block of {signature.required_block}, not {kernel.block}"
        )
    shared = signature.static_shared_memory_bytes + kernel.shared_memory_bytes
    if shared > properties.max_shared_memory_bytes:
        found.add(
            f"{path}.shared_memory_bytes",
            f"device {properties.name} allows at most {properties.max_shared_memory_bytes} bytes of shared memory in a block, "
            f"not {shared} ({signature.static_shared_memory_bytes} static and {kernel.shared_memory_bytes} dynamic)",
        )
