"""What a client's connection is encrypted with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import grpc

File: TypeAlias = "str | os.PathLike[str]"
CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE = "KAAS_TLS_CA", "KAAS_TLS_CERT", "KAAS_TLS_KEY"


@dataclass(frozen=True, slots=True)
class Tls:
    """Whom a client trusts, and who it is; in PEM."""

    ca: bytes
    cert: bytes | None
    key: bytes | None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return what a channel is opened with."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)


def tls_of(
    address: str, ca: File | None, cert: File | None, key: File | None, environ: Mapping[str, str] = os.environ
) -> Tls | None:
    """Return how the connection to an address is encrypted: by files that are given, or else by those that the environment names.

    None where there is no CA; a unix socket needs none, and what the environment names is not for it. Raises ``ValueError`` for
    files that do not go together or hold no PEM, ``OSError``.
    """
    if address.startswith("unix:"):
        if ca or cert or key:
            raise ValueError(f"tls_ca, tls_cert, tls_key: {address} is a unix socket, which is not encrypted")
        return None
    if not (ca or cert or key):
        ca, cert, key = (environ.get(name) for name in (CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE))
    if bool(cert) != bool(key):
        raise ValueError("tls_cert and tls_key: a certificate and its key are given together")
    if not ca:
        if cert:
            raise ValueError("tls_cert: it needs tls_ca, the certificates that the server's is signed by")
        return None
    return Tls(
        _pem("tls_ca", ca, "CERTIFICATE"),
        _pem("tls_cert", cert, "CERTIFICATE") if cert else None,
        _pem("tls_key", key, "PRIVATE KEY") if key else None,
    )


def _pem(name: str, file: File, what: str) -> bytes:
    content = Path(file).read_bytes()
    if b"-----BEGIN " not in content or f"{what}-----".encode() not in content:
        raise ValueError(f"{name}: {os.fspath(file)} holds no {what.lower()} in PEM")
    return content
