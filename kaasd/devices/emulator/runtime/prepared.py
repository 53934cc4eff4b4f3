"""Launches made ready: arguments in place, sizes worked out, everything in the structures that native code reads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import gcd, prod
from random import Random
from typing import Any

from kaas_core.request import Access, KernelSpec
from kaasd.devices.base import BufferRef, Launch, LoadedKernel, PackedRefs, TextureRef
from kaasd.devices.emulator.codegen.machine_code import NativeCode
from kaasd.devices.emulator.codegen.structures import BLOCK_HEAD, LAUNCH, RANK_SHIFT, THREAD, WARP, WARP_SIZE
from kaasd.devices.emulator.ptx.types import align
from kaasd.devices.emulator.runtime.address_space import Allocation
from kaasd.devices.emulator.runtime.host_memory import HostMemory
from kaasd.devices.emulator.runtime.module import EmulatedKernel
from kaasd.devices.emulator.runtime.textures import describe_textures, texture_handles
from kaasd.request.device_checks import DeviceProperties

ARENA_LIMIT = 1 << 30
"""Most address space for resident blocks, in bytes, once there is more than one."""
THREADS_PER_MULTIPROCESSOR = 2048
BLOCKS_PER_MULTIPROCESSOR = 32
RESERVED_SHARED_BYTES = 1024
"""Of a GPU's shared memory, for each block."""


class Prepared:
    """Launches ready to run. They may run any number of times, also with other buffers."""

    def __init__(
        self,
        launches: Sequence[Launch],
        properties: DeviceProperties,
        scheduler: NativeCode,
        order: Random | None = None,
        cores: int = 1,
    ) -> None:
        """``scheduler`` is what ``native_scheduler`` returns. ``order`` gives the order of blocks; None leaves it as it is.

        So many ``cores`` may run the blocks of a launch.
        """
        self._order = order
        self._properties = properties
        self._cores = cores
        self._scheduler = scheduler
        self.structs = (LAUNCH.ctype * len(launches))()
        self.address = ctypes.addressof(self.structs)
        self.arena_size = 1
        """Bytes that the resident blocks of one launch take."""
        self.residents = 1
        """Most resident blocks of a launch."""
        self.most_blocks = self.most_warps = 0
        """Of a launch's grid."""
        self.cooperative = [
            struct for launch, struct in zip(launches, self.structs, strict=True) if launch.attributes.cooperative
        ]
        """Those of them that need a workspace for their grid."""
        self.most_cores = 1
        """That may have to do with a launch."""
        self._arguments: list[HostMemory] = []
        for launch, struct in zip(launches, self.structs, strict=True):
            self._fill(struct, launch)
            blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
            count = min(struct.resident_limit, blocks)
            self.arena_size = max(self.arena_size, struct.block_stride * count)
            self.residents = max(self.residents, count)
            self.most_cores = max(self.most_cores, struct.cores)
            self.most_blocks = max(self.most_blocks, blocks)
            self.most_warps = max(self.most_warps, blocks * -(-struct.threads // WARP_SIZE))
        units = dict.fromkeys(launch.kernel.unit for launch in launches if isinstance(launch.kernel, EmulatedKernel))
        self.resets = [reset for unit in units for reset in unit.resets]
        """To be called before a run: they give the module variables their initial values."""
        self.place(launches)

    def place(self, launches: Sequence[Launch]) -> None:
        """Run these launches from now on, which differ from those before in their buffers only."""
        self.launches = launches
        self._read_only = []
        self._textures = []
        for launch, struct, memory in zip(launches, self.structs, self._arguments, strict=True):
            _place_arguments(launch, memory)
            segments = _read_only_segments(launch)
            array = (ctypes.c_uint64 * len(segments))(*segments)
            self._read_only.append(array)
            struct.read_only, struct.read_only_count = ctypes.addressof(array), len(segments)
            textures = describe_textures(launch)
            self._textures.append(textures)
            struct.textures, struct.texture_count = ctypes.addressof(textures), len(textures)

    @property
    def temporaries(self) -> set[int]:
        """The segments of buffers that are temporary, but for those that are written as surfaces too, which no check sees."""
        references = (reference for launch in self.launches for reference in launch.references)
        arguments = (argument for launch in self.launches for argument in launch.arguments)
        surfaces = {_segment(each.reference) for each in arguments if isinstance(each, TextureRef) and each.is_surface}
        return {_segment(reference) for reference in references if reference.access is Access.TEMPORARY} - surfaces

    def _fill(self, struct: Any, launch: Launch) -> None:
        kernel = launch.kernel
        if not isinstance(kernel, EmulatedKernel):
            raise TypeError("the kernel belongs to another device")
        code, description = kernel.code, kernel.description
        attributes = launch.attributes
        threads = launch.block[0] * launch.block[1] * launch.block[2]
        cluster = attributes.cluster or kernel.attributes.cluster
        struct.is_explicit_cluster = cluster is not None
        struct.cluster_x, struct.cluster_y, struct.cluster_z = cluster or (1, 1, 1)
        struct.cluster_size = cluster_size = prod(cluster or (1, 1, 1))
        blocks = prod(launch.grid)
        by_lane = (
            code.description.by_lane
            and self._order is None
            and cluster_size == 1
            and _differ_by_lane(launch, code.description.pointers)
        )
        waits = code.description.by_lane_waits if by_lane else code.description.waits
        scheduled = waits or self._order is not None or cluster_size > 1
        variant = "_by_lane" if by_lane else ""
        struct.run = self._scheduler.address("schedule") if scheduled else code.native.address(f"run{variant}")
        if scheduled:
            struct.group_function = code.native.pointer_at(f"group_function{variant}")
        struct.collectives = code.native.address("collectives")
        struct.grid_x, struct.grid_y, struct.grid_z = launch.grid
        struct.block_x, struct.block_y, struct.block_z = launch.block
        struct.threads = threads
        struct.dynamic_shared = launch.shared_memory_bytes
        struct.shared_size = description.static_shared_bytes + launch.shared_memory_bytes
        struct.thread_stride = align(THREAD.size + code.description.exchange_bytes)
        struct.frame_stride, struct.local_stride = code.description.frame_stride, code.description.local_stride
        size = description.parameters_size_bytes
        self._arguments.append(HostMemory(size))
        struct.arguments, struct.arguments_size = self._arguments[-1].address, size
        held = threads if scheduled else 1
        struct.threads_offset = align(BLOCK_HEAD + -(-threads // WARP_SIZE) * WARP.size, 64)
        struct.frames_offset = align(struct.threads_offset + held * struct.thread_stride, 64)
        struct.locals_offset = align(struct.frames_offset + held * struct.frame_stride, 64)
        struct.saved_offset = align(struct.locals_offset + held * struct.local_stride, 64)
        struct.saved_stride = code.description.saved_stride if scheduled else 0
        struct.shared_offset = align(struct.saved_offset + -(-threads // WARP_SIZE) * struct.saved_stride, 256)
        struct.block_stride = align(struct.shared_offset + struct.shared_size, 256)
        most = self._properties.multiprocessor_count * _blocks_per_multiprocessor(threads)
        limit = min(most, ARENA_LIMIT // struct.block_stride)
        limit = blocks if attributes.cooperative else max(cluster_size, limit)
        struct.resident_limit = limit if scheduled else 1
        struct.clusters = blocks // cluster_size
        is_for_one = code.description.one_core or attributes.cooperative or cluster_size > 1 or blocks == 1
        struct.cores = 1 if is_for_one else self._cores
        struct.first_cluster, struct.cluster_step = self._cluster_order(struct.clusters)

    def _cluster_order(self, clusters: int) -> tuple[int, int]:
        """Return which begins first, and the distance to the next: prime to their number, so that each has its turn."""
        if self._order is None:
            return 0, 1
        step = self._order.randrange(1, clusters + 1)
        while gcd(step, clusters) != 1:
            step -= 1
        return self._order.randrange(clusters), step


def _blocks_per_multiprocessor(threads: int) -> int:
    return min(BLOCKS_PER_MULTIPROCESSOR, max(1, THREADS_PER_MULTIPROCESSOR // threads))


def active_blocks(kernel: LoadedKernel, launch: KernelSpec, properties: DeviceProperties) -> int:
    """Return how many blocks of a launch a GPU of these properties would run at once, in whole clusters."""
    cluster = prod(launch.cluster or kernel.attributes.cluster or (1, 1, 1))
    if cluster > 1 and kernel.attributes.static_shared_memory_bytes + launch.shared_memory_bytes > 1 << RANK_SHIFT:
        return 0  # an address has no room for the rank
    shared = kernel.attributes.static_shared_memory_bytes + launch.shared_memory_bytes + RESERVED_SHARED_BYTES
    fitting = (properties.max_shared_memory_bytes + RESERVED_SHARED_BYTES) // shared
    a_multiprocessor = min(_blocks_per_multiprocessor(prod(launch.block)), fitting)
    return a_multiprocessor * properties.multiprocessor_count // cluster * cluster


def _differ_by_lane(launch: Launch, pointers: Sequence[int]) -> bool:
    """Whether the threads of every warp differ by their lane only, and the parameters at these offsets are buffers."""
    assert isinstance(launch.kernel, EmulatedKernel)
    width, height, depth = launch.block
    if width % WARP_SIZE and height * depth > 1:
        return False
    buffers: set[int] = set()
    for (_, offset, _), argument in zip(launch.kernel.parameters, launch.arguments, strict=True):
        if isinstance(argument, BufferRef):
            buffers.add(offset)
        elif isinstance(argument, PackedRefs):
            buffers.update(offset + inner for inner, _ in argument.buffers)
    return buffers.issuperset(pointers)


def _place_arguments(launch: Launch, memory: HostMemory) -> None:
    assert isinstance(launch.kernel, EmulatedKernel)
    handles = texture_handles()
    for (name, offset, size), argument in zip(launch.kernel.parameters, launch.arguments, strict=True):
        if isinstance(argument, TextureRef):
            data = next(handles)
        else:
            data = argument if isinstance(argument, bytes) else _bytes_of(argument)
        if len(data) != size:
            raise ValueError(f"argument {name} has {size} bytes, not {len(data)}")
        memory.view[offset : offset + size] = data


def _bytes_of(argument: BufferRef | PackedRefs) -> bytes:
    return argument.filled(_address) if isinstance(argument, PackedRefs) else _address(argument).to_bytes(8, "little")


def _read_only_segments(launch: Launch) -> list[int]:
    """Return the segments that a launch may not write: buffers that it gets as input only."""
    references = list(launch.references)
    written = {_segment(reference) for reference in references if reference.access is not Access.INPUT}
    return sorted({_segment(reference) for reference in references} - written)


def _segment(reference: BufferRef) -> int:
    assert isinstance(reference.buffer, Allocation)
    return reference.buffer.segment


def _address(reference: BufferRef) -> int:
    if not isinstance(reference.buffer, Allocation):
        raise TypeError(f"buffer {reference.name} belongs to another device")
    return reference.buffer.address
