"""The emulated device: runs PTX on the CPU, checking every access."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from random import Random
from typing import TYPE_CHECKING

from kaas_core.request import KernelSpec
from kaas_core.texture import Texture
from kaasd.devices.base import DeviceBuffer, Launch, LoadedKernel, MappedFile
from kaasd.devices.code_directory import CodeDirectory
from kaasd.devices.emulator.codegen.structures import SEGMENT_COUNT
from kaasd.devices.emulator.options import default_memory_bytes
from kaasd.devices.emulator.ptx.architecture import NEWEST_PTX, PtxSupport
from kaasd.devices.emulator.runtime.address_space import AddressSpace, Allocation
from kaasd.devices.emulator.runtime.module import EmulatedModule
from kaasd.devices.emulator.runtime.native_scheduler import native_scheduler
from kaasd.devices.emulator.runtime.prepared import Prepared, active_blocks
from kaasd.devices.emulator.runtime.run import EmulatedDownload, EmulatedRun, Ended, Processor
from kaasd.devices.emulator.runtime.shadows import Shadows
from kaasd.devices.emulator.translation.target import target_text
from kaasd.devices.trace import HostTracer
from kaasd.request.device_checks import DeviceProperties

if TYPE_CHECKING:
    from kaasd.devices.emulator.translation.translator import Translator

MODEL = "emulated device (PTX on the CPU)"


class EmulatedDevice:
    """A ``Device`` on the CPU. ``properties`` says what it pretends to be; its memory is a limit, not a reservation."""

    is_busy = False
    """A run has ended when its ``start`` returns."""

    def __init__(
        self,
        properties: DeviceProperties | None = None,
        *,
        checks: Iterable[str] = (),
        seed: int | None = None,
        ptx_version: tuple[int, int] = NEWEST_PTX,
        code: CodeDirectory | None = None,
        cores: int | None = None,
    ) -> None:
        """``ptx_version`` is the newest that it takes. ``checks`` are those of ``EMULATOR_CHECKS`` that every kernel makes.

        What all devices need compiled is kept in ``code``.
        Blocks of a launch run on so many ``cores``, by default on all that this process may use. With ``checks`` or a ``seed`` it
        is one.
        With a ``seed`` blocks and warps run in a random order, another one in each run, the same ones for the same seed.
        """
        self.properties = properties or DeviceProperties("emulator", MODEL, default_memory_bytes())
        self._space = AddressSpace(self.properties.memory_bytes)
        self._modules: list[EmulatedModule] = []
        self._ptx_support = PtxSupport(self.properties.compute_capability, ptx_version)
        self._order = None if seed is None else Random(seed)
        self._scheduler = native_scheduler(code)
        self._checks = frozenset(checks)
        in_order = self._checks or seed is not None
        self._cores = 1 if in_order else cores or len(os.sched_getaffinity(0))
        self._processor = Processor(self._space, self._scheduler, self._order, self._cores)
        if self._checks:
            self._space.shadows = Shadows(self._processor.context, SEGMENT_COUNT)

    @cached_property
    def _translator(self) -> Translator:
        """For libraries that nothing else has compiled. To import it takes as long as to open the device, so that comes last."""
        from kaasd.devices.emulator.translation.translator import Translator

        return Translator(self._ptx_support, self._checks)

    @property
    def target(self) -> str:
        return target_text(self._ptx_support, self._checks)

    def needs_compiler(self, image: bytes) -> bool:
        """Return True: PTX alone runs here, and what holds none is to be refused by the compiler."""
        return True

    def load(self, image: bytes, compiled: bytes | None = None) -> EmulatedModule:
        """Load the PTX of a library. Raises ``UnsupportedLibrary``, naming instruction and line where one is the reason.

        Where it comes without being ``compiled`` its kernels are compiled here, each when it is first prepared.
        """
        if compiled is None:
            translator = self._translator
            module = EmulatedModule(translator.describe(image), self._space, partial(translator.compile, image))
        else:
            module = EmulatedModule(compiled, self._space)
        self._modules.append(module)
        return module

    def allocate(self, size_bytes: int) -> Allocation:
        """Return new memory of unspecified content. Raises ``OutOfMemory``."""
        return self._space.allocate(size_bytes, zeroed=False)

    def reserve(self, groups: Mapping[str, int]) -> None:
        """Raise ``ValueError`` where there are any: one run at a time has all multiprocessors."""
        if groups:
            raise ValueError("an emulated device's multiprocessors cannot be reserved")

    def active_blocks(self, kernel: LoadedKernel, launch: KernelSpec) -> int:
        """Return as many as a GPU of the device's properties would run at once."""
        return active_blocks(kernel, launch, self.properties)

    def run_bytes(self, kernels: Iterable[LoadedKernel], textures: Iterable[Texture] = ()) -> int:
        """Nothing: one run at a time is under way, all have the same variables, and textures are the buffers themselves."""
        return 0

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
            self._processor,
            Prepared(launches, self.properties, self._scheduler, self._order, self._cores),
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

    def copy(self, target: DeviceBuffer, source: DeviceBuffer) -> Ended:
        """Copy a buffer to another."""
        assert isinstance(source, Allocation)
        target.write(source.view)
        return Ended()

    def unmap(self) -> None:
        """Do nothing: no memory is held."""

    def download(self, buffer: DeviceBuffer, *, stays: bool = False) -> EmulatedDownload:
        """Copy a buffer, unless it stays."""
        assert isinstance(buffer, Allocation)
        return EmulatedDownload(buffer.view if stays else memoryview(bytes(buffer.view)))

    def tracer(self) -> HostTracer:
        """Return what takes note of one request."""
        return HostTracer()

    def watch(self, on_lost: Callable[[], object]) -> None:
        """It tells at once that it is lost."""

    def attach(self) -> None:
        """Do nothing: any thread may."""

    def stop(self) -> bool:
        """Ask a run under way to raise ``Stopped``, from any thread."""
        self._processor.cores.team.stop = 1
        return True

    def close(self) -> None:
        """Free everything. Idempotent."""
        for module in self._modules:
            module.close()
        self._modules.clear()
        self._processor.close()
        self._space.close()
        if self._space.shadows is not None:
            self._space.shadows.close()


def _own(buffers: Sequence[DeviceBuffer]) -> list[Allocation]:
    return [buffer for buffer in buffers if isinstance(buffer, Allocation)]
