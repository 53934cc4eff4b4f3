"""In which order the elements of an array are sent: in that of its buffer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kaas_client._transfer import says_its_form

if TYPE_CHECKING:
    from kaas_core import request as core


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
