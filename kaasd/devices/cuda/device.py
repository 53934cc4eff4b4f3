"""A CUDA GPU through the driver API: its memory, its copies, and what is made on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from cuda.bindings import driver

from kaas_core.request import KernelSpec
from kaas_core.texture import Texture
from kaasd.devices.base import (
    DeviceBuffer,
    DeviceLost,
    DeviceUnavailable,
    Launch,
    LoadedKernel,
    MappedFile,
    OutOfMemory,
    TextureRef,
    undone_on_failure,
)
from kaasd.devices.cuda.attributes import active_blocks
from kaasd.devices.cuda.buffers import CudaBuffer, CudaDownload, CudaTransfer, Words, address_of
from kaasd.devices.cuda.context import CudaContext
from kaasd.devices.cuda.driver import CudaError, check, initialize
from kaasd.devices.cuda.kernel import CudaKernel, with_own_variables
from kaasd.devices.cuda.mapped import RegisteredFile
from kaasd.devices.cuda.module import CudaModule
from kaasd.devices.cuda.moves import Moved
from kaasd.devices.cuda.partitions import reservable
from kaasd.devices.cuda.ptxas import compiled_codes, is_to_compile, target_text
from kaasd.devices.cuda.ptxas import find as find_ptxas
from kaasd.devices.cuda.run import PLAIN_STARTS, CudaRun
from kaasd.devices.cuda.tracer import CudaTracer
from kaasd.devices.cuda.wrapper import HostCode
from kaasd.devices.targets import newest_ptx, targets_of
from kaasd.libraries import UnsupportedLibrary
from kaasd.request.device_checks import DeviceProperties, max_cluster_blocks

_FEWEST_QUEUES, _MOST_QUEUES = 8, 32
"""Hardware queues: what the driver has unless it is told otherwise, and the most that there can be. Streams that share one wait
for each other: with 8, 16 solvers of 12 graph launches each had 377 jobs done a second on an H100, with 32 1049; on an H200 they
had 997 with 20, 1007 with 32. Each costs: on that, 8, 20 and 32 take 0.13, 0.37 and 0.5 s until there is a context, and 0.4, 1.4
and 3.1 s until the driver says that a kernel has trapped."""
_OTHER_STREAMS = 4
"""For copies in and out, and for groups that have multiprocessors of their own, beside those of runs."""
_KEEP_ALL_MEMORY = 2**64 - 1
_MUCH_MEMORY = 32 << 20
"""Bytes from which on it is asked first whether there is room. The driver takes all that is free before it says that it is not
enough: 140 GB, for a second on an H200 and for longer beside others, who find nothing meanwhile. To ask takes 9 microseconds."""
_MOVE_PTX = Path(__file__).with_name("move.ptx")


class CudaDevice:
    """A GPU: its primary context, its streams, and what was made on it.

    Waiting spins, with the GIL released: with a blocking wait the run of two small kernels took 53 instead of 30 microseconds on
    an H100. It costs a core while kernels run.
    """

    def __init__(
        self,
        ordinal: int,
        *,
        name: str | None = None,
        code_cache: Path | None = None,
        plain_starts: int | None = PLAIN_STARTS,
        runs: int = _MOST_QUEUES,
    ) -> None:
        """Open the GPU of this ordinal. It is called ``name``, by default ``cuda:`` and that. Raises ``DeviceUnavailable``.

        What the driver compiles it keeps in the directory ``code_cache``, unless the environment tells it otherwise. It reads
        its environment once in a process. A run that has started ``plain_starts`` times becomes a CUDA graph; None: never.
        It has hardware queues for so many ``runs`` at once, as far as there are so many.
        """
        if code_cache is not None:
            # Its own cache holds the very code that it would compile again. A cubin made with its linker instead, to be kept
            # elsewhere, is relocatable code, which ran 9 % longer on an H100 (3000 launches of a Jacobi solver).
            drivers = code_cache / "driver"
            with suppress(OSError):  # without it all is compiled again
                drivers.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.environ.setdefault("CUDA_CACHE_PATH", str(drivers))
        queues = min(max(runs + _OTHER_STREAMS, _FEWEST_QUEUES), _MOST_QUEUES)
        os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", str(queues))
        name = name or f"cuda:{ordinal}"
        count = initialize()
        if not 0 <= ordinal < count:
            raise DeviceUnavailable(f"there is no {name}: the CUDA driver finds {count} GPU{'s' * (count != 1)}")
        self._plain_starts = plain_starts
        self._host_code = HostCode()
        self._open: set[CudaBuffer | CudaModule | CudaRun] = set()
        try:
            with undone_on_failure() as undo:
                self._set_up(ordinal, name, undo)
        except (CudaError, DeviceLost, OutOfMemory, UnsupportedLibrary) as error:
            raise DeviceUnavailable(f"{name} cannot be opened: {error}") from error
        self._undo = undo

    def _set_up(self, ordinal: int, name: str, undo: ExitStack) -> None:
        handle = check(driver.cuDeviceGet, ordinal)
        self._properties = _properties(handle, name)
        self._driver_major = int(check(driver.cuDriverGetVersion)) // 1000
        self._context = context = CudaContext(handle)
        undo.callback(context.close)
        self._stream = check(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
        undo.callback(context.release, driver.cuStreamDestroy, self._stream)

        # What is freed stays with the pool, so that the next buffer's memory costs no call into the kernel.
        self._pool = check(driver.cuDeviceGetDefaultMemPool, handle)
        threshold = driver.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        check(driver.cuMemPoolSetAttribute, self._pool, threshold, driver.cuuint64_t(_KEEP_ALL_MEMORY))

        self._registered = RegisteredFile(
            context.check, context.release, lambda: context.check(driver.cuStreamSynchronize, context.copies_in)
        )
        undo.callback(self._registered.close)
        undo.callback(self._close_open)
        self._mover = self.load(_MOVE_PTX.read_bytes()).kernels["moveKern"]
        self._words = Words(self.allocate)
        self._words.take().close()  # making the pool takes 11 ms, which no request should

    @property
    def properties(self) -> DeviceProperties:
        return self._properties

    @property
    def is_busy(self) -> bool:
        """Whether kernels run: the driver loads code only when none does."""
        return self._context.runs_under_way > 0

    @property
    def target(self) -> str:
        """As ``ptxas.target_text``: empty where the driver is to compile."""
        return target_text(self._properties.compute_capability, self._driver_major)

    def needs_compiler(self, image: bytes) -> bool:
        """Return whether a library has PTX for this GPU, and no machine code. Raises ``UnsupportedLibrary``."""
        return is_to_compile(image, self._properties.compute_capability)

    def load(self, image: bytes, compiled: bytes | None = None) -> CudaModule:
        """Load GPU code, in any form that ``read_image`` knows, or host code. What is not ``compiled`` the driver compiles.

        Raises ``UnsupportedLibrary``, ``OutOfMemory``, ``DeviceLost``.
        """
        codes = {} if compiled is None else compiled_codes(compiled)
        module = CudaModule(image, self._properties, self._host_code, self._context, self._open.discard, self.allocate, codes)
        self._open.add(module)
        return module

    def allocate(self, size_bytes: int) -> CudaBuffer:
        """Return new memory of unspecified content. Raises ``OutOfMemory``."""
        if size_bytes <= 0:
            raise ValueError(f"a buffer needs at least 1 byte, not {size_bytes}")
        context, stream = self._context, self._stream
        if size_bytes >= _MUCH_MEMORY:
            _, unused, free, _ = self._memory()
            if size_bytes > unused + free:
                raise OutOfMemory(f"{size_bytes} bytes asked of {self._describe_memory()}")
        try:
            address = int(context.check(driver.cuMemAllocAsync, size_bytes, stream))
        except OutOfMemory as error:
            # A failed allocation has filled the pool with what there was, which would be lost to all others of this GPU.
            self._trim()
            raise OutOfMemory(f"{size_bytes} bytes asked of {self._describe_memory()}") from error
        try:
            # Other streams may use the memory once this one has come to it.
            with context.questions:
                context.check(driver.cuStreamSynchronize, stream)
        except BaseException:
            with suppress(CudaError):
                context.release(driver.cuMemFreeAsync, address, stream)
            raise
        buffer = CudaBuffer(address, size_bytes, stream, context, self._free)
        self._open.add(buffer)
        return buffer

    def _memory(self) -> tuple[int, int, int, int]:
        """Return the pool's bytes in use and not in use, those that the GPU has free, and all that it has."""
        kind, ask = driver.CUmemPool_attribute, self._context.check
        used = int(ask(driver.cuMemPoolGetAttribute, self._pool, kind.CU_MEMPOOL_ATTR_USED_MEM_CURRENT))
        reserved = int(ask(driver.cuMemPoolGetAttribute, self._pool, kind.CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT))
        free, total = ask(driver.cuMemGetInfo)
        return used, reserved - used, int(free), int(total)

    def _trim(self) -> None:
        """Give back what the pool has and no buffer."""
        with suppress(CudaError):
            check(driver.cuStreamSynchronize, self._stream)
            check(driver.cuMemPoolTrimTo, self._pool, 0)

    def _describe_memory(self) -> str:
        name = self._properties.name
        try:
            used, _, free, total = self._memory()
        except (CudaError, DeviceLost, OutOfMemory):
            return name
        return f"{name}; {used} are in use here and {free} of {total} free"

    def _free(self, buffer: CudaBuffer) -> None:
        self._open.discard(buffer)
        self._context.release(driver.cuMemFreeAsync, buffer.address, self._stream)

    def reserve(self, groups: Mapping[str, int]) -> None:
        """Give groups multiprocessors of their own, in green contexts. Raises ``ValueError``, ``OutOfMemory``, ``CudaError``."""
        self._context.partitions.reserve(groups)

    def active_blocks(self, kernel: LoadedKernel, launch: KernelSpec) -> int:
        """Return how many blocks of a launch the whole GPU runs at once. Raises as ``CudaContext.check``."""
        assert isinstance(kernel, CudaKernel)
        return active_blocks(kernel, launch, self.properties.multiprocessor_count, self._context.check)

    def run_bytes(self, kernels: Iterable[LoadedKernel], textures: Iterable[Texture] = ()) -> int:
        """Return about how much device memory a run has for copies of code whose kernels write module variables, and arrays."""
        units = {kernel.unit for kernel in kernels if isinstance(kernel, CudaKernel) and kernel.unit is not None}
        return sum(unit.copy_bytes for unit in units) + sum(texture.size_bytes for texture in textures)

    def prepare(
        self,
        launches: Sequence[Launch],
        iterations: int,
        *,
        uploads: Sequence[DeviceBuffer] = (),
        zeroed: Sequence[DeviceBuffer] = (),
        downloads: Sequence[DeviceBuffer] = (),
    ) -> CudaRun:
        """Make a run of all ``launches`` in order, ``iterations`` times. Raises ``OutOfMemory``, ``KernelFault``.

        Which launch faulted is known for the first launches of a run that is not a graph yet, and where there is only one.
        """
        with undone_on_failure() as undo:
            arrived = self._words.take()
            undo.callback(arrived.close)
            copies = ExitStack()
            undo.callback(copies.close)
            launches, initial = with_own_variables(launches, copies)
            moved = Moved(uploads, zeroed, downloads, initial)

            def forget(run: CudaRun) -> None:
                self._open.discard(run)
                copies.close()

            def make() -> CudaRun:
                return CudaRun(self._context, self._mover, arrived, launches, iterations, moved, self._plain_starts, forget)

            try:
                run = make()
            except OutOfMemory:
                if not any(isinstance(argument, TextureRef) for launch in launches for argument in launch.arguments):
                    raise
                self._trim()  # arrays are not of the pool
                run = make()
        self._open.add(run)
        return run

    def upload(self, buffer: DeviceBuffer, pieces: Iterable[memoryview], mapped: MappedFile | None = None) -> CudaTransfer:
        """Begin to copy ``pieces`` to the buffer; they must stay until that is done. Raises ``OutOfMemory``."""
        assert isinstance(buffer, CudaBuffer)
        context, stream, position = self._context, self._context.copies_in, 0
        self._registered.follow(mapped)
        try:
            for piece in pieces:
                size = len(piece)
                buffer.check_range(position, size)
                if not size:
                    continue
                address = address_of(piece)
                # The driver stages pageable memory by itself, at 10 GB/s on an H100; pinned buffers of our own reached 8.
                for source, part in self._registered.parts(mapped, address, size) if mapped else ((address, size),):
                    context.check(driver.cuMemcpyHtoDAsync, buffer.address + position, source, part, stream)
                    position += part
            return CudaTransfer(context, stream)
        except BaseException:
            context.wait_for(driver.cuStreamSynchronize, stream)  # the pieces may go now
            raise

    def copy(self, target: DeviceBuffer, source: DeviceBuffer) -> CudaTransfer:
        """Begin to copy a buffer to another of its size, behind the uploads that have begun. Raises ``OutOfMemory``."""
        assert isinstance(target, CudaBuffer) and isinstance(source, CudaBuffer)
        target.check_range(0, source.size_bytes)
        stream = self._context.copies_in
        self._context.check(driver.cuMemcpyDtoDAsync, target.address, source.address, source.size_bytes, stream)
        return CudaTransfer(self._context, stream)

    def unmap(self) -> None:
        """Let go of a mapped file."""
        self._registered.close()

    def download(self, buffer: DeviceBuffer, *, stays: bool = False) -> CudaDownload:
        """Begin to copy a buffer to page-locked memory. Raises ``OutOfMemory``."""
        assert isinstance(buffer, CudaBuffer)
        return CudaDownload(self._context, buffer)

    def tracer(self) -> CudaTracer:
        """Return what takes note of one request."""
        return CudaTracer(self._context, self._stream)

    def watch(self, on_lost: Callable[[], object]) -> None:
        """As ``Device.watch``: after a trap the driver says so when seconds have passed."""
        self._context.questions.watch(on_lost)

    def attach(self) -> None:
        """Make its context current in the calling thread too. Raises ``DeviceLost``."""
        self._context.attach()

    def stop(self) -> bool:
        """Return False: a kernel ends by itself or with its process."""
        return False

    def close(self) -> None:
        """Free everything. Idempotent."""
        self._undo.close()

    def _close_open(self) -> None:
        with ExitStack() as all_of_them:
            for each in self._open:
                all_of_them.callback(each.close)


def _properties(handle: Any, name: str) -> DeviceProperties:
    kind = driver.CUdevice_attribute
    version = int(check(driver.cuDriverGetVersion))
    ptxas = find_ptxas()
    newest = newest_ptx((version // 1000, version % 1000 // 10))
    if ptxas is not None and ptxas.major <= version // 1000:  # what a later one makes does not run here
        newest = max(newest, newest_ptx(ptxas.release))

    def attribute(which: Any) -> int:
        value: int = check(driver.cuDeviceGetAttribute, which, handle)
        return value

    capability = (
        attribute(kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR),
        attribute(kind.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR),
    )
    return DeviceProperties(
        name=name,
        model=check(driver.cuDeviceGetName, 256, handle).partition(b"\0")[0].decode(),
        memory_bytes=int(check(driver.cuDeviceTotalMem, handle)),
        compute_capability=capability,
        multiprocessor_count=attribute(kind.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
        multiprocessor_unit=reservable(handle)[0],
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
        max_ptx_version=newest,
        targets=targets_of(capability),
        max_cluster_blocks=max_cluster_blocks(capability),
    )
