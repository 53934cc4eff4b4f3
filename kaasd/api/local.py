"""The local channel's sockets: who connects, and when all of it ends. What a connection is about: ``local_connection.py``."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path

from kaasd.api.core import Core
from kaasd.api.executor import ExecutorServicer
from kaasd.api.groups import Listener
from kaasd.api.listen import listen_local
from kaasd.api.local_connection import LocalConnection

NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
ACCEPT_AGAIN_S = 1.0
"""After which callers are taken up again where there were no descriptors left for them."""

_log = logging.getLogger(__name__)


class LocalServer:
    """Serves the local channel of one unix socket. Used by one event loop."""

    def __init__(self, core: Core, executor: ExecutorServicer, listener: Listener) -> None:
        """Bind, and let callers wait until ``start``. Raises ``ListenError``."""
        self._core = core
        self._executor = executor
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._connections: set[LocalConnection] = set()
        self._again: asyncio.TimerHandle | None = None
        self._socket = listen_local(listener.local_socket)
        self._file = _file(listener.local_socket)

    def start(self) -> None:
        """Take up callers."""
        self._again = None
        self._loop.add_reader(self._socket, self._accept)

    def _accept(self) -> None:
        try:
            peer, _ = self._socket.accept()
        except OSError as error:
            if error.errno in NO_DESCRIPTORS:
                _log.error("%s: no further caller can be taken up: %s", self._listener.local_socket, error.strerror)
                self._loop.remove_reader(self._socket)
                self._again = self._loop.call_later(ACCEPT_AGAIN_S, self.start)
            return  # Others go away before they are taken up.
        connection = LocalConnection(self._core, self._executor, self._listener, peer, self._connections.discard)
        self._connections.add(connection)

    async def stop(self, grace_s: float | None) -> None:
        """Take no new call, let running ones go on for ``grace_s``, then cancel them, and return when all have ended.

        Idempotent.
        """
        if self._socket.fileno() < 0:
            return
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        if _file(self._listener.local_socket) == self._file:  # else it is another daemon's
            Path(self._listener.local_socket).unlink(missing_ok=True)
        await asyncio.gather(*(connection.stop(grace_s) for connection in tuple(self._connections)))


def _file(path: str) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
