"""Calls of the CUDA driver: the one place where their status is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeAlias

from cuda.bindings import driver

from kaasd.devices.base import DeviceUnavailable

Check: TypeAlias = Callable[..., Any]
"""``check`` below or ``CudaContext.check``: calls a function of the driver with arguments, raises, returns its results."""
Release: TypeAlias = Callable[..., None]
"""``CudaContext.release``."""


class CudaError(Exception):
    """A driver call failed."""

    def __init__(self, call: str, name: str, text: str) -> None:
        super().__init__(f"{call}: {name}: {text}" if text else f"{call}: {name}")
        self.call = call
        """Name of the function, such as ``cuLaunchKernel``."""
        self.name = name
        """Name of the code, such as ``CUDA_ERROR_INVALID_VALUE``."""
        self.text = text
        """The driver's own description of the code."""

    @property
    def is_out_of_memory(self) -> bool:
        """Whether freeing memory may help."""
        return self.name == "CUDA_ERROR_OUT_OF_MEMORY"

    @property
    def is_fault(self) -> bool:
        """Whether it is what every call returns once a kernel has faulted."""
        return self.name in _FAULTS


_FAULTS = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "ILLEGAL_ADDRESS", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "ASSERT", "HARDWARE_STACK_ERROR", "ILLEGAL_INSTRUCTION",
        "MISALIGNED_ADDRESS", "INVALID_ADDRESS_SPACE", "INVALID_PC", "ECC_UNCORRECTABLE", "CONTAINED", "EXTERNAL_DEVICE",
        "TENSOR_MEMORY_LEAK", "NVLINK_UNCORRECTABLE", "CONTEXT_IS_DESTROYED",
    )
)  # fmt: skip
"""The codes that the driver calls sticky: the process must end."""


def check(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call a function of ``cuda.bindings.driver`` and return what it returns beside its status.

    That is None, one value, or a tuple of several. Raises ``CudaError``.
    """
    status, *values = function(*arguments)
    if status:
        raise failure(function, status)
    if len(values) == 1:
        return values[0]
    return tuple(values) if values else None


def failure(function: Callable[..., tuple[Any, ...]], status: Any) -> CudaError:
    """Return the error for a status of a function."""
    return CudaError(function.__name__, status.name, _describe(status))


def _describe(status: Any) -> str:
    lookup, text = driver.cuGetErrorString(status)
    return "" if lookup or text is None else text.decode()


def see_only(ordinal: int) -> int:
    """Have this process see one of its GPUs only, and return the ordinal that this one has then.

    On a machine of two H200 initialising took 0.13 s instead of 0.23. Where the driver is initialised already nothing changes.
    """
    global _seen
    try:
        is_initialised = driver.cuDeviceGetCount()[0] != driver.CUresult.CUDA_ERROR_NOT_INITIALIZED
    except RuntimeError:  # There is no driver, as ``initialize`` says.
        return ordinal
    if is_initialised:
        return 0 if ordinal == _seen else ordinal
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(ordinal + 1)] if visible is None else visible.split(",")
    if ordinal >= len(names):
        return ordinal
    os.environ["CUDA_VISIBLE_DEVICES"] = names[ordinal]
    _seen = ordinal
    return 0


_seen: int | None = None
"""The GPU that this process sees alone, by the ordinal that it had before; None where it sees all."""


def initialize() -> int:
    """Initialise the driver and return the number of its GPUs. Raises ``DeviceUnavailable`` where there is neither."""
    try:
        check(driver.cuInit, 0)
        count: int = check(driver.cuDeviceGetCount)
    except CudaError as error:
        raise DeviceUnavailable(f"the CUDA driver cannot be used: {error}") from error
    except RuntimeError as error:  # what cuda.bindings raises when it finds no libcuda.so
        raise DeviceUnavailable("this machine has no CUDA driver (libcuda.so.1 was not found)") from error
    if count == 0:
        raise DeviceUnavailable("the CUDA driver finds no GPU")
    return count
