"""Kernels that the driver has loaded, and the variables of their module, which each run has for itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

from cuda.bindings import driver

from kaas_core.request import Dim3
from kaasd.devices.base import Launch, undone_on_failure
from kaasd.devices.cuda.buffers import CudaBuffer
from kaasd.devices.cuda.context import CudaContext
from kaasd.devices.cuda.driver import Check, CudaError, Release, check
from kaasd.libraries.variables import Form
from kaasd.request.device_checks import KernelAttributes

_SHARED_WITHOUT_OPT_IN = 48 << 10
"""Static and dynamic shared memory that every kernel may have; more must be asked for."""
_CLUSTER_WITHOUT_OPT_IN = 8
"""Blocks of a cluster that every GPU with clusters runs; more must be asked for."""
_LARGE_CLUSTERS = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
_ALIGNMENT = 16
"""Of what is moved."""


class LoadedCode(NamedTuple):
    """Code that the driver has loaded for all contexts of the device."""

    library: Any
    module: Any
    """What the primary context has of it. Its variables are those of the others too."""

    @classmethod
    def load(cls, code: bytes, check: Check) -> LoadedCode:
        """Load PTX or a cubin. Raises as ``check``."""
        library = check(driver.cuLibraryLoadData, code, [], [], 0, [], [], 0)
        try:
            return cls(library, check(driver.cuLibraryGetModule, library))
        except BaseException:
            driver.cuLibraryUnload(library)
            raise

    def unload(self, release: Release) -> None:
        """Unload it; once."""
        release(driver.cuLibraryUnload, self.library)


class CudaKernel:
    """One entry point."""

    def __init__(self, function: Any, attributes: KernelAttributes, code: LoadedCode, unit: Unit | None = None) -> None:
        """``function`` is the driver's handle of it in ``code``."""
        self.function = function
        """In the primary context; valid while the code is loaded."""
        self._code = code
        self.attributes = attributes
        self.unit = unit
        """Where kernels write module variables: what gives each run a kernel with variables of its own, to launch instead."""
        self._dynamic_limit = max(0, _SHARED_WITHOUT_OPT_IN - attributes.static_shared_memory_bytes)
        self._anywhere: Any = None
        self._anywhere_limit = self._dynamic_limit
        self._takes_large_clusters = self._takes_them_anywhere = False

    needs_code = False

    def load_code(self, content: bytes) -> None:
        """Do nothing: it has its code."""

    @property
    def is_ready(self) -> bool:
        """Whether a run of it can be made without loading code."""
        return self.unit is None or self.unit.has_idle

    def allow_dynamic_shared_memory(self, size_bytes: int) -> None:
        """Let launches have this much dynamic shared memory. Raises ``CudaError``."""
        if size_bytes > self._dynamic_limit:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(driver.cuFuncSetAttribute, self.function, attribute, size_bytes)
            self._dynamic_limit = size_bytes

    def allow_cluster(self, cluster: Dim3 | None) -> None:
        """Let launches have clusters of this size. Raises ``CudaError``."""
        if _is_large(cluster) and not self._takes_large_clusters:
            check(driver.cuFuncSetAttribute, self.function, _LARGE_CLUSTERS, 1)
            self._takes_large_clusters = True

    def without_context(self, shared_memory_bytes: int, cluster: Dim3 | None = None) -> Any:
        """Return its handle for any context, for launches with so much dynamic shared memory and such clusters.

        Raises ``CudaError``.
        """
        if self._anywhere is None:
            self._anywhere = check(driver.cuLibraryGetKernel, self._code.library, self.attributes.name.encode())
        if shared_memory_bytes > self._anywhere_limit:
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            device = check(driver.cuCtxGetDevice)
            check(driver.cuKernelSetAttribute, attribute, shared_memory_bytes, self._anywhere, device)
            self._anywhere_limit = shared_memory_bytes
        if _is_large(cluster) and not self._takes_them_anywhere:
            check(driver.cuKernelSetAttribute, _LARGE_CLUSTERS, 1, self._anywhere, check(driver.cuCtxGetDevice))
            self._takes_them_anywhere = True
        return self._anywhere


def _is_large(cluster: Dim3 | None) -> bool:
    return cluster is not None and math.prod(cluster) > _CLUSTER_WITHOUT_OPT_IN


MAX_IDLE_COPIES = 4
"""Of a unit, loaded and kept for the next run."""
Range = tuple[int, int]
"""Address and size in bytes."""
Move = tuple[int, int, int]
"""As ``moves.Move``."""


class UnitCopy:
    """A unit loaded for one run at a time, so that its variables are that run's own."""

    def __init__(
        self,
        code: LoadedCode,
        names: Collection[str],
        attributes: Mapping[str, KernelAttributes],
        context: CudaContext,
        allocate: Callable[[int], CudaBuffer],
    ) -> None:
        """Take over loaded code, whose variables of these names are as they were loaded.

        Raises as ``CudaContext.check``.
        """
        with undone_on_failure() as undo:
            undo.callback(code.unload, context.release)
            self.kernels: dict[str, CudaKernel] = {}
            for name, known in attributes.items():
                function = context.check(driver.cuModuleGetFunction, code.module, name.encode())
                context.check(driver.cuFuncLoad, function)
                self.kernels[name] = CudaKernel(function, known, code)
            ranges = find_variables(code.module, names, context.check) or ()
            self.variables_bytes = sum(size + _ALIGNMENT for _, size in ranges)
            kept = allocate(self.variables_bytes or 1)
            undo.callback(kept.close)
            self.moves: list[Move] = []
            """What gives the variables their initial values before a run."""
            stream, at = context.copies_in, kept.address
            for address, size in ranges:
                at += (address - at) % _ALIGNMENT
                context.check(driver.cuMemcpyDtoDAsync, at, address, size, stream)
                # Less than 16 bytes may begin anywhere, and behind them both addresses are multiples of 16.
                head = min(size, -address % _ALIGNMENT)
                self.moves += [each for each in ((address, at, head), (address + head, at + head, size - head)) if each[2]]
                at += size
            context.check(driver.cuStreamSynchronize, stream)
        self._undo = undo

    def close(self) -> None:
        """Unload. Idempotent."""
        self._undo.close()


class Unit:
    """A unit of a library whose kernels write module variables. There are as many copies of it as runs that exist at a time."""

    def __init__(
        self,
        form: Form,
        code: LoadedCode,
        attributes: Mapping[str, KernelAttributes],
        context: CudaContext,
        allocate: Callable[[int], CudaBuffer],
    ) -> None:
        """``code`` is its first copy. Raises as ``CudaContext.check``."""
        self._form = form
        self._attributes = attributes
        self._context = context
        self._allocate = allocate
        self._closed = False
        self._idle: list[UnitCopy] = []
        self._copies: set[UnitCopy] = set()
        first = self._add(code)
        self._idle.append(first)
        self.copy_bytes = len(form.code) + 2 * first.variables_bytes
        """Of device memory that a copy takes, about: code, variables, their initial values. The driver tells no size of code."""

    def _add(self, code: LoadedCode) -> UnitCopy:
        copy = UnitCopy(code, self._form.variables, self._attributes, self._context, self._allocate)
        self._copies.add(copy)
        return copy

    @property
    def has_idle(self) -> bool:
        """Whether ``take`` loads nothing."""
        return bool(self._idle)

    def take(self) -> UnitCopy:
        """Return a copy that no run has, or a new one: the driver waits for all kernels to load it. Raises ``OutOfMemory``."""
        if self._idle:
            return self._idle.pop()
        return self._add(LoadedCode.load(self._form.code, self._context.check))

    def give(self, copy: UnitCopy) -> None:
        """Take back a copy whose run has ended."""
        if self._closed:
            return
        if len(self._idle) < MAX_IDLE_COPIES:
            self._idle.append(copy)
        else:
            self._copies.discard(copy)
            copy.close()

    def close(self) -> None:
        """Unload all copies. Idempotent."""
        self._closed = True
        self._idle.clear()
        with ExitStack() as undo:
            while self._copies:
                undo.callback(self._copies.pop().close)


def with_own_variables(launches: Sequence[Launch], undo: ExitStack) -> tuple[Sequence[Launch], list[Move]]:
    """Return launches of copies that no other run has, until ``undo`` closes, and what initialises their variables before a run.

    Where kernels write no module variables they are the same launches. Raises as ``CudaContext.check``.
    """
    copies: dict[Unit, UnitCopy] = {}
    own: list[Launch] = []
    for launch in launches:
        unit = launch.kernel.unit if isinstance(launch.kernel, CudaKernel) else None
        if unit is not None and unit not in copies:
            copies[unit] = copy = unit.take()
            undo.callback(unit.give, copy)
        own.append(launch if unit is None else replace(launch, kernel=copies[unit].kernels[launch.kernel.attributes.name]))
    return own if copies else launches, [move for copy in copies.values() for move in copy.moves]


def find_variables(module: Any, names: Collection[str], check: Check) -> list[Range] | None:
    """Return where variables are, in order; None where the driver does not know one of them.

    Those that follow each other stay apart: they may be of two allocations, and the driver refuses a copy across their edge.
    """
    found: list[Range] = []
    for name in names:
        try:
            address, size = check(driver.cuModuleGetGlobal, module, name.encode())
        except CudaError as error:
            if error.name == "CUDA_ERROR_NOT_FOUND":
                return None
            raise
        if size:
            found.append((int(address), int(size)))
    return sorted(found)
