"""The device of this process, for requests that run where they are called: the engine of an executor, without the actor."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from kaas_client.ray.engine import Engine
from kaas_client.ray.executor import EMULATOR_UNUSED_BYTES
from kaas_client.ray.jobs import Job
from kaas_client.ray.original.lowering import Bytes, Lowered
from kaas_client.ray.tasks import Task
from kaas_core import request as core
from kaas_core.errors import LibraryNotFoundError, UnavailableError
from kaas_core.violations import shown
from kaasd.devices.registry import AUTO, available
from kaasd.libraries.registry import ResolvedLibrary, content_id


@dataclass(frozen=True, slots=True)
class Shared:
    """A value of which one copy on the device serves all requests: it does not change."""

    object_id: str
    content: Bytes


class OwnLibraries:
    """The libraries that requests of this process have named."""

    def __init__(self) -> None:
        self._libraries: dict[str, ResolvedLibrary] = {}

    def read(self, request: core.Request) -> core.Request:
        """Return the request with all libraries named by content id. Raises ``LibraryNotFoundError``."""
        ids = {kernel.library: self._read(kernel.library) for kernel in request.kernels}
        return replace(request, kernels=tuple(replace(kernel, library=ids[kernel.library]) for kernel in request.kernels))

    def resolve(self, reference: str) -> ResolvedLibrary:
        """Return the library of a content id."""
        return self._libraries[reference]

    def is_current(self, resolved: ResolvedLibrary) -> bool:
        """Return True: what a content id stands for does not change."""
        return True

    def _read(self, path: str) -> str:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise LibraryNotFoundError(f"library {shown(path)} cannot be read: {error.strerror}") from None
        reference = content_id(content)
        self._libraries[reference] = ResolvedLibrary(reference, reference, content, None)
        return reference


class OwnDevice:
    """An open device. ``run`` is for any thread, and runs one request at a time."""

    def __init__(self, name: str) -> None:
        """Raises ``DeviceUnavailable``."""
        self._libraries = OwnLibraries()
        unused_limit_bytes = None if name.startswith("cuda:") else EMULATOR_UNUSED_BYTES
        self._engine = Engine(name, self._libraries, unused_limit_bytes=unused_limit_bytes, on_failure=self._lose)
        self._lost = False
        self._lock = threading.Lock()
        self._tasks: WeakKeyDictionary[Lowered, Task] = WeakKeyDictionary()
        self._runs = count()
        atexit.register(self._engine.close)

    def run(self, lowered: Lowered, inputs: Mapping[str, Bytes | Shared]) -> list[NDArray[np.int8]]:
        """Run a request; return the outputs that its caller sees.

        Raises ``KaasError``, among them ``UnavailableError`` where an earlier request cost the device.
        """
        with self._lock:
            if self._lost:
                raise UnavailableError("an earlier request cost this process its device: only another process has one again")
            return self._run(lowered, inputs)

    def _lose(self, status: int) -> None:
        self._lost = True

    def _run(self, lowered: Lowered, inputs: Mapping[str, Bytes | Shared]) -> list[NDArray[np.int8]]:
        task = self._tasks.get(lowered)
        if task is None:
            task = self._tasks[lowered] = Task.of(self._libraries.read(lowered.request), lowered.returns)
        shared = {name: value for name, value in inputs.items() if isinstance(value, Shared)}
        run = next(self._runs)
        results = {name: f"output/{run}/{name}" for name in lowered.returns}
        outputs = self._engine.run(
            Job(
                task.serialized,
                {name: value.object_id for name, value in shared.items()} | task.names_of(results),
                {name: value.data for name, value in inputs.items() if not isinstance(value, Shared)},
                {value.object_id: value.content.data for value in shared.values()},
                results,
            )
        )
        return [np.frombuffer(outputs.contents[each], np.int8).copy() for each in [*results.values()][: len(lowered.outputs)]]


@cache
def own_device() -> OwnDevice:
    """Return the device of this process: its first GPU, or an emulated one; the first call opens it.

    Raises ``DeviceUnavailable``.
    """
    return OwnDevice(available([AUTO])[0])
