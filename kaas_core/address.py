"""The default address: where a daemon listens, and a client connects, when no address is given. One rule for both.

The candidates, best first:

1. ``$XDG_RUNTIME_DIR/kaasd.sock``, the user's own daemon, where that variable is set;
2. ``/run/kaasd/kaasd.sock``, the machine's daemon, whose directory systemd makes;
3. ``/tmp/kaasd-<uid>/kaasd.sock``, in a directory of mode 0700 that the daemon makes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

ADDRESS_VARIABLE = "KAAS_ADDRESS"
"""The environment variable that names the server for clients."""
CONNECTION_AGENT = "kaas-connection/"
"""What a client's user agent says before 64 random bits that name its connection: it tells apart who shares a socket."""
SOCKET_NAME = "kaasd.sock"
SYSTEM_DIRECTORY = Path("/run/kaasd")
TEMPORARY_DIRECTORY = Path("/tmp")


def default_listen_address(environ: Mapping[str, str] = os.environ) -> str:
    """Return the address a daemon listens on by default: the first candidate whose directory it may write to.

    The directory of the last candidate may not exist yet; the daemon makes it with mode 0700.
    """
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return _unix(Path(runtime))
    if os.access(SYSTEM_DIRECTORY, os.W_OK | os.X_OK):
        return _unix(SYSTEM_DIRECTORY)
    return _unix(_private_directory())


def default_connect_address(environ: Mapping[str, str] = os.environ) -> str:
    """Return the address a client connects to: ``KAAS_ADDRESS``, else the first candidate where there is a socket.

    If there is none, this is the address that a daemon started by this user would listen on.
    """
    if environ.get(ADDRESS_VARIABLE):
        return parse_address(environ[ADDRESS_VARIABLE])
    candidates = [SYSTEM_DIRECTORY]
    if environ.get("XDG_RUNTIME_DIR"):
        candidates.insert(0, Path(environ["XDG_RUNTIME_DIR"]))
    if _is_private(_private_directory()):
        candidates.append(_private_directory())
    for directory in candidates:
        if (directory / SOCKET_NAME).is_socket():
            return _unix(directory)
    return default_listen_address(environ)


_SCHEMES = {"dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds"}
"""Of gRPC's targets: ``dns:53`` would not be the host that it looks like."""


def parse_address(text: str) -> str:
    """Return ``text`` as a gRPC target: ``/path`` and ``unix:PATH`` are unix sockets, ``HOST:PORT`` is TCP.

    Raises ``ValueError`` for anything else.
    """
    if text.startswith("/"):
        return f"unix:{text}"
    if text.startswith("unix:"):
        if text.removeprefix("unix:").removeprefix("//"):
            return text
    else:
        host, _, port = text.rpartition(":")
        # An IPv6 address has colons itself, so brackets must separate it from the port.
        named = bool(host) and host.lower() not in _SCHEMES and (":" not in host or (host.startswith("[") and host.endswith("]")))
        if named and "/" not in text and port.isascii() and port.isdigit() and int(port) <= 65535:
            return text
    raise ValueError(f"{text!r} is not a valid address: expected unix:PATH, /PATH or HOST:PORT ([HOST]:PORT for IPv6)")


def is_loopback(address: str) -> bool:
    """Whether an address, as ``parse_address`` returns it, can be reached from this machine alone; a unix socket always is."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _unix(directory: Path) -> str:
    return f"unix:{directory / SOCKET_NAME}"


def _private_directory() -> Path:
    return TEMPORARY_DIRECTORY / f"kaasd-{os.getuid()}"


def _is_private(directory: Path) -> bool:
    """Anyone may make a directory of this name in /tmp, so only one that is ours and closed to others is trusted."""
    try:
        status = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
