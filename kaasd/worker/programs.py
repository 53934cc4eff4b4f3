"""From the bytes of a request to something that runs: libraries resolved, modules loaded, the plan made; each kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from cachetools import LRUCache

from kaas.v1 import types_pb2
from kaas.worker.v1 import compiler_pb2
from kaas_core.errors import InvalidLibraryError, KaasError, KernelNotFoundError, NotEnabledError, OutOfDeviceMemoryError
from kaas_core.protobuf import request_from_proto
from kaas_core.request import KernelSpec, Request
from kaasd.compiler.compiler import Compiler
from kaasd.devices.base import (
    BufferRef,
    CompiledKernel,
    CompilingDevice,
    Device,
    DeviceBuffer,
    Launch,
    LoadedKernel,
    Module,
    OutOfMemory,
    PackedRefs,
    Run,
    TextureRef,
)
from kaasd.ipc.messages import MAX_KNOWN_REQUESTS, SerializedRequest
from kaasd.libraries import UnsupportedLibrary
from kaasd.libraries.heap import heap_users
from kaasd.libraries.image import read_image
from kaasd.libraries.registry import LibrarySource, ResolvedLibrary
from kaasd.request.plan import Layout, PackedSlots, Plan, SlotArgument, TextureSlot, make_plan, rebind
from kaasd.worker.device_memory import DeviceMemory, Holding
from kaasd.worker.residency import NOBODY, Owner

MAX_MODULES = 256
"""Modules kept, beyond those that are in use."""
MAX_REBOUND = 256
"""Plans of one program with other keys. Making one takes 20 microseconds and more, ten times what finding it takes."""
PREPARE_COST_S = 300e-6
"""Of an instance, about: allocations, and a graph of a few launches."""


class Instance(Holding):
    """A program's own buffers and its run, for one request at a time."""

    def __init__(self, key: tuple[object, ...], program: Program, device: Device, own: Sequence[DeviceBuffer]) -> None:
        super().__init__(key, own)
        self._program = program
        self._device = device
        self._run: Run | None = None
        self._given: Sequence[DeviceBuffer] = ()
        self._by_slot = dict(zip(program.layout.own, own, strict=True))
        self.uploaded: dict[int, tuple[str, int]] = {}
        """By slot, what of the store its host memory for the run holds: a key, and a commit at which this was its value."""

    def buffer(self, slot: int) -> DeviceBuffer:
        """Return the buffer of a slot."""
        return self._by_slot[slot]

    def uses(self, given: Sequence[DeviceBuffer]) -> bool:
        """Whether it ran with these buffers in the given slots the last time."""
        return self._given == given

    def run(self, given: Sequence[DeviceBuffer]) -> Run:
        """Return the run with these buffers in the given slots. Raises ``KernelFault``, ``OutOfMemory``."""
        if self._run is not None and self._given == given:
            return self._run
        layout = self._program.layout
        self._by_slot.update(zip(layout.given, given, strict=True))
        launches = self._program.launches(self._by_slot)
        if self._run is not None:
            self._run.update(launches)
        else:
            self._run = self._device.prepare(
                launches,
                self._program.plan.iterations,
                uploads=[self._by_slot[slot] for slot in layout.uploaded],
                zeroed=[self._by_slot[slot] for slot in layout.zeroed],
                downloads=[self._by_slot[slot] for slot in layout.downloaded],
            )
        self._given = given
        return self._run

    def take_buffers(self) -> Sequence[DeviceBuffer]:
        """Hand over the buffers; the run is closed."""
        if self in self._program.idle:
            self._program.idle.remove(self)
        if self._run is not None:
            self._run.close()
        return super().take_buffers()


@dataclass(eq=False)
class Program:
    """A request ready to run on this device."""

    plan: Plan
    layout: Layout
    kernels: tuple[LoadedKernel, ...]
    """The loaded kernel of each launch of the plan."""
    libraries: tuple[ResolvedLibrary, ...]
    """What it was made from."""
    files: tuple[ResolvedLibrary, ...]
    """Those of ``libraries`` that are files, which may change at any time. That an uploaded one was deleted, the front says."""
    idle: list[Instance] = field(default_factory=list)
    """Those that no request uses, the last used last."""
    requests: int = 0
    """That use it now; its kernels stay loaded."""
    run_ns: int = 0
    """How long its launches took the last time, with what came between."""
    outdated: bool = False
    """It serves no new request."""
    _rebound: LRUCache[tuple[tuple[str, str], ...], Plan] = field(default_factory=lambda: LRUCache(MAX_REBOUND))

    @property
    def is_ready(self) -> bool:
        """Whether ``take_instance`` gives one, or makes one, without loading code."""
        return bool(self.idle) or all(kernel.is_ready for kernel in self.kernels)

    def uncompiled(self) -> Iterator[tuple[int, ResolvedLibrary, CompiledKernel]]:
        """Yield the kernels whose code is still to be compiled, with their first launch and their library.

        Only where there is a compiler.
        """
        libraries = {library.reference: library for library in self.libraries}
        kernels = cast(tuple[CompiledKernel, ...], self.kernels)
        seen: set[tuple[str, str]] = set()
        for index, (launch, kernel) in enumerate(zip(self.plan.launches, kernels, strict=True)):
            if kernel.needs_code and launch.kernel not in seen:
                seen.add(launch.kernel)
                yield index, libraries[launch.kernel[0]], kernel

    def with_keys(self, keys: Mapping[str, str]) -> Plan:
        """Return the plan with other keys, by buffer name. Raises ``InvalidRequestError``."""
        if not keys:
            return self.plan
        names = tuple(sorted(keys.items()))
        plan = self._rebound.get(names)
        if plan is None:
            plan = self._rebound[names] = rebind(self.plan, keys)
        return plan

    def launches(self, buffers: Mapping[int, DeviceBuffer]) -> list[Launch]:
        """Return the launches with these buffers in the slots."""
        slots = self.plan.slots

        def reference(use: SlotArgument) -> BufferRef:
            return BufferRef(slots[use.slot].spec.name, buffers[use.slot], use.access)

        return [
            Launch(
                kernel,
                launch.grid,
                launch.block,
                launch.shared_memory_bytes,
                tuple(
                    argument
                    if isinstance(argument, bytes)
                    else PackedRefs(argument.data, tuple((offset, reference(use)) for offset, use in argument.slots))
                    if isinstance(argument, PackedSlots)
                    else TextureRef(reference(argument.slot), argument.texture)
                    if isinstance(argument, TextureSlot)
                    else reference(argument)
                    for argument in launch.arguments
                ),
                launch.attributes,
            )
            for launch, kernel in zip(self.plan.launches, self.kernels, strict=True)
        ]

    def take_instance(
        self, memory: DeviceMemory, device: Device, given: Sequence[DeviceBuffer], owner: Owner = NOBODY
    ) -> Instance:
        """Return an instance that nobody uses, best one that ran with the same given buffers, or a new one.

        It counts for ``owner``. Raises ``NoRoomError``, ``OwnerLimitError``, ``OutOfMemory``.
        """
        for instance in self.idle:
            if instance.uses(given):
                break
        else:
            if not self.idle:
                # Instances of one number have their uses remembered together.
                key = ("instance", id(self), self.requests)
                while key in memory:
                    key = (*key[:2], key[2] + 1)
                sizes = [self.plan.slots[slot].spec.size_bytes for slot in self.layout.own]
                extra = device.run_bytes(self.kernels, self.plan.textures)
                return memory.make(key, sizes, PREPARE_COST_S, partial(Instance, key, self, device), extra, owner)
            instance = self.idle[-1]
        memory.give(instance, owner)
        self.idle.remove(instance)
        memory.use(instance.key, owner)
        return instance

    def give_instance(self, memory: DeviceMemory, instance: Instance, owner: Owner = NOBODY) -> None:
        """Take back an instance from an owner."""
        self.idle.append(instance)
        if self.outdated:
            memory.drop(instance)
        memory.release(instance, owner)


class UnknownRequest(Exception):
    """A request came without its content, and what was made of it is no longer kept."""


class NotCompiled(Exception):
    """Libraries are to be compiled first."""

    def __init__(self, libraries: Sequence[ResolvedLibrary]) -> None:
        super().__init__()
        self.libraries = libraries


class Programs:
    """The programs and modules of one device, least recently used dropped first. Used by the thread that owns the device."""

    def __init__(
        self,
        device: Device,
        libraries: LibrarySource,
        memory: DeviceMemory,
        *,
        compiler: Compiler | None = None,
        allow_host_wrappers: bool = False,
        keep_stored: bool = False,
    ) -> None:
        """With a ``compiler`` libraries are loaded as it has compiled them, and else the device does all."""
        self._compiler = compiler
        self._allow_host_wrappers = allow_host_wrappers
        self._keep_stored = keep_stored
        self._device = device
        self._libraries = libraries
        self._memory = memory
        self._programs: OrderedDict[bytes, Program] = OrderedDict()
        self._modules: OrderedDict[str, Module] = OrderedDict()
        self._heap_users: dict[str, Mapping[str, str]] = {}
        """By library: its kernels that come to the heap of device code, with the function."""
        self._outdated: list[Program] = []

    def get(self, request: SerializedRequest) -> Program:
        """Return the program of a request.

        Raises ``InvalidRequestError``, ``InvalidLibraryError``, ``LibraryNotFoundError``, ``KernelNotFoundError``,
        ``NotEnabledError``, ``UnknownRequest``, ``NotCompiled``.
        """
        digest, content = request
        program = self._programs.get(digest)
        if program is not None:
            if all(map(self._libraries.is_current, program.files)):
                self._programs.move_to_end(digest)
                return program
            self._retire(digest)
        if not content:
            raise UnknownRequest
        used: Sequence[ResolvedLibrary] = ()
        try:
            program = self._make(request_from_proto(types_pb2.Request.FromString(content)))
            used = program.libraries
        finally:
            self._drop_modules(used)
        self._keep(digest, program)
        return program

    def for_inputs(self, request: SerializedRequest, program: Program, names: frozenset[str]) -> Program:
        """Return the program of a request whose caller brings the bytes of these ``read_ephemerals``; ``program`` is for none."""
        key = b"\0".join([request.digest, *map(str.encode, sorted(names))])
        given = self._programs.get(key)
        if given is None or given.kernels is not program.kernels:
            if given is not None:
                self._retire(key)
            plan = program.plan.given(names)
            given = Program(
                plan, Layout.of(plan, keep_stored=self._keep_stored), program.kernels, program.libraries, program.files
            )
            self._keep(key, given)
        self._programs.move_to_end(key)
        return given

    def forget_library(self, library_id: str) -> None:
        """Take the programs of an uploaded library out of use, since it was deleted."""
        self._retire_users(library_id, keep_files=True)

    def __contains__(self, digest: bytes) -> bool:
        """Whether the program of a request has been made."""
        return digest in self._programs

    def has_code_of(self, request: SerializedRequest) -> bool:
        """Whether ``get`` would load no code. What is wrong with the request is for ``get`` to say."""
        if request.digest in self._programs:
            return True
        try:
            references = {kernel.library for kernel in types_pb2.Request.FromString(request.content).kernels}
            return all(self.has_code(self._libraries.resolve(reference)) for reference in references)
        except KaasError:
            return True

    def has_code(self, library: ResolvedLibrary) -> bool:
        """Whether a library is loaded."""
        return library.content_id in self._modules

    def inspect(self, library: ResolvedLibrary) -> Mapping[str, LoadedKernel]:
        """Return the kernels of a library, with functions of host code where they can be called.

        Raises ``InvalidLibraryError``, ``NotEnabledError``, ``NotCompiled``.
        """
        try:
            return self._kernels(library, self._load(library))
        finally:
            self._drop_modules((library,))

    def _kernels(self, library: ResolvedLibrary, module: Module) -> Mapping[str, LoadedKernel]:
        kernels = dict(module.kernels)
        if self._allow_host_wrappers:
            try:
                for name in module.host_functions:
                    kernels.setdefault(name, self._host_function(library, module, name))
            except InvalidLibraryError:
                if not module.kernels:
                    raise
        return kernels

    def close(self) -> None:
        """Unload everything. Idempotent."""
        for digest in list(self._programs):
            self._retire(digest)
        while self._modules:
            self._modules.popitem()[1].close()

    def _check_compiled(self, request: Request) -> None:
        """Raise ``NotCompiled`` for all libraries at once. What else is wrong with them is for later."""
        assert self._compiler is not None
        missing = []
        for reference in dict.fromkeys(kernel.library for kernel in request.kernels):
            with suppress(KaasError):
                library = self._libraries.resolve(reference)
                if not self.has_code(library) and self._is_to_compile(library) and self._compiler.result(library) is None:
                    missing.append(library)
        if missing:
            raise NotCompiled(missing)

    def _make(self, request: Request) -> Program:
        if self._compiler is not None:
            self._check_compiled(request)
        libraries: dict[str, ResolvedLibrary] = {}
        kernels: dict[tuple[str, str], LoadedKernel] = {}
        for index, spec in enumerate(request.kernels):
            try:
                if spec.library not in libraries:
                    libraries[spec.library] = self._libraries.resolve(spec.library)
                module = self._load(libraries[spec.library])
                kernel = module.kernels.get(spec.name)
                if kernel is None and spec.name in module.host_functions:
                    kernel = self._host_function(libraries[spec.library], module, spec.name)
            except KaasError as error:
                error.message = f"kernels[{index}].library: {error.message}"
                raise
            if kernel is None:
                callable_here = {*module.kernels, *(module.host_functions if self._allow_host_wrappers else ())}
                names = ", ".join(sorted(callable_here)[:20]) or "none"
                raise KernelNotFoundError(
                    f"kernels[{index}].name: library {spec.library} has no kernel {spec.name!r}; it has {names}",
                    {"kernel_index": str(index), "kernel": spec.name},
                )
            self._check_heap(libraries[spec.library], spec, index)
            kernels[spec.library, spec.name] = kernel
        plan = make_plan(
            request,
            {key: kernel.attributes for key, kernel in kernels.items()},
            self._device.properties,
            lambda spec: self._device.active_blocks(kernels[spec.library, spec.name], spec),
        )
        loaded = tuple(kernels[launch.kernel] for launch in plan.launches)
        files = tuple(library for library in libraries.values() if library.stamp is not None)
        return Program(plan, Layout.of(plan, keep_stored=self._keep_stored), loaded, tuple(libraries.values()), files)

    def _load(self, library: ResolvedLibrary) -> Module:
        module = self._modules.get(library.content_id)
        if module is None:
            compiled = self._compiled(library) if self._is_to_compile(library) else None
            try:
                if compiled is None:
                    module = self._device.load(library.data)
                else:
                    module = cast(CompilingDevice, self._device).load(library.data, compiled.description)
            except UnsupportedLibrary as error:
                raise InvalidLibraryError(str(error)) from error
            except OutOfMemory as error:
                name = self._device.properties.name
                raise OutOfDeviceMemoryError(f"the library's code finds no room on {name}: {error}") from error
            self._modules[library.content_id] = module
            users = heap_users(read_image(library.data).units) if compiled is None else dict(compiled.heap_users)
            self._heap_users[library.content_id] = users
        self._modules.move_to_end(library.content_id)
        if not module.kernels and module.host_functions:
            self._check_host_code_allowed(library)
        return module

    def _is_to_compile(self, library: ResolvedLibrary) -> bool:
        """Return whether the compiler is to see a library before it is loaded. What is wrong with it the device will say."""
        try:
            return self._compiler is not None and cast(CompilingDevice, self._device).needs_compiler(library.data)
        except UnsupportedLibrary:
            return False

    def _compiled(self, library: ResolvedLibrary) -> compiler_pb2.CompiledLibrary:
        assert self._compiler is not None
        content = self._compiler.result(library)
        if content is None:
            raise NotCompiled([library])
        return compiler_pb2.CompiledLibrary.FromString(content)

    def _check_heap(self, library: ResolvedLibrary, spec: KernelSpec, index: int) -> None:
        """Raise ``InvalidLibraryError`` if a kernel uses the heap of device code."""
        if function := self._heap_users[library.content_id].get(spec.name):
            raise InvalidLibraryError(
                f"kernels[{index}].name: kernel {spec.name!r} of library {spec.library} calls {function}: the heap of device "
                "code belongs to the device's context, so what a request leaves in it would outlast the request, and others "
                "could read it; let the kernel take its memory as a temporary buffer",
                {"kernel_index": str(index), "kernel": spec.name, "library": spec.library},
            )

    def _host_function(self, library: ResolvedLibrary, module: Module, name: str) -> LoadedKernel:
        self._check_host_code_allowed(library)
        try:
            return module.load_host_function(name)
        except UnsupportedLibrary as error:
            raise InvalidLibraryError(f"{name!r} is host code: {error}") from error

    def _check_host_code_allowed(self, library: ResolvedLibrary) -> None:
        if not self._allow_host_wrappers:
            named = f"{library.reference!r} is" if library.reference else "the library is"
            raise NotEnabledError(
                f"{named} a shared object of host code that launches kernels itself; this server does not run such code "
                "unless it is started with --allow-host-wrappers"
            )

    def _keep(self, digest: bytes, program: Program) -> None:
        self._programs[digest] = program
        if len(self._programs) > MAX_KNOWN_REQUESTS:
            self._retire(next(iter(self._programs)))

    def _retire(self, digest: bytes) -> None:
        """Take a program out of use, and free what it holds of the device, now or when its requests are done."""
        program = self._programs.pop(digest)
        program.outdated = True
        for instance in list(program.idle):
            self._memory.drop(instance)
        self._outdated = [each for each in (*self._outdated, program) if each.requests]

    def _retire_users(self, content_id: str, *, keep_files: bool = False) -> None:
        """Retire the programs of a library; ``keep_files`` spares those that know it as a file."""
        for digest, program in list(self._programs.items()):
            for library in program.libraries:
                if library.content_id == content_id and not (keep_files and library.stamp is not None):
                    self._retire(digest)
                    break

    def _drop_modules(self, used: Sequence[ResolvedLibrary]) -> None:
        """Close the modules beyond the limit that are not ``used`` and that no request uses, and with them their programs."""
        if len(self._modules) <= MAX_MODULES:
            return
        busy = [program for program in (*self._programs.values(), *self._outdated) if program.requests]
        kept = {library.content_id for libraries in (used, *(program.libraries for program in busy)) for library in libraries}
        surplus = [content_id for content_id in self._modules if content_id not in kept]
        for content_id in surplus[: len(self._modules) - MAX_MODULES]:
            self._retire_users(content_id)
            self._heap_users.pop(content_id)
            self._modules.pop(content_id).close()
