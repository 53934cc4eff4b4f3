"""Values of Ray's object store as bytes, and bytes as values: arrays that are read where they lie."""

from __future__ import annotations

import pickle
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from kaas_core.errors import InvalidRequestError
from kaas_core.violations import shown

Bytes = NDArray[np.uint8]

_FROM_BUFFER: Any = np.zeros(1).__reduce_ex__(5)[0]
"""NumPy's own: takes a buffer, dtype, shape and order. So whoever unpickles a result needs nothing of ours."""


def bytes_of(value: object, field: str) -> Bytes:
    """Return the bytes of an array in the order of its memory, or of what has the buffer protocol; copied where they lie apart.

    Raises ``InvalidRequestError`` at ``field`` for any other value.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise InvalidRequestError.at(field, "is an array of Python objects, which have no bytes that a device could use")
        flat = value.ravel("F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C")
        return flat.view(np.uint8)
    try:
        return np.frombuffer(memoryview(value).cast("B"), np.uint8)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        kind = type(value).__name__
        raise InvalidRequestError.at(
            field, f"is a value of type {shown(kind)}; an array, or bytes of at least one, is needed"
        ) from None


class LentArray(NDArray[np.uint8]):
    """Bytes that are lent for as long as something uses them, to be pickled from where they lie as a typed array."""

    form: tuple[np.dtype[Any], tuple[int, ...], str]
    """Dtype, shape and order of what it is pickled as."""
    loan: object
    """What owns the bytes learns that they are returned when this goes."""

    @classmethod
    def of(cls, view: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...], order: str, loan: object) -> LentArray:
        """Return the bytes of ``view``, to be an array of this form."""
        array = np.frombuffer(view, np.uint8).view(cls)
        array.form, array.loan = (dtype, shape, order), loan
        return array

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return _FROM_BUFFER, (pickle.PickleBuffer(self.data), *self.form)
