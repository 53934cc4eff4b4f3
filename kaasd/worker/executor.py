"""What the requests of one device share: its programs, its memory, the store; and what becomes of the device's errors.

Used by the thread that owns the device. Who of them may do what next is told by the state machines of ``turns``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Mapping
from time import monotonic
from typing import TypeAlias, TypeVar

from kaas_core.errors import (
    CancelledError,
    GroupLimitError,
    KaasError,
    KernelFaultError,
    OutOfDeviceMemoryError,
    WorkerRestartingError,
)
from kaasd.compiler.compiler import Compiler
from kaasd.devices.base import Awaited, Device, DeviceLost, KernelFault, OutOfMemory, Stopped
from kaasd.libraries.registry import LibrarySource
from kaasd.request.plan import Plan
from kaasd.store.base import StoreMapping, ValueStore
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.device_memory import DeviceMemory
from kaasd.worker.device_time import DeviceTime
from kaasd.worker.programs import Programs
from kaasd.worker.residency import NOBODY, NoRoomError, Owner, OwnerLimitError
from kaasd.worker.turns import LoadGate, MemoryTurns, Slots

_log = logging.getLogger(__name__)

T = TypeVar("T")
Steps: TypeAlias = Generator[Awaited, None, T]
"""Yields what it waits for, and returns in the end."""

MEMORY_SHARE = 0.9
"""Of the device's memory, where nothing else is set: the context takes 0.5 GiB of an H100's 80, and others may be on it."""
EXIT_DEVICE_LOST = 70
"""The exit status of a process whose device is lost."""
DEVICE_ERRORS = (Stopped, KernelFault, DeviceLost, NoRoomError, OutOfMemory)
_LOST_BY_ANOTHER = "another request's kernel took the device with it; nothing was changed"


class _Nothing:
    """Awaited by a request that can only try again."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        """Return at once."""


NOTHING = _Nothing()


class Executor:
    """A device and all that is kept for its requests; ``execution`` and ``preparation`` have what is done with it."""

    def __init__(
        self,
        device: Device,
        store: ValueStore,
        libraries: LibrarySource,
        *,
        memory_limit_bytes: int | None = None,
        unused_limit_bytes: int | None = None,
        keep_stored: bool = False,
        allow_host_wrappers: bool = False,
        compiler: Compiler | None = None,
        concurrency: float = math.inf,
        on_commit: Callable[[], None] = lambda: None,
    ) -> None:
        """``memory_limit_bytes`` None stands for ``MEMORY_SHARE``; at most ``unused_limit_bytes`` are held that no request uses.

        ``keep_stored`` is for a store where what is stored of a buffer is its key's whole value, and is read soon: large buffers
        that are stored then stay on the device as these values.
        With ``allow_host_wrappers`` requests may call functions of host code, which this process then runs. With a ``compiler``,
        which is to be of the device's kind, requests wait for what it compiles, and others run meanwhile. At most ``concurrency``
        requests launch and commit; to more of them only their inputs are brought.

        ``on_commit`` is called from another thread when a commit has ended: the jobs that are committing are to be polled.
        """
        self.device = device
        self.device_name = device.properties.name
        """``cuda:N`` or ``emulator``."""
        self.store = store
        self.libraries = libraries
        limit = memory_limit_bytes or int(device.properties.memory_bytes * MEMORY_SHARE)
        self.memory = DeviceMemory(device, limit, unused_limit_bytes=unused_limit_bytes)
        self.compiler = compiler
        self.programs = Programs(
            device,
            libraries,
            self.memory,
            compiler=compiler,
            allow_host_wrappers=allow_host_wrappers,
            keep_stored=keep_stored,
        )
        self.on_commit = on_commit
        self.uploads = 0
        """Copies of inputs to the device, apart from the small ones that travel with launches."""
        self.uploaded_bytes = 0
        """By these."""
        self.memory_turns = MemoryTurns(self.memory)
        self.load_gate = LoadGate()
        self.slots = Slots(concurrency)
        self.device_time = DeviceTime()
        self._may_hold_pages = True
        self.device_lost = False
        """True once the device is of no more use to this process: after a fault, or marked as lost."""

    @property
    def mapped(self) -> StoreMapping | None:
        """Pages that the device may hold on to; None where it may not."""
        return self.store.mapped if self._may_hold_pages else None

    def hold_pages(self, *, allowed: bool) -> None:
        """Say whether the device may hold on to the store's pages from now on; where not, it has let go of them on return.

        Raises ``DeviceLost``.
        """
        self._may_hold_pages = allowed
        if not allowed:
            self.device.unmap()

    def reserve(self, groups: Mapping[str, int]) -> None:
        """Give groups multiprocessors of their own, and a slot. Where that fails all run on all; it is logged."""
        self.slots.reserve(())
        try:
            self.device.reserve(groups)
            self.slots.reserve(groups)
        except DeviceLost:
            self.mark_device_lost()
        except Exception:
            _log.exception("no multiprocessors are reserved on %s", self.device_name)
            self.device.reserve({})

    def until_loadable(self, is_loaded: Callable[[], bool], cancellation: Cancellation) -> Steps[None]:
        """Where code is not loaded yet, wait until loading it keeps nobody from launching; see ``LoadGate``.

        Raises ``WorkerRestartingError`` where the device has been lost meanwhile.
        """
        if self.device.is_busy and not is_loaded():
            self.load_gate.enter(monotonic())
            try:
                while self.device.is_busy:
                    yield NOTHING
                    cancellation.check()
            finally:
                self.load_gate.leave()
        if self.device_lost:
            raise WorkerRestartingError(_LOST_BY_ANOTHER)

    def explain(self, error: Exception, plan: Plan, cancellation: Cancellation, owner: Owner = NOBODY) -> KaasError:
        """Return one of ``DEVICE_ERRORS`` for the request's caller; ``owner`` is whose memory it was to use."""
        if isinstance(error, OwnerLimitError):
            return GroupLimitError(
                f"group {owner.name}: the request's buffers need {plan.device_bytes} bytes of {self.device_name}, where all that "
                f"its requests use may take {owner.limit_bytes}: {error}",
                {"group": owner.name, "limit": "max_device_memory_bytes"},
            )
        if isinstance(error, Stopped):
            return cancellation.reason or CancelledError("the kernel was stopped")
        if isinstance(error, KernelFault):
            self.device_lost |= error.device_lost
            return _explain_fault(error, plan)
        if isinstance(error, DeviceLost):
            self.device_lost = True
            return WorkerRestartingError(_LOST_BY_ANOTHER)
        properties, held, limit = self.device.properties, self.memory.held_bytes, self.memory.limit_bytes
        return OutOfDeviceMemoryError(
            f"the request's buffers need {plan.device_bytes} bytes of {properties.name}, where at most {limit} of "
            f"{properties.memory_bytes} may be taken and {held} are held: {error}",
            {
                "asked_bytes": str(plan.device_bytes),
                "held_bytes": str(held),
                "limit_bytes": str(limit),
                "memory_bytes": str(properties.memory_bytes),
            },
        )

    def mark_device_lost(self) -> None:
        """Count the device as lost from now on."""
        self.device_lost = True

    def close(self) -> None:
        """Free everything, when no job is under way. Idempotent."""
        self.programs.close()
        self.memory.close()
        self.device.unmap()


def _explain_fault(fault: KernelFault, plan: Plan) -> KernelFaultError:
    index = fault.launch_index
    kernel = plan.launches[index].kernel[1] if index >= 0 else "unknown"
    metadata = {"fault": fault.fault, "kernel_index": str(index), "kernel": kernel}
    if fault.report:
        metadata["report"] = fault.report
    if fault.suspects > 1:
        metadata["suspects"] = str(fault.suspects)
    who = f"kernels[{index}] ({kernel})" if index >= 0 else "one of the request's kernels"
    return KernelFaultError(f"{who} faulted: {fault.fault}: {fault.message}", metadata)
