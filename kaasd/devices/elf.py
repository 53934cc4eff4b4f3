"""Just enough of ELF to find the section of a host library that holds GPU code, and to tell which GPU a cubin is for.

Layout: System V ABI, chapter 4 (64-bit, little-endian). What CUDA adds was read off the output of nvcc and ptxas 12 and 13.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kaasd.devices.base import UnsupportedLibrary

MAGIC = b"\x7fELF"

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SEGMENT_SIZE = 56
_CLASS64, _LITTLE_ENDIAN = 2, 1
_TYPE_RELOCATABLE = 1
_MACHINE_CUDA = 190
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

    def section(self, name: bytes) -> memoryview | None:
        """Return the content of the first section of this name."""
        return next((content for each, content in self.sections if each == name), None)


def read_elf(data: bytes) -> Elf:
    """Read an ELF file. Raises ``UnsupportedLibrary`` where it is cut short or no 64-bit little-endian ELF."""
    if len(data) < _HEADER.size:
        raise UnsupportedLibrary(f"truncated ELF: {len(data)} bytes, less than its header of {_HEADER.size}")
    (identity, kind, machine, _, _, segments_at, sections_at, flags, _, segment_size, segment_count, section_size, section_count,
     names_index) = _HEADER.unpack_from(data)  # fmt: skip
    if identity[4] != _CLASS64 or identity[5] != _LITTLE_ENDIAN:
        raise UnsupportedLibrary("ELF that is not 64-bit little-endian")

    _need(data, "program headers", segments_at, segment_count * (segment_size or _SEGMENT_SIZE))
    if section_count and section_size != _SECTION.size:
        raise UnsupportedLibrary(f"malformed ELF: section headers of {section_size} bytes, {_SECTION.size} expected")
    _need(data, "section headers", sections_at, section_count * _SECTION.size)
    headers = [_SECTION.unpack_from(data, sections_at + i * _SECTION.size) for i in range(section_count)]

    view = memoryview(data)
    contents: list[tuple[int, memoryview]] = []
    for index, (name_at, section_type, _, _, offset, size, *_) in enumerate(headers):
        if section_type in _SECTION_WITHOUT_BYTES:
            size = 0
        _need(data, f"section {index}", offset if size else 0, size)
        contents.append((name_at, view[offset : offset + size]))
    names = bytes(contents[names_index][1]) if names_index < len(contents) else b""

    is_cubin = machine == _MACHINE_CUDA
    # Up to CUDA 12 the architecture is in the lowest byte of the flags, from version 8 of the ABI in the second.
    sm = (flags >> 8 if identity[8] >= 8 else flags) & 0xFF
    return Elf(
        is_cubin=is_cubin,
        is_relocatable=kind == _TYPE_RELOCATABLE,
        sm=sm if is_cubin else 0,
        sections=tuple((names[at : names.find(b"\0", at)], content) for at, content in contents if content.nbytes),
    )


def _need(data: bytes, what: str, offset: int, size: int) -> None:
    if offset + size > len(data):
        raise UnsupportedLibrary(f"truncated ELF: {what} would end at byte {offset + size} of {len(data)}")
