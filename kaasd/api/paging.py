"""Pages of a listing. A page token is the last key of the page before; callers are to take it as it is."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import TypeVar

from kaasd.errors import InvalidArgumentError

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000

T = TypeVar("T")


def page(
    size: int, token: str, prefix: str, listing: Callable[[str, int], Sequence[T]], key_of: Callable[[T], str]
) -> tuple[Sequence[T], str]:
    """Return one page and the token of the next, which is empty on the last page.

    ``listing(after, limit)`` returns what follows the key ``after``. Raises ``InvalidArgumentError`` (bad token).
    """
    size = min(size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
    items = listing(_key_of_token(token, prefix), size + 1)
    if len(items) <= size:
        return items, ""
    return items[:size], base64.urlsafe_b64encode(key_of(items[size - 1]).encode()).decode()


def _key_of_token(token: str, prefix: str) -> str:
    try:
        key = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidArgumentError("page_token: is none that this server made") from None
    if token and not key.startswith(prefix):
        raise InvalidArgumentError("page_token: belongs to a listing with another prefix")
    return key
