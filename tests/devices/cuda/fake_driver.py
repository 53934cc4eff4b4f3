"""A CUDA driver that does nothing but count: what was made and not freed, and which call is to fail."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cuda.bindings import driver

SUCCESS = driver.CUresult.CUDA_SUCCESS
OUT_OF_MEMORY = driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY
OTHER = driver.CUresult.CUDA_ERROR_INVALID_HANDLE

FREED_BY = {
    "cuDevicePrimaryCtxRetain": "cuDevicePrimaryCtxRelease",
    "cuStreamCreate": "cuStreamDestroy",
    "cuStreamCreateWithPriority": "cuStreamDestroy",
    "cuGreenCtxStreamCreate": "cuStreamDestroy",
    "cuEventCreate": "cuEventDestroy",
    "cuLibraryLoadData": "cuLibraryUnload",
    "cuModuleLoadDataEx": "cuModuleUnload",
    "cuGreenCtxCreate": "cuGreenCtxDestroy",
    "cuMemAllocAsync": "cuMemFreeAsync",
    "cuMemHostAlloc": "cuMemFreeHost",
    "cuMemHostRegister": "cuMemHostUnregister",
    "cuArray3DCreate": "cuArrayDestroy",
    "cuTexObjectCreate": "cuTexObjectDestroy",
    "cuSurfObjectCreate": "cuSurfObjectDestroy",
    "cuGraphCreate": "cuGraphDestroy",
    "cuGraphInstantiate": "cuGraphExecDestroy",
}
SAME_AS = {"cuStreamCreateWithPriority": "cuStreamCreate", "cuGreenCtxStreamCreate": "cuStreamCreate"}
"""Functions that make what another makes too."""


def multiprocessors(number: int) -> Any:
    """Return so many, of which 8 can be had at least."""
    return SimpleNamespace(sm=SimpleNamespace(smCount=number, minSmPartitionSize=8, smCoscheduledAlignment=8))


ANSWERS: dict[str, tuple[Any, ...]] = {
    "cuDeviceGetCount": (1,),
    "cuDriverGetVersion": (13000,),
    "cuDeviceGet": ("device",),
    "cuDeviceGetName": (b"a GPU\0",),
    "cuDeviceTotalMem": (80 << 30,),
    "cuDeviceGetAttribute": (1024,),
    "cuDeviceGetDefaultMemPool": ("pool",),
    "cuModuleGetFunctionCount": (1,),
    "cuModuleEnumerateFunctions": ([driver.CUfunction(1)],),
    "cuFuncGetName": (b"moveKern",),
    "cuFuncGetAttribute": (0,),
    "cuMemHostGetDevicePointer": (0x1000,),
    "cuMemPoolGetAttribute": (0,),
    "cuMemGetInfo": (1 << 20, 80 << 30),
    "cuStreamGetId": (7,),
    "cuCtxGetStreamPriorityRange": (0, -5),
    "cuGraphAddKernelNode": ("node",),
    "cuGraphAddMemcpyNode": ("copy",),
    "cuCtxGetCurrent": (driver.CUcontext(7),),
    "cuCtxGetDevice": ("device",),
    "cuCtxFromGreenCtx": (driver.CUcontext(7),),
    "cuDeviceGetDevResource": (multiprocessors(132),),
    "cuLibraryGetKernel": (driver.CUkernel(9),),
}
"""What functions return beside their status, where that is something."""
SILENT = (
    "cuInit", "cuDevicePrimaryCtxSetFlags", "cuCtxSetCurrent", "cuMemPoolSetAttribute", "cuMemPoolTrimTo", "cuFuncLoad",
    "cuStreamSynchronize", "cuStreamQuery", "cuStreamWaitEvent", "cuEventRecord", "cuEventSynchronize", "cuEventQuery",
    "cuMemsetD8Async", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuLaunchKernel", "cuStreamWriteValue32", "cuGraphUpload",
    "cuGraphLaunch", "cuMemHostRegister", "cuMemcpyDtoDAsync", "cuMemcpy3DAsync", "cuGraphKernelNodeSetAttribute",
    "cuKernelSetAttribute",
)  # fmt: skip
"""Functions that return their status alone."""


class FakeDriver:
    """Takes the place of the functions of ``cuda.bindings.driver`` that the device calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.held: Counter[str] = Counter()
        """What is made and not freed, by the function that made it."""
        self.fails: Callable[[int, str], Any] = lambda index, name: SUCCESS
        """Told a call's number and name, returns its status."""
        self.variables: dict[bytes, tuple[int, int]] = {}
        """Addresses, relative to the module's, and sizes of the module variables that it knows, by name."""
        self._memory: dict[int, Any] = {}
        for name in (
            "cuFuncGetParamInfo",
            "cuDevSmResourceSplitByCount",
            "cuLibraryGetModule",
            "cuModuleGetFunction",
            "cuModuleGetGlobal",
            *FREED_BY,
            *FREED_BY.values(),
            *ANSWERS,
            *SILENT,
        ):
            monkeypatch.setattr(driver, name, self._function(name))
        monkeypatch.setattr(driver, "cuGetErrorString", lambda _: (SUCCESS, b""))
        monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32")

    def fail_at(self, index: int, status: Any, *, from_then_on: bool = False) -> None:
        """Have one call fail, counted from now; or all that come after it too, with another status."""
        start = len(self.calls)

        def fails(number: int, name: str) -> Any:
            if number == start + index:
                return status
            return OTHER if from_then_on and number > start + index else SUCCESS

        self.fails = fails

    def fail_in(self, name: str, status: Any) -> None:
        """Have every call of one function fail."""
        self.fails = lambda _, called: status if called == name else SUCCESS

    def work_again(self) -> None:
        """Have every call succeed."""
        self.fails = lambda index, name: SUCCESS

    def _function(self, name: str) -> Callable[..., tuple[Any, ...]]:
        makes = {freed_by: made_by for made_by, freed_by in FREED_BY.items() if made_by not in SAME_AS}

        def call(*arguments: Any) -> tuple[Any, ...]:
            status = self.fails(len(self.calls), name)
            self.calls.append(name)
            if name in makes:  # whatever it returns, nothing can free it again
                self.held[makes[name]] -= 1
                assert self.held[makes[name]] >= 0, f"{name} of what was never made"
                self._memory.pop(arguments[0], None)
                return (status,)
            if status != SUCCESS:
                return status, None, None
            if name in FREED_BY:
                self.held[SAME_AS.get(name, name)] += 1
            if name == "cuFuncGetParamInfo":
                return (SUCCESS, 0, 8) if arguments[1] < 3 else (driver.CUresult.CUDA_ERROR_INVALID_VALUE, None, None)
            if name == "cuDevSmResourceSplitByCount":
                number, size = arguments[0], arguments[3]
                return SUCCESS, [multiprocessors(size)] * number, number, multiprocessors(132 - number * size)
            if name == "cuLibraryGetModule":
                return SUCCESS, arguments[0]
            if name == "cuModuleGetFunction":
                return SUCCESS, driver.CUfunction(arguments[0])
            if name == "cuModuleGetGlobal":
                if arguments[1] not in self.variables:
                    return driver.CUresult.CUDA_ERROR_NOT_FOUND, None, None
                offset, size = self.variables[arguments[1]]
                return SUCCESS, (arguments[0] << 16) + offset, size
            if name == "cuMemHostAlloc":
                memory = ctypes.create_string_buffer(arguments[0])
                self._memory[ctypes.addressof(memory)] = memory
                return SUCCESS, ctypes.addressof(memory)
            return (SUCCESS,) if name in SILENT else (SUCCESS, *ANSWERS.get(name, (0x10000 + len(self.calls),)))

        call.__name__ = name
        return call
