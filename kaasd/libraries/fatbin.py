"""Fatbins: bundles of PTX and cubins as ``nvcc`` and ``fatbinary`` write them.

NVIDIA documents no layout. This one was read off the output of nvcc 13.0 with every ``--compress-mode`` and several ``-gencode``:
a fatbin is a header of 16 bytes and entries end to end, each entry a header of 64 bytes or more and its payload, padded to eight.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import lz4.block
import zstandard

from kaasd.libraries import UnsupportedLibrary

MAGIC = b"\x50\xed\x55\xba"

KIND_PTX = 1
KIND_CUBIN = 2

_HEADER = struct.Struct("<4sHHQ")
# kind, version, header size, padded payload size, compressed size, options offset, minor, major, sm, name offset, name size,
# flags, unused, uncompressed size
_ENTRY = struct.Struct("<HHIQIIHHIIIQQQ")
_VERSION = 1
_FLAG_LZ4 = 0x2000
_FLAG_ZSTD = 0x8000

_MAX_ENTRY_BYTES = 256 << 20
"""Uncompressed. A few kilobytes can claim to become gigabytes; code for one architecture is far smaller than this."""
_LZ4_MAX_RATIO = 255
"""The format's own limit: one byte of a block stands for at most 255."""


@dataclass(frozen=True, slots=True)
class FatbinEntry:
    """One piece of code, uncompressed."""

    kind: int
    """``KIND_PTX``, ``KIND_CUBIN``, or another (such as NVVM IR for link-time optimisation)."""
    sm: int
    """Compute capability times ten."""
    content: bytes
    """Empty where the kind is another."""


@dataclass(frozen=True, slots=True)
class Fatbin:
    """One fatbin."""

    data: bytes
    """The whole of it, as the driver takes it."""
    entries: tuple[FatbinEntry, ...]


def read_fatbins(data: bytes | memoryview) -> Iterator[Fatbin]:
    """Yield the fatbins of ``data``, which may be several with zeros between, as the linker lays them in one section.

    Raises ``UnsupportedLibrary`` where one is cut short, of an unknown version, or its compressed content is damaged.
    """
    view = memoryview(data)
    position = 0
    while position < len(view):
        if not any(view[position : position + 8]):
            position += 8
            continue
        fatbin = _read_fatbin(view, position)
        yield fatbin
        position += -(-len(fatbin.data) // 8) * 8


def _read_fatbin(view: memoryview, start: int) -> Fatbin:
    if len(view) - start < _HEADER.size:
        raise UnsupportedLibrary(f"truncated fatbin: {len(view) - start} bytes at byte {start}, less than its header")
    magic, version, header_size, size = _HEADER.unpack_from(view, start)
    if magic != MAGIC:
        raise UnsupportedLibrary(f"malformed fatbin: what is at byte {start} is not the beginning of a fatbin")
    if version != _VERSION or header_size < _HEADER.size:
        raise UnsupportedLibrary(f"fatbin of version {version} with a header of {header_size} bytes; version {_VERSION} is known")
    position, end = start + header_size, start + header_size + size
    if end > len(view):
        raise UnsupportedLibrary(f"truncated fatbin: would end at byte {end} of {len(view)}")

    entries: list[FatbinEntry] = []
    while position < end:
        entry, position = _read_entry(view, position, end, len(entries))
        entries.append(entry)
    return Fatbin(bytes(view[start:end]), tuple(entries))


def _read_entry(view: memoryview, start: int, end: int, index: int) -> tuple[FatbinEntry, int]:
    """Return the entry at ``start`` and the position after it."""
    if end - start < _ENTRY.size:
        raise UnsupportedLibrary(f"truncated fatbin: entry {index} has {end - start} bytes, less than its header")
    kind, _, header_size, padded_size, compressed_size, _, _, _, sm, _, _, flags, _, size = _ENTRY.unpack_from(view, start)
    payload_at = start + header_size
    after = payload_at + padded_size
    if header_size < _ENTRY.size or after > end or compressed_size > padded_size:
        raise UnsupportedLibrary(f"malformed fatbin: entry {index} does not fit")
    if kind not in (KIND_PTX, KIND_CUBIN):
        return FatbinEntry(kind, sm, b""), after
    if not flags & (_FLAG_LZ4 | _FLAG_ZSTD):
        return FatbinEntry(kind, sm, bytes(view[payload_at:after])), after
    compressed = bytes(view[payload_at : payload_at + compressed_size])
    return FatbinEntry(kind, sm, _decompress(compressed, size, bool(flags & _FLAG_LZ4), index)), after


def _decompress(compressed: bytes, size: int, is_lz4: bool, index: int) -> bytes:
    if size > _MAX_ENTRY_BYTES:
        raise UnsupportedLibrary(
            f"fatbin entry {index} would take {size} bytes uncompressed; at most {_MAX_ENTRY_BYTES} are read"
        )
    try:
        if is_lz4:
            content = b"" if size > len(compressed) * _LZ4_MAX_RATIO else lz4.block.decompress(compressed, uncompressed_size=size)
        else:
            declared = zstandard.frame_content_size(compressed)
            content = b"" if declared not in (-1, size) else zstandard.ZstdDecompressor().decompress(compressed, size)
    except (lz4.block.LZ4BlockError, zstandard.ZstdError, ValueError) as error:
        raise UnsupportedLibrary(f"damaged fatbin: entry {index} does not decompress: {error}") from None
    if len(content) != size:
        raise UnsupportedLibrary(f"damaged fatbin: entry {index} does not decompress to the {size} bytes that it claims")
    return bytes(content)
