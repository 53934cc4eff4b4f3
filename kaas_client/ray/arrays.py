"""Values of Ray's object store as bytes, and bytes as values: arrays that are read where they lie."""

from __future__ import annotations

import math
import pickle
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from kaas_client._dtypes import dtype_from_text
from kaas_core.errors import InvalidRequestError
from kaas_core.request import BufferSpec
from kaas_core.violations import shown

Bytes = NDArray[np.uint8]

_FROM_BUFFER: Any = np.zeros(1).__reduce_ex__(5)[0]
"""NumPy's own: takes a buffer, dtype, shape and order. So whoever unpickles a result needs nothing of ours."""


class Form(NamedTuple):
    """What a buffer's bytes are to its users."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"]

    @classmethod
    def of(cls, spec: BufferSpec) -> Form:
        """Return the form of a buffer: bytes where nothing is said. Raises ``InvalidRequestError``."""
        if not spec.dtype:
            return cls(np.dtype(np.uint8), (spec.size_bytes,), "C")
        try:
            dtype = dtype_from_text(spec.dtype)
        except TypeError as error:
            raise InvalidRequestError.at("dtype", f"buffer {shown(spec.name)}: {error}") from None
        size = math.prod(spec.shape) * dtype.itemsize
        if size != spec.size_bytes:
            described = f"{spec.dtype} of shape {list(spec.shape)}"
            raise InvalidRequestError.at("size", f"buffer {shown(spec.name)} is {described}: {size} bytes, not {spec.size_bytes}")
        return cls(dtype, spec.shape, "F" if spec.fortran_order else "C")


def bytes_of(value: object, spec: BufferSpec) -> Bytes:
    """Return the bytes of an array, in the buffer's order, or of what has the buffer protocol; not copied if they lie so.

    Raises ``InvalidRequestError`` for any other value.
    """
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.ravel("F" if spec.fortran_order else "C").view(np.uint8)
    try:
        return np.frombuffer(memoryview(value).cast("B"), np.uint8)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise InvalidRequestError.at(
            f'inputs["{spec.name}"]', f"is a value of type {shown(kind)}, where an array or bytes are needed"
        ) from None


class LentArray(np.ndarray[Any, np.dtype[np.uint8]]):
    """Bytes that are lent for as long as something uses them, to be pickled from where they lie as a typed array."""

    form: Form
    """Of what it is pickled as."""
    loan: object
    """What owns the bytes learns that they are returned when this goes."""

    @classmethod
    def of(cls, view: memoryview, form: Form, loan: object) -> LentArray:
        """Return the bytes of ``view``, to be an array of this form."""
        array = np.frombuffer(view, np.uint8).view(cls)
        array.form, array.loan = form, loan
        return array

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return _FROM_BUFFER, (pickle.PickleBuffer(self.data), *self.form)
