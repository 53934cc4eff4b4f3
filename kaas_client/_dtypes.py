"""The dtype of a buffer as text, and back: NumPy's name, that of ml_dtypes, or the ``descr`` of a structured type as JSON."""

from __future__ import annotations

import json
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from kaas_core.violations import shown

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


def dtype_to_text(dtype: DTypeLike) -> str:
    """Return the text of what ``np.dtype`` takes. Raises ``TypeError`` where it takes it not, or bytes cannot hold it."""
    resolved = np.dtype(dtype)
    if resolved.subdtype is not None:
        raise TypeError(f"{resolved} has dimensions of its own; they belong to the shape")
    if resolved.fields is not None and not resolved.hasobject:
        return json.dumps(np.lib.format.dtype_to_descr(resolved))
    # Not every name is also understood: ``bytes40`` stands for S5, and no name tells the order of bytes.
    for text in (resolved.name, resolved.str):
        try:
            if dtype_from_text(text) == resolved:
                return text
        except TypeError:
            continue
    raise TypeError(f"values of {resolved} are not made of bytes that a device could use")


def dtype_from_text(text: str) -> np.dtype[Any]:
    """Return the dtype of a text. Raises ``TypeError`` where it stands for none that is known here."""
    for read in (_numpy_dtype, _ml_dtype):
        try:
            dtype = read(text)
        except (TypeError, ValueError, SyntaxError, ImportError, AttributeError):
            continue
        if not dtype.hasobject:
            return dtype
    raise TypeError(
        f"{shown(text)} is no dtype that is known here; bfloat16 and types of 8 bits and less need the package ml_dtypes"
    )


def _numpy_dtype(text: str) -> np.dtype[Any]:
    return np.lib.format.descr_to_dtype(_descr(json.loads(text))) if text.startswith("[") else np.dtype(text)


def _ml_dtype(text: str) -> np.dtype[Any]:
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
