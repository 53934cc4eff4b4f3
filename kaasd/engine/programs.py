"""From the bytes of a request to something that runs: libraries resolved, modules loaded, the plan made; each kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from kaas.v1 import types_pb2
from kaasd.devices.base import Device, Kernel, Module, UnsupportedLibrary
from kaasd.engine.libraries import Libraries, ResolvedLibrary
from kaasd.errors import InvalidLibraryError, KaasError, KernelNotFoundError
from kaasd.request.plan import Plan, make_plan
from kaasd.request.protobuf import request_from_proto
from kaasd.request.types import Request

MAX_PROGRAMS = 1024
"""Plans kept. A plan is a few kilobytes."""
MAX_MODULES = 256
"""Modules kept, beyond those that the request at hand needs."""


@dataclass(frozen=True, slots=True)
class Program:
    """A request ready to run on this device."""

    plan: Plan
    kernels: tuple[Kernel, ...]
    """The loaded kernel of each launch of the plan."""
    libraries: tuple[ResolvedLibrary, ...]
    """What it was made from."""


class Programs:
    """The programs and modules of one device, least recently used dropped first. Used by the thread that owns the device."""

    def __init__(self, device: Device, libraries: Libraries) -> None:
        self._device = device
        self._libraries = libraries
        self._programs: OrderedDict[bytes, Program] = OrderedDict()
        self._modules: OrderedDict[str, Module] = OrderedDict()

    def get(self, request: bytes) -> Program:
        """Return the program of a serialised ``kaas.v1.Request``.

        Raises ``InvalidRequestError``, ``InvalidLibraryError``, ``LibraryNotFoundError``, ``KernelNotFoundError``.
        """
        program = self._programs.get(request)
        if program is not None and all(map(self._libraries.is_current, program.libraries)):
            self._programs.move_to_end(request)
            return program
        program = self._make(request_from_proto(types_pb2.Request.FromString(request)))
        self._programs[request] = program
        if len(self._programs) > MAX_PROGRAMS:
            self._programs.popitem(last=False)
        self._drop_modules(keep={library.content_id for library in program.libraries})
        return program

    def inspect(self, library: ResolvedLibrary) -> Mapping[str, Kernel]:
        """Return the kernels of a library. Raises ``InvalidLibraryError``."""
        return self._load(library).kernels

    def close(self) -> None:
        """Unload everything. Idempotent."""
        self._programs.clear()
        while self._modules:
            self._modules.popitem()[1].close()

    def _make(self, request: Request) -> Program:
        libraries: dict[str, ResolvedLibrary] = {}
        kernels: dict[tuple[str, str], Kernel] = {}
        for index, spec in enumerate(request.kernels):
            try:
                if spec.library not in libraries:
                    libraries[spec.library] = self._libraries.resolve(spec.library)
                found = self._load(libraries[spec.library]).kernels
            except KaasError as error:
                error.message = f"kernels[{index}].library: {error.message}"
                raise
            if spec.name not in found:
                names = ", ".join(sorted(found)[:20]) or "none"
                raise KernelNotFoundError(
                    f"kernels[{index}].name: library {spec.library} has no kernel {spec.name!r}; it has {names}",
                    {"kernel_index": str(index), "kernel": spec.name},
                )
            kernels[spec.library, spec.name] = found[spec.name]
        plan = make_plan(request, {key: kernel.attributes for key, kernel in kernels.items()}, self._device.properties)
        return Program(plan, tuple(kernels[launch.kernel] for launch in plan.launches), tuple(libraries.values()))

    def _load(self, library: ResolvedLibrary) -> Module:
        module = self._modules.get(library.content_id)
        if module is None:
            try:
                module = self._device.load(library.data)
            except UnsupportedLibrary as error:
                raise InvalidLibraryError(str(error)) from error
            self._modules[library.content_id] = module
        self._modules.move_to_end(library.content_id)
        return module

    def _drop_modules(self, keep: set[str]) -> None:
        """Close the modules beyond the limit, and with them the programs that use them."""
        surplus = [content_id for content_id in self._modules if content_id not in keep]
        for content_id in surplus[: max(0, len(self._modules) - MAX_MODULES)]:
            self._modules.pop(content_id).close()
            stale = [
                request
                for request, program in self._programs.items()
                if any(library.content_id == content_id for library in program.libraries)
            ]
            for request in stale:
                del self._programs[request]
