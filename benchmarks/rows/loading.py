"""From PTX to code that can be launched on the emulated device, beside ptxas, which makes code of the same file for a GPU."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import cast

from benchmarks.bench import Bench
from benchmarks.modules import many_kernels, straight_line
from benchmarks.report import Row, compare, targets
from benchmarks.turns import Contender, take_turns, timed
from kaas.worker.v1 import compiler_pb2
from kaasd.compiler.cache import SharedCache
from kaasd.compiler.compiler import Compiler
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.libraries.registry import ResolvedLibrary, content_id

PTXAS = "ptxas"
RESTARTED = 0.3
"""Times what ptxas takes, for code that an earlier process has left."""
LINES = {1_000: 6.0, 5_000: 8.0, 20_000: 12.0}
"""Instructions of a kernel, and how many times as long as ptxas it may take."""


KERNELS = Path(__file__).parents[1] / "kernels"
BUILT = {
    "block_sort": ("CUB's sort of a block", "blockSortKern", 3.0),
    "device_sort": ("CUB's sort of a device", "Onesweep", 3.0),
    "mathematics": ("CUDA's mathematics, 90 kernels, one launched", "lgammaKern", 1.5),
}
"""Sources that nvcc makes PTX of: what they are, a part of the name of the kernel that is launched, and the limit."""


def loading_rows(bench: Bench) -> Iterator[Row]:
    """Measure a library of many kernels of which one is launched, long kernels, and what CUDA's own headers hold."""
    if bench.cuda:
        return
    many, names = many_kernels(100)
    yield from _rows(bench, "100 kernels, one launched", many, names[0], 2.0)
    for count, limit in LINES.items():
        if count <= bench.pick(20_000, 1_000):
            yield from _rows(bench, f"one kernel of {count:,} instructions", straight_line(count), "line", limit)
    for source, (what, kernel, limit) in BUILT.items():
        if (text := _built(source)) is None:
            yield Row("emulator", what, "ms", "no nvcc")
            continue
        (name, *_) = (name for name in _ENTRY.findall(text) if kernel in name)
        yield from _rows(bench, f"{what}, {len(text) >> 10} KB", text, name, limit)


_ENTRY = re.compile(r"\.entry (\w+)")


def _built(source: str) -> str | None:
    """Return the PTX of a source with the toolkit's own headers, or None where there is no nvcc."""
    if (nvcc := shutil.which("nvcc")) is None:
        return None
    with tempfile.TemporaryDirectory(prefix="kaasd-bench-") as folder:
        path = Path(folder) / "module.ptx"
        command = [nvcc, "-ptx", "-arch=sm_75", "-std=c++17", "-o", str(path), str(KERNELS / f"{source}.cu")]
        subprocess.run(command, check=True, capture_output=True)
        return path.read_text()


def _rows(bench: Bench, what: str, text: str, kernel: str, limit: float) -> Iterator[Row]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kaasd-bench-")))
        loader = stack.enter_context(closing(_Loader(folder, text, kernel)))
        contenders = {"new": timed(loader.new), "restarted": timed(loader.restarted)}
        missing = {}
        if shutil.which(PTXAS):
            contenders[PTXAS] = _ptxas(folder, text)
        else:
            missing[PTXAS] = "not installed"
        turns = take_turns(contenders, rounds=bench.pick(5, 3), seconds=bench.pick(10, 2))
    for name, bound in (("new", limit), ("restarted", RESTARTED)):
        figure, beside = compare(turns, scale=1e3, missing=missing, name=name)
        bounds = targets(turns, at_most={PTXAS: bound}, name=name)
        title = f"{what}, {'never seen' if name == 'new' else 'after a restart'}"
        yield Row("emulator", title, "ms", figure, {PTXAS: beside[PTXAS]}, bounds)


class _Loader:
    """A device that loads one kernel of a library again and again."""

    def __init__(self, folder: Path, text: str, kernel: str) -> None:
        self._text, self._kernel = text, kernel
        self._device = EmulatedDevice()
        (folder / "code").mkdir(mode=0o700)
        self._cache = SharedCache(folder / "code")
        self._compiler = self._new_compiler()
        self._numbers = itertools.count()
        self.new()  # so that the process has started

    def _new_compiler(self) -> Compiler:
        return Compiler("emulator", self._device.target, cache=self._cache)

    def _unseen(self) -> ResolvedLibrary:
        data = f"{self._text}// {next(self._numbers)}\n".encode()
        return ResolvedLibrary("", content_id(data), data, None)

    def _load(self, compiler: Compiler, library: ResolvedLibrary) -> None:
        contents = []
        for kernel in ("", self._kernel):
            compilation = compiler.start(library, kernel)
            compilation.wait()
            contents.append(compilation.result())
            compilation.release()
        description = compiler_pb2.CompiledLibrary.FromString(contents[0]).description
        with closing(self._device.load(library.data, description)) as module:
            module.kernels[self._kernel].load_code(contents[1])

    def new(self) -> None:
        """Load what was never seen."""
        self._library = self._unseen()
        self._load(self._compiler, self._library)

    def restarted(self) -> None:
        """Load what was loaded last, as another process does that finds what was kept."""
        with closing(self._new_compiler()) as compiler:
            self._load(compiler, self._library)

    def close(self) -> None:
        self._compiler.close()
        self._cache.close()
        self._device.close()


def _ptxas(folder: Path, text: str) -> Contender:
    path = folder / "module.ptx"
    path.write_text(text)
    command = [cast(str, shutil.which(PTXAS)), "-arch=sm_90", str(path), "-o", str(folder / "module.cubin")]
    return timed(lambda: subprocess.run(command, check=True, capture_output=True))
