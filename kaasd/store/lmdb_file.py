"""Reads LMDB's file without mapping it: whether it is whole, and what its main database holds.

A page that a file lacks kills the process that reads it through a map, and LMDB itself makes a new environment of an empty file.
The layout is that of LMDB 0.9 on machines of 64 bits with the low byte first.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable, Iterator
from operator import gt
from pathlib import Path
from typing import NamedTuple

from kaas_core.errors import StoreForeignError

MAGIC = 0xBEEFC0DE
VERSION = 1
HEADER_BYTES = 16
_FLAGS_AT = 10
BRANCH, LEAF, OVERFLOW, META = 0x01, 0x02, 0x04, 0x08
BIG_DATA, SUB_DATABASE = 0x01, 0x02
_META_PAGE = struct.Struct("<II8xQ")  # magic, version, (address,) size of the map
DATABASE = struct.Struct("<IHHQQQQQ")  # page size or none, flags, depth, pages of three kinds, entries, root
_LAST = struct.Struct("<QQ")  # last page, transaction
NODE = struct.Struct("<HHHH")  # size or page, low and high; flags or page, highest; size of the key
NUMBER = struct.Struct("<Q")
NO_PAGE = 2**64 - 1
_MAX_DEPTH = 32
_PAGE_SIZES = [1 << bits for bits in range(8, 17)]


class Meta(NamedTuple):
    """One of the two pages that say what the file holds; the one of the later transaction counts."""

    page_bytes: int
    last_page: int
    transaction: int
    free_root: int
    main_root: int
    main_depth: int
    databases: tuple[bytes, bytes]
    """What describes the tree of free pages, and the main one: see ``DATABASE``."""


class LmdbFile:
    """A file of LMDB, open for reading. Everything raises ``StoreForeignError`` where the file is damaged, and ``OSError``."""

    def __init__(self, path: Path, descriptor: int | None = None) -> None:
        """Raises ``StoreForeignError`` where it is not a file of LMDB, or cut short.

        A ``descriptor`` is one of the file, by who has checked it and has it open in LMDB.
        """
        self.path = path
        if descriptor is not None:
            self._descriptor = os.dup(descriptor)
            self.meta = self.latest_meta()
            return
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.meta = self.check_length()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> LmdbFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._descriptor)

    def main_entries(self, meta: Meta) -> dict[bytes, bytes]:
        """Return what the main database holds; nothing where that is more than one page, as it never is in a store of ours."""
        if meta.main_depth != 1:
            return {}
        try:
            return dict(self.below(meta.main_root, meta.page_bytes, 1))
        except (struct.error, IndexError):
            raise self.damaged("its main database is broken") from None

    def free_pages(self, meta: Meta, last: int = NO_PAGE, *, latest_first: bool = False) -> Iterator[tuple[int, array[int]]]:
        """Yield each transaction up to ``last`` that has left free pages, and their numbers, which fall.

        LMDB takes those of the first transaction first, and there the last ones. Only while nobody writes.
        """

        def is_wanted(key: bytes) -> bool:
            return not key or NUMBER.unpack(key)[0] <= last  # the first key of a page of branches is not set

        try:
            for key, value in self.below(meta.free_root, meta.page_bytes, _MAX_DEPTH, is_wanted, backwards=latest_first):
                numbers = array("Q", value)
                pages = numbers[1:]
                if (
                    numbers[0] != len(pages)
                    or not all(map(gt, pages, pages[1:]))
                    or not 2 <= pages[-1] <= pages[0] <= meta.last_page
                ):
                    raise IndexError
                yield NUMBER.unpack(key)[0], pages
        except (struct.error, IndexError, ValueError):
            raise self.damaged("its list of free pages is broken") from None

    def free_lists(self, meta: Meta) -> Iterator[array[int]]:
        """Yield the numbers of free pages, as they stand there. Raises ``struct.error``, ``IndexError`` or ``ValueError``.

        A page that is neither in use nor in a list is lost, and does no harm.
        """
        for _, value in self.below(meta.free_root, meta.page_bytes):
            numbers = array("Q", value)
            yield numbers[1 : numbers[0] + 1]

    def check_length(self) -> Meta:
        """Return the last meta page. Raises ``StoreForeignError`` where the file lacks pages that it says are in use."""
        while True:
            meta = self.latest_meta()
            problem = self._problem(meta)
            if self.latest_meta() == meta:  # else a process that has the store open has committed meanwhile
                break
        if problem is not None:
            raise problem
        return meta

    def _problem(self, meta: Meta) -> StoreForeignError | None:
        size_bytes = os.fstat(self._descriptor).st_size
        try:
            if self._is_whole(meta, size_bytes):
                return None
        except (struct.error, IndexError, ValueError):  # the list of free pages lies beyond the end too
            pass
        return StoreForeignError(
            f"{self.path} is cut short: it has {size_bytes} bytes of {(meta.last_page + 1) * meta.page_bytes}, and some that are"
            " in use are missing; nothing was written to it. Put back a whole copy of it"
        )

    def latest_meta(self) -> Meta:
        """Read the meta page of the last transaction."""
        return max(self.metas(), key=lambda meta: meta.transaction)

    def metas(self) -> tuple[Meta, Meta]:
        first = self._read_meta(0)
        second = self._read_meta(first.page_bytes)
        if first.page_bytes != second.page_bytes:
            raise self.damaged("its two meta pages do not agree")
        for number, meta in enumerate((first, second)):
            if meta.transaction and meta.transaction % 2 != number:
                raise self.damaged(f"meta page {number} is that of transaction {meta.transaction}")
        return first, second

    def _read_meta(self, offset: int) -> Meta:
        raw = os.pread(self._descriptor, HEADER_BYTES + _META_PAGE.size + 2 * DATABASE.size + _LAST.size, offset)
        where = f"no meta page of LMDB is at byte {offset}"
        try:
            (flags,) = struct.unpack_from("<H", raw, _FLAGS_AT)
            magic, version, _ = _META_PAGE.unpack_from(raw, HEADER_BYTES)
            databases = HEADER_BYTES + _META_PAGE.size
            page_bytes, _, _, *_, free_root = DATABASE.unpack_from(raw, databases)
            _, _, depth, *_, main_root = DATABASE.unpack_from(raw, databases + DATABASE.size)
            last_page, transaction = _LAST.unpack_from(raw, databases + 2 * DATABASE.size)
        except struct.error:
            raise self.damaged(where) from None
        if not flags & META or magic != MAGIC or page_bytes not in _PAGE_SIZES:
            raise self.damaged(where)
        if version != VERSION:
            raise StoreForeignError(f"{self.path} has LMDB's format {version}, but kaasd reads only format {VERSION}")
        main = databases + DATABASE.size
        return Meta(
            page_bytes,
            last_page,
            transaction,
            free_root,
            main_root,
            depth,
            (raw[databases:main], raw[main : main + DATABASE.size]),
        )

    def _is_whole(self, meta: Meta, size_bytes: int) -> bool:
        """Whether all pages that lie beyond the end are free: LMDB does not write what one transaction takes and frees again."""
        first_missing = size_bytes // meta.page_bytes
        missing = meta.last_page + 1 - first_missing
        if missing <= 0:
            return True
        free: set[int] = set()
        for pages in self.free_lists(meta):
            free.update(page for page in pages if first_missing <= page <= meta.last_page)
        return missing == len(free)

    def below(
        self,
        number: int,
        page_bytes: int,
        depth: int = _MAX_DEPTH,
        is_wanted: Callable[[bytes], bool] = lambda key: True,
        *,
        backwards: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys and values below a page, at most ``depth`` pages deep. Raises ``struct.error`` or ``IndexError``.

        ``is_wanted`` is asked of each key, and of the least key of each part of the tree: where not, all of that is left out.
        """
        if number == NO_PAGE:
            return
        page = self.read(number * page_bytes, page_bytes)
        flags, lower = struct.unpack_from("<HH", page, _FLAGS_AT)
        if not flags & (BRANCH | LEAF) or not depth or lower > page_bytes:
            raise IndexError(number)
        offsets = [offset for (offset,) in struct.iter_unpack("<H", page[HEADER_BYTES : lower // 2 * 2])]
        for offset in reversed(offsets) if backwards else offsets:
            low, high, node_flags, key_bytes = NODE.unpack_from(page, offset)
            start, size = offset + NODE.size, low | high << 16
            key = page[start : start + key_bytes]
            if not is_wanted(key):
                continue
            if flags & BRANCH:
                child = low | high << 16 | node_flags << 32
                yield from self.below(child, page_bytes, depth - 1, is_wanted, backwards=backwards)
                continue
            if node_flags & BIG_DATA:
                (overflow,) = NUMBER.unpack_from(page, start + key_bytes)
                yield key, self.read(overflow * page_bytes + HEADER_BYTES, size)
            else:
                yield key, page[start + key_bytes : start + key_bytes + size]

    def read(self, offset: int, size: int) -> bytes:
        """Return bytes of the file. Raises ``IndexError`` where it does not have them all."""
        data = os.pread(self._descriptor, size, offset) if offset < 1 << 63 else b""
        if len(data) < size:
            raise IndexError(offset)
        return data

    def damaged(self, what: str) -> StoreForeignError:
        """Return the error that says ``what`` is wrong, and what to do."""
        return StoreForeignError(
            f"{self.path} is not a file of LMDB, or is damaged: {what}; nothing was written to it. Put back a copy of the"
            " store's file, or use another directory (--store)"
        )
