"""Wrappers: functions of host code that launch kernels themselves, from shared objects that this process loads."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from hashlib import sha256
from typing import Any, TypeAlias

from kaasd.libraries import UnsupportedLibrary
from kaasd.request.device_checks import KernelAttributes

Wrapper: TypeAlias = Callable[[Any, Any, int, int, int, int], int]
_WRAPPER = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p
)
"""``int f(const uint32_t grid[3], const uint32_t block[3], uint32_t shared_bytes, void **args, uint32_t arg_count,
void *stream)``. The GIL is released while it runs."""


class HostFunction:
    """A function of a shared object, in place of a kernel."""

    is_ready = True
    needs_code = False

    def __init__(self, name: str, function: Wrapper, max_threads_per_block: int) -> None:
        self.function = function
        self.attributes = KernelAttributes(name, None, 0, max_threads_per_block)

    def load_code(self, content: bytes) -> None:
        """Do nothing: it has its code."""


class HostCode:
    """The shared objects that this process has loaded. They stay until it ends: nobody can undo what their code has begun."""

    def __init__(self) -> None:
        self._loaded: dict[bytes, ctypes.CDLL] = {}

    def function(self, data: bytes, name: str) -> Wrapper:
        """Return an exported function of the shared object ``data``. Raises ``UnsupportedLibrary`` where it cannot be loaded."""
        digest = sha256(data).digest()
        if digest not in self._loaded:
            self._loaded[digest] = _load(data)
        try:
            return _WRAPPER((name, self._loaded[digest]))
        except AttributeError as error:
            raise UnsupportedLibrary(str(error)) from error


def _load(data: bytes) -> ctypes.CDLL:
    """Load these very bytes: a file of the same path may be another by now."""
    descriptor = os.memfd_create("kaasd-wrapper", os.MFD_CLOEXEC)
    path = f"/proc/self/fd/{descriptor}"
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        # For the loader a path is a library, so the descriptor stays open: its number must not come again for another one.
        return ctypes.CDLL(path)
    except OSError as error:
        os.close(descriptor)
        raise UnsupportedLibrary(f"it cannot be loaded: {str(error).removeprefix(f'{path}: ')}") from error
