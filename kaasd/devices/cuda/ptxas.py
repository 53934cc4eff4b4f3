"""Compiles PTX with ptxas, where it is installed: in a process that can be stopped, which the driver's own compiler cannot.

What ptxas refuses is left to the driver, which says why, or takes it: it may know newer PTX.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from kaas.worker.v1 import compiler_pb2
from kaasd.libraries import elf, fatbin
from kaasd.libraries.image import read_image
from kaasd.libraries.variables import forms
from kaasd.process import end_with_parent

_VERSION_TIMEOUT_S = 30.0
_TARGET = re.compile(r"^\s*\.target\s+sm_(\d+)([af]?)", re.MULTILINE)
_NO_MEMORY = re.compile(r"memory allocation|out of memory|bad_alloc", re.IGNORECASE)

_log = logging.getLogger(__name__)


class Ptxas(NamedTuple):
    """A ptxas that is installed."""

    path: str
    version: str
    """Such as ``13.0.88``."""

    @property
    def major(self) -> int:
        """Of its CUDA. What it makes runs with drivers of this one, or a newer one."""
        return self.release[0]

    @property
    def release(self) -> tuple[int, int]:
        """Of CUDA."""
        major, minor, _ = map(int, self.version.split("."))
        return major, minor


@cache
def find() -> Ptxas | None:
    """Return the ptxas of this machine: of the package ``nvidia-cuda-nvcc``, of a toolkit, or on the path."""
    from cuda import pathfinder

    look = getattr(pathfinder, "find_nvidia_binary_utility", None)  # since 1.4
    path = (look("ptxas") if look is not None else None) or shutil.which("ptxas")
    if path is None:
        return None
    try:
        told = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        _log.warning("%s cannot be used: %s", path, error)
        return None
    found = re.search(r"\bV(\d+\.\d+\.\d+)", told.stdout)
    return Ptxas(path, found[1]) if found else None


def target_text(capability: tuple[int, int], driver_major: int) -> str:
    """Return the target for GPUs of this compute capability; empty where there is no ptxas that makes code for their driver."""
    ptxas = find()
    if ptxas is None or ptxas.major > driver_major:
        return ""
    return f"sm_{capability[0]}{capability[1]} ptxas {ptxas.version}"


def is_to_compile(image: bytes, capability: tuple[int, int]) -> bool:
    """Return whether a library holds PTX that would be compiled for these GPUs. Raises ``UnsupportedLibrary``."""
    sm = 10 * capability[0] + capability[1]
    return any(_ptx_of(unit, sm) is not None for unit in read_image(image).units)


class PtxasCompiler:
    """Compiles all PTX of a library at once."""

    def __init__(self, target: str) -> None:
        """``target`` is ``target_text``'s."""
        ptxas = find()
        assert ptxas is not None
        self._path = ptxas.path
        self._sm = int(target.partition(" ")[0].removeprefix("sm_"))

    def describe(self, image: bytes) -> bytes:
        """Return a ``CudaLibrary``: what was made of its PTX, as far as ptxas takes it.

        Raises ``UnsupportedLibrary`` where it is no library, ``MemoryError``, ``CompilerCrashed``.
        """
        result = compiler_pb2.CudaLibrary()
        for unit in read_image(image).units:
            for form in forms(unit, self._sm):
                text = _ptx_of(form.code, self._sm)
                cubin = None if text is None else self._compile(text)
                if cubin is not None:
                    result.codes.add(digest=sha256(form.code).digest(), cubin=cubin)
        return result.SerializeToString()

    def compile(self, image: bytes, kernel: str) -> bytes:
        """Never asked for: a kernel has its code when its library is loaded."""
        raise AssertionError(f"{kernel} has its code already")

    def _compile(self, text: bytes) -> bytes | None:
        """Return a cubin, or None where ptxas does not take the text."""
        declared = _TARGET.search(text.decode())
        if declared is None or int(declared[1]) > self._sm or (declared[2] and int(declared[1]) != self._sm):
            return None
        with tempfile.TemporaryDirectory(prefix="kaasd-ptxas-") as folder:
            source, output = Path(folder) / "library.ptx", Path(folder) / "library.cubin"
            source.write_bytes(text)
            command = [self._path, f"--gpu-name=sm_{self._sm}{declared[2]}", "--output-file", str(output), str(source)]
            ended = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                preexec_fn=partial(end_with_parent, os.getpid()),
            )
            if ended.returncode == 0:
                return output.read_bytes()
        if _NO_MEMORY.search(ended.stderr):
            raise MemoryError(ended.stderr)
        if ended.returncode < 0:
            raise CompilerCrashed(f"ptxas ended by {signal.Signals(-ended.returncode).name}")
        _log.info("left to the driver: %s", " ".join(ended.stderr.split())[:500])
        return None


class CompilerCrashed(Exception):
    """ptxas ended by a signal."""


def compiled_codes(description: bytes) -> dict[bytes, bytes]:
    """Return the cubins of a ``CudaLibrary``, by the SHA-256 of the form of a unit in place of which each is loaded."""
    return {code.digest: code.cubin for code in compiler_pb2.CudaLibrary.FromString(description).codes}


def _ptx_of(code: bytes, sm: int) -> bytes | None:
    """Return the PTX that the driver would compile of a unit; None where it has a cubin for this GPU, or nothing for it."""
    if code.startswith(elf.MAGIC):
        return None
    if not code.startswith(fatbin.MAGIC):
        return code.rstrip(b"\0")
    entries = list(_entries(code))
    if any(entry.kind == fatbin.KIND_CUBIN and entry.sm // 10 == sm // 10 and entry.sm <= sm for entry in entries):
        return None
    fitting = [entry for entry in entries if entry.kind == fatbin.KIND_PTX and entry.sm <= sm]
    newest = max(fitting, key=lambda entry: entry.sm, default=None)
    return None if newest is None else newest.content.rstrip(b"\0")


def _entries(code: bytes) -> Iterator[fatbin.FatbinEntry]:
    for bundle in fatbin.read_fatbins(code):
        yield from bundle.entries
