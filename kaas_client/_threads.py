"""What differs between asyncio and threads, for threads; ``kaas_client._asyncio`` has the same names for asyncio.

Both are written by hand. All other code of the client is one source: see ``kaas_client._async``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from queue import SimpleQueue as Queue
from threading import Lock, Semaphore, Thread
from time import sleep
from typing import Annotated, Any, TypeAlias, TypeVar

import grpc

from kaas_client._files import open_target as created
from kaas_client._local_threads import LocalChannel, open_local
from kaas_client._tls import Tls
from kaas_client._transfer import Upload
from kaas_client._transfer import open_source as opened

T = TypeVar("T")

__all__ = [
    "CALL_CANCELLED",
    "Eventually",
    "Future",
    "LocalChannel",
    "Lock",
    "Queue",
    "Semaphore",
    "Task",
    "call_blocking",
    "created",
    "is_cancelled",
    "join",
    "new_future",
    "open_channel",
    "open_local",
    "opened",
    "result_of",
    "send",
    "sleep",
    "start",
    "until_none",
]

Eventually: TypeAlias = Annotated[T, "at once"]
"""What a function of the client returns, as its caller gets it."""
Task: TypeAlias = Thread
"""What ``start`` began."""
CALL_CANCELLED: tuple[type[BaseException], ...] = ()
"""What reading the answers of a cancelled call raises, other than ``grpc.RpcError``: nothing."""


def open_channel(address: str, options: list[tuple[str, Any]], tls: Tls | None) -> Any:
    """Return a channel that connects on first use."""
    if tls is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, tls.credentials(), options)


def send(method: Any, upload: Upload[Any], options: Mapping[str, Any]) -> Any:
    """Call an RPC that takes a stream of messages, and return its answer."""
    running = method.future(iter(upload), **options)
    try:
        return running.result()
    except grpc.RpcError:
        raise
    except BaseException:
        running.cancel()
        raise


def call_blocking(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function that may wait for a file."""
    return function(*arguments)


def start(run: Callable[[], None], name: str) -> Thread:
    """Run a function in the background."""
    thread = Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def join(thread: Thread) -> None:
    """Wait for what ``start`` began."""
    thread.join()


def is_cancelled() -> bool:
    """Return whether the thread that asks was cancelled: none ever is."""
    return False


def new_future() -> Future[Any]:
    """Return a future for an answer that is still to come. It cannot be cancelled."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def result_of(future: Future[T]) -> T:
    """Wait for a future and return its result."""
    return future.result()


def until_none(queue: Queue[T | None]) -> Iterator[T]:
    """Yield what is put into a queue, until None is."""
    return iter(queue.get, None)
