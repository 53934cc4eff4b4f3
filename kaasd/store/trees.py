"""Whether the trees of LMDB's file are whole: LMDB believes what a page says, and has no checksum for it.

A page that was overwritten leads LMDB to other values, into pages that are free, or out of the map. So before a store is opened,
each page of a tree is looked at once: that it is the page that was asked for, that its entries fill it without a gap, the order
of its keys, and at the end that no page is used twice and that each tree has as many pages and entries as its root says. Only the
first bytes of values are read, so this takes longer with the number of keys, and hardly with the size of values.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence, Set
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

from kaasd.store.lmdb_file import (
    BIG_DATA,
    BRANCH,
    DATABASE,
    HEADER_BYTES,
    LEAF,
    NO_PAGE,
    NODE,
    NUMBER,
    OVERFLOW,
    SUB_DATABASE,
    LmdbFile,
    Meta,
)

_NUMBER_KEYS = 0x08
_NO_SUBDIRECTORY = 0x4000
"""Of the environment it was made with, which has its flags in the root of the free pages."""
_PAGE_HEADER = struct.Struct("<Q2xHHH")  # own number, flags, end of the nodes' offsets, start of the nodes
_OVERFLOW_HEADER = struct.Struct("<Q2xHI")  # own number, flags, pages


class _Database(NamedTuple):
    """A tree, as what points at it describes it."""

    flags: int
    depth: int
    branch_pages: int
    leaf_pages: int
    overflow_pages: int
    entries: int
    root: int

    @classmethod
    def unpack(cls, raw: bytes) -> _Database:
        _, flags, depth, branch, leaf, overflow, entries, root = DATABASE.unpack(raw)
        return cls(flags, depth, branch, leaf, overflow, entries, root)


class _Damage(Exception):
    """A page or a tree is not as it must be; the text says where."""


IsRight: TypeAlias = Callable[[bytes, bytes, bytes, range], bool]
"""Whether an entry may be what it seems: its tree's name, its key, its value's first bytes, and where in the file all are."""


def check_trees(file: LmdbFile, meta: Meta, start_bytes: int, is_right: IsRight) -> Set[bytes]:
    """Look at all pages of all trees, and ask of each entry ``is_right`` with the first ``start_bytes`` of its value.

    Return the names of the trees. Raises ``StoreForeignError`` where something is damaged, or has changed meanwhile, ``OSError``.
    """
    try:
        return _Check(file, meta, start_bytes, is_right).run()
    except (_Damage, struct.error, IndexError, ValueError) as error:
        raise file.damaged(str(error) if isinstance(error, _Damage) else "an entry of its trees cannot be read") from None


class _Check:
    """One look at one state of the file."""

    def __init__(self, file: LmdbFile, meta: Meta, start_bytes: int, is_right: IsRight) -> None:
        self._file = file
        self._meta = meta
        self._start_bytes = start_bytes
        self._is_right = is_right
        self._used = bytearray(meta.last_page + 1)
        self._used[:2] = b"\1\1"  # the meta pages
        self._counts = [0, 0, 0, 0]  # of the tree that is looked at: pages of three kinds, entries
        self._number_keys = False
        self._name = b""  # of the tree; the main one and that of free pages have none
        self._sub_databases: dict[bytes, bytes] = {}

    def run(self) -> Set[bytes]:
        free, main = (_Database.unpack(raw) for raw in self._meta.databases)
        self._tree(main, "the main tree")
        for name, raw in list(self._sub_databases.items()):
            self._name = name
            self._tree(_Database.unpack(raw), f"the tree {name.decode(errors='backslashreplace')!r}")
        self._name, self._number_keys = b"", True
        self._tree(free, "the tree of free pages")
        for _, pages in self._file.free_pages(self._meta):
            for page in pages:
                self._use(page, 1)
        return self._sub_databases.keys()

    def _tree(self, database: _Database, name: str) -> None:
        if database.flags not in ((_NUMBER_KEYS, _NUMBER_KEYS | _NO_SUBDIRECTORY) if self._number_keys else (0,)):
            raise _Damage(f"{name} is of another kind, its root says")
        self._counts = [0, 0, 0, 0]
        if database.root != NO_PAGE:
            self._page(database.root, database.depth, None, None)
        if tuple(self._counts) != database[2:6]:
            raise _Damage(f"{name} has {self._counts} pages and entries, but its root says {list(database[2:6])}")

    def _page(self, number: int, depth: int, low: bytes | None, high: bytes | None) -> None:
        """Look at a page and all below it, whose keys must be at least ``low`` and less than ``high``."""
        self._use(number, 1)
        page_bytes = self._meta.page_bytes
        page = self._file.read(number * page_bytes, page_bytes)
        own, flags, lower, upper = _PAGE_HEADER.unpack_from(page)
        kind = BRANCH if depth > 1 else LEAF
        if own != number or flags != kind or not HEADER_BYTES < lower <= upper <= page_bytes or lower % 2:
            raise _Damage(f"page {number} is not a page of its tree")
        self._counts[kind == LEAF] += 1
        offsets = struct.unpack_from(f"<{(lower - HEADER_BYTES) // 2}H", page, HEADER_BYTES)
        nodes = [NODE.unpack_from(page, offset) for offset in offsets]
        self._check_places(number, offsets, nodes, upper, page_bytes, is_leaf=kind == LEAF)
        keys = [page[offset + NODE.size : offset + NODE.size + node[3]] for offset, node in zip(offsets, nodes, strict=True)]
        self._check_order(number, keys[1:] if kind == BRANCH else keys, low, high)
        if kind == BRANCH:
            bounds = [low, *keys[1:], high]
            for i, (child_low, child_high, child_flags, _) in enumerate(nodes):
                self._page(child_low | child_high << 16 | child_flags << 32, depth - 1, bounds[i], bounds[i + 1])
            return
        self._counts[3] += len(keys)
        for offset, (size_low, size_high, node_flags, key_bytes), key in zip(offsets, nodes, keys, strict=True):
            self._leaf(number, page, offset + NODE.size + key_bytes, key, size_low | size_high << 16, node_flags)

    def _check_places(
        self, number: int, offsets: Sequence[int], nodes: Sequence[tuple[int, ...]], start: int, end: int, *, is_leaf: bool
    ) -> None:
        """Entries fill a page from ``start`` to ``end`` in any order: LMDB moves them by their sizes when one of them goes."""
        for offset, (low, high, flags, key_bytes) in sorted(zip(offsets, nodes, strict=True)):
            if offset != start:
                break
            data_bytes = 0 if not is_leaf else NUMBER.size if flags & BIG_DATA else low | high << 16
            start += (NODE.size + key_bytes + data_bytes + 1) // 2 * 2
        if start != end:
            raise _Damage(f"page {number} has entries that overlap, or a gap between them")

    def _check_order(self, number: int, keys: list[bytes], low: bytes | None, high: bytes | None) -> None:
        sort_key: Callable[[bytes], Any] = (lambda raw: NUMBER.unpack(raw)[0]) if self._number_keys else bytes
        ordered = [sort_key(key) for key in keys]
        if (
            any(not a < b for a, b in pairwise(ordered))
            or (ordered and low is not None and ordered[0] < sort_key(low))
            or (ordered and high is not None and not ordered[-1] < sort_key(high))
        ):
            raise _Damage(f"page {number} has its keys out of order")

    def _leaf(self, number: int, page: bytes, start: int, key: bytes, size: int, flags: int) -> None:
        """Look at an entry whose value, or where it is large the number of its first page, is at ``start``."""
        if flags == SUB_DATABASE and not (self._name or self._number_keys) and size == DATABASE.size:
            self._sub_databases[key] = page[start : start + size]
            return
        if flags not in (0, BIG_DATA):
            raise _Damage(f"page {number} has an entry of a kind that kaasd does not write")
        if not flags:
            self._check_entry(number, key, page[start : start + min(size, self._start_bytes)], number * len(page) + start, size)
            return
        (first,) = NUMBER.unpack_from(page, start)
        wanted = -(-(HEADER_BYTES + size) // len(page))
        self._use(first, wanted)
        begin = self._file.read(first * len(page), HEADER_BYTES + min(size, self._start_bytes))
        own, kind, pages = _OVERFLOW_HEADER.unpack_from(begin)
        # The run of a value that became smaller in its place is longer than it needs.
        if own != first or kind != OVERFLOW or pages < wanted:
            raise _Damage(f"page {first} does not begin a large entry")
        self._use(first + wanted, pages - wanted)
        self._counts[2] += pages
        self._check_entry(number, key, begin[HEADER_BYTES:], first * len(page) + HEADER_BYTES, size)

    def _check_entry(self, number: int, key: bytes, start: bytes, place: int, size: int) -> None:
        if not self._is_right(self._name, key, start, range(place, place + size)):
            raise _Damage(f"page {number} has the entry of another key")

    def _use(self, first: int, count: int) -> None:
        if first < 2 or first + count > len(self._used):
            raise _Damage(f"page {first} is used, but is not a page of the file")
        if self._used.find(1, first, first + count) >= 0:
            raise _Damage(f"page {first} is used twice")
        self._used[first : first + count] = b"\1" * count
