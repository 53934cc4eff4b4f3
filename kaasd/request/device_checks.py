"""A device's limits and a kernel's signature, and the checks of a request against them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

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
    max_cluster_blocks: int = 16
    """Most blocks of a thread block cluster, opt-in included; 1: it has no clusters."""


def max_cluster_blocks(compute_capability: tuple[int, int]) -> int:
    """Return the most blocks of a cluster, opt-in included: the GPUs of data centres with clusters run 16, others 8."""
    if compute_capability < (9, 0):
        return 1
    return 16 if compute_capability[0] in (9, 10) else 8


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
    cluster: Dim3 | None = None
    """``.reqnctapercluster``, where the kernel has one: the cluster that it is compiled for."""
    needs_cluster: bool = False
    """``.explicitcluster`` without such a size: a launch must give one."""
    max_cluster_blocks: int | None = None
    """``.maxclusterrank``, where the kernel has one."""


@dataclass(frozen=True, slots=True)
class LaunchAttributes:
    """How a launch differs from a plain one."""

    cluster: Dim3 | None = None
    """Blocks in a cluster, where the kernel is not compiled for one."""
    cooperative: bool = False
    """All blocks run at once."""
    programmatic: bool = False
    """May begin before the launch before it has ended."""


PLAIN = LaunchAttributes()
ActiveBlocks: TypeAlias = Callable[[KernelSpec], int]
"""Tells how many blocks of a launch, in whole clusters, a device runs at once."""


def check_arguments(found: Violations, path: str, kernel: KernelSpec, signature: KernelAttributes) -> None:
    sizes = signature.parameter_size_bytes
    if sizes is None:
        for field in ("cluster", "cooperative", "programmatic_dependent_launch"):
            if getattr(kernel, field):
                found.add(f"{path}.{field}", f"function {shown(kernel.name)} is host code, which launches its kernels itself")
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
    _check_cluster(found, path, kernel, signature, properties)
    if kernel.programmatic_dependent_launch and properties.compute_capability < (9, 0):
        found.add(
            f"{path}.programmatic_dependent_launch",
            "needs compute capability 9.0, and device {} has {}.{}".format(properties.name, *properties.compute_capability),
        )
    shared = signature.static_shared_memory_bytes + kernel.shared_memory_bytes
    if shared > properties.max_shared_memory_bytes:
        found.add(
            f"{path}.shared_memory_bytes",
            f"device {properties.name} allows at most {properties.max_shared_memory_bytes} bytes of shared memory in a block, "
            f"not {shared} ({signature.static_shared_memory_bytes} static and {kernel.shared_memory_bytes} dynamic)",
        )


def _check_cluster(
    found: Violations, path: str, kernel: KernelSpec, signature: KernelAttributes, properties: DeviceProperties
) -> None:
    cluster = kernel.cluster or signature.cluster
    if cluster is None:
        if signature.needs_cluster:
            found.add(f"{path}.cluster", f"is required: kernel {shown(kernel.name)} is compiled for clusters, of any size")
        return
    if signature.cluster not in (None, cluster):
        found.add(
            f"{path}.cluster", f"kernel {shown(kernel.name)} is compiled for a cluster of {signature.cluster}, not {cluster}"
        )
        return
    for axis, (blocks, number) in enumerate(zip(kernel.grid, cluster, strict=True)):
        if blocks % number:
            found.add(f"{path}.grid[{axis}]", f"{blocks} blocks are no multiple of the {number} of a cluster")
    size = math.prod(cluster)
    if size > properties.max_cluster_blocks:
        found.add(
            f"{path}.cluster",
            f"device {properties.name} allows at most {properties.max_cluster_blocks} blocks in a cluster, not {size}"
            if properties.max_cluster_blocks > 1
            else f"device {properties.name} has no thread block clusters, which need compute capability 9.0",
        )
    elif signature.max_cluster_blocks is not None and size > signature.max_cluster_blocks:
        found.add(
            f"{path}.cluster",
            f"kernel {shown(kernel.name)} allows at most {signature.max_cluster_blocks} blocks in a cluster, not {size}",
        )


def check_residency(
    found: Violations, path: str, kernel: KernelSpec, signature: KernelAttributes, name: str, active_blocks: ActiveBlocks
) -> None:
    """Check that what has to run at once can, of a launch whose shape is right. ``name`` is the device's."""
    cluster = kernel.cluster or signature.cluster
    if cluster is None and not kernel.cooperative:
        return
    active, blocks = active_blocks(kernel), math.prod(kernel.grid)
    if active == 0 and cluster is not None:
        found.add(
            f"{path}.cluster", f"device {name} cannot run {math.prod(cluster)} blocks of this size and shared memory at once"
        )
    elif kernel.cooperative and blocks > active:
        found.add(f"{path}.grid", f"device {name} runs at most {active} blocks of this cooperative launch at once, not {blocks}")


def launch_attributes(kernel: KernelSpec, signature: KernelAttributes) -> LaunchAttributes:
    """Return what a launch has to ask for: a cluster that the kernel is compiled for comes by itself."""
    cluster = kernel.cluster if signature.cluster is None else None
    return LaunchAttributes(cluster, kernel.cooperative, kernel.programmatic_dependent_launch)
