"""Runs of the emulated device: a run that was prepared needs the code of this file alone. Runs and copies end as they begin."""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from random import Random
from time import perf_counter_ns
from typing import Any

from kaasd.devices.base import Launch, OutOfMemory, Stopped, Transfer, buffer_names
from kaasd.devices.emulator.codegen.machine_code import NativeCode
from kaasd.devices.emulator.codegen.structures import CONTEXT, TEAM, Fault
from kaasd.devices.emulator.runtime.address_space import AddressSpace, Allocation
from kaasd.devices.emulator.runtime.fault_report import kernel_fault
from kaasd.devices.emulator.runtime.host_memory import CLEARED_BY_HAND, HostMemory
from kaasd.devices.emulator.runtime.prepared import Prepared
from kaasd.devices.emulator.runtime.printing import format_printed
from kaasd.devices.trace import SpanKind, Stream, Tracer

KERNELS = Stream("kernels")
"""Where all runs are, one after the other."""
PRINT_BYTES = 1 << 20
"""For what kernels print in one run: CUDA's default."""
PRINTED_IN_REPORT = 2000
"""Characters, the last ones: a report travels with an error, which is to be small."""
WORKSPACE_BYTES = 64
"""Of a grid: its size and a counter of the blocks that have come to its barrier."""
HEAP_BYTES = 8 << 20
"""For what device code may hold of ``malloc`` at a time: CUDA's default."""

_LIBC = ctypes.CDLL(None)
_HELP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_EXECUTE = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)


class Ended:
    """A transfer that is over."""

    def done(self) -> bool:
        """Return True."""
        return True

    def wait(self) -> None:
        """Return at once."""


class EmulatedDownload(Ended):
    """Bytes of a buffer, in host memory from the start."""

    def __init__(self, content: memoryview) -> None:
        self.view = content.toreadonly()

    def close(self) -> None:
        """Let go of the bytes. Idempotent."""
        self.view.release()


class Arena:
    """Memory of the resident blocks of whatever launch runs: zeros before each run. It grows as needed, and is kept."""

    def __init__(self, context: Any) -> None:
        """``context`` says where it is."""
        self._context = context
        self._resident: ctypes.Array[ctypes.c_void_p] = (ctypes.c_void_p * 0)()
        self._size = 0

    def make_room(self, prepared: Prepared) -> None:
        """Make it large enough. Raises ``OutOfMemory``."""
        if prepared.arena_size > self._size:
            try:
                memory = mmap.mmap(-1, prepared.arena_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except (OSError, MemoryError, OverflowError) as error:
                raise OutOfMemory(
                    f"{prepared.arena_size} bytes for the blocks of a launch could not be allocated: {error}"
                ) from error
            self.close()
            self._memory, self._size = memory, prepared.arena_size
            self._address = self._context.arena = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        if prepared.residents > len(self._resident):
            self._resident = (ctypes.c_void_p * prepared.residents)()
            self._context.resident = ctypes.addressof(self._resident)

    def clear(self, size: int) -> None:
        """Make the first ``size`` bytes zeros again."""
        if size > CLEARED_BY_HAND:
            self._memory.madvise(mmap.MADV_DONTNEED, 0, size)
        else:
            ctypes.memset(self._address, 0, size)

    def close(self) -> None:
        """Free it. Idempotent."""
        if self._size:
            self._size = 0
            self._memory.close()


class Core:
    """One core: the context that native code reads, and the memory of its blocks."""

    def __init__(self, team: Any, table_address: int) -> None:
        self._team = team  # whose memory lives as long as this
        self.context = CONTEXT.ctype(team=ctypes.addressof(team), table=table_address)
        self.address = ctypes.addressof(self.context)
        self.arena = Arena(self.context)


def _help(function: Callable[[int], None], core: Core) -> None:
    """Help until the team is closed: a thread's own function, which holds what native code reads meanwhile."""
    function(core.address)


def _end(team: Any, semaphore: ctypes.c_void_p, threads: Sequence[threading.Thread]) -> None:
    """Close a team."""
    team.closing = 1
    for _ in threads:
        _LIBC.sem_post(semaphore)
    for thread in threads:
        thread.join()


class Cores:
    """One core that runs whatever is to be run, and others that come to help where that takes long.

    Those are started when something is first prepared that they may have to do with.
    """

    def __init__(self, space: AddressSpace, scheduler: NativeCode, count: int) -> None:
        """There are ``count``. ``scheduler`` is what ``native_scheduler`` returns."""
        self._space = space
        self._scheduler = scheduler
        self.team = TEAM.ctype(cores=count)
        self.first = Core(self.team, space.table_address)
        self._joined_before = 0
        self._others: list[Core] = []

    def make_room(self, prepared: Prepared) -> None:
        """Get the memory that a run needs. Raises ``OutOfMemory``."""
        self.first.arena.make_room(prepared)
        if prepared.most_cores > 1:
            if not self._others:
                self._start()
            for core in self._others:
                core.arena.make_room(prepared)

    def _start(self) -> None:
        semaphore = ctypes.c_void_p(ctypes.addressof(self.team) + TEAM.offset("semaphore"))
        _LIBC.sem_init(semaphore, 0, 0)
        function = _HELP(self._scheduler.address("help"))
        threads = []
        for number in range(1, self.team.cores):
            core = Core(self.team, self._space.table_of_core())
            self._others.append(core)
            threads.append(threading.Thread(target=_help, args=(function, core), name=f"core {number}", daemon=True))
        self._end = weakref.finalize(self, _end, self.team, semaphore, threads)
        for thread in threads:
            thread.start()

    def begin(self) -> None:
        """Make ready for a run."""
        self.team.faulty = None
        self.first.context.fault = self.first.context.site = self.first.context.address = 0

    @property
    def faulty(self) -> Any:
        """The context that says why a run has stopped."""
        return CONTEXT.ctype.from_address(self.team.faulty) if self.team.faulty else self.first.context

    def clear(self, size: int) -> None:
        """Make the first ``size`` bytes of the arenas that were used zeros again."""
        self.first.arena.clear(size)
        if self.team.joined != self._joined_before:
            self._joined_before = self.team.joined
            for core in self._others:
                core.arena.clear(size)

    def close(self) -> None:
        """End the threads, and free everything. Idempotent."""
        if self._others:
            self._end()
        for core in (self.first, *self._others):
            core.arena.close()


class Processor:
    """What runs kernels, one launch at a time, on one core or several."""

    def __init__(self, space: AddressSpace, scheduler: NativeCode, order: Random | None, cores: int) -> None:
        """``scheduler`` is what ``native_scheduler`` returns. ``order`` gives the order of warps; None leaves it as it is."""
        self._space = space
        self.cores = Cores(space, scheduler, cores)
        self.context = self.cores.first.context
        self.context.heap_limit = HEAP_BYTES
        if order is not None:
            self.context.random = order.randrange(1, 1 << 32)
        self._native = _EXECUTE(scheduler.address("execute"))
        self._workspace: Allocation | None = None
        """Where the blocks of a cooperative launch meet; there is one from the first such launch on."""
        self._print_memory = HostMemory(PRINT_BYTES)
        self.context.printed, self.context.printed_size = self._print_memory.address, PRINT_BYTES

    def make_room(self, prepared: Prepared) -> None:
        """Get the memory that a run needs. To be called once before it runs. Raises ``OutOfMemory``."""
        self.cores.make_room(prepared)
        if prepared.cooperative and self._workspace is None:
            self._workspace = self._space.allocate(WORKSPACE_BYTES, "the grid's workspace")
        for struct in prepared.cooperative:
            struct.grid_workspace = self._workspace.address if self._workspace else 0

    def run(self, prepared: Prepared, iterations: int, tracer: Tracer[Any] | None = None) -> str:
        """Run, and return what device code printed. Raises ``KernelFault``, ``Stopped``."""
        context = self.context
        self.cores.begin()
        context.printed_used = context.printed_lost = context.heap_next = context.heap_used = 0
        if self._workspace is not None:
            self._workspace.zero()
        shadows = self._space.shadows
        if shadows is not None:
            shadows.begin_run(prepared.arena_size, prepared.most_blocks, prepared.most_warps, prepared.temporaries)
        if tracer is None:
            outcome = self._native(self.cores.first.address, prepared.address, len(prepared.launches), iterations)
        else:
            outcome = self._run_traced(prepared, iterations, tracer)
        try:
            if outcome == Fault.STOPPED:
                raise Stopped
            printed = self._format_printed() if context.printed_used else ""
            if outcome != Fault.NONE:
                fault = kernel_fault(self.cores.faulty, prepared.launches, self._space)
                if printed:
                    fault.report += f"\nprinted before:\n{printed[-PRINTED_IN_REPORT:]}"
                raise fault
        finally:
            self.cores.clear(prepared.arena_size)
            if shadows is not None:
                shadows.end_run()
            if context.heap_next:
                self._space.clear_heap()
        return printed

    def _run_traced(self, prepared: Prepared, iterations: int, tracer: Tracer[Any]) -> int:
        """Run every launch by itself, until all have succeeded or one has not; return the last outcome."""
        addresses = [ctypes.addressof(struct) for struct in prepared.structs]
        for iteration in range(iterations):
            for index, address in enumerate(addresses):
                with tracer.launch(KERNELS, index, iteration):
                    outcome: int = self._native(self.cores.first.address, address, 1, 1)
                if outcome != Fault.NONE:
                    self.cores.faulty.launch_index = index
                    return outcome
        return Fault.NONE

    def _format_printed(self) -> str:
        context = self.context
        printed = format_printed(self._print_memory.view[: context.printed_used], self._space)
        if context.printed_lost:
            printed += f"[{context.printed_lost} calls of printf did not fit the buffer of {PRINT_BYTES} bytes]\n"
        return printed

    def close(self) -> None:
        """Free everything. Idempotent."""
        self.cores.close()
        self._print_memory.close()


class EmulatedRun(Ended):
    """Launches to run; see ``Run``. What is uploaded is written into the buffers themselves."""

    def __init__(
        self,
        processor: Processor,
        prepared: Prepared,
        iterations: int,
        uploads: Sequence[Allocation],
        zeroed: Sequence[Allocation],
        downloads: Sequence[Allocation],
    ) -> None:
        """Raises ``OutOfMemory``."""
        processor.make_room(prepared)
        self._processor = processor
        self._prepared = prepared
        self._iterations = iterations
        # Memory of their own, as on a GPU: a buffer that is loaded and written must start anew at each run.
        self.uploads = [memoryview(bytearray(buffer.size_bytes)) for buffer in uploads]
        self.downloads = [buffer.view.toreadonly() for buffer in downloads]
        self._uploaded, self._zeroed = uploads, zeroed
        # The buffers' own views, which raise ``ValueError`` once a buffer is closed.
        self._copies = [(buffer.view, content) for buffer, content in zip(uploads, self.uploads, strict=True)]
        self._cleared = [(buffer.view, buffer.host_address) for buffer in zeroed]
        self._resets = prepared.resets
        self.printed = ""
        self.times_ns = 0, 0

    def update(self, launches: Sequence[Launch]) -> None:
        """Run these launches from now on."""
        self._prepared.place(launches)

    def warm(self) -> None:
        """Do nothing: the code is compiled."""

    def start(
        self, after: Iterable[Transfer] = (), tracer: Tracer[Any] | None = None, priority: int = 0, group: str = ""
    ) -> None:
        """Run to the end. Raises ``KernelFault``, ``Stopped``, and ``ValueError`` where a buffer is closed."""
        self._processor.cores.team.stop = 0
        begun_ns = perf_counter_ns()
        self.times_ns = begun_ns, 0
        for reset in self._resets:
            reset()
        if tracer is not None:
            self._run_traced(tracer)
        else:
            for view, content in self._copies:
                view[:] = content
            for view, address in self._cleared:
                ctypes.memset(address, 0, len(view))
            self.printed = self._processor.run(self._prepared, self._iterations)
        self.times_ns = begun_ns, perf_counter_ns()

    def stop(self) -> None:
        """Do nothing: all of it has run when ``start`` returns."""

    def _run_traced(self, tracer: Tracer[Any]) -> None:
        """As ``start``. The host launches nothing aside, so that the stage ``launch`` is over when the first thing begins."""
        begun_ns = perf_counter_ns()
        names = buffer_names(self._prepared.launches)
        tracer.stage("launch", begun_ns)
        with tracer.working(KERNELS):
            for buffer, content in zip(self._uploaded, self.uploads, strict=True):
                with tracer.span(SpanKind.COPY_TO_DEVICE, KERNELS, name=names[buffer], size_bytes=buffer.size_bytes):
                    buffer.write(content)
            for buffer in self._zeroed:
                with tracer.span(SpanKind.ZERO, KERNELS, name=names[buffer], size_bytes=buffer.size_bytes):
                    buffer.zero()
            self.printed = self._processor.run(self._prepared, self._iterations, tracer)

    def close(self) -> None:
        """Let go of the buffers. Idempotent."""
        for view in self.downloads:
            view.release()
