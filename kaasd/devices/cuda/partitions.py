"""Multiprocessors that some runs keep to: green contexts of one GPU, which all share what its primary context has.

Kernels that go into a stream of a green context keep to its multiprocessors. A graph does not care for its stream: its nodes name
the context, and the kernel in the form that belongs to no context (``CUkernel``); with a ``CUfunction`` they run everywhere. Seen
with the driver 580.159 on an H200.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from cuda.bindings import driver

from kaasd.devices.base import undone_on_failure
from kaasd.devices.cuda.driver import Check, CudaError, Release, check

_CANNOT = frozenset({"CUDA_ERROR_NOT_SUPPORTED", "CUDA_ERROR_INVALID_RESOURCE_TYPE"})
"""What a driver says whose GPU has no green contexts."""


class Partition:
    """A green context. On an H200 it takes 1 ms to make and 5 MiB of device memory."""

    def __init__(self, device_handle: Any, resources: list[Any], check: Check, release: Release) -> None:
        """``resources`` are parts of one split of the device's multiprocessors. Raises as ``CudaContext.check``."""
        description = check(driver.cuDevResourceGenerateDesc, resources, len(resources))
        flags = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
        with undone_on_failure() as undo:
            self._green = check(driver.cuGreenCtxCreate, description, device_handle, flags)
            undo.callback(release, driver.cuGreenCtxDestroy, self._green)
            self.context = check(driver.cuCtxFromGreenCtx, self._green)
            """As graphs name it."""
        self._check, self._undo = check, undo

    def new_stream(self, flags: int, priority: int) -> Any:
        """Return a new stream of it. Raises as ``CudaContext.check``."""
        return self._check(driver.cuGreenCtxStreamCreate, self._green, flags, priority)

    def close(self) -> None:
        """Free it. Idempotent."""
        self._undo.close()


class Partitions:
    """Which groups have multiprocessors of their own, and the rest for all others."""

    def __init__(self, device_handle: Any, check: Check, release: Release) -> None:
        self._device = device_handle
        self._check, self._release = check, release
        self._made: dict[tuple[int, int, int], Partition] = {}
        """By how many units were split off, and of these the first and the one behind the last; the rest begins behind all.

        They stay until the end: graphs and streams may still name them.
        """
        self._of: dict[str, Partition] = {}
        self._rest: Partition | None = None

    def of(self, group: str) -> Partition | None:
        """Return where runs of a group are to stay; None where nobody has reserved anything."""
        return self._of.get(group, self._rest)

    def reserve(self, groups: Mapping[str, int]) -> None:
        """Give groups as many multiprocessors of their own, up to the next whole unit, and none to others.

        Runs that are under way stay where they are. Raises ``ValueError`` where no unit is left for others, ``OutOfMemory``,
        ``CudaError``, ``DeviceLost``.
        """
        if not groups:
            self._of, self._rest = {}, None
            return
        unit, total = reservable(self._device)
        if not unit:
            raise ValueError("this GPU's multiprocessors cannot be reserved")
        wanted = {name: -(-number // unit) for name, number in sorted(groups.items())}
        split = sum(wanted.values())
        if split >= total // unit:
            raise ValueError(f"{split} units of {unit} multiprocessors are to be reserved, of {total // unit}")
        # No more units than are needed: the driver takes several for one context, but not with a rest of 4 beside 16 units of 8.
        units, _, rest = self._check(driver.cuDevSmResourceSplitByCount, split, whole(self._device), 0, unit)
        of, begin = {}, 0
        for name, number in wanted.items():
            of[name] = self._partition(split, begin, begin + number, units[begin : begin + number])
            begin += number
        self._rest = self._partition(split, begin, begin, [rest])
        self._of = of

    def _partition(self, split: int, begin: int, end: int, resources: list[Any]) -> Partition:
        made = self._made.get((split, begin, end))
        if made is None:
            made = self._made[split, begin, end] = Partition(self._device, resources, self._check, self._release)
        return made

    def close(self) -> None:
        """Free them; streams and graphs that name them are gone. Idempotent."""
        self._of, self._rest = {}, None
        with ExitStack() as undo:
            while self._made:
                undo.callback(self._made.popitem()[1].close)


def whole(device_handle: Any) -> Any:
    """Return all multiprocessors of a device, as the driver takes them to be split. Raises ``CudaError``."""
    return check(driver.cuDeviceGetDevResource, device_handle, driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM)


def reservable(device_handle: Any) -> tuple[int, int]:
    """Return of which number of multiprocessors reservations are multiples, and how many there are; 0 and 0 where none can be.

    Raises ``CudaError``.
    """
    try:
        resource = whole(device_handle)
    except RuntimeError:  # of cuda.bindings, where the driver is older than CUDA 12.4
        return 0, 0
    except CudaError as error:
        if error.name not in _CANNOT:
            raise
        return 0, 0
    return max(1, resource.sm.minSmPartitionSize, resource.sm.smCoscheduledAlignment), int(resource.sm.smCount)
