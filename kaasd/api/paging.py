"""Pages of a listing. A page token is the last key of the page before; callers are to take it as it is."""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

from kaas_core.errors import InvalidArgumentError

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_PAGE_BYTES = 2 << 20
"""A client of gRPC takes messages of 4 MiB unless it asks for more."""

T = TypeVar("T")


def page(
    size: int,
    token: str,
    prefix: str,
    listing: Callable[[str, int], Sequence[T]],
    key_of: Callable[[T], str],
    bytes_of: Callable[[T], int] = lambda _: 0,
) -> tuple[Sequence[T], str]:
    """Return one page and the token of the next, which is empty on the last page.

    ``listing(after, limit)`` returns what follows the key ``after``; ``bytes_of`` is for items that may be large. Raises
    ``InvalidArgumentError`` (bad token).
    """
    size = min(size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    items = listing(_key_of_token(token, prefix), size + 1)
    fitting = sum(total <= MAX_PAGE_BYTES for total in itertools.accumulate(map(bytes_of, items)))
    count = min(size, max(1, fitting))
    if count >= len(items):
        return items, ""
    return items[:count], base64.urlsafe_b64encode(key_of(items[count - 1]).encode()).decode()


def _key_of_token(token: str, prefix: str) -> str:
    try:
        key = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidArgumentError("page_token: is none that this server made") from None
    if token and not key.startswith(prefix):
        raise InvalidArgumentError("page_token: belongs to a listing with another prefix")
    return key
