"""Encrypted addresses: a real daemon, real certificates, both kinds of client and ``kaasctl``."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from examples.local_daemon import local_daemon
from kaas_client import AsyncClient, Client
from kaas_client.errors import ConnectionFailedError
from kaasd.api.tls import ServerTls, TlsError

TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Place:
    """A daemon with TLS, and the files that it and its clients use."""

    address: str
    socket: str
    files: Path
    ca: trustme.CA


def free_address() -> str:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"localhost:{probe.getsockname()[1]}"


def write_server(ca: trustme.CA, files: Path) -> None:
    """Write a new certificate of ``ca``, by replacing the files, as tools that renew certificates do."""
    made = ca.issue_cert("localhost", "127.0.0.1")
    contents = {"server.pem": b"".join(each.bytes() for each in made.cert_chain_pems), "server.key": made.private_key_pem.bytes()}
    for name, content in contents.items():
        new = files / f"{name}.new"
        new.touch(0o600)
        new.write_bytes(content)
        new.rename(files / name)


def write_client(ca: trustme.CA, files: Path, name: str) -> tuple[Path, Path]:
    made = ca.issue_cert(f"{name}@example.org", common_name=name)
    cert, key = files / f"{name}.pem", files / f"{name}.key"
    made.cert_chain_pems[0].write_to_path(cert)
    made.private_key_pem.write_to_path(key)
    return cert, key


def serve(files: Path, *arguments: str) -> Iterator[Place]:
    ca = trustme.CA()
    write_server(ca, files)
    ca.cert_pem.write_to_path(files / "ca.pem")
    address = free_address()
    pair = "--tls-cert", str(files / "server.pem"), "--tls-key", str(files / "server.key")
    with local_daemon("--device", "emulator", "--log-level", "WARNING", "--listen", address, *pair, *arguments) as path:
        yield Place(address, path, files, ca)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    yield from serve(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One that lets in clients of a CA of their own only."""
    files = tmp_path_factory.mktemp("mtls")
    clients = trustme.CA()
    clients.cert_pem.write_to_path(files / "clients.pem")
    write_client(clients, files, "alice")
    yield from serve(files, "--tls-client-ca", str(files / "clients.pem"))


def test_both_clients_over_tls(place: Place) -> None:
    async def body() -> int:
        async with AsyncClient(place.address, tls_ca=place.files / "ca.pem", timeout=TIMEOUT_S) as kaas:
            await kaas.put("k", b"over TLS")
            return len(await kaas.get("k"))

    assert asyncio.run(body()) == 8
    with Client(place.address, tls_ca=str(place.files / "ca.pem"), timeout=TIMEOUT_S) as kaas:
        assert kaas.get("k") == b"over TLS"
    with Client(place.socket, timeout=TIMEOUT_S) as kaas:  # The socket beside it is as it always was.
        assert kaas.get("k") == b"over TLS"


def test_files_by_the_environment(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAAS_TLS_CA", str(place.files / "ca.pem"))
    for address in (place.address, place.socket):
        with Client(address, timeout=TIMEOUT_S) as kaas:
            assert kaas.devices()


def test_who_has_no_tls_is_told_what_to_give(place: Place) -> None:
    with (
        Client(place.address, retry=None, timeout=TIMEOUT_S) as kaas,
        pytest.raises(ConnectionFailedError, match=r"closed the connection; where it speaks TLS, tls_ca is needed"),
    ):
        kaas.devices()


def test_a_server_of_another_ca_is_not_trusted(place: Place, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    with (
        Client(place.address, tls_ca=tmp_path / "other.pem", retry=None, timeout=TIMEOUT_S) as kaas,
        pytest.raises(ConnectionFailedError, match="TLS failed: CERTIFICATE_VERIFY_FAILED: unable to get local issuer"),
    ):
        kaas.devices()


def test_a_server_without_tls_is_told_apart(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    address = free_address()
    with (
        local_daemon("--device", "emulator", "--log-level", "WARNING", "--listen", address),
        Client(address, tls_ca=tmp_path / "ca.pem", retry=None, timeout=TIMEOUT_S) as kaas,
        pytest.raises(ConnectionFailedError, match=f"cannot reach a server at {address}: it does not speak TLS"),
    ):
        kaas.devices()


def test_a_new_certificate_needs_no_restart(place: Place) -> None:
    before, after = place.files / "ca.pem", place.files / "new-ca.pem"
    with Client(place.address, tls_ca=before, timeout=TIMEOUT_S) as old:
        old.devices()
        (place.files / "server.key").write_bytes(b"half written")
        with Client(place.address, tls_ca=before, timeout=TIMEOUT_S) as kaas:  # What cannot be used is not used.
            kaas.devices()
        renewed = trustme.CA()
        renewed.cert_pem.write_to_path(after)
        write_server(renewed, place.files)
        with Client(place.address, tls_ca=after, timeout=TIMEOUT_S) as kaas:
            kaas.devices()
        old.devices()  # A connection that stands goes on.
        with Client(place.address, tls_ca=before, retry=None, timeout=TIMEOUT_S) as kaas, pytest.raises(ConnectionFailedError):
            kaas.devices()
    write_server(place.ca, place.files)


def test_only_clients_of_the_ca_are_let_in(strict: Place) -> None:
    files = strict.files
    alice = {"tls_cert": files / "alice.pem", "tls_key": files / "alice.key"}
    with Client(strict.address, tls_ca=files / "ca.pem", **alice, timeout=TIMEOUT_S) as kaas:
        assert kaas.devices()
    cert, key = write_client(trustme.CA(), files, "mallory")
    for wrong in ({}, {"tls_cert": cert, "tls_key": key}):
        with (
            Client(strict.address, tls_ca=files / "ca.pem", **wrong, retry=None, timeout=TIMEOUT_S) as kaas,
            pytest.raises(ConnectionFailedError, match="closed the connection; where it speaks TLS"),
        ):
            kaas.devices()


def test_kaasctl_over_tls(strict: Place) -> None:
    files = strict.files
    tls = "--tls-ca", "ca.pem", "--tls-cert", "alice.pem", "--tls-key", "alice.key"
    for arguments, code, words in (
        (tls, 0, ""),
        (tls[:2], 3, "where it speaks TLS"),
        (tls[:4], 2, "a certificate and its key are given together"),
        (("--tls-ca", "alice.key"), 2, "tls_ca: alice.key holds no certificate in PEM"),
        (("--tls-ca", "absent.pem"), 1, "absent.pem: No such file or directory"),
        (("--address", strict.socket, *tls), 2, "is a unix socket, which is not encrypted"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "kaas_client.cli.main", *arguments, "device", "ls"],
            cwd=files,
            env={**os.environ, "KAAS_ADDRESS": strict.address, "NO_COLOR": "1", "COLUMNS": "300"},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert (done.returncode, words in done.stderr, "SSL routines" in done.stderr) == (code, True, False), done.stderr


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("server.pem", r"server.pem and .*server.key: not a certificate and its unencrypted private key, in PEM"),
        ("server.key", r"server.pem and .*server.key: not a certificate and its unencrypted private key, in PEM"),
        ("clients.pem", r"clients.pem: no certificates in PEM"),
    ],
)
def test_files_that_are_none_are_named(tmp_path: Path, wrong: str, words: str) -> None:
    ca = trustme.CA()
    write_server(ca, tmp_path)
    ca.cert_pem.write_to_path(tmp_path / "clients.pem")
    files = [tmp_path / name for name in ("server.pem", "server.key", "clients.pem")]
    ServerTls(*files).credentials()
    (tmp_path / wrong).write_bytes(b"nothing")
    with pytest.raises(TlsError, match=words):
        ServerTls(*files)
    (tmp_path / wrong).unlink()
    with pytest.raises(TlsError, match=f"{wrong}: No such file or directory"):
        ServerTls(*files)


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    ca = trustme.CA()
    write_server(ca, tmp_path)
    ca.issue_cert("localhost").private_key_pem.write_to_path(tmp_path / "other.key")
    with pytest.raises(
        TlsError, match=r"other.key: not a certificate and its unencrypted private key, in PEM: KEY_VALUES_MISMATCH"
    ):
        ServerTls(tmp_path / "server.pem", tmp_path / "other.key", None)


def test_a_daemon_with_a_bad_file_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "kaasd", "--device", "emulator", "--store", str(tmp_path / "store")]
    command += ["--listen", free_address(), "--tls-cert", "/absent.pem", "--tls-key", "/absent.key"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1 and "kaasd: /absent.pem: No such file or directory" in done.stderr
