"""Kernel launches in the form that the driver takes."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

from cuda.bindings import driver

from kaas_core.request import Dim3
from kaasd.devices.base import Launch
from kaasd.devices.cuda.device_memory import CudaBuffer
from kaasd.devices.cuda.driver import check
from kaasd.devices.cuda.module import CudaKernel
from kaasd.devices.cuda.parameters import Parameters
from kaasd.devices.cuda.wrapper import HostCall, HostFunction


class KernelCall:
    """A launch whose parameters are laid out for the driver, to go into a stream or a graph any number of times."""

    def __init__(
        self, kernel: CudaKernel, grid: Dim3, block: Dim3, shared_memory_bytes: int, parameters: Sequence[bytes]
    ) -> None:
        """Raises ``CudaError`` where so much shared memory is refused."""
        kernel.allow_dynamic_shared_memory(shared_memory_bytes)
        self._function = kernel.function
        self._configuration = (*grid, *block, shared_memory_bytes)
        self.parameters = Parameters(parameters)
        """The driver copies the values when it launches or adds a node."""

    def enqueue(self, stream: Any) -> None:
        """Put the launch into a stream. Raises ``CudaError``, which can also be that of a launch before."""
        *dimensions, shared = self._configuration
        check(driver.cuLaunchKernel, self._function, *dimensions, shared, stream, self.parameters.address, 0)

    @cached_property
    def node_parameters(self) -> Any:
        """The launch as a graph's node."""
        node = driver.CUDA_KERNEL_NODE_PARAMS()
        node.func = self._function
        node.gridDimX, node.gridDimY, node.gridDimZ, node.blockDimX, node.blockDimY, node.blockDimZ, node.sharedMemBytes = (
            self._configuration
        )
        node.kernelParams = self.parameters.address
        return node


def call_of(launch: Launch) -> KernelCall | HostCall:
    """Return a launch for the driver, or the call of a wrapper. Raises ``CudaError``."""
    parameters = [argument if isinstance(argument, bytes) else _address(argument.buffer) for argument in launch.arguments]
    if isinstance(launch.kernel, HostFunction):
        return HostCall(launch.kernel, launch.grid, launch.block, launch.shared_memory_bytes, parameters)
    assert isinstance(launch.kernel, CudaKernel)
    return KernelCall(launch.kernel, launch.grid, launch.block, launch.shared_memory_bytes, parameters)


def update_call(call: KernelCall | HostCall, launch: Launch) -> bool:
    """Give a call of ``call_of`` the buffers of another launch; return whether they are others."""
    changed = False
    for index, argument in enumerate(launch.arguments):
        if not isinstance(argument, bytes):
            changed |= call.parameters.set(index, _address(argument.buffer))
    return changed


def _address(buffer: Any) -> bytes:
    assert isinstance(buffer, CudaBuffer)
    return buffer.address.to_bytes(8, "little")


RANGES = 32
"""Of one launch of ``moveKern``; see ``move.cu``."""
_THREADS = 256
_BYTES_A_BLOCK = _THREADS * 16 * 4
_MAX_BLOCKS = 1024
Move = tuple[int, int, int]
"""Address to write, address to read or 0 for zeros, size in bytes. Both begin at a multiple of 16."""


def move_calls(kernel: CudaKernel, moves: Iterable[Move], arrived: int = 0, flag: int = 0) -> Iterator[KernelCall]:
    """Yield the launches of ``moveKern`` that make ``moves``; behind the last, the word at ``flag`` becomes 1.

    ``arrived`` is a word of zero for its use alone. Where there is a flag there is at least one launch.
    """
    left = list(moves)
    while left or flag:
        batch, left = left[:RANGES], left[RANGES:]
        blocks = max(1, min(_MAX_BLOCKS, max((-(-size // _BYTES_A_BLOCK) for _, _, size in batch), default=1)))
        table = b"".join(struct.pack("<QQQ", *move) for move in batch).ljust(24 * RANGES, b"\0")
        signals = [value.to_bytes(8, "little") for value in ((0, 0) if left else (arrived, flag))]
        yield KernelCall(kernel, (blocks, max(1, len(batch)), 1), (_THREADS, 1, 1), 0, [table, *signals])
        if not left:
            return


MARKED_LAUNCHES = 64
"""Launches of a run before which a mark is written, to tell which one faulted. A mark costs about 4 microseconds, as a
launch does; marks before all 3000 launches of a run made it half as long again."""


def faulted_launch(begun: int, enqueued: int, launches: int) -> int:
    """Return which of ``launches``, repeated until ``enqueued`` are in the stream, faulted when the last mark is ``begun``.

    A launch is marked when all before it have ended, so the last one marked is the one that did not end; but past the last mark
    of all it may be a later one, and then it is -1, unless all launches are the same.
    """
    if launches == 1:
        return 0
    return begun % launches if begun < MARKED_LAUNCHES or enqueued == MARKED_LAUNCHES + 1 else -1
