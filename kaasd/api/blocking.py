"""Waiting, in a coroutine, for work that must not be left half done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def finish(work: Awaitable[T]) -> T:
    """Await ``work`` to its end even when cancelled meanwhile, so that what it uses may be closed after."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # Seen: nobody is left to hear of it.
        raise


async def in_thread(function: Callable[..., T], *arguments: object) -> T:
    """Run ``function`` in a thread, to its end."""
    return await finish(asyncio.to_thread(function, *arguments))
