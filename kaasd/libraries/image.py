"""What a library file is: PTX text, a cubin, a fatbin, or a host's ELF object that holds fatbins or launches kernels itself.

Pure: bytes in, description out, no driver. Any bytes are safe to give.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from kaasd.libraries import UnsupportedLibrary, elf, fatbin


class ImageKind(Enum):
    """What a library file is."""

    PTX = "PTX"
    """Text."""
    CUBIN = "cubin"
    """Machine code of one architecture."""
    FATBIN = "fatbin"
    """A bundle of PTX and cubins."""
    SHARED_OBJECT = "shared object"
    """A host's ELF object with fatbins in it."""
    WRAPPER = "wrapper"
    """A host's ELF shared object without fatbins, whose functions may launch kernels themselves."""


class Cubin(NamedTuple):
    """Machine code of one architecture."""

    sm: int
    """Compute capability times ten, such as 90."""
    data: bytes
    """An ELF file."""


@dataclass(frozen=True, slots=True)
class Image:
    """The GPU code of a library file. A library is made of one or more units (one a source file), each in several forms."""

    kind: ImageKind
    ptx: tuple[str, ...]
    """The PTX of each unit that has some, once: that of the oldest architecture, which runs in most places."""
    cubins: tuple[Cubin, ...]
    """Every cubin of every unit."""
    units: tuple[bytes, ...]
    """Each unit in the form that the driver loads: PTX with a zero at its end, a cubin, or a fatbin."""
    host_functions: tuple[str, ...] = ()
    """Of a host's shared object: the functions that it exports, its kernels' host stubs among them."""


def read_image(data: bytes) -> Image:
    """Return what ``data`` holds.

    Raises ``UnsupportedLibrary``, whose message names what is wrong: no GPU code at all, cut short, damaged, or a form that can
    not be loaded.
    """
    if not data:
        raise UnsupportedLibrary("an empty file")
    if data.startswith(elf.MAGIC):
        return _read_elf(data)
    if data.startswith(fatbin.MAGIC):
        return _from_fatbins(ImageKind.FATBIN, data)
    text = _read_ptx(data)
    if not _ENTRY.search(text):
        raise UnsupportedLibrary("PTX that defines no kernel (no .entry); it may be cut short")
    return Image(ImageKind.PTX, (text,), (), (text.encode() + b"\0",))


def ptx_version(text: str) -> tuple[int, int]:
    """Return the PTX ISA version of a text, such as ``(9, 0)``. Raises ``UnsupportedLibrary`` where it begins with none."""
    preamble = _PREAMBLE.match(text)
    match = _VERSION.match(text, preamble.end() if preamble else 0)
    if not match:
        hint = "CUDA C++ source, to be compiled to PTX first" if "__global__" in text else "text that is not PTX"
        raise UnsupportedLibrary(f"{hint}: PTX begins with a .version directive")
    return int(match[1]), int(match[2])


_PREAMBLE = re.compile(r"(?:\s+|//[^\n]*|/\*.*?(?:\*/|\Z))*+", re.DOTALL)
_VERSION = re.compile(r"\.version\s+(\d{1,4})\.(\d{1,4})(?!\d)")
_TARGET = re.compile(r"\.target\s+\w")
_ENTRY = re.compile(r"\.entry\s+[\w$%]")
# Comments and strings are matched as a whole, so that a bracket in them is not taken for one. An end of the text ends them too.
_STRUCTURE = re.compile(r'//[^\n]*|/\*.*?(?:\*/|\Z)|"(?:\\.|[^"\\])*+(?:"|\Z)|[()\[\]{}]', re.DOTALL)
_CLOSES = {")": "(", "]": "[", "}": "{"}


def _read_ptx(data: bytes) -> str:
    """Return the text of PTX whose structure is whole."""
    try:
        text = data.rstrip(b"\0").decode()
    except UnicodeDecodeError:
        raise UnsupportedLibrary("neither PTX text nor an ELF file nor a fatbin") from None
    if "\0" in text:
        raise UnsupportedLibrary("neither PTX text nor an ELF file nor a fatbin")
    ptx_version(text)
    if not _TARGET.search(text):
        raise UnsupportedLibrary("truncated PTX: it has no .target directive")

    open_brackets: list[tuple[str, int]] = []
    for match in _STRUCTURE.finditer(text):
        token = match[0]
        if token[0] in "([{":
            open_brackets.append((token, match.start()))
        elif token[0] in ")]}":
            if not open_brackets or open_brackets[-1][0] != _CLOSES[token]:
                raise UnsupportedLibrary(
                    f"malformed PTX: line {_line(text, match.start())} closes a '{token}' that was not opened"
                )
            open_brackets.pop()
    if open_brackets:
        bracket, position = open_brackets[-1]
        raise UnsupportedLibrary(f"truncated PTX: the '{bracket}' of line {_line(text, position)} is never closed")
    return text


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _read_elf(data: bytes) -> Image:
    file = elf.read_elf(data)
    if file.is_cubin:
        _need_linked(file)
        return Image(ImageKind.CUBIN, (), (Cubin(file.sm, data),), (data,))
    section = file.section(b".nv_fatbin")
    if section is None:
        if file.section(b"__nv_relfatbin") is not None:
            raise UnsupportedLibrary(f"ELF file {_RELOCATABLE}")
        if not file.functions:
            raise UnsupportedLibrary("ELF file without GPU code: it has no .nv_fatbin section, nor does it export a function")
        return Image(ImageKind.WRAPPER, (), (), (), file.functions)
    return replace(_from_fatbins(ImageKind.SHARED_OBJECT, section), host_functions=file.functions)


_RELOCATABLE = "with relocatable device code only, which is not linked; build it without -rdc=true"


def _need_linked(file: elf.Elf) -> None:
    if file.is_relocatable:
        raise UnsupportedLibrary(f"cubin {_RELOCATABLE}")


def _from_fatbins(kind: ImageKind, data: bytes | memoryview) -> Image:
    ptx: list[str] = []
    cubins: list[Cubin] = []
    units: list[bytes] = []
    for unit in fatbin.read_fatbins(data):
        texts: list[tuple[int, str]] = []
        for entry in unit.entries:
            if entry.kind == fatbin.KIND_PTX:
                texts.append((entry.sm, _read_ptx(entry.content)))
            elif entry.kind == fatbin.KIND_CUBIN:
                _need_linked(elf.read_elf(entry.content))
                cubins.append(Cubin(entry.sm, entry.content))
        if texts:
            ptx.append(min(texts)[1])
        if any(entry.content for entry in unit.entries):
            units.append(unit.data)
    if not units:
        raise UnsupportedLibrary(f"{kind.value} that holds neither PTX nor a cubin")
    return Image(kind, tuple(ptx), tuple(cubins), tuple(units))
