"""What a device is: the protocol between a worker and whatever runs kernels.

One thread uses a device (it owns the CUDA context); only ``Device.stop`` may be called from another. If an object of this module
exists, what it stands for exists on the device. Its owner closes it, and closing the device closes what is left.

Runs and transfers are asynchronous where the device is: begun by one call, asked after by ``done``, and several at once. What one
of them uses, no other may write until it is done, unless it was begun ``after`` it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from kaas_core import ReadableBuffer
from kaas_core.request import ADDRESS_BYTES, Access, Dim3, KernelSpec
from kaas_core.texture import Texture
from kaasd.devices.trace import Tracer
from kaasd.request.device_checks import PLAIN, DeviceProperties, KernelAttributes, LaunchAttributes


class DeviceBuffer(Protocol):
    """Device memory."""

    @property
    def size_bytes(self) -> int: ...

    def zero(self) -> None:
        """Fill with zeros."""

    def write(self, data: ReadableBuffer, offset_bytes: int = 0) -> None:
        """Copy ``data`` to the device. It may be reused or unmapped when this returns."""

    def read(self, into: bytearray | memoryview, offset_bytes: int = 0) -> None:
        """Copy ``len(into)`` bytes from the device. They are there when this returns."""

    def close(self) -> None:
        """Free the memory. Idempotent."""


@dataclass(frozen=True, slots=True)
class BufferRef:
    """A buffer as a kernel's argument."""

    name: str
    """For reports."""
    buffer: DeviceBuffer
    access: Access


@dataclass(frozen=True, slots=True)
class PackedRefs:
    """Bytes as a kernel's argument, with addresses of buffers among them."""

    data: bytes
    buffers: tuple[tuple[int, BufferRef], ...]
    """Each with the offset of its address, a multiple of 8."""

    def filled(self, address_of: Callable[[BufferRef], int]) -> bytes:
        """Return the bytes with the addresses in their places."""
        filled = bytearray(self.data)
        for offset, reference in self.buffers:
            filled[offset : offset + ADDRESS_BYTES] = address_of(reference).to_bytes(ADDRESS_BYTES, "little")
        return bytes(filled)


@dataclass(frozen=True, slots=True)
class TextureRef:
    """A buffer as a kernel's argument by a handle: a texture, or a surface where its access is not ``INPUT``."""

    reference: BufferRef
    texture: Texture

    @property
    def is_surface(self) -> bool:
        """Whether the kernel may write it."""
        return self.reference.access is not Access.INPUT


class LoadedKernel(Protocol):
    """One entry point of a loaded module."""

    @property
    def attributes(self) -> KernelAttributes: ...

    @property
    def is_ready(self) -> bool:
        """Whether a run of it can be prepared without loading code. One with module variables of its own may need it again."""


class CompiledKernel(LoadedKernel, Protocol):
    """A kernel of a device whose ``DeviceKind`` has a compiler."""

    @property
    def needs_code(self) -> bool:
        """Whether its machine code is still to come: ``load_code`` is to be called before a run of it is prepared."""

    def load_code(self, content: bytes) -> None:
        """Take what the compiler has made of it. Does nothing where it has its code already."""


class Module(Protocol):
    """Loaded GPU code."""

    @property
    def kernels(self) -> Mapping[str, LoadedKernel]:
        """Every entry point, by name."""

    @property
    def host_functions(self) -> Sequence[str]:
        """The functions that a host's shared object exports. None of its code runs before ``load_host_function``."""

    def load_host_function(self, name: str) -> LoadedKernel:
        """Load the host code, and return one of ``host_functions`` as what a launch takes for a kernel.

        Raises ``UnsupportedLibrary``.
        """

    def close(self) -> None:
        """Unload. Idempotent."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch, checked against the kernel's attributes and the device's properties beforehand."""

    kernel: LoadedKernel
    grid: Dim3
    block: Dim3
    shared_memory_bytes: int
    arguments: tuple[BufferRef | PackedRefs | TextureRef | bytes, ...]
    """A buffer's address or handle, addresses among bytes, or bytes alone; as long as its parameter, where there is one."""
    attributes: LaunchAttributes = PLAIN

    @property
    def references(self) -> Iterator[BufferRef]:
        """Every use of a buffer."""
        for argument in self.arguments:
            if isinstance(argument, BufferRef):
                yield argument
            elif isinstance(argument, PackedRefs):
                yield from (reference for _, reference in argument.buffers)
            elif isinstance(argument, TextureRef):
                yield argument.reference


def buffer_names(launches: Iterable[Launch]) -> dict[DeviceBuffer, str]:
    """Return what a request calls the buffers of its launches."""
    return {reference.buffer: reference.name for launch in launches for reference in launch.references}


class Awaited(Protocol):
    """Something under way."""

    def done(self) -> bool:
        """Whether it has ended, without waiting. Raises what it failed with, each time."""

    def wait(self) -> None:
        """Return when it has ended, however it did."""


class Transfer(Awaited, Protocol):
    """Bytes on their way to a buffer."""


class DeviceDownload(Awaited, Protocol):
    """Bytes on their way from a buffer."""

    @property
    def view(self) -> memoryview:
        """Where they arrive, in host memory: read-only, and gone when this is closed."""

    def close(self) -> None:
        """Free the host memory; only when it has ended. Idempotent."""


class Run(Awaited, Protocol):
    """Launches made ready once, to be run any number of times, one after the other."""

    @property
    def uploads(self) -> Sequence[memoryview]:
        """Host memory, one piece for each buffer of ``uploads``: what stands there at ``start`` is where the buffer starts from.

        Not to be touched while a run is under way.
        """

    @property
    def downloads(self) -> Sequence[memoryview]:
        """Host memory, one piece for each buffer of ``downloads``: its content at the end of the last run, until the next."""

    @property
    def printed(self) -> str:
        """What device code printed in the last run; empty where the device cannot tell."""

    @property
    def times_ns(self) -> tuple[int, int]:
        """When the last run began on the device and when it ended, in nanoseconds of one clock for all runs of the device.

        0 is what has not come to pass yet, nor ever does where the run is stopped or faults.
        """

    def update(self, launches: Sequence[Launch]) -> None:
        """Run these launches from now on, which differ from those before in their buffers only."""

    def warm(self) -> None:
        """Do now what would be done once the run has come often. Raises as ``start`` where a launch is refused."""

    def start(
        self, after: Iterable[Transfer] = (), tracer: Tracer[Any] | None = None, priority: int = 0, group: str = ""
    ) -> None:
        """Begin to run, when the transfers have ended. A device that cannot run aside has ended when this returns.

        Where runs are under way beside each other, and the device can, blocks of kernels with a higher ``priority`` start first.
        Kernels keep to the multiprocessors that ``Device.reserve`` gave their ``group``, or to those that are left for all.

        A ``tracer`` of the device takes note of each small copy, zeroing and launch, of which each is then made by itself.
        Raises ``KernelFault``, ``OutOfMemory`` where a launch is refused, as ``done`` does for what comes later, and ``Stopped``.
        """

    def stop(self) -> None:
        """Launch no more of it, where not all is launched; ``done`` then raises ``Stopped``. Not for another thread."""

    def close(self) -> None:
        """Free what it took; the buffers are not its own. Idempotent."""


class MappedFile(Protocol):
    """A file in this process's memory."""

    @property
    def path(self) -> str: ...

    @property
    def address(self) -> int: ...

    @property
    def size_bytes(self) -> int:
        """Of the mapping."""

    @property
    def grows(self) -> bool:
        """Whether the file may be shorter than the mapping, and become longer within it."""


@dataclass
class KernelFault(Exception):
    """A kernel faulted, or could not be launched."""

    fault: str
    """Its standard name, such as ``CUDA_ERROR_ILLEGAL_ADDRESS``."""
    launch_index: int
    """Which of the launches; -1 where the device cannot tell."""
    message: str
    """For a person, one line."""
    report: str = ""
    """For a person, several lines: where, and what was near."""
    device_lost: bool = False
    """The process can use the device no more."""
    suspects: int = 1
    """Runs that were under way; where there are several, the device cannot tell which of them it was."""


class DeviceLost(Exception):
    """A fault has made the device unusable for this process."""


class Stopped(Exception):
    """``Device.stop`` ended a run."""


class OutOfMemory(Exception):
    """There is too little memory, of the device or of the host for its copies; freeing some may help."""


class DeviceUnavailable(Exception):
    """A device cannot be opened on this machine; the message says why."""


@contextmanager
def undone_on_failure() -> Iterator[ExitStack]:
    """Yield what a set-up is to be undone with: by its owner, or here where the ``with`` block fails.

    The block's own error is raised, whatever fails while it is undone.
    """
    undo = ExitStack()
    try:
        yield undo
    except BaseException:
        with suppress(Exception):
            undo.close()
        raise


class Device(Protocol):
    """Where kernels run. Every method may raise ``DeviceLost`` after a fault."""

    @property
    def properties(self) -> DeviceProperties: ...

    @property
    def is_busy(self) -> bool:
        """Whether ``load`` would have to wait for kernels that run, and no other could be launched meanwhile."""

    def load(self, image: bytes) -> Module:
        """Load GPU code: PTX, cubin, fatbin, or an ELF shared object, with a fatbin or with host code alone.

        Raises ``UnsupportedLibrary``, ``OutOfMemory``.
        """

    def allocate(self, size_bytes: int) -> DeviceBuffer:
        """Return new memory of unspecified content. Raises ``OutOfMemory``."""

    def prepare(
        self,
        launches: Sequence[Launch],
        iterations: int,
        *,
        uploads: Sequence[DeviceBuffer] = (),
        zeroed: Sequence[DeviceBuffer] = (),
        downloads: Sequence[DeviceBuffer] = (),
    ) -> Run:
        """Make a run of all ``launches`` in order, ``iterations`` times. Module variables start each as the library has them.

        Before them ``uploads`` are filled from host memory and ``zeroed`` with zeros; after them ``downloads`` are copied back.
        For small buffers: their host memory stays taken. Raises ``OutOfMemory``.
        """

    def reserve(self, groups: Mapping[str, int]) -> None:
        """Give groups so many multiprocessors of their own, in place of those that they had; runs under way stay where they are.

        Each gets whole units of ``properties.multiprocessor_unit``. Raises ``ValueError`` where that cannot be, ``OutOfMemory``.
        """

    def active_blocks(self, kernel: LoadedKernel, launch: KernelSpec) -> int:
        """Return how many blocks of such a launch the device runs at once: of one with clusters, in whole ones.

        It is asked of launches that are cooperative or have clusters, and that are within the limits of ``properties``.
        """

    def run_bytes(self, kernels: Iterable[LoadedKernel], textures: Iterable[Texture] = ()) -> int:
        """Return about how much device memory a run of these kernels has beside its buffers, such as variables of its own.

        ``textures`` are its textures and surfaces, each once.
        """

    def upload(self, buffer: DeviceBuffer, pieces: Iterable[memoryview], mapped: MappedFile | None = None) -> Transfer:
        """Begin to copy ``pieces`` to the buffer, one behind the other; they must stay until that is done.

        Pieces of a mapped file are copied from its pages as fast as from pinned memory. The device keeps hold of these pages: of
        one file at a time, until ``unmap``. Raises ``ValueError`` where the pieces are longer than the buffer, ``OutOfMemory``.
        """

    def copy(self, target: DeviceBuffer, source: DeviceBuffer) -> Transfer:
        """Begin to copy a buffer to another of its size, behind the uploads that have begun."""

    def unmap(self) -> None:
        """Let go of a mapped file. To be called before its mapping goes, or what its pages are."""

    def download(self, buffer: DeviceBuffer, *, stays: bool = False) -> DeviceDownload:
        """Begin to copy a buffer to host memory. Raises ``OutOfMemory``.

        ``stays`` says that nothing writes or frees the buffer before the download is closed: where it is in host memory itself,
        no copy is needed.
        """

    def tracer(self) -> Tracer[Any]:
        """Return what takes note of one request."""

    def watch(self, on_lost: Callable[[], object]) -> None:
        """Have ``on_lost`` called, by another thread, where the device is found lost while who uses it waits to be told so.

        That may take seconds. What was at fault is not known then, and who uses the device still waits.
        """

    def attach(self) -> None:
        """Have the calling thread be one that may call the other methods, one thread at a time; who opened it is one already."""

    def stop(self) -> bool:
        """Ask a running ``Run`` to end with ``Stopped``, from any thread.

        Returns False where only the end of the process can stop a kernel.
        """

    def close(self) -> None:
        """Free everything. Idempotent."""


class CompilingDevice(Device, Protocol):
    """A device whose ``DeviceKind`` has a compiler."""

    @property
    def target(self) -> str:
        """What is to be compiled for, in the words of its kind: all that decides what becomes of a library.

        Empty where nothing on this machine can: then ``load`` does all, as for a device without a compiler.
        """

    def needs_compiler(self, image: bytes) -> bool:
        """Return whether a library has something to compile; else ``load`` needs nothing. Raises ``UnsupportedLibrary``."""

    def load(self, image: bytes, compiled: bytes | None = None) -> Module:
        """As ``Device.load``; ``compiled`` is the description of the library. Its kernels then still need their code."""


class LibraryCompiler(Protocol):
    """What compiles libraries for one target, and needs no device. It may remember what it did."""

    def describe(self, image: bytes) -> bytes:
        """Return what ``CompilingDevice.load`` takes. Raises ``UnsupportedLibrary``."""

    def compile(self, image: bytes, kernel: str) -> bytes:
        """Return what ``CompiledKernel.load_code`` takes. Raises ``UnsupportedLibrary``."""


class Found(NamedTuple):
    """The devices of one kind on this machine."""

    names: list[str]
    """In the order in which requests are to be spread over them."""
    note: str = ""
    """For a person: how they were found, or why there is none."""


@dataclass(frozen=True, slots=True)
class DeviceKind:
    """One kind of device, as ``registry`` lists it. Making one imports no driver and no compiler; ``open`` does."""

    name: str
    """Such as ``cuda``. As a device's name it stands for all of this kind, where ``pattern`` allows it."""
    pattern: str
    """Regular expression of its devices' names."""
    example: str
    """How these names look, for error texts."""
    find: Callable[[int], Found]
    """Given how many emulated devices the settings ask for, returns its devices on this machine.

    It is called in the daemon's front, which loads no driver.
    """
    open: Callable[[str, Any, Path | None, int], Device]
    """Given a name, ``options`` or None, the directory to keep compiled code in or None, and about how many runs are to be under
    way at once, opens a device.

    The thread that opens it is the one that uses it. Raises ``DeviceUnavailable``.
    """
    options: type[Any] | None = None
    """Dataclass of its own settings, all with defaults: a field ``seed`` of ``emulator`` is the daemon's ``emulator_seed``."""
    compiler: Callable[[str], LibraryCompiler] | None = None
    """Given a target, returns what compiles for it, in a process that has no device. None: ``Device.load`` does all.

    Raises ``UnsupportedLibrary`` where it cannot.
    """
    has_spares: bool = False
    """Whether a worker has a spare unless the settings say otherwise: where a fault costs the process, and opening takes long."""
    runs_aside: bool = True
    """Whether ``Run.start`` returns while kernels run. Where it does not, one request at a time is under way."""
