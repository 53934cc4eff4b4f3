"""Binding the addresses that a server listens on."""

from __future__ import annotations

import logging
import os
import socket
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from kaas_core.address import is_loopback

SOCKET_MODE = 0o600
MAX_SOCKET_PATH_BYTES = 107
"""Linux' ``sun_path`` without its zero."""

LOCAL_SUFFIX = ".local"
LOCAL_BACKLOG = 128
"""Callers that are not taken up yet; further ones wait."""

_log = logging.getLogger(__name__)


class ListenError(Exception):
    """An address cannot be listened on; the message says which and why."""


def listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> str:
    """Bind ``address``, as ``kaas_core.address.parse_address`` returns it, and return it with the port that was bound.

    A unix socket gets mode 0600, and one that a dead daemon left is replaced; TCP is encrypted where there are ``credentials``.
    Raises ``ListenError``.
    """
    if address.startswith("unix:"):
        path = _path_of(address)
        _make_way(path)
        with _private_files():
            _bind(server, f"unix:{path}", address, None)
        path.chmod(SOCKET_MODE)
        return f"unix:{path}"
    port = _bind(server, address, address, credentials)
    host = address.rpartition(":")[0]
    if credentials is None and not is_loopback(address):
        _log.warning("%s:%d is neither encrypted nor authenticated: whoever reaches it can run kernels", host, port)
    return f"{host}:{port}"


def local_socket_of(address: str) -> str:
    """Return where the local channel of an address is spoken, beside its unix socket; empty, where there is none."""
    if not address.startswith("unix:"):
        return ""
    path = f"{_path_of(address)}{LOCAL_SUFFIX}"
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        _log.warning("%s has no local channel: its path would have more than %d bytes", address, MAX_SOCKET_PATH_BYTES)
        return ""
    return path


def listen_local(path: str) -> socket.socket:
    """Bind the socket of a local channel, with the mode of ``listen``, and return it. Raises ``ListenError``."""
    _make_way(Path(path))
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with _private_files():
            listening.bind(path)
        listening.listen(LOCAL_BACKLOG)
    except OSError as error:
        listening.close()
        raise ListenError(f"{path}: {error.strerror}") from None
    return listening


def forget(addresses: Iterable[str]) -> None:
    """Remove the unix sockets of a server that was bound but never started, which gRPC leaves."""
    for address in addresses:
        if address.startswith("unix:"):
            Path(address.removeprefix("unix:")).unlink(missing_ok=True)


def _path_of(address: str) -> Path:
    return Path(address.removeprefix("unix:").removeprefix("//")).absolute()


def _bind(server: grpc.aio.Server, target: str, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        port: int = server.add_insecure_port(target) if credentials is None else server.add_secure_port(target, credentials)
    except RuntimeError as error:
        raise ListenError(f"cannot listen on {address}: {error}") from None
    return port


def _make_way(path: Path) -> None:
    """Make the socket's directory if it is missing, and remove a socket that nobody listens on."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ListenError(f"{path}: the path of a unix socket has at most {MAX_SOCKET_PATH_BYTES} bytes")
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        _check_directory(path.parent)
        if not path.is_socket():
            if path.exists():
                raise ListenError(f"{path}: exists and is not a socket")
            return
        with socket.socket(socket.AF_UNIX) as probe:
            # A full backlog must not look like a dead daemon, nor make this one wait.
            probe.setblocking(False)
            probe.connect(str(path))
        raise ListenError(f"{path}: another daemon listens there")
    except BlockingIOError:
        raise ListenError(f"{path}: another daemon listens there, and is busy") from None
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise ListenError(f"{path}: {error.strerror}") from None


def _check_directory(directory: Path) -> None:
    """Refuse a directory in which another user could put a socket of their own in this one's place."""
    status = directory.stat()
    if status.st_uid not in (0, os.getuid()) or (status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX):
        raise ListenError(f"{directory}: another user may replace files of this directory")


@contextmanager
def _private_files() -> Iterator[None]:
    """Files made meanwhile are the user's own from the moment they exist."""
    before = os.umask(0o777 & ~SOCKET_MODE)
    try:
        yield
    finally:
        os.umask(before)
