"""Launches of kernels, and calls of wrappers in their place, in the form that the driver takes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from cuda.bindings import driver

from kaas_core.request import Dim3
from kaasd.devices.base import BufferRef, Launch, PackedRefs, TextureRef
from kaasd.devices.cuda.attributes import launch_configuration
from kaasd.devices.cuda.buffers import CudaBuffer
from kaasd.devices.cuda.driver import CudaError, check
from kaasd.devices.cuda.kernel import CudaKernel
from kaasd.devices.cuda.partitions import Partition
from kaasd.devices.cuda.textures import ArrayCopy, RunTextures
from kaasd.devices.cuda.wrapper import HostFunction
from kaasd.request.device_checks import PLAIN, LaunchAttributes


class Parameters:
    """An array of pointers, one to each parameter's value, which begins at a multiple of 16: that suits the largest type."""

    def __init__(self, values: Sequence[bytes]) -> None:
        memory = bytearray()
        self._offsets: list[int] = []
        for value in values:
            self._offsets.append(len(memory))
            memory += value + bytes(-len(value) % 16)
        self._values = memory or bytearray(1)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._values))
        self._pointers = (ctypes.c_void_p * (len(values) or 1))(*(base + offset for offset in self._offsets))
        self.address = ctypes.addressof(self._pointers)
        """Of the array, for as long as this object lives."""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._offsets)

    def set(self, index: int, value: bytes) -> bool:
        """Change a parameter's value to another as long; return whether it was another."""
        start = self._offsets[index]
        if self._values[start : start + len(value)] == value:
            return False
        self._values[start : start + len(value)] = value
        return True


class WrapperFailed(CudaError):
    """A wrapper returned a number other than 0."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(name, "WRAPPER_FAILED", f"it returned {code}")
        self.code = code

    def __str__(self) -> str:
        return f"{self.call} returned {self.code}"


class KernelCall:
    """A launch whose parameters are laid out for the driver, to go into a stream or a graph any number of times."""

    def __init__(
        self,
        kernel: CudaKernel,
        grid: Dim3,
        block: Dim3,
        shared_memory_bytes: int,
        parameters: Sequence[bytes],
        attributes: LaunchAttributes = PLAIN,
    ) -> None:
        """Raises ``CudaError`` where so much shared memory, or so large a cluster, is refused."""
        kernel.allow_dynamic_shared_memory(shared_memory_bytes)
        kernel.allow_cluster(attributes.cluster or kernel.attributes.cluster)
        self._kernel = kernel
        self.attributes = attributes
        self._function = kernel.function
        self._configuration = (*grid, *block, shared_memory_bytes)
        self.parameters = Parameters(parameters)
        """The driver copies the values when it launches or adds a node."""
        self.before: Sequence[ArrayCopy] = ()
        """What is copied to its textures and surfaces first."""
        self.behind: Sequence[ArrayCopy] = ()
        """What is copied from its surfaces then."""
        self._nodes: dict[Partition | None, Any] = {}

    def enqueue(self, stream: Any) -> None:
        """Put the launch into a stream, with its copies.

        Raises ``CudaError``, which can also be that of a launch before.
        """
        for copy in self.before:
            copy.enqueue(stream)
        if self.attributes == PLAIN:
            *dimensions, shared = self._configuration
            check(driver.cuLaunchKernel, self._function, *dimensions, shared, stream, self.parameters.address, 0)
        else:
            configuration = launch_configuration(self._configuration, stream, self.attributes)
            check(driver.cuLaunchKernelEx, configuration, self._function, self.parameters.address, 0)
        for copy in self.behind:
            copy.enqueue(stream)

    def node_parameters(self, partition: Partition | None) -> Any:
        """Return the launch as a node of a graph that keeps to a partition. Raises ``CudaError``."""
        node = self._nodes.get(partition)
        if node is None:
            node = self._nodes[partition] = self._node(partition)
        return node

    def _node(self, partition: Partition | None) -> Any:
        node = driver.CUDA_KERNEL_NODE_PARAMS()
        if partition is None:
            node.func = self._function
        else:
            cluster = self.attributes.cluster or self._kernel.attributes.cluster
            node.kern = self._kernel.without_context(self._configuration[-1], cluster)
            node.ctx = partition.context
        node.gridDimX, node.gridDimY, node.gridDimZ, node.blockDimX, node.blockDimY, node.blockDimZ, node.sharedMemBytes = (
            self._configuration
        )
        node.kernelParams = self.parameters.address
        return node


class HostCall:
    """A call of a wrapper, to be made any number of times. A graph cannot hold it."""

    def __init__(
        self, kernel: HostFunction, grid: Dim3, block: Dim3, shared_memory_bytes: int, parameters: Sequence[bytes]
    ) -> None:
        self.parameters = Parameters(parameters)
        self.before: Sequence[ArrayCopy] = ()
        self.behind: Sequence[ArrayCopy] = ()
        self._kernel = kernel
        self._grid, self._block = (ctypes.c_uint32 * 3)(*grid), (ctypes.c_uint32 * 3)(*block)
        self._shared_memory_bytes = shared_memory_bytes

    def enqueue(self, stream: Any) -> None:
        """Have the wrapper put what it launches into a stream. Raises ``WrapperFailed``, ``CudaError``."""
        for copy in self.before:
            copy.enqueue(stream)
        context = check(driver.cuCtxGetCurrent)
        code = self._kernel.function(
            ctypes.addressof(self._grid),
            ctypes.addressof(self._block),
            self._shared_memory_bytes,
            self.parameters.address,
            self.parameters.count,
            int(stream),
        )
        check(driver.cuCtxSetCurrent, context)  # whatever it has left behind
        if code:
            raise WrapperFailed(self._kernel.attributes.name, code)
        for copy in self.behind:
            copy.enqueue(stream)


def call_of(launch: Launch, textures: RunTextures) -> KernelCall | HostCall:
    """Return a launch for the driver, or a call of a wrapper, with the ``textures`` of its run. Raises ``CudaError``."""
    parameters = [
        argument
        if isinstance(argument, bytes)
        else textures.handle(argument)
        if isinstance(argument, TextureRef)
        else _bytes_of(argument)
        for argument in launch.arguments
    ]
    call: KernelCall | HostCall
    if isinstance(launch.kernel, HostFunction):
        call = HostCall(launch.kernel, launch.grid, launch.block, launch.shared_memory_bytes, parameters)
    else:
        assert isinstance(launch.kernel, CudaKernel)
        sizes = launch.grid, launch.block, launch.shared_memory_bytes
        call = KernelCall(launch.kernel, *sizes, parameters, launch.attributes)
    call.before, call.behind = textures.before(launch), textures.behind(launch)
    return call


def update_call(call: KernelCall | HostCall, launch: Launch) -> bool:
    """Give a call of ``call_of`` the buffers of another launch; return whether the kernel gets others."""
    changed = False
    for index, argument in enumerate(launch.arguments):
        if isinstance(argument, BufferRef | PackedRefs):
            changed |= call.parameters.set(index, _bytes_of(argument))
    return changed


def _bytes_of(argument: BufferRef | PackedRefs) -> bytes:
    return argument.filled(_address) if isinstance(argument, PackedRefs) else _address(argument).to_bytes(8, "little")


def _address(reference: BufferRef) -> int:
    assert isinstance(reference.buffer, CudaBuffer)
    return reference.buffer.address


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
