"""Just enough of ELF to find the section of a host library that holds GPU code, the functions that it exports, and to tell which
GPU a cubin is for.

Layout: System V ABI, chapter 4 (64-bit, little-endian). What CUDA adds was read off the output of nvcc and ptxas 12 and 13.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kaasd.libraries import UnsupportedLibrary

MAGIC = b"\x7fELF"

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SEGMENT_SIZE = 56
_CLASS64, _LITTLE_ENDIAN = 2, 1
_TYPE_RELOCATABLE, _TYPE_SHARED = 1, 3
_MACHINE_CUDA = 190
_SECTION_DYNAMIC_SYMBOLS = 11
_FUNCTION, _BINDS_OUTSIDE, _SEEN_OUTSIDE = 2, (1, 2), (0, 3)
"""STT_FUNC; STB_GLOBAL, STB_WEAK; STV_DEFAULT, STV_PROTECTED."""
_OF_THE_LINKER = {"_init", "_fini"}
# SHT_NULL, SHT_NOBITS, and what relocatable cubins have: uninitialised global, local, shared, reserved shared memory.
_SECTION_WITHOUT_BYTES = {0, 8, 0x70000007, 0x70000009, 0x7000000A, 0x70000015}


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
    symbols: list[tuple[memoryview, int]] = []
    """Tables of dynamic symbols, each with the index of the section that has their names."""
    for index, (name_at, section_type, _, _, offset, size, names_at, *_) in enumerate(headers):
        if section_type in _SECTION_WITHOUT_BYTES:
            size = 0
        _need(data, f"section {index}", offset if size else 0, size)
        contents.append((name_at, view[offset : offset + size]))
        if section_type == _SECTION_DYNAMIC_SYMBOLS:
            symbols.append((contents[-1][1], names_at))
    names = bytes(contents[names_index][1]) if names_index < len(contents) else b""

    is_cubin = machine == _MACHINE_CUDA
    functions: set[str] = set()
    if kind == _TYPE_SHARED and not is_cubin:
        for table, names_index in symbols:
            functions.update(_exported(table, contents[names_index][1] if names_index < len(contents) else b""))
    # Up to CUDA 12 the architecture is in the lowest byte of the flags, from version 8 of the ABI in the second.
    sm = (flags >> 8 if identity[8] >= 8 else flags) & 0xFF
    return Elf(
        is_cubin=is_cubin,
        is_relocatable=kind == _TYPE_RELOCATABLE,
        sm=sm if is_cubin else 0,
        sections=tuple((names[at : names.find(b"\0", at)], content) for at, content in contents if content.nbytes),
        functions=tuple(sorted(functions - _OF_THE_LINKER)),
    )


def _exported(table: memoryview, names: memoryview | bytes) -> Iterator[str]:
    """Yield the functions that a table of dynamic symbols defines for others."""
    if len(table) % _SYMBOL.size:
        raise UnsupportedLibrary(
            f"malformed ELF: a symbol table of {len(table)} bytes, which is not a multiple of {_SYMBOL.size}"
        )
    text = bytes(names)
    for name_at, info, visibility, section, _, _ in _SYMBOL.iter_unpack(table):
        if info & 15 == _FUNCTION and info >> 4 in _BINDS_OUTSIDE and visibility & 3 in _SEEN_OUTSIDE and section:
            end = text.find(b"\0", name_at)
            if end <= name_at:
                raise UnsupportedLibrary(f"malformed ELF: the name of a function would be at byte {name_at} of {len(text)}")
            yield text[name_at:end].decode(errors="replace")


def _need(data: bytes, what: str, offset: int, size: int) -> None:
    if offset + size > len(data):
        raise UnsupportedLibrary(f"truncated ELF: {what} would end at byte {offset + size} of {len(data)}")
