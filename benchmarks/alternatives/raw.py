"""A GPU through ``cuda.bindings`` and nothing else: what the hardware and its driver can do without a service around them."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from cuda.bindings import driver

BLOCKING = driver.CUctx_flags.CU_CTX_SCHED_BLOCKING_SYNC
SPINNING = driver.CUctx_flags.CU_CTX_SCHED_SPIN


class CudaError(Exception):
    """A driver call failed."""


def check(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call a function of the driver; return what it returns beside its status. Raises ``CudaError``."""
    status, *values = function(*arguments)
    if status:
        raise CudaError(f"{function.__name__}: {status.name}")
    return values[0] if len(values) == 1 else tuple(values) or None


class Launch:
    """A kernel with its arguments packed once. An integer argument is a device address, a ctypes value a literal."""

    def __init__(self, kernel: Any, grid: int, block: int, arguments: Sequence[Any], shared_bytes: int = 0) -> None:
        self._values = [x if isinstance(x, ctypes._SimpleCData) else ctypes.c_uint64(int(x)) for x in arguments]
        self._pointers = np.array([ctypes.addressof(value) for value in self._values], dtype=np.uint64)
        self._shape = (kernel, grid, 1, 1, block, 1, 1, shared_bytes)
        self._packed = self._pointers.ctypes.data

    def on(self, stream: Any) -> None:
        """Launch it."""
        check(driver.cuLaunchKernel, *self._shape, stream, self._packed, 0)


class Gpu:
    """The first GPU's primary context, current in the thread that enters its ``with`` block, and what is made in it."""

    def __init__(self, waiting: Any = SPINNING) -> None:
        self._waiting = waiting
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        check(driver.cuInit, 0)
        self._device = check(driver.cuDeviceGet, 0)
        check(driver.cuDevicePrimaryCtxSetFlags, self._device, self._waiting)
        self._context = check(driver.cuDevicePrimaryCtxRetain, self._device)
        self._undo.callback(check, driver.cuDevicePrimaryCtxRelease, self._device)
        self.enter_thread()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        check(driver.cuCtxSynchronize)
        self._undo.close()

    def enter_thread(self) -> None:
        """Make the context current in the calling thread."""
        check(driver.cuCtxSetCurrent, self._context)

    @property
    def name(self) -> str:
        """The GPU, as its driver calls it."""
        name: bytes = check(driver.cuDeviceGetName, 256, self._device)
        return name.rstrip(b"\0").decode()

    def used_bytes(self) -> int:
        """Return how much of the GPU's memory all processes together hold."""
        free, total = check(driver.cuMemGetInfo)
        return int(total - free)

    def module(self, image: bytes | Path) -> Any:
        """Load PTX or a cubin, given as its content or its file."""
        content = image.read_bytes() if isinstance(image, Path) else image
        module = check(driver.cuModuleLoadData, content if content.startswith(b"\x7fELF") else content + b"\0")
        self._undo.callback(check, driver.cuModuleUnload, module)
        return module

    def kernel(self, module: Any, name: str) -> Any:
        """Return an entry point of a module."""
        return check(driver.cuModuleGetFunction, module, name.encode())

    def stream(self) -> Any:
        """Return a new stream."""
        stream = check(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        self._undo.callback(check, driver.cuStreamDestroy, stream)
        return stream

    def allocate(self, content: int | np.ndarray[Any, Any]) -> Any:
        """Return device memory: so many bytes of zeros, or a copy of an array."""
        size = content if isinstance(content, int) else content.nbytes
        address = check(driver.cuMemAlloc, size)
        self._undo.callback(check, driver.cuMemFree, address)
        if isinstance(content, int):
            check(driver.cuMemsetD8, address, 0, size)
        else:
            check(driver.cuMemcpyHtoD, address, content.ctypes.data, size)
        check(driver.cuCtxSynchronize)
        return address

    def pinned(self, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return page-locked memory of the host, which lives as long as this object."""
        address = check(driver.cuMemHostAlloc, size, 0)
        self._undo.callback(check, driver.cuMemFreeHost, address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(address)))

    def graph(self, stream: Any, enqueue: Callable[[Any], None]) -> Callable[[], None]:
        """Capture what ``enqueue`` puts on a stream as a graph; return what launches it there once."""
        check(driver.cuStreamBeginCapture, stream, driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
        enqueue(stream)
        graph = check(driver.cuStreamEndCapture, stream)
        executable = check(driver.cuGraphInstantiate, graph, 0)
        check(driver.cuGraphDestroy, graph)
        self._undo.callback(check, driver.cuGraphExecDestroy, executable)

        def launch() -> None:
            check(driver.cuGraphLaunch, executable, stream)

        return launch

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Free what is made in a ``with`` block at its end."""
        outer, self._undo = self._undo, ExitStack()
        try:
            yield
        finally:
            inner, self._undo = self._undo, outer
            check(driver.cuCtxSynchronize)
            inner.close()


FROM_PEER, FROM_PEER_UNMAPPED, FROM_HOST = "from another GPU", "from another GPU, without peer access", "from pinned host memory"


def copies_to(gpu: Gpu, size: int) -> dict[str, Callable[[], list[float]]]:
    """Return what copies so many bytes to the first GPU, from the second one and from the host, and measures seconds."""
    target, stream, pinned = gpu.allocate(size), gpu.stream(), gpu.pinned(size)
    here = check(driver.cuCtxGetCurrent)
    there = check(driver.cuDevicePrimaryCtxRetain, check(driver.cuDeviceGet, 1))
    check(driver.cuCtxSetCurrent, there)
    source = check(driver.cuMemAlloc, size)
    gpu.enter_thread()
    reaches = False

    def copy(enqueue: Callable[[], object], reach: bool | None) -> list[float]:
        nonlocal reaches
        if reach is not None and reach != reaches:
            check(*((driver.cuCtxEnablePeerAccess, there, 0) if reach else (driver.cuCtxDisablePeerAccess, there)))
            reaches = reach
        enqueue()
        wait(stream)
        start = time.perf_counter()
        for _ in range(10):
            enqueue()
        wait(stream)
        return [(time.perf_counter() - start) / 10]

    def from_peer() -> None:
        check(driver.cuMemcpyPeerAsync, target, here, source, there, size, stream)

    return {
        FROM_PEER: lambda: copy(from_peer, True),
        FROM_PEER_UNMAPPED: lambda: copy(from_peer, False),
        FROM_HOST: lambda: copy(lambda: to_device(target, pinned, stream), None),
    }


def gpus() -> int:
    """Return how many GPUs there are."""
    check(driver.cuInit, 0)
    return int(check(driver.cuDeviceGetCount))


def blocks_at_once(threads: int) -> int:
    """Return how many blocks of so many threads, that need little else, fill the first GPU."""
    check(driver.cuInit, 0)
    device, attribute = check(driver.cuDeviceGet, 0), driver.CUdevice_attribute
    multiprocessors = check(driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device)
    each = check(driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, device)
    return int(multiprocessors) * (int(each) // threads)


def wait(stream: Any) -> None:
    """Return when a stream has nothing left to do."""
    check(driver.cuStreamSynchronize, stream)


def to_device(address: Any, array: np.ndarray[Any, Any], stream: Any) -> None:
    """Copy an array to the device, in the order of a stream."""
    check(driver.cuMemcpyHtoDAsync, address, array.ctypes.data, array.nbytes, stream)


def to_host(array: np.ndarray[Any, Any], address: Any, stream: Any) -> None:
    """Copy from the device into an array, in the order of a stream."""
    check(driver.cuMemcpyDtoHAsync, array.ctypes.data, address, array.nbytes, stream)


def clear(address: Any, size: int, stream: Any) -> None:
    """Zero device memory, in the order of a stream."""
    check(driver.cuMemsetD8Async, address, 0, size, stream)


def compile_ptx(ptx: bytes) -> bytes:
    """Return the cubin that the driver makes of PTX for the current context's GPU."""
    state = check(driver.cuLinkCreate, 0, [], [])
    try:
        kind = driver.CUjitInputType.CU_JIT_INPUT_PTX
        check(driver.cuLinkAddData, state, kind, ptx + b"\0", len(ptx) + 1, b"benchmark.ptx", 0, [], [])
        address, size = check(driver.cuLinkComplete, state)
        return ctypes.string_at(int(address), size)
    finally:
        check(driver.cuLinkDestroy, state)
