"""Launches made ready: arguments in place, sizes worked out, everything in the structures that native code reads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import gcd
from random import Random
from typing import Any

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, Launch, PackedRefs
from kaasd.devices.emulator.codegen.machine_code import NativeCode
from kaasd.devices.emulator.codegen.structures import BLOCK_HEAD, LAUNCH, THREAD, WARP, WARP_SIZE
from kaasd.devices.emulator.ptx.types import align
from kaasd.devices.emulator.runtime.address_space import Allocation
from kaasd.devices.emulator.runtime.host_memory import HostMemory
from kaasd.devices.emulator.runtime.module import EmulatedKernel
from kaasd.request.device_checks import DeviceProperties

ARENA_LIMIT = 1 << 30
"""Most address space for resident blocks, in bytes, once there is more than one."""
THREADS_PER_MULTIPROCESSOR = 2048
BLOCKS_PER_MULTIPROCESSOR = 32


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
        for launch, struct, memory in zip(launches, self.structs, self._arguments, strict=True):
            _place_arguments(launch, memory)
            segments = _read_only_segments(launch)
            array = (ctypes.c_uint64 * len(segments))(*segments)
            self._read_only.append(array)
            struct.read_only, struct.read_only_count = ctypes.addressof(array), len(segments)

    @property
    def temporaries(self) -> set[int]:
        """The segments of buffers that are temporary."""
        references = (reference for launch in self.launches for reference in launch.references)
        return {_segment(reference) for reference in references if reference.access is Access.TEMPORARY}

    def _fill(self, struct: Any, launch: Launch) -> None:
        kernel = launch.kernel
        if not isinstance(kernel, EmulatedKernel):
            raise TypeError("the kernel belongs to another device")
        code, description = kernel.code, kernel.description
        threads = launch.block[0] * launch.block[1] * launch.block[2]
        by_lane = code.description.by_lane and self._order is None and _differ_by_lane(launch, code.description.pointers)
        waits = code.description.by_lane_waits if by_lane else code.description.waits
        scheduled = waits or self._order is not None
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
        struct.shared_offset = align(struct.locals_offset + held * struct.local_stride, 256)
        struct.block_stride = align(struct.shared_offset + struct.shared_size, 256)
        per_multiprocessor = min(BLOCKS_PER_MULTIPROCESSOR, max(1, THREADS_PER_MULTIPROCESSOR // threads))
        limit = min(self._properties.multiprocessor_count * per_multiprocessor, ARENA_LIMIT // struct.block_stride)
        struct.resident_limit = max(1, limit) if scheduled else 1
        struct.blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
        struct.cores = 1 if code.description.one_core or struct.blocks == 1 else self._cores
        struct.first_block, struct.block_step = self._block_order(struct.blocks)

    def _block_order(self, blocks: int) -> tuple[int, int]:
        """Return which block begins first, and the distance to the next: prime to their number, so that each has its turn."""
        if self._order is None:
            return 0, 1
        step = self._order.randrange(1, blocks + 1)
        while gcd(step, blocks) != 1:
            step -= 1
        return self._order.randrange(blocks), step


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
    for (name, offset, size), argument in zip(launch.kernel.parameters, launch.arguments, strict=True):
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
