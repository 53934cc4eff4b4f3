"""The emulated device: runs PTX on the CPU, checking every access."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from kaasd.devices.base import DeviceBuffer, Launch, MappedFile, Stopped
from kaasd.devices.emulator.checks import Shadows
from kaasd.devices.emulator.kind import default_memory_bytes
from kaasd.devices.emulator.launch import Arena, Prepared, scheduler
from kaasd.devices.emulator.layout import CONTEXT, SLOT_COUNT, Fault
from kaasd.devices.emulator.memory import AddressSpace, Allocation, HostMemory
from kaasd.devices.emulator.module import EmulatedModule
from kaasd.devices.emulator.printing import format_printed
from kaasd.devices.emulator.report import kernel_fault
from kaasd.devices.emulator.run import KERNELS, EmulatedDownload, EmulatedRun, Ended
from kaasd.devices.trace import HostTracer, Tracer
from kaasd.libraries import UnsupportedLibrary
from kaasd.libraries.image import ImageKind, read_image
from kaasd.request.device_checks import DeviceProperties

_LOG = logging.getLogger(__name__)

PRINT_BYTES = 1 << 20
"""For what kernels print in one run: CUDA's default."""
PRINTED_IN_REPORT = 2000
"""Characters, the last ones: a report travels with an error, which is to be small."""
HEAP_BYTES = 8 << 20
"""For what device code may hold of ``malloc`` at a time: CUDA's default."""
MODEL = "emulated device (PTX on the CPU)"

_EXECUTE = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)


class EmulatedDevice:
    """A ``Device`` on the CPU. ``properties`` says what it pretends to be; its memory is a limit, not a reservation."""

    def __init__(
        self, properties: DeviceProperties | None = None, *, checks: Iterable[str] = (), seed: int | None = None
    ) -> None:
        """``checks`` are those of ``EMULATOR_CHECKS`` that every kernel makes.

        With a ``seed`` blocks and warps run in a random order, another one in each run, the same ones for the same seed.
        """
        self.properties = properties or DeviceProperties("emulator", MODEL, default_memory_bytes())
        self._space = AddressSpace(self.properties.memory_bytes)
        self._modules: list[EmulatedModule] = []
        self._arena = Arena()
        self._native = _EXECUTE(scheduler().address("execute"))
        self._context = CONTEXT.ctype()
        self._context_address = ctypes.addressof(self._context)
        self._context.table = self._space.table_address
        self._order = None if seed is None else Random(seed)
        if self._order is not None:
            self._context.random = self._order.randrange(1, 1 << 32)
        self._checks = frozenset(checks)
        if self._checks:
            self._space.shadows = Shadows(self._context, SLOT_COUNT)
        self._print_memory = HostMemory(PRINT_BYTES)
        self._context.printed, self._context.printed_size = self._print_memory.address, PRINT_BYTES
        self._context.heap_limit = HEAP_BYTES
        self.printed = ""
        """By the kernels of the last run."""

    @property
    def is_busy(self) -> bool:
        """Return False: a run has ended when its ``start`` returns."""
        return False

    def load(self, image: bytes) -> EmulatedModule:
        """Load the PTX of a library. Raises ``UnsupportedLibrary``, naming instruction and line where one is the reason."""
        content = read_image(image)
        if not content.ptx and content.kind is not ImageKind.WRAPPER:
            raise UnsupportedLibrary(
                f"the {content.kind.value} has no PTX in it, only machine code, which the emulated device cannot run"
            )
        module = EmulatedModule(
            content.ptx, self._space, self.properties.compute_capability, self._checks, content.host_functions
        )
        self._modules.append(module)
        return module

    def allocate(self, size_bytes: int) -> Allocation:
        """Return new memory. Raises ``OutOfMemory``."""
        return self._space.allocate(size_bytes)

    def prepare(
        self,
        launches: Sequence[Launch],
        iterations: int,
        *,
        uploads: Sequence[DeviceBuffer] = (),
        zeroed: Sequence[DeviceBuffer] = (),
        downloads: Sequence[DeviceBuffer] = (),
    ) -> EmulatedRun:
        """Make a run of all ``launches`` in order, ``iterations`` times."""
        return EmulatedRun(
            self._start,
            Prepared(launches, self.properties, self._order),
            iterations,
            _own(uploads),
            _own(zeroed),
            _own(downloads),
        )

    def upload(self, buffer: DeviceBuffer, pieces: Iterable[memoryview], mapped: MappedFile | None = None) -> Ended:
        """Copy ``pieces`` to the buffer, one behind the other."""
        position = 0
        for piece in pieces:
            buffer.write(piece, position)
            position += len(piece)
        return Ended()

    def unmap(self) -> None:
        """Do nothing: no memory is held."""

    def download(self, buffer: DeviceBuffer) -> EmulatedDownload:
        """Copy a buffer."""
        assert isinstance(buffer, Allocation)
        return EmulatedDownload(buffer)

    def run(self, launches: Sequence[Launch], iterations: int) -> None:
        """Run all ``launches`` in order, ``iterations`` times. Raises ``KernelFault``, ``Stopped``, ``OutOfMemory``."""
        self._context.stop = 0  # before the code is compiled, so that a stop meanwhile counts
        self._execute(Prepared(launches, self.properties, self._order), iterations)

    def tracer(self) -> HostTracer:
        """Return what takes note of one request."""
        return HostTracer()

    def _start(self, prepared: Prepared, iterations: int, tracer: Tracer[Any] | None) -> str:
        self._context.stop = 0
        return self._execute(prepared, iterations, tracer)

    def _execute(self, prepared: Prepared, iterations: int, tracer: Tracer[Any] | None = None) -> str:
        """Run, and return what device code printed."""
        context, arena = self._context, self._arena
        context.fault = context.site = context.address = 0
        context.printed_used = context.printed_lost = context.heap_next = context.heap_used = 0
        arena.make_room(prepared)
        context.arena, context.resident = arena.address, ctypes.addressof(arena.resident)
        shadows = self._space.shadows
        if shadows is not None:
            shadows.begin_run(prepared.arena_size, prepared.most_blocks, prepared.most_warps, prepared.temporaries)
        if tracer is None:
            outcome = self._native(self._context_address, prepared.address, len(prepared.launches), iterations)
        else:
            outcome = self._run_traced(prepared, iterations, tracer)
        self.printed = self._format_printed() if context.printed_used else ""
        try:
            if outcome == Fault.STOPPED:
                raise Stopped
            if outcome != Fault.NONE:
                fault = kernel_fault(context, prepared.launches, self._space)
                if self.printed:
                    fault.report += f"\nprinted before:\n{self.printed[-PRINTED_IN_REPORT:]}"
                raise fault
        finally:
            arena.clear(prepared)
            if shadows is not None:
                shadows.end_run()
            if context.heap_next:
                self._space.clear_heap()
        return self.printed

    def _run_traced(self, prepared: Prepared, iterations: int, tracer: Tracer[Any]) -> int:
        """Run every launch by itself, until all have succeeded or one has not; return the last outcome."""
        addresses = [ctypes.addressof(struct) for struct in prepared.structs]
        for iteration in range(iterations):
            for index, address in enumerate(addresses):
                with tracer.launch(KERNELS, index, iteration):
                    outcome: int = self._native(self._context_address, address, 1, 1)
                if outcome != Fault.NONE:
                    self._context.launch_index = index
                    return outcome
        return Fault.NONE

    def _format_printed(self) -> str:
        context = self._context
        printed = format_printed(self._print_memory.view[: context.printed_used], self._space)
        if context.printed_lost:
            printed += f"[{context.printed_lost} calls of printf did not fit the buffer of {PRINT_BYTES} bytes]\n"
        _LOG.info("device code printed:\n%s", printed)
        return printed

    def stop(self) -> bool:
        """Ask a running ``run`` to raise ``Stopped``, from any thread."""
        self._context.stop = 1
        return True

    def close(self) -> None:
        """Free everything. Idempotent."""
        for module in self._modules:
            module.close()
        self._modules.clear()
        self._arena.close()
        self._space.close()
        if self._space.shadows is not None:
            self._space.shadows.close()
        self._print_memory.close()


def _own(buffers: Sequence[DeviceBuffer]) -> list[Allocation]:
    return [buffer for buffer in buffers if isinstance(buffer, Allocation)]
