"""Arrays of a call: what can be sent of them, and what its bytes are."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from kaas_client.forms import Form
from kaas_client.types import Key

DLPACK_CPU = 1
"""Of DLPack's device types."""


def sendable(name: str, value: Any) -> tuple[Any, Form | None]:
    """Return what is sent for a buffer, and its form: None for a ``Key``, and for bytes, which have none.

    What lies on a GPU is copied to the host, and what is not contiguous is copied too, each with a warning. Raises ``TypeError``
    for what is neither an array nor a buffer.
    """
    if isinstance(value, Key | bytes | bytearray | memoryview):
        return value, None
    if not isinstance(value, np.ndarray | np.generic):
        value = _from_elsewhere(name, value)
    array = np.asarray(value)
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        warnings.warn(f"the array for buffer {name!r} is not contiguous, and is copied", stacklevel=4)
        array = np.ascontiguousarray(array)
    is_fortran = not array.flags.c_contiguous
    return (array.T if is_fortran else array), Form(array.dtype, array.shape, is_fortran)


def _from_elsewhere(name: str, value: Any) -> Any:
    if hasattr(value, "__dlpack__"):
        if value.__dlpack_device__()[0] == DLPACK_CPU:
            return np.from_dlpack(value)
        warnings.warn(f"the array for buffer {name!r} lies on a GPU, and is copied to the host", stacklevel=5)
        return np.from_dlpack(value, device="cpu")
    if hasattr(value, "__cuda_array_interface__"):
        raise TypeError(f"the array for buffer {name!r} lies on a GPU and has no DLPack: copy it to the host first")
    if hasattr(value, "__array__"):
        return np.asarray(value)
    try:
        return np.asarray(memoryview(value))
    except TypeError:
        raise TypeError(f"buffer {name!r} takes an array or bytes, not {value!r:.60}") from None
