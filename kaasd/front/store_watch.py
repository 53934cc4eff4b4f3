"""Notices that the store is lost while the daemon runs: its directory was removed or replaced, or its file is damaged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from kaas_core.errors import DataDamagedError, KaasError, StoreGoneError
from kaasd.store.directory import StoreIdentity

INTERVAL_S = 2.0
"""So long, at most, may requests still be answered from a store that is gone. A look takes 20 µs."""


class StoreWatch:
    """Looks at one open store. Once that is lost, it is lost for good: nothing is answered from it, and the daemon is to end."""

    def __init__(self, identity: StoreIdentity, length_problem: Callable[[], str], tree_problem: Callable[[], str]) -> None:
        """Each returns what is wrong with that part of the file, or nothing. To look at the trees blocks for long."""
        self._identity = identity
        self._length_problem = length_problem
        self._tree_problem = tree_problem
        self._wake = asyncio.Event()
        self._suspected = False
        self._lost: KaasError | None = None

    def check(self) -> None:
        """Look at the path. Raises ``StoreGoneError`` where it does not lead to the store any more, or as ``refuse_if_lost``."""
        if self._lost is None:
            try:
                self._identity.check()
            except StoreGoneError as error:
                self._lost = StoreGoneError(f"{error}; {self._identity.open_file()}")
                self._wake.set()
        self.refuse_if_lost()

    def suspect(self) -> None:
        """Have the trees looked at soon: something could not be found where it must be."""
        self._suspected = True
        self._wake.set()

    def refuse_if_lost(self) -> None:
        """Raises ``StoreGoneError`` or ``DataDamagedError`` where the store was found to be lost."""
        if self._lost is not None:
            raise type(self._lost)(self._lost.message)

    async def until_lost(self) -> KaasError:
        """Look now and then; return when the store is lost, by whatever look that was found. For one caller."""
        while True:
            problem = self._length_problem()  # first: what is missing kills who looks at the trees
            if not problem and self._suspected:
                self._suspected = False
                problem = await asyncio.to_thread(self._tree_problem)
            if problem:
                self._lost = DataDamagedError(problem)
            try:
                self.check()
            except (StoreGoneError, DataDamagedError) as error:
                return error
            try:
                await asyncio.wait_for(self._wake.wait(), INTERVAL_S)
            except TimeoutError:
                continue
            self._wake.clear()
