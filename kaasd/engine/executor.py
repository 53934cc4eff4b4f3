"""Runs requests on one device. Used by the thread that owns the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from typing import TypeAlias

from kaas.v1 import library_pb2
from kaasd.devices.base import Device, KernelFault, OutOfMemory
from kaasd.engine.binding import Binding, StoreMoved
from kaasd.engine.job import Call, Execution, Job, Result
from kaasd.engine.libraries import Libraries, ResolvedLibrary, content_id
from kaasd.engine.memory import DeviceMemory
from kaasd.engine.programs import Programs
from kaasd.engine.residency import NoRoomError
from kaasd.engine.resources import Resources, Steps
from kaasd.errors import KeyNotFoundError, ValueTooShortError
from kaasd.request.serialized import SerializedRequest
from kaasd.request.target import KernelAttributes
from kaasd.store.base import KeyValueStore

Inspection: TypeAlias = "tuple[library_pb2.Library, list[KernelAttributes]]"

MEMORY_SHARE = 0.9
"""Of the device's memory, where nothing else is set: the context takes 0.5 GiB of an H100's 80, and others may be on it."""


class Executor:
    """Runs requests on one device, several at a time where it can."""

    def __init__(
        self,
        device: Device,
        store: KeyValueStore,
        libraries: Libraries,
        *,
        memory_limit_bytes: int | None = None,
        keep_unused: bool = True,
        allow_host_wrappers: bool = False,
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """``memory_limit_bytes`` None stands for ``MEMORY_SHARE``; without ``keep_unused`` what no request uses is freed at once.
        With ``allow_host_wrappers`` requests may call functions of host code, which this process then runs.

        ``on_commit`` is called from another thread when a commit has ended: the jobs that are committing are to be polled.
        """
        limit = memory_limit_bytes or int(device.properties.memory_bytes * MEMORY_SHARE)
        memory = DeviceMemory(device, limit, keep_unused=keep_unused)
        programs = Programs(device, libraries, memory, allow_host_wrappers=allow_host_wrappers)
        self._libraries = libraries
        self._resources = Resources(device, store, memory, programs, on_commit)

    @property
    def device_name(self) -> str:
        """``cuda:N`` or ``emulator``."""
        return self._resources.device.properties.name

    @property
    def device_lost(self) -> bool:
        """True once the device is of no more use to this process: after a fault, or given up."""
        return self._resources.device_lost

    @property
    def memory_used_bytes(self) -> int:
        """Device memory that is held now, in use or kept for later."""
        return self._resources.memory.held_bytes

    def begin_preparation(self, request: SerializedRequest, *, check_stop: Callable[[], None]) -> Job[bool]:
        """Return a job that does for a request all that needs no run: code, plan, memory, the CUDA graph.

        What cannot be done yet is left to the first run. Its poll raises ``KaasError`` for what is wrong with the request
        itself, ``UnknownRequest``.
        """
        return Job(self._prepare(request, check_stop))

    def _prepare(self, request: SerializedRequest, check_stop: Callable[[], None]) -> Steps[bool]:
        resources = self._resources
        yield from resources.until_loadable(lambda: resources.programs.has_code_of(request), check_stop)
        program = resources.programs.get(request)
        program.requests += 1
        later = suppress(KeyNotFoundError, ValueTooShortError, StoreMoved, NoRoomError, OutOfMemory, KernelFault)
        try:
            with later, closing(Binding(resources, program, program.plan, {})) as bound:
                bound.run.warm()
        finally:
            program.requests -= 1
        return True

    def begin_inspection(self, reference: str, content: bytes | None, *, check_stop: Callable[[], None]) -> Job[Inspection]:
        """Return a job that describes a library and its kernels by name, of ``content`` where it is not stored yet."""
        return Job(self._inspect(reference, content, check_stop))

    def _inspect(self, reference: str, content: bytes | None, check_stop: Callable[[], None]) -> Steps[Inspection]:
        resources = self._resources
        if content is None:
            library = self._libraries.resolve(reference)
        else:
            library = ResolvedLibrary(reference, content_id(content), content, None)
        yield from resources.until_loadable(lambda: resources.programs.has_code(library), check_stop)
        described = self._libraries.describe(library.data)
        kernels = resources.programs.inspect(library)
        return described, [kernels[name].attributes for name in sorted(kernels)]

    def begin(
        self,
        request: SerializedRequest,
        *,
        keys: Mapping[str, str],
        inputs: Mapping[str, bytes],
        return_buffers: Sequence[str],
        check_stop: Callable[[], None],
        trace_from_ns: int = 0,
    ) -> Job[Result]:
        """Return a job that runs a request; its first poll begins it.

        ``keys`` and ``inputs`` re-bind buffers by name. ``check_stop`` raises when the request is to stop; ``trace_from_ns`` asks
        for a trace that begins then, by ``perf_counter_ns``. A job that raises, ``KaasError`` or ``UnknownRequest``, leaves the
        store as it was.
        """
        return Job(Execution(self._resources, Call(request, keys, inputs, return_buffers, check_stop, trace_from_ns)).steps())

    def give_up(self) -> None:
        """Count the device as lost from now on."""
        self._resources.device_lost = True

    def close(self) -> None:
        """Free everything, when no job is under way. Idempotent."""
        self._resources.programs.close()
        self._resources.memory.close()
        self._resources.device.unmap()
