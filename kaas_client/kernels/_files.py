"""Images that some compiler has made already: files of PTX, fatbins and cubins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kaas_client.kernels._compiled import CompileError, Image
from kaas_client.kernels._passing import EntryPoint, Parameter, Plain
from kaas_core import ptx_entries


def plain_entries(ptx: str) -> dict[str, EntryPoint]:
    """Return the kernels of a PTX text that take one argument for each parameter."""
    return {
        name: EntryPoint(name, parameters_of(entry), Plain(), entry.required_block, cluster=entry.cluster)
        for name, entry in ptx_entries.entries_of([ptx]).items()
    }


def parameters_of(entry: ptx_entries.Entry, names: Sequence[str] = (), scratch: int = 0) -> tuple[Parameter, ...] | None:
    """Return the parameters of an entry point, with their ``names`` in the source; the last ones are ``scratch``."""
    if entry.parameters is None:
        return None
    first_scratch = len(entry.parameters) - scratch
    return tuple(
        Parameter(
            names[i] if i < len(names) else each.name,
            each.size_bytes,
            each.alignment_bytes,
            "scratch" if i >= first_scratch else "address" if each.is_pointer else _role(each),
        )
        for i, each in enumerate(entry.parameters)
    )


def _role(parameter: ptx_entries.Parameter) -> str:
    return "struct" if parameter.size_bytes > parameter.alignment_bytes or parameter.size_bytes > 8 else "value"


class PtxFile:
    """PTX as it lies in a file."""

    has_own_block = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ``OSError``, ``CompileError`` where it is no PTX."""
        file = Path(path)
        self._name = file.name
        self._image = file.read_bytes().rstrip(b"\0")
        self._text = self._image.decode("utf-8", "replace")
        self._header = ptx_entries.header_of(self._text)
        if not self._header.version:
            raise CompileError(f"{self._name}: it has no .version, so it is no PTX")

    def key(self) -> Sequence[object]:
        return "ptx", self._image

    def compile(self, target: str, ptx_version: int, entry: str) -> Image:
        """Return it as it is. Raises ``CompileError`` where it is newer than ``ptx_version``."""
        version = self._header.version
        if ptx_version and version > ptx_version:
            raise CompileError(too_new(self._name, version, ptx_version))
        return Image(self._image, plain_entries(self._text), self._name, version, self._header.target, "a file of PTX")


@dataclass(frozen=True, slots=True)
class AnyKernel(Mapping[str, EntryPoint]):
    """The kernels of an image that only the server looks into: every name may be one."""

    def __getitem__(self, name: str) -> EntryPoint:
        return EntryPoint(name, None, Plain())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and bool(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


class FatbinFile:
    """Machine code as it lies in a file."""

    has_own_block = False

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Raises ``OSError``."""
        file = Path(path)
        self._name = file.name
        self._image = file.read_bytes()

    def key(self) -> Sequence[object]:
        return "fatbin", self._image

    def compile(self, target: str, ptx_version: int, entry: str) -> Image:
        return Image(self._image, AnyKernel(), self._name, 0, target, "a file of machine code")


def too_new(name: str, has: int, takes: int) -> str:
    """Return the words for PTX that a device does not take."""
    versions = (f"{each // 10}.{each % 10}" for each in (has, takes))
    return "{}: its PTX has version {}, and the device takes at most {}; compile it with an older release".format(name, *versions)
