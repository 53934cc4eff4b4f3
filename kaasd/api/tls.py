"""The certificate of a server, read anew whenever its files change."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import TypeAlias

import grpc

_Stamp: TypeAlias = "tuple[tuple[int, int, int], ...]"
"""Of each file, what changes when it is written or replaced."""

_log = logging.getLogger(__name__)


class TlsError(Exception):
    """A certificate, a key or a CA cannot be used; the message names the file, and says why."""


class ServerTls:
    """The files of a server's certificate. gRPC asks for them at each handshake, in threads of its own, one at a time.

    Files that cannot be used, as while they are being replaced, leave the certificate in use as it is; the log says so once.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        """``certificate`` is a chain, the server's first; with ``client_ca`` only clients with a certificate of these are let in.

        All three are PEM. Raises ``TlsError``.
        """
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._stamp: _Stamp = ()
        self._first = self._read()
        if key.stat().st_mode & 0o077:
            _log.warning("%s: other users of this machine may read the private key", key)

    def credentials(self) -> grpc.ServerCredentials:
        """Return what a server listens with."""
        return grpc.dynamic_ssl_server_credentials(self._first, self._changed, self._client_ca is not None)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what the files hold, if that has changed since they were read last; else None, and gRPC goes on as before."""
        try:
            if self._stamped() == self._stamp:
                return None
            configuration = self._read()
        except (TlsError, OSError) as error:
            _log.warning("the certificate in use stays, as the new one cannot be used: %s", error)
            return None
        _log.info("%s: the certificate was read anew", self._certificate)
        return configuration

    def _read(self) -> grpc.ServerCertificateConfiguration:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            self._stamp = self._stamped()
            chain, key = self._certificate.read_bytes(), self._key.read_bytes()
            roots = None if self._client_ca is None else self._client_ca.read_bytes()
        except OSError as error:
            raise TlsError(f"{error.filename}: {error.strerror}") from None
        try:
            # An encrypted key must not make OpenSSL ask at the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except ssl.SSLError as error:
            pair = f"{self._certificate} and {self._key}"
            raise TlsError(f"{pair}: not a certificate and its unencrypted private key, in PEM: {error.reason}") from None
        if roots is not None:
            try:
                context.load_verify_locations(cadata=roots.decode("ascii"))
            except (ssl.SSLError, ValueError):
                raise TlsError(f"{self._client_ca}: no certificates in PEM") from None
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)

    def _stamped(self) -> _Stamp:
        files = (self._certificate, self._key, *([] if self._client_ca is None else [self._client_ca]))
        found = (file.stat() for file in files)
        return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in found)
