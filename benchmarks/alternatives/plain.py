"""The emulated device's kernels in plain C, compiled by the machine's own compiler with -O2, on one core or on all."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

SOURCE = Path(__file__).parents[1] / "kernels/plain.c"


def compiler() -> str | None:
    """Return the C compiler of this machine, if there is one."""
    return shutil.which("cc")


class Plain:
    """The functions of ``plain.c``, each for a range of elements or rows."""

    def __init__(self, folder: Path) -> None:
        """Compile them into ``folder``."""
        library = folder / "plain.so"
        subprocess.run([cast(str, compiler()), "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(library)], check=True)
        self._library = ctypes.CDLL(str(library))
        self._cores = len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._cores)

    @contextmanager
    def running(self) -> Iterator[Plain]:
        """Let go of the threads at the end."""
        with self._pool:
            yield self

    def on_one_core(self, name: str, count: int, *arguments: Any) -> Callable[[], object]:
        """Return what does all of ``count`` elements or rows."""
        function = getattr(self._library, name)
        converted = [ctypes.c_uint32(0), ctypes.c_uint32(count), *arguments]
        return lambda: function(*converted)

    def on_all_cores(self, name: str, count: int, *arguments: Any) -> Callable[[], object]:
        """Return the same, in eight pieces for each core so that none waits for another for long."""
        function = getattr(self._library, name)
        pieces = min(8 * self._cores, count)
        ends = [count * piece // pieces for piece in range(pieces + 1)]
        ranges = [(ctypes.c_uint32(ends[piece]), ctypes.c_uint32(ends[piece + 1])) for piece in range(pieces)]

        def run() -> Sequence[object]:
            return list(self._pool.map(lambda each: function(*each, *arguments), ranges))

        return run
