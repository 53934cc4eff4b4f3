"""What the requests of one device share, and what becomes of the device's errors."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeAlias, TypeVar

from kaasd.devices.base import Awaited, Device, DeviceLost, KernelFault, OutOfMemory, Stopped
from kaasd.engine.memory import DeviceMemory
from kaasd.engine.programs import Programs
from kaasd.engine.quiet import Quiet
from kaasd.engine.residency import NoRoomError
from kaasd.errors import CancelledError, KaasError, KernelFaultError, OutOfDeviceMemoryError, WorkerRestartingError
from kaasd.request.plan import Plan
from kaasd.store.base import KeyValueStore

T = TypeVar("T")
Steps: TypeAlias = Generator[Awaited, None, T]
"""Yields what it waits for, and returns in the end."""

_LOST_BY_ANOTHER = "another request's kernel took the device with it; nothing was changed"
DEVICE_ERRORS = (Stopped, KernelFault, DeviceLost, NoRoomError, OutOfMemory)


class _Nothing:
    """Awaited by who can only try again."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        """Return at once."""


NOTHING = _Nothing()


@dataclass(eq=False)
class Resources:
    """A device and all that is kept for it."""

    device: Device
    store: KeyValueStore
    memory: DeviceMemory
    programs: Programs
    on_commit: Callable[[], None]
    """Called from another thread when a commit has ended."""
    waiting_for_memory: deque[object] = field(default_factory=deque)
    """Requests that found too little, in the order in which they get it."""
    quiet: Quiet = field(default_factory=Quiet)
    device_lost: bool = False
    """Whether the device is of no more use to this process: after a fault, or given up."""

    def until_loadable(self, is_loaded: Callable[[], bool], check_stop: Callable[[], None]) -> Steps[None]:
        """Where code is not loaded yet, wait until loading it keeps nobody from launching; see ``quiet``.

        Raises ``WorkerRestartingError`` where the device has been lost meanwhile.
        """
        if self.device.is_busy and not is_loaded():
            self.quiet.enter(monotonic())
            try:
                while self.device.is_busy:
                    yield NOTHING
                    check_stop()
            finally:
                self.quiet.leave()
        if self.device_lost:
            raise WorkerRestartingError(_LOST_BY_ANOTHER)

    def explain(self, error: Exception, plan: Plan, check_stop: Callable[[], None]) -> KaasError:
        """Return one of ``DEVICE_ERRORS`` for the request's caller. Raises what ``check_stop`` raises where it was stopped."""
        if isinstance(error, Stopped):
            check_stop()
            return CancelledError("the kernel was stopped")
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


def _explain_fault(fault: KernelFault, plan: Plan) -> KernelFaultError:
    index = fault.launch_index
    kernel = plan.launches[index].kernel[1] if index >= 0 else "unknown"
    metadata = {"fault": fault.fault, "kernel_index": str(index), "kernel": kernel}
    if fault.report:
        metadata["report"] = fault.report
    if fault.suspects > 1:
        metadata["suspects"] = str(fault.suspects)
    return KernelFaultError(f"kernels[{index}] ({kernel}) faulted: {fault.fault}: {fault.message}", metadata)
