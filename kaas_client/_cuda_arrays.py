"""Arrays on a GPU of which only the CUDA array interface tells, copied to the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from kaas_core.array_form import dtype_from_text


def copied_to_host(interface: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[Any]]:
    """Return what a ``__cuda_array_interface__`` (version 3 or older) describes, as an array that lies as that one does.

    What its stream does is waited for. Raises ``TypeError`` for a mask and an unknown type, ``ImportError`` without the package
    cuda-bindings, ``RuntimeError`` where the driver refuses.
    """
    if interface.get("mask") is not None:
        raise TypeError("its mask would be lost")
    dtype = _dtype_of(interface)
    shape = tuple(interface["shape"])
    if 0 in shape:
        return np.empty(shape, dtype)
    strides = interface.get("strides") or _contiguous(shape, dtype.itemsize)
    ends = [(length - 1) * stride for length, stride in zip(shape, strides, strict=True)]
    before = -sum(end for end in ends if end < 0)
    host = np.empty(before + sum(end for end in ends if end > 0) + dtype.itemsize, np.uint8)
    _copy(host, interface["data"][0] - before, interface.get("stream"))
    return np.ndarray(shape, dtype, host.data, before, strides)


def _dtype_of(interface: Mapping[str, Any]) -> np.dtype[Any]:
    """Return the type of the items. Those of ml_dtypes are void to NumPy, but in an order of bytes, which no other void has."""
    text = interface["typestr"]
    if text == "<V2":
        return dtype_from_text("bfloat16")
    if text == "<V1":
        raise TypeError("its items are of 8 bits or less, of a type that its interface does not tell")
    dtype: np.dtype[Any] = np.dtype(text)
    if dtype.kind == "V" and interface.get("descr"):
        dtype = np.lib.format.descr_to_dtype(interface["descr"])
    return dtype


def _contiguous(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    strides = [item_bytes]
    for length in shape[:0:-1]:
        strides.append(strides[-1] * length)
    return tuple(reversed(strides[: len(shape)]))


def _copy(host: np.ndarray[Any, np.dtype[np.uint8]], address: int, stream: int | None) -> None:
    from cuda.bindings import driver

    _checked(driver, driver.cuInit(0))
    with _primary_context(driver, address):
        if stream is not None:
            _checked(driver, driver.cuStreamSynchronize(driver.CUstream(stream)))
        _checked(driver, driver.cuMemcpyDtoH(host.ctypes.data, address, host.nbytes))


@contextmanager
def _primary_context(driver: ModuleType, address: int) -> Iterator[None]:
    """Make the context current that the libraries of arrays use on the device of an address."""
    ordinal = _checked(
        driver, driver.cuPointerGetAttribute(driver.CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address)
    )
    device = _checked(driver, driver.cuDeviceGet(ordinal))
    context = _checked(driver, driver.cuDevicePrimaryCtxRetain(device))
    try:
        _checked(driver, driver.cuCtxPushCurrent(context))
        try:
            yield
        finally:
            _checked(driver, driver.cuCtxPopCurrent())
    finally:
        _checked(driver, driver.cuDevicePrimaryCtxRelease(device))


def _checked(driver: ModuleType, answer: tuple[Any, ...]) -> Any:
    """Return what a call of the driver returned beside its status. Raises ``RuntimeError``."""
    status, *values = answer
    if status != driver.CUresult.CUDA_SUCCESS:
        raise RuntimeError(f"the CUDA driver says {getattr(status, 'name', status)}")
    return values[0] if values else None
