"""Just enough of ELF to find the section of a host library that holds GPU code, the functions that it exports, and to tell which
GPU a cubin is for and what it has in global memory.

Layout: System V ABI, chapter 4 (64-bit, little-endian). What CUDA adds was read off the output of nvcc and ptxas 12 and 13.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kaasd.libraries import UnsupportedLibrary

MAGIC = b"\x7fELF"

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SEGMENT_SIZE = 56
_CLASS64, _LITTLE_ENDIAN = 2, 1
_TYPE_RELOCATABLE, _TYPE_SHARED = 1, 3
_MACHINE_CUDA = 190
_SECTION_SYMBOLS, _SECTION_DYNAMIC_SYMBOLS = 2, 11
_OBJECT = 1
"""STT_OBJECT."""
_GLOBAL_MEMORY = b".nv.global"
"""Begins the names of the sections of variables: ``.nv.global`` of those that start as zeros, ``.nv.global.init`` of others."""
_FUNCTION, _BINDS_OUTSIDE, _SEEN_OUTSIDE = 2, (1, 2), (0, 3)
"""STT_FUNC; STB_GLOBAL, STB_WEAK; STV_DEFAULT, STV_PROTECTED."""
_ENTRY = 0x10
"""Among the bits of a symbol's visibility: it is a kernel."""
_OF_THE_LINKER = {"_init", "_fini"}
# SHT_NULL, SHT_NOBITS, and what relocatable cubins have: uninitialised global, local, shared, reserved shared memory.
_SECTION_WITHOUT_BYTES = {0, 8, 0x70000007, 0x70000009, 0x7000000A, 0x70000015}


class Symbol(NamedTuple):
    """A symbol of a cubin."""

    name: str
    """Empty where it has none, or none that can be read."""
    is_function: bool
    is_kernel: bool


@dataclass(frozen=True, slots=True)
class Elf:
    """An ELF file whose tables and sections all lie within its bytes."""

    is_cubin: bool
    """GPU machine code, not a host's."""
    is_relocatable: bool
    """Not linked yet."""
    sm: int
    """Of a cubin: the compute capability times ten; 0 otherwise."""
    sections: tuple[tuple[bytes, memoryview], ...]
    """Name and content, in order, of those that have content."""
    functions: tuple[str, ...]
    """Of a host's shared object: the names of the functions that it exports, sorted."""
    variables: tuple[str, ...]
    """Of a cubin: the names of its variables in global memory, sorted."""
    symbols: tuple[Symbol, ...] = ()
    """Of a cubin, in order: its call graph names functions by their number here."""

    def section(self, name: bytes) -> memoryview | None:
        """Return the content of the first section of this name."""
        return next((content for each, content in self.sections if each == name), None)


def read_elf(data: bytes) -> Elf:
    """Read an ELF file. Raises ``UnsupportedLibrary`` where it is cut short or is not a 64-bit little-endian ELF file."""
    if len(data) < _HEADER.size:
        raise UnsupportedLibrary(f"truncated ELF: {len(data)} bytes, less than its header of {_HEADER.size}")
    (identity, kind, machine, _, _, segments_at, sections_at, flags, _, segment_size, segment_count, section_size, section_count,
     names_index) = _HEADER.unpack_from(data)  # fmt: skip
    if identity[4] != _CLASS64 or identity[5] != _LITTLE_ENDIAN:
        raise UnsupportedLibrary("ELF file that is not 64-bit little-endian")

    _need(data, "program headers", segments_at, segment_count * (segment_size or _SEGMENT_SIZE))
    if section_count and section_size != _SECTION.size:
        raise UnsupportedLibrary(f"malformed ELF: section headers of {section_size} bytes, {_SECTION.size} expected")
    _need(data, "section headers", sections_at, section_count * _SECTION.size)
    headers = [_SECTION.unpack_from(data, sections_at + i * _SECTION.size) for i in range(section_count)]

    view = memoryview(data)
    contents: list[tuple[int, memoryview]] = []
    is_cubin = machine == _MACHINE_CUDA
    wanted = _SECTION_SYMBOLS if is_cubin else _SECTION_DYNAMIC_SYMBOLS
    symbols: list[tuple[memoryview, int]] = []
    """Tables of symbols, each with the index of the section that has their names."""
    for index, (name_at, section_type, _, _, offset, size, names_at, *_) in enumerate(headers):
        if section_type in _SECTION_WITHOUT_BYTES:
            size = 0
        _need(data, f"section {index}", offset if size else 0, size)
        contents.append((name_at, view[offset : offset + size]))
        if section_type == wanted:
            symbols.append((contents[-1][1], names_at))
    names = bytes(contents[names_index][1]) if names_index < len(contents) else b""

    functions: set[str] = set()
    variables: set[str] = set()
    all_symbols: list[Symbol] = []
    sections = [names[at : names.find(b"\0", at)] for at, _ in contents]
    for table, names_index in symbols if is_cubin or kind == _TYPE_SHARED else ():
        text = contents[names_index][1] if names_index < len(contents) else b""
        if is_cubin:
            variables.update(_in_global_memory(table, text, sections))
            all_symbols += _all(table, text)
        else:
            functions.update(_exported(table, text))
    # Up to CUDA 12 the architecture is in the lowest byte of the flags, from version 8 of the ABI in the second.
    sm = (flags >> 8 if identity[8] >= 8 else flags) & 0xFF
    return Elf(
        is_cubin=is_cubin,
        is_relocatable=kind == _TYPE_RELOCATABLE,
        sm=sm if is_cubin else 0,
        sections=tuple((name, content) for name, (_, content) in zip(sections, contents, strict=True) if content.nbytes),
        functions=tuple(sorted(functions - _OF_THE_LINKER)),
        variables=tuple(sorted(variables)),
        symbols=tuple(all_symbols),
    )


def _symbols(table: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """Yield of each symbol where its name begins, type and binding, visibility, and the index of its section."""
    if len(table) % _SYMBOL.size:
        raise UnsupportedLibrary(
            f"malformed ELF: a symbol table of {len(table)} bytes, which is not a multiple of {_SYMBOL.size}"
        )
    for name_at, info, visibility, section, _, _ in _SYMBOL.iter_unpack(table):
        yield name_at, info, visibility, section


def _name(text: bytes, at: int, what: str) -> str:
    end = text.find(b"\0", at)
    if end <= at:
        raise UnsupportedLibrary(f"malformed ELF: the name of a {what} would be at byte {at} of {len(text)}")
    return text[at:end].decode(errors="replace")


def _exported(table: memoryview, names: memoryview | bytes) -> Iterator[str]:
    """Yield the functions that a table of dynamic symbols defines for others."""
    text = bytes(names)
    for name_at, info, visibility, section in _symbols(table):
        if info & 15 == _FUNCTION and info >> 4 in _BINDS_OUTSIDE and visibility & 3 in _SEEN_OUTSIDE and section:
            yield _name(text, name_at, "function")


def _in_global_memory(table: memoryview, names: memoryview | bytes, sections: Sequence[bytes]) -> Iterator[str]:
    """Yield the variables of a table of symbols."""
    text = bytes(names)
    for name_at, info, _, section in _symbols(table):
        if info & 15 == _OBJECT and section < len(sections) and sections[section].startswith(_GLOBAL_MEMORY):
            yield _name(text, name_at, "variable")


def _all(table: memoryview, names: memoryview | bytes) -> Iterator[Symbol]:
    text = bytes(names)
    for name_at, info, other, _ in _symbols(table):
        name = text[name_at : text.find(b"\0", name_at)].decode(errors="replace") if name_at else ""
        yield Symbol(name, info & 15 == _FUNCTION, info & 15 == _FUNCTION and bool(other & _ENTRY))


def _need(data: bytes, what: str, offset: int, size: int) -> None:
    if offset + size > len(data):
        raise UnsupportedLibrary(f"truncated ELF: {what} would end at byte {offset + size} of {len(data)}")
