"""The last replies, which stand together in the store's counters until there is no room for more.

A reply in the tree of replies has a commit write pages of that tree too, and the account's that it counts for; the page of the
counters it writes anyway. When the next one does not fit there, all go into their tree, with one commit. Pure.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_RECENT_BYTES = 1900
"""Of all: with the counters they are an entry that LMDB leaves in its page, of 4096 bytes, beside the roots of all trees."""
MAX_RECENT_REPLY_BYTES = 512
"""A larger one goes into its tree at once."""

_HEAD = struct.Struct("<HHHQQ")


class RecentReply(NamedTuple):
    """One of them."""

    raw_key: bytes
    value: bytes
    account: int
    """The number."""
    version: int
    update_time_ns: int

    def pack(self) -> bytes:
        """Return what is added behind the others. The counters' checksum is that of all."""
        raw_key, value = self.raw_key, self.value
        return _HEAD.pack(len(raw_key), len(value), self.account, self.version, self.update_time_ns) + raw_key + value


def unpack_recent(recent: bytes) -> Iterator[RecentReply]:
    """Yield all, the oldest first."""
    start = 0
    while start < len(recent):
        key_bytes, value_bytes, *fields = _HEAD.unpack_from(recent, start)
        key_start = start + _HEAD.size
        value_start = key_start + key_bytes
        start = value_start + value_bytes
        yield RecentReply(recent[key_start:value_start], recent[value_start:start], *fields)


def find_recent(recent: bytes, raw_key: bytes) -> RecentReply | None:
    """Return a key's reply, None where it is not here."""
    if raw_key not in recent:  # a search in C, which hardly another key passes
        return None
    return next((reply for reply in unpack_recent(recent) if reply.raw_key == raw_key), None)
