"""Values of Ray's object store as bytes, and bytes as values: arrays that are read where they lie."""

from __future__ import annotations

import math
import pickle
from typing import Any, Literal, NamedTuple, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from kaas_core.array_form import dtype_from_text
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
    code: str | np.dtype[Any]
    """What NumPy makes the dtype of: its short name, where it has one, which is pickled and read faster."""

    @classmethod
    def of(cls, spec: BufferSpec) -> Form:
        """Return the form of a buffer: bytes where nothing is said. Raises ``InvalidRequestError``."""
        if not spec.dtype:
            return cls._of(np.dtype(np.uint8), (spec.size_bytes,), "C")
        try:
            dtype = dtype_from_text(spec.dtype)
        except TypeError as error:
            raise InvalidRequestError.at("dtype", f"buffer {shown(spec.name)}: {error}") from None
        size = math.prod(spec.shape) * dtype.itemsize
        if size != spec.size_bytes:
            described = f"{spec.dtype} of shape {list(spec.shape)}"
            raise InvalidRequestError.at("size", f"buffer {shown(spec.name)} is {described}: {size} bytes, not {spec.size_bytes}")
        return cls._of(dtype, spec.shape, "F" if spec.fortran_order else "C")

    @classmethod
    def _of(cls, dtype: np.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"]) -> Form:
        return cls(dtype, shape, order, dtype.str if dtype.isbuiltin == 1 else dtype)


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


_IN_COLUMNS = "F"


def name_of(object_id: str, spec: BufferSpec) -> str:
    """Return what the bytes of an object are known by on a device as this buffer has them: there is one object, in two orders."""
    return object_id + _IN_COLUMNS if spec.fortran_order else object_id


def object_id_of(name: str) -> str:
    """Return the object's id of what ``name_of`` gave."""
    return name.removesuffix(_IN_COLUMNS)


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
        return _FROM_BUFFER, (pickle.PickleBuffer(self.data), *self.form[:3])


class CopiedArray:
    """Bytes of a small result, to be pickled as a typed array."""

    def __init__(self, content: bytes, form: Form) -> None:
        self._content, self._form = content, form

    def __reduce__(self) -> tuple[Any, ...]:
        # Within the pickle itself: a buffer beside it takes 10 microseconds more at either end, an array's own way another 10.
        return np.ndarray, (self._form.shape, self._form.code, self._content, 0, None, self._form.order)


def returned(content: memoryview, form: Form, loan: object) -> LentArray | CopiedArray:
    """Return what Ray is to pickle as a result of this form: bytes that are lent, or that were copied because they are few."""
    if isinstance(content.obj, bytes):
        return CopiedArray(content.obj, form)
    return LentArray.of(content, form, loan)
