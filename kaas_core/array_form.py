"""What the bytes of a buffer or of a value are to their users: a dtype as text, and a shape.

The text is NumPy's name of the type, that of ml_dtypes, or the ``descr`` of a structured type as JSON. A server asks only how
many bytes an item has. For that it needs NumPy alone: the types of ml_dtypes, which are bfloat16 and those of 8 bits and less,
tell it by their names.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kaas_core.violations import shown

if TYPE_CHECKING:
    import numpy as np

MAX_DTYPE_BYTES = 4096
MAX_DIMENSIONS = 64
"""NumPy's limit."""

_U64_MAX = 2**64 - 1
_MAX_ARRAY_BYTES = 2**63 - 1
"""NumPy's limit, which leaves out dimensions of 0."""
_NAME = re.compile(r"[<>=|]?(\?|[A-Za-z_][A-Za-z0-9_]*(\[[A-Za-z0-9/]+\])?)")
"""What ``np.dtype`` takes beyond that, such as ``(2,3)f4`` or ``f4,f4``, is no single type, or has another text."""
_ML_NAME = re.compile(r"bfloat16|b?complex32|float[468]_e\d+m\d+[a-z0-9]*|u?int[124]")
_ML_SIZES = {"bfloat16": 2, "complex32": 4, "bcomplex32": 4}
"""Of those that are longer than a byte."""


@dataclass(frozen=True, slots=True)
class ArrayForm:
    """What a value is to its users."""

    dtype: str
    """As text; never empty."""
    shape: tuple[int, ...] = ()
    """Empty: it is one item, without dimensions."""
    fortran_order: bool = False
    """The first dimension's items lie side by side, rather than the last one's."""


def form_problems(dtype: str, shape: tuple[int, ...], fortran_order: bool, size_bytes: int | None) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with what is said of so many bytes (None: not known), each with its field. ``dtype`` may be empty."""
    if not dtype:
        for field, given in (("shape", shape), ("fortran_order", fortran_order)):
            if given:
                yield field, "is given without dtype"
    dimensions_are_right = True
    for field, problem in _shape_problems(shape):
        dimensions_are_right = False
        yield field, problem
    if not dtype:
        return
    try:
        item_bytes = item_size(dtype)
    except (TypeError, ValueError) as error:
        yield "dtype", str(error)
        return
    if not dimensions_are_right:
        return
    if math.prod(filter(None, shape)) * item_bytes > _MAX_ARRAY_BYTES:
        yield "shape", f"an array of {shown(dtype)} has at most {_MAX_ARRAY_BYTES} bytes, dimensions of 0 left out"
    elif size_bytes is not None and (form_bytes := math.prod(shape) * item_bytes) != size_bytes:
        yield "shape", f"{shown(dtype)} of shape {list(shape)} has {form_bytes} bytes, and here are {size_bytes}"


def _shape_problems(shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    if len(shape) > MAX_DIMENSIONS:
        yield "shape", f"at most {MAX_DIMENSIONS} are allowed, not {len(shape)}"
        return
    for axis, number in enumerate(shape):
        if type(number) is not int:
            yield f"shape[{axis}]", f"must be an integer, not {shown(number)}"
        elif not 0 <= number <= _U64_MAX:
            yield f"shape[{axis}]", f"must be {'at least 0' if number < 0 else f'at most {_U64_MAX}'}, not {shown(number)}"


def is_of_ml_dtypes(text: str) -> bool:
    """Return whether a dtype is one of the package ml_dtypes, which NumPy alone does not know."""
    return _ML_NAME.fullmatch(text) is not None


def item_size(text: str) -> int:
    """Return the bytes of one item of a dtype. Raises ``TypeError`` where it is none, ``ValueError`` where it is too long."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"is not valid UTF-8: {shown(text)}") from None
    if size > MAX_DTYPE_BYTES:
        raise ValueError(f"at most {MAX_DTYPE_BYTES} bytes of UTF-8 are allowed, not {size}")
    if is_of_ml_dtypes(text):
        return _ML_SIZES.get(text, 1)
    return dtype_from_text(text).itemsize


def dtype_from_text(text: str) -> np.dtype[Any]:
    """Return the dtype of a text. Raises ``TypeError`` where it stands for none that is known here.

    For those of ml_dtypes that package is needed.
    """
    try:
        dtype = _ml_dtype(text) if is_of_ml_dtypes(text) else _numpy_dtype(text)
    except ImportError:
        raise TypeError(f"{shown(text)} is a dtype of the package ml_dtypes, which is not installed here") from None
    # What NumPy and JSON raise for what is no dtype is not documented.
    except Exception:
        dtype = None
    if dtype is None or dtype.hasobject or dtype.subdtype is not None or dtype.itemsize == 0:
        raise TypeError(f"{shown(text)} is no dtype that is known here, of items of a fixed size")
    return dtype


def _numpy_dtype(text: str) -> np.dtype[Any] | None:
    import numpy as np

    if text.startswith("["):
        return np.lib.format.descr_to_dtype(_descr(json.loads(text)))
    return np.dtype(text) if _NAME.fullmatch(text) else None


def _ml_dtype(text: str) -> np.dtype[Any]:
    import numpy as np

    dtype: np.dtype[Any] = np.dtype(getattr(import_module("ml_dtypes"), text))
    return dtype


def _descr(value: Any) -> Any:
    """Turn what JSON made of a ``descr`` into that again: fields are tuples, and so are shapes."""
    if not isinstance(value, list):
        return value
    if value and all(isinstance(field, list) for field in value):
        return [_field(field) for field in value]
    return tuple(_descr(each) for each in value)


def _field(field: list[Any]) -> tuple[Any, ...]:
    name, kind, *shape = field
    return (tuple(name) if isinstance(name, list) else name, _descr(kind), *map(tuple, shape))
