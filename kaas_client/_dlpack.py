"""Arrays of other packages by DLPack, also of the types that NumPy does not take so: bfloat16 and those of 8 bits."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from kaas_core.array_form import dtype_from_text

CPU = 1
"""Of the types of devices."""

_UNSIGNED = 1
_NAMES = {
    (4, 16): "bfloat16",
    (7, 8): "float8_e3m4",
    (8, 8): "float8_e4m3",
    (9, 8): "float8_e4m3b11fnuz",
    (10, 8): "float8_e4m3fn",
    (11, 8): "float8_e4m3fnuz",
    (12, 8): "float8_e5m2",
    (13, 8): "float8_e5m2fnuz",
    (14, 8): "float8_e8m0fnu",
}
"""Of types by code and bits, as ml_dtypes has them. Those of 4 and 6 bits are left out: how they lie is up to each package."""
_MAJOR_VERSION = 1
"""Another one may be laid out otherwise; NumPy refuses it."""


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    """``DLTensor``, and the beginning of ``DLManagedTensor``."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """``DLManagedTensorVersioned``."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


class _Carrier:
    """An array whose items are unsigned integers to NumPy where it does not know them."""

    def __init__(self, array: Any) -> None:
        self._array = array
        self.name: str | None = None
        """Of the items' type, where it was changed."""

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self._array.__dlpack__(**options)
        dtype = _dtype_in(capsule)
        if dtype is not None and dtype.lanes == 1 and (name := _NAMES.get((dtype.code, dtype.bits))):
            dtype.code = _UNSIGNED  # The capsule was made for this call, and belongs to who asked for it.
            self.name = name
        return capsule


def is_on_host(array: Any) -> bool:
    """Return whether an array with ``__dlpack__`` lies in the host's memory."""
    return bool(array.__dlpack_device__()[0] == CPU)


def from_dlpack(array: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Return an array that has ``__dlpack__``: where it lies, or, where that is not on the host, a copy by its package.

    Raises what that package and NumPy raise for what they cannot do, and ``TypeError`` where ml_dtypes is needed and not there.
    """
    carrier = _Carrier(array)
    taken: np.ndarray[Any, np.dtype[Any]]
    taken = np.from_dlpack(carrier) if is_on_host(array) else np.from_dlpack(carrier, device="cpu")
    return taken if carrier.name is None else taken.view(dtype_from_text(carrier.name))


def _dtype_in(capsule: Any) -> _DataType | None:
    """Return the type in a capsule, to be read or changed there; None where the capsule is of a kind that is not known."""
    if _is_valid(capsule, b"dltensor"):
        tensor: _Tensor = _Tensor.from_address(_pointer(capsule, b"dltensor"))
    elif _is_valid(capsule, b"dltensor_versioned"):
        versioned = _Versioned.from_address(_pointer(capsule, b"dltensor_versioned"))
        if versioned.major != _MAJOR_VERSION:
            return None
        tensor = versioned.tensor
    else:
        return None
    dtype: _DataType = tensor.dtype
    return dtype
