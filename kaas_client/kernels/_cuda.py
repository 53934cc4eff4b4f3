"""CUDA C++ by NVRTC, of the package ``nvidia-cuda-nvrtc``: it needs neither a toolkit nor a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kaas_client.kernels._compiled import CompileError, Image
from kaas_client.kernels._files import plain_entries
from kaas_client.kernels._passing import EntryPoint
from kaas_core import ptx_entries

try:
    from cuda.bindings import nvrtc
    from cuda.pathfinder import find_nvidia_header_directory
except ImportError as error:
    raise ImportError(f"kernels.cuda needs NVRTC: pip install 'kaasd[kernels-cuda]' ({error})") from error

_HEADERS = ("cudart", "cccl")
"""Those of ``cuda_fp16.h`` and of the C++ standard library for devices, where their packages are installed."""


class CudaSource:
    """A text of CUDA C++."""

    has_own_block = False

    def __init__(
        self, text: str, file_name: str, folder: str | None, options: tuple[str, ...], expressions: tuple[str, ...]
    ) -> None:
        self._text = text
        self._name = file_name
        self._folder = folder
        self._options = options
        self._expressions = expressions

    def key(self) -> Sequence[object]:
        return "nvrtc", self._text, self._name, self._folder, self._options, self._expressions

    def compile(self, target: str, ptx_version: int, entry: str) -> Image:
        """Return PTX; where that would be newer than ``ptx_version``, machine code for ``target``. Raises ``CompileError``."""
        architecture, expressions = target.removeprefix("sm_"), self._expressions
        if entry and entry not in expressions:
            # Not extern "C": its name in the image is the compiler's.
            expressions = (*expressions, entry)
        try:
            ptx, names = self._made(f"compute_{architecture}", expressions)
        except CompileError as error:
            if expressions is self._expressions:
                raise
            has = ", ".join(sorted(self.compile(target, ptx_version, "").entries)) or 'no kernel that is extern "C"'
            raise CompileError(f"{self._name}: there is no kernel {entry!r}; it has {has}\n{error}") from None
        entries = plain_entries(ptx.decode())
        version = ptx_entries.header_of(ptx.decode()).version
        image = ptx
        if ptx_version and version > ptx_version:
            image, names = self._made(f"sm_{architecture}", expressions)
            version = 0
        named: dict[str, EntryPoint] = {name: entries[lowered] for name, lowered in names.items() if lowered in entries}
        others = {name: each for name, each in entries.items() if name not in names.values()}
        return Image(image, named | others, self._name, version, f"sm_{architecture}", f"NVRTC {_version()}")

    def _made(self, architecture: str, expressions: Iterable[str]) -> tuple[bytes, dict[str, str]]:
        """Return PTX or machine code, and the names there of what the source calls otherwise."""
        program = _check(nvrtc.nvrtcCreateProgram(self._text.encode(), self._name.encode(), 0, [], []))
        try:
            for expression in expressions:
                _check(nvrtc.nvrtcAddNameExpression(program, expression.encode()))
            options = [f"--gpu-architecture={architecture}", *self._options, *self._include()]
            status = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])[0]
            if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
                raise CompileError(f"{self._name}: {status.name}\n{_log(program)}".rstrip())
            names = {each: _check(nvrtc.nvrtcGetLoweredName(program, each.encode())).decode() for each in expressions}
            if architecture.startswith("sm_"):
                size, get = _check(nvrtc.nvrtcGetCUBINSize(program)), nvrtc.nvrtcGetCUBIN
            else:
                size, get = _check(nvrtc.nvrtcGetPTXSize(program)), nvrtc.nvrtcGetPTX
            image = b" " * size
            _check(get(program, image))
            return image.rstrip(b"\0") if architecture.startswith("compute_") else image, names
        finally:
            nvrtc.nvrtcDestroyProgram(program)

    def _include(self) -> list[str]:
        found = (find_nvidia_header_directory(name) for name in _HEADERS)
        return [f"--include-path={folder}" for folder in (self._folder, *found) if folder]


def _check(answer: tuple[Any, ...]) -> Any:
    """Return what a function of NVRTC gives. Raises ``CompileError``."""
    status, *values = answer
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(f"NVRTC: {status.name}")
    return values[0] if values else None


def _log(program: Any) -> str:
    log = b" " * int(_check(nvrtc.nvrtcGetProgramLogSize(program)))
    _check(nvrtc.nvrtcGetProgramLog(program, log))
    return log.rstrip(b"\0").decode("utf-8", "replace").strip()


def _version() -> str:
    _, major, minor = nvrtc.nvrtcVersion()
    return f"{major}.{minor}"
