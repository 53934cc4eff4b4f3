"""Arrays of a call or a put: what can be sent of them, and what its bytes are."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from kaas_client._cuda_arrays import copied_to_host
from kaas_client._dlpack import from_dlpack, is_on_host
from kaas_client._dtypes import dtype_to_text
from kaas_client.forms import Form
from kaas_client.types import Key
from kaas_core.array_form import ArrayForm

_STACK_LEVEL = 4
"""Of a warning in a function that ``sendable`` or ``storable`` calls: who called the client."""


def sendable(name: str, value: Any) -> tuple[Any, Form | None]:
    """Return what is given for a buffer, and its form: None for a ``Key``, and for bytes, which have none.

    What lies on a GPU is copied to the host, and what is not contiguous is copied too, each with a warning. Raises ``TypeError``,
    naming the buffer, for what is neither an array nor a buffer, for types that are not made of bytes, and for those in another
    order of bytes than this machine's, which a kernel would read wrongly.
    """
    if isinstance(value, Key | bytes | bytearray | memoryview):
        return value, None
    what = f"buffer {name!r}"
    if not _is_array(value) and (array := _viewed(value)) is not None:
        value = array
    array = _laid_out(what, value)
    if not array.dtype.isnative:
        raise TypeError(
            f"the array for {what} is of {array.dtype}, which is not in the order of bytes that kernels read;"
            " send array.astype(array.dtype.newbyteorder('='))"
        )
    return array, Form(array.dtype, array.shape, not array.flags.c_contiguous)


def storable(key: str, value: Any, order: Literal["C", "F"]) -> tuple[Any, ArrayForm]:
    """Return what is sent to store an array in this order of elements, and what it is; the order of bytes is kept.

    Warns and raises as ``sendable``; what lies in another order is copied too.
    """
    what = f"key {key!r}"
    array = _checked(what, value)
    if not (array.flags.c_contiguous if order == "C" else array.flags.f_contiguous):
        words = "not contiguous"
        if array.flags.c_contiguous or array.flags.f_contiguous:
            words = "in the order of Fortran (order='F' keeps it)" if order == "C" else "in the order of C"
        warnings.warn(f"the array for {what} is {words}, and is copied", stacklevel=_STACK_LEVEL)
        array = np.asarray(array, order=order)
    is_fortran = not array.flags.c_contiguous
    return (array.T if is_fortran else array), ArrayForm(_text_of(array.dtype), array.shape, is_fortran)


def on_host(name: str, value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Return an array of NumPy, or of another package, from a GPU too, which is copied with a warning. Raises ``TypeError``."""
    return np.asanyarray(value) if _is_array(value) else _on_host(f"buffer {name!r}", value)


def warn_of_strides(name: str, array: np.ndarray[Any, np.dtype[Any]]) -> None:
    """Say that an array is copied whose bytes do not lie side by side, on its way into a message."""
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        warnings.warn(f"the array for buffer {name!r} is not contiguous, and is copied", stacklevel=_STACK_LEVEL + 1)


def _laid_out(what: str, value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Return an array whose bytes lie side by side in one of the two orders."""
    array = _checked(what, value)
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        warnings.warn(f"the array for {what} is not contiguous, and is copied", stacklevel=_STACK_LEVEL)
        array = np.ascontiguousarray(array)
    return array


def _checked(what: str, value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Return an array of NumPy that loses nothing when its bytes are sent. Raises ``TypeError``."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"the array for {what} is masked, and would lose its mask; send array.filled(value), or array.data and .mask apart"
        )
    array = np.asarray(value if _is_array(value) else _on_host(what, value))
    try:
        _text_of(array.dtype)
    except TypeError as error:
        raise TypeError(
            f"the items of the array for {what} are not plain bytes: {error}; give them a fixed size with array.astype(...)"
        ) from None
    return array


_text_of = lru_cache(maxsize=256)(dtype_to_text)


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic)


def _viewed(value: Any) -> np.ndarray[Any, np.dtype[Any]] | None:
    """Return a view of what has the buffer protocol, and says nothing else of itself."""
    if hasattr(value, "__dlpack__") or hasattr(value, "__cuda_array_interface__") or hasattr(value, "__array__"):
        return None
    try:
        return np.asarray(memoryview(value))
    except TypeError:
        return None


def _on_host(what: str, value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    """Return what the first way gives that the array's package and NumPy go together."""
    first: Exception | None = None
    for way in (_by_dlpack, _by_cuda_array_interface, _by_array):
        try:
            array = way(what, value)
        except (TypeError, ValueError, BufferError, RuntimeError, ImportError) as error:
            first = first or error
        else:
            if array is not None:
                return array
    if first is None:
        raise TypeError(f"{what} takes an array or bytes, not {value!r:.60}")
    raise TypeError(f"the array for {what} cannot be taken as it is: {first}; copy it into one of NumPy first") from first


def _by_dlpack(what: str, value: Any) -> np.ndarray[Any, np.dtype[Any]] | None:
    if not hasattr(value, "__dlpack__"):
        return None
    if not is_on_host(value):
        _warn_of_copy(what)
    return from_dlpack(value)


def _by_cuda_array_interface(what: str, value: Any) -> np.ndarray[Any, np.dtype[Any]] | None:
    interface = getattr(value, "__cuda_array_interface__", None)
    if interface is None:
        return None
    if not hasattr(value, "__dlpack__"):  # It has been said otherwise.
        _warn_of_copy(what)
    return copied_to_host(interface)


def _by_array(what: str, value: Any) -> np.ndarray[Any, np.dtype[Any]] | None:
    """Take what its package makes an array of NumPy: JAX does of types that DLPack lacks."""
    return np.asarray(value) if hasattr(value, "__array__") else None


def _warn_of_copy(what: str) -> None:
    warnings.warn(f"the array for {what} lies on a GPU, and is copied to the host", stacklevel=_STACK_LEVEL + 4)
