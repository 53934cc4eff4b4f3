"""What the bytes of a buffer are to its users."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kaas_core.array_form import dtype_from_text
from kaas_core.violations import shown

if TYPE_CHECKING:
    import numpy as np

    from kaas_client.arguments import BufferSpec
    from kaas_core import request as core


@dataclass(frozen=True, slots=True)
class Form:
    """What the bytes of a buffer are."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool = False

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next, in each dimension."""
        sizes = self.shape if self.fortran_order else self.shape[::-1]
        steps = [math.prod(sizes[:i]) * self.dtype.itemsize for i in range(len(sizes))]
        return tuple(steps if self.fortran_order else steps[::-1])

    @property
    def size_bytes(self) -> int:
        """Of the whole."""
        return math.prod(self.shape) * self.dtype.itemsize


def form_of(buffer: BufferSpec | core.BufferSpec) -> Form | None:
    """Return what a request says of a buffer's bytes; None where it says nothing. Raises ``TypeError`` for an unknown dtype."""
    if not buffer.dtype:
        return None
    try:
        dtype = dtype_from_text(buffer.dtype)
    except TypeError as error:
        raise TypeError(f"buffer {shown(buffer.name)}: {error}") from None
    return Form(dtype, buffer.shape or (), bool(buffer.fortran_order))
