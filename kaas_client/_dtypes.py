"""The dtype of a buffer as text; what it is again of a text: ``kaas_core.array_form``."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

import numpy as np

from kaas_core.array_form import MAX_DTYPE_BYTES, dtype_from_text, item_size

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

__all__ = ["dtype_from_text", "dtype_to_text"]


def dtype_to_text(dtype: DTypeLike) -> str:
    """Return the text of what ``np.dtype`` takes. Raises ``TypeError`` where it takes it not, or bytes cannot hold it."""
    resolved = np.dtype(dtype)
    if resolved.subdtype is not None:
        raise TypeError(f"{resolved} has dimensions of its own; they belong to the shape")
    # Not every name is also understood: ``bytes40`` stands for S5, and no name tells the order of bytes.
    for text in (_descr_of(resolved),) if resolved.fields is not None else (resolved.name, resolved.str):
        try:
            item_size(text)
            if dtype_from_text(text) == resolved:
                return text
        except TypeError:
            continue
        except ValueError:
            raise TypeError(f"the description of this structured type has more than {MAX_DTYPE_BYTES} bytes") from None
    if resolved.fields is not None and not resolved.hasobject:
        raise TypeError(f"{resolved} has fields that overlap, or of a type that NumPy has no name for, such as bfloat16")
    raise TypeError(f"values of {resolved} are not made of bytes that a device could use")


def _descr_of(dtype: np.dtype[np.void]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is lost, which is seen by reading it again
        try:
            return json.dumps(np.lib.format.dtype_to_descr(dtype))
        except ValueError:  # It has none.
            return ""
