"""What the bytes of a buffer are to its users."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kaas_client._transfer import says_its_form
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


def columns_of(request: core.Request) -> frozenset[str]:
    """Return the buffers in the order of Fortran."""
    return frozenset(spec.name for spec in request.buffers if spec.fortran_order)


def in_their_order(columns: frozenset[str], given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is sent for buffers, whose elements go in the order of C: arrays for ``columns`` are transposed.

    Raises ``TypeError`` for arrays that cannot be taken.
    """
    turned: dict[str, Any] = {}
    for name in columns:
        if name in given and says_its_form(value := given[name]):
            from kaas_client import _arrays

            turned[name] = _arrays.on_host(name, value).T
    return {**given, **turned} if turned else given
