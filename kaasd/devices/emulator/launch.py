"""A launch made ready: arguments in place, sizes worked out, everything in the structures that native code reads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

from kaasd.devices.base import BufferRef, Launch
from kaasd.devices.emulator.jit import NativeCode
from kaasd.devices.emulator.layout import BLOCK_HEAD, LAUNCH, THREAD, align
from kaasd.devices.emulator.memory import Allocation, HostMemory
from kaasd.devices.emulator.module import EmulatedKernel
from kaasd.devices.emulator.scheduler import build_scheduler
from kaasd.request.target import DeviceProperties
from kaasd.request.types import Access

ARENA_LIMIT = 1 << 30
"""Most address space for resident blocks, in bytes, once there is more than one."""
THREADS_PER_MULTIPROCESSOR = 2048
BLOCKS_PER_MULTIPROCESSOR = 32


@cache
def scheduler() -> NativeCode:
    """The native scheduler, the same for all kernels of the process."""
    return NativeCode(build_scheduler())


class Prepared:
    """The launches of one run."""

    def __init__(self, launches: Sequence[Launch], properties: DeviceProperties) -> None:
        self._kept: list[object] = []
        self._properties = properties
        self.structs = (LAUNCH.ctype * len(launches))()
        arena_size = residents = 1
        for launch, struct in zip(launches, self.structs, strict=True):
            self._fill(struct, launch)
            blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
            count = min(struct.resident_limit, blocks)
            arena_size = max(arena_size, struct.block_stride * count)
            residents = max(residents, count)
        self.arena = HostMemory(arena_size)
        self.resident = (ctypes.c_void_p * residents)()

    def _fill(self, struct: Any, launch: Launch) -> None:
        kernel = launch.kernel
        if not isinstance(kernel, EmulatedKernel):
            raise TypeError("the kernel belongs to another device")
        compiled, code = kernel.compiled, kernel.code
        threads = launch.block[0] * launch.block[1] * launch.block[2]
        static = compiled.image.static_shared
        struct.run = scheduler().address("schedule") if compiled.waits else code.address("run")
        struct.thread_function = code.pointer_at("thread_function")
        struct.collectives = code.address("collectives")
        struct.grid_x, struct.grid_y, struct.grid_z = launch.grid
        struct.block_x, struct.block_y, struct.block_z = launch.block
        struct.threads = threads
        struct.dynamic_shared = launch.shared_memory_bytes
        struct.shared_size = static + launch.shared_memory_bytes
        struct.thread_stride = align(THREAD.size + compiled.image.exchange_size)
        struct.frame_stride, struct.local_stride = compiled.frame_stride, compiled.local_stride
        self._place_arguments(struct, launch, kernel)
        self._find_read_only(struct, launch)
        held = threads if compiled.waits else 1
        struct.threads_offset = align(BLOCK_HEAD)
        struct.frames_offset = align(struct.threads_offset + held * struct.thread_stride, 64)
        struct.locals_offset = align(struct.frames_offset + held * struct.frame_stride, 64)
        struct.shared_offset = align(struct.locals_offset + held * struct.local_stride, 256)
        struct.block_stride = align(struct.shared_offset + struct.shared_size, 256)
        per_multiprocessor = min(BLOCKS_PER_MULTIPROCESSOR, max(1, THREADS_PER_MULTIPROCESSOR // threads))
        limit = min(self._properties.multiprocessor_count * per_multiprocessor, ARENA_LIMIT // struct.block_stride)
        struct.resident_limit = max(1, limit) if compiled.waits else 1

    def _place_arguments(self, struct: Any, launch: Launch, kernel: EmulatedKernel) -> None:
        signature = kernel.entry.signature
        block = HostMemory(max(signature.size, 1))
        for place, argument in zip(signature.parameters, launch.arguments, strict=True):
            data = _address(argument).to_bytes(8, "little") if isinstance(argument, BufferRef) else argument
            if len(data) != place.size:
                raise ValueError(f"argument {place.name} has {place.size} bytes, not {len(data)}")
            block.view[place.offset : place.offset + place.size] = data
        self._kept.append(block)
        struct.arguments, struct.arguments_size = block.address, signature.size

    def _find_read_only(self, struct: Any, launch: Launch) -> None:
        """List the slots that this launch may not write: buffers that it gets as input only."""
        references = [argument for argument in launch.arguments if isinstance(argument, BufferRef)]
        written = {_slot(reference) for reference in references if reference.access is not Access.INPUT}
        slots = sorted({_slot(reference) for reference in references} - written)
        array = (ctypes.c_uint64 * len(slots))(*slots)
        self._kept.append(array)
        struct.read_only, struct.read_only_count = ctypes.addressof(array), len(slots)

    def close(self) -> None:
        """Free the memory of the run."""
        self.arena.close()


def _slot(reference: BufferRef) -> int:
    assert isinstance(reference.buffer, Allocation)
    return reference.buffer.slot


def _address(reference: BufferRef) -> int:
    if not isinstance(reference.buffer, Allocation):
        raise TypeError(f"buffer {reference.name} belongs to another device")
    return reference.buffer.address
