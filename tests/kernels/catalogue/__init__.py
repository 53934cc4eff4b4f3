"""Kernels of every compiler, in the manner of its own tutorials: how each is launched, its inputs, and what NumPy says of them.

Each compiler has a module, by its name in ``kaas_client.kernels``; a case is a function there with ``@shows(…)``. A compiler that
is added gets its module here, and its line in ``COMPILERS``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kaas_client import Client
from kaas_client.kernels import Launch

Array: TypeAlias = NDArray[Any]

COMPILERS = {
    "cuda": ("CUDA C++ (NVRTC)", "nvidia-cuda-nvrtc"),
    "triton": ("Triton", "triton"),
    "numba": ("numba-cuda", "numba-cuda"),
    "warp": ("Warp", "warp-lang"),
    "cute": ("CuTe DSL", "nvidia-cutlass-dsl"),
    "ptx": ("PTX files", ""),
    "fatbin": ("fatbin files", ""),
}
"""By the name in ``kaas_client.kernels``: what a reader knows it by, and its package."""


class Shows(Enum):
    """What a case shows of passing arguments and launching: a column of the table."""

    POINTERS = "plain pointers"
    VIEWS = "array views"
    STRUCTS = "structs by value"
    DYNAMIC = "dynamic shared memory"
    CLUSTER = "cluster"


LACKS = {
    "triton": {Shows.VIEWS, Shows.STRUCTS},
    "numba": {Shows.POINTERS, Shows.STRUCTS, Shows.CLUSTER},
    "warp": {Shows.POINTERS, Shows.CLUSTER},
}
"""What a compiler has no words for, or none that ``kaas_client.kernels`` takes."""


@dataclass(frozen=True)
class Case:
    """Launches in order, called once with arrays, and what they must write."""

    launches: Launch | Sequence[Launch]
    inputs: Mapping[str, Array]
    expected: Mapping[str, Array]
    tolerance: float = 0.0
    """Of the largest magnitude in an array, which may be computed in a wider type; 0: equal bit for bit."""

    def run(self, kaas: Client) -> str:
        """Return what is wrong with the results, or nothing. Raises any of ``kaas_client.errors``."""
        found = kaas.bind(self.launches)(**self.inputs)
        return "; ".join(words for name, array in self.expected.items() if (words := self._difference(name, found[name], array)))

    def _difference(self, name: str, found: Array, expected: Array) -> str:
        if found.shape != expected.shape or not (self.tolerance or found.dtype == expected.dtype):
            return f"{name} is {found.dtype} of shape {found.shape}, not {expected.dtype} of shape {expected.shape}"
        if not self.tolerance:
            different = int(np.count_nonzero(found != expected))
            return f"{name}: {different} of {found.size} elements differ" if different else ""
        error = float(np.max(np.abs(found.astype(expected.dtype) - expected), initial=0))
        allowed = self.tolerance * float(np.max(np.abs(expected), initial=0))
        return "" if error <= allowed else f"{name}: it differs by {error:.3g}, and may by {allowed:.3g}"  # NaN differs too


@dataclass(frozen=True)
class Entry:
    """A case of the catalogue, not made yet."""

    compiler: str
    name: str
    shows: frozenset[Shows]
    make: Callable[[], Case] = field(repr=False)

    @property
    def id(self) -> str:
        return f"{self.compiler}.{self.name}"


def shows(*what: Shows) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Mark a function as a case that shows these."""

    def mark(make: Callable[[], Case]) -> Callable[[], Case]:
        make.__dict__["shows"] = frozenset(what)
        return make

    return mark


def module(compiler: str) -> ModuleType:
    """Return the module with a compiler's cases."""
    return importlib.import_module(f"tests.kernels.catalogue.{compiler}_cases")


def entries(compiler: str) -> Iterator[Entry]:
    """Yield a compiler's cases, in the order in which they stand in its file."""
    for name, each in vars(module(compiler)).items():
        if hasattr(each, "shows"):
            yield Entry(compiler, name, each.shows, each)
