"""A CUDA GPU through the driver API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from cuda.bindings import driver

from kaasd.devices.base import DeviceUnavailable, KernelFault, Launch, OutOfMemory
from kaasd.devices.cuda.driver import CudaError, check, initialize
from kaasd.devices.cuda.launch import MARKED_LAUNCHES, PreparedLaunch, Progress, faulted_launch
from kaasd.devices.cuda.memory import CudaBuffer, Staging
from kaasd.devices.cuda.module import CudaModule
from kaasd.request.target import DeviceProperties

_KEEP_ALL_MEMORY = 2**64 - 1


class CudaDevice:
    """A GPU: its primary context, one stream, and what was made on it.

    Waiting spins, with the GIL released: with a blocking wait the run of two small kernels took 53 instead of 30 microseconds on
    an H100. It costs a core while kernels run.
    """

    def __init__(self, ordinal: int) -> None:
        """Open the GPU of this ordinal. Raises ``DeviceUnavailable``."""
        count = initialize()
        if not 0 <= ordinal < count:
            raise DeviceUnavailable(f"there is no cuda:{ordinal}: the CUDA driver finds {count} GPU{'s' * (count != 1)}")
        self._lost = False
        self._open: set[CudaBuffer | CudaModule] = set()
        with ExitStack() as undo:
            try:
                self._set_up(ordinal, undo)
            except CudaError as error:
                raise DeviceUnavailable(f"cuda:{ordinal} cannot be opened: {error}") from error
            self._undo = undo.pop_all()

    def _set_up(self, ordinal: int, undo: ExitStack) -> None:
        self._handle = check(driver.cuDeviceGet, ordinal)
        self._properties = _properties(self._handle, f"cuda:{ordinal}")

        check(driver.cuDevicePrimaryCtxSetFlags, self._handle, driver.CUctx_flags.CU_CTX_SCHED_SPIN)
        context = check(driver.cuDevicePrimaryCtxRetain, self._handle)
        undo.callback(self._release, driver.cuDevicePrimaryCtxRelease, self._handle)
        check(driver.cuCtxSetCurrent, context)

        self._stream = check(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        undo.callback(self._release, driver.cuStreamDestroy, self._stream)

        # What is freed stays with the pool, so that the next request's memory costs no call into the kernel.
        self._pool = check(driver.cuDeviceGetDefaultMemPool, self._handle)
        threshold = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        check(driver.cuMemPoolSetAttribute, self._pool, threshold, driver.cuuint64_t(_KEEP_ALL_MEMORY))

        self._staging = Staging(self._stream, self._release)
        undo.callback(self._staging.close)
        self._progress = Progress(self._stream, self._release)
        undo.callback(self._progress.close)
        undo.callback(self._close_open)

    @property
    def properties(self) -> DeviceProperties:
        return self._properties

    def load(self, image: bytes) -> CudaModule:
        """Load GPU code: PTX, cubin, fatbin, or an ELF shared object with a fatbin. Raises ``UnsupportedLibrary``."""
        module = CudaModule(image, self._properties.compute_capability, self._release, self._open.discard)
        self._open.add(module)
        return module

    def allocate(self, size_bytes: int) -> CudaBuffer:
        """Return new memory of unspecified content. Raises ``OutOfMemory``."""
        if size_bytes <= 0:
            raise ValueError(f"a buffer of {size_bytes} bytes")
        try:
            address = int(check(driver.cuMemAllocAsync, size_bytes, self._stream))
        except CudaError as error:
            if error.name != "CUDA_ERROR_OUT_OF_MEMORY":
                raise
            # A failed allocation has filled the pool with what there was, which would be lost to all others of this GPU.
            check(driver.cuStreamSynchronize, self._stream)
            check(driver.cuMemPoolTrimTo, self._pool, 0)
            raise OutOfMemory(self._describe_shortage(size_bytes)) from error
        buffer = CudaBuffer(address, size_bytes, self._stream, self._staging, self._free)
        self._open.add(buffer)
        return buffer

    def _describe_shortage(self, size_bytes: int) -> str:
        used = int(check(driver.cuMemPoolGetAttribute, self._pool, driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_USED_MEM_CURRENT))
        free, total = check(driver.cuMemGetInfo)
        return f"{size_bytes} bytes asked of {self._properties.name}; {used} are in use here and {free} of {total} free"

    def _free(self, buffer: CudaBuffer) -> None:
        self._open.discard(buffer)
        self._release(driver.cuMemFreeAsync, buffer.address, self._stream)

    def _release(self, function: Callable[..., tuple[Any, ...]], *arguments: Any) -> None:
        """Call a function that frees something. A lost device takes no call any more; the end of the process frees all."""
        if not self._lost:
            check(function, *arguments)

    def run(self, launches: Sequence[Launch], iterations: int) -> None:
        """Run all ``launches`` in order, ``iterations`` times, and wait for the end.

        Raises ``KernelFault``, ``OutOfMemory``. Which launch faulted is known for the first launches of a run, and where there
        is only one.
        """
        prepared = [PreparedLaunch(launch) for launch in launches]
        enqueued = 0
        self._progress.reset()
        try:
            for _ in range(iterations):
                for each in prepared:
                    if 0 < enqueued <= MARKED_LAUNCHES:
                        self._progress.mark(enqueued)
                    each.enqueue(self._stream)
                    enqueued += 1
        except CudaError as refused:
            self._wait(launches, enqueued)  # an earlier launch's fault comes back from any later call
            index = enqueued % len(launches)
            message = f"{launches[index].kernel.attributes.name} could not be launched: {refused}"
            if refused.name == "CUDA_ERROR_OUT_OF_MEMORY":
                raise OutOfMemory(message) from refused
            raise KernelFault(refused.name, index, message) from refused
        self._wait(launches, enqueued)

    def _wait(self, launches: Sequence[Launch], enqueued: int) -> None:
        """Wait for the stream. Raises ``KernelFault`` where a kernel in it faulted."""
        try:
            check(driver.cuStreamSynchronize, self._stream)
        except CudaError as error:
            self._lost = True
            index = faulted_launch(self._progress.count, enqueued, len(launches))
            who = launches[index].kernel.attributes.name if index >= 0 else "a kernel"
            raise KernelFault(error.name, index, f"{who} faulted: {error.text}", device_lost=True) from error

    def stop(self) -> bool:
        """Return False: a kernel ends by itself or with its process."""
        return False

    def close(self) -> None:
        """Free everything. Idempotent."""
        self._undo.close()

    def _close_open(self) -> None:
        for each in list(self._open):
            each.close()


def _properties(handle: Any, name: str) -> DeviceProperties:
    kind = driver.CUdevice_attribute

    def attribute(which: Any) -> int:
        value: int = check(driver.cuDeviceGetAttribute, which, handle)
        return value

    return DeviceProperties(
        name=name,
        model=check(driver.cuDeviceGetName, 256, handle).partition(b"\0")[0].decode(),
        memory_bytes=int(check(driver.cuDeviceTotalMem, handle)),
        compute_capability=(
            attribute(kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
            attribute(kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
        ),
        multiprocessor_count=attribute(kind.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
        warp_size=attribute(kind.CU_DEVICE_ATTRIBUTE_WARP_SIZE),
        max_threads_per_block=attribute(kind.CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK),
        max_block=(
            attribute(kind.CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X),
            attribute(kind.CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y),
            attribute(kind.CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z),
        ),
        max_grid=(
            attribute(kind.CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X),
            attribute(kind.CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y),
            attribute(kind.CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z),
        ),
        max_shared_memory_bytes=attribute(kind.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
    )
