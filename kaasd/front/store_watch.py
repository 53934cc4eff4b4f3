"""Notices that the store's directory was removed or replaced while the daemon runs."""

from __future__ import annotations

import asyncio

from kaas_core.errors import StoreGoneError
from kaasd.store.directory import StoreIdentity

INTERVAL_S = 2.0
"""So long, at most, may requests still be answered from a store that is gone. A look takes 10 µs."""


class StoreWatch:
    """Looks at the path of one open store; once that leads elsewhere, it is gone for good."""

    def __init__(self, identity: StoreIdentity) -> None:
        self._identity = identity
        self._found = asyncio.Event()
        self._gone = ""

    def check(self) -> None:
        """Look. Raises ``StoreGoneError``."""
        if not self._gone:
            try:
                self._identity.check()
            except StoreGoneError as error:
                self._gone = f"{error}; {self._identity.open_file()}"
                self._found.set()
        self.refuse_if_gone()

    def refuse_if_gone(self) -> None:
        """Raises ``StoreGoneError`` where ``check`` has."""
        if self._gone:
            raise StoreGoneError(self._gone)

    async def until_gone(self) -> StoreGoneError:
        """Look now and then; return when the store is gone, by whatever look that was found."""
        while True:
            try:
                self.check()
                await asyncio.wait_for(self._found.wait(), INTERVAL_S)
            except StoreGoneError as error:
                return error
            except TimeoutError:
                pass
