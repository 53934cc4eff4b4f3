"""The default address, which daemon and client find by one rule, and what an address may look like."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kaas_client import Client
from kaas_core import address
from kaas_core.address import default_connect_address, default_listen_address, parse_address


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of its own, with folders ``run`` and ``tmp``, but neither ``/run/kaasd`` nor a runtime folder."""
    monkeypatch.chdir(tmp_path)  # Sockets are bound by relative paths: a full one may be too long.
    for name in ("run", "tmp", "user"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(address, "SYSTEM_DIRECTORY", Path("run/kaasd"))
    monkeypatch.setattr(address, "TEMPORARY_DIRECTORY", Path("tmp"))
    return tmp_path


@pytest.fixture
def listen() -> Iterator[Any]:
    """A function that binds a socket in a folder, made with the mode given."""
    with ExitStack() as stack:

        def bind(directory: str, mode: int = 0o700) -> str:
            Path(directory).mkdir(exist_ok=True)
            Path(directory).chmod(mode)
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.bind(f"{directory}/kaasd.sock")
            return f"unix:{directory}/kaasd.sock"

        yield bind


PRIVATE = f"tmp/kaasd-{os.getuid()}"


def test_a_daemon_listens_in_the_users_runtime_folder(machine: Path) -> None:
    assert default_listen_address({"XDG_RUNTIME_DIR": "user"}) == "unix:user/kaasd.sock"


def test_a_daemon_under_systemd_listens_in_its_own_folder(machine: Path) -> None:
    Path("run/kaasd").mkdir()
    assert default_listen_address({}) == "unix:run/kaasd/kaasd.sock"


def test_a_daemon_with_neither_listens_in_a_folder_of_its_user(machine: Path) -> None:
    assert default_listen_address({}) == f"unix:{PRIVATE}/kaasd.sock"


def test_a_client_finds_what_listens(machine: Path, listen: Any) -> None:
    user = {"XDG_RUNTIME_DIR": "user"}
    assert default_connect_address(user) == "unix:user/kaasd.sock"
    assert default_connect_address({}) == f"unix:{PRIVATE}/kaasd.sock"
    private = listen(PRIVATE)
    assert default_connect_address(user) == default_connect_address({}) == private
    system = listen("run/kaasd")
    assert default_connect_address(user) == default_connect_address({}) == system
    own = listen("user")
    assert (default_connect_address(user), default_connect_address({})) == (own, system)


def test_a_client_trusts_no_folder_that_others_may_write_to(machine: Path, listen: Any) -> None:
    Path("run/kaasd").mkdir()
    listen(PRIVATE, 0o777)
    assert default_connect_address({}) == "unix:run/kaasd/kaasd.sock"


def test_a_client_trusts_no_link(machine: Path, listen: Any) -> None:
    Path("run/kaasd").mkdir()
    listen("tmp/theirs")
    Path(PRIVATE).symlink_to("theirs")
    assert default_connect_address({}) == "unix:run/kaasd/kaasd.sock"


def test_the_variable_comes_first(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_connect_address({"KAAS_ADDRESS": "/x/y.sock", "XDG_RUNTIME_DIR": "user"}) == "unix:/x/y.sock"
    monkeypatch.setenv("KAAS_ADDRESS", "localhost:7")
    with Client() as client:
        assert client.address == "localhost:7"
    with Client("/x/y.sock") as client:
        assert client.address == "unix:/x/y.sock"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("/run/x.sock", "unix:/run/x.sock"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("unix:///run/x.sock", "unix:///run/x.sock"),
        ("unix:x.sock", "unix:x.sock"),
        ("localhost:50051", "localhost:50051"),
        ("127.0.0.1:1", "127.0.0.1:1"),
        ("[::1]:65535", "[::1]:65535"),
    ],
)
def test_addresses(text: str, target: str) -> None:
    assert parse_address(text) == target


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "localhost:",
        ":1",
        "localhost:x",
        "localhost:65536",
        "::1:5",
        "http://localhost:1",
        "unix:",
        "unix://",
        "h:²",
        "unix-abstract:5",
        "dns:53",
        "DNS:53",
        "vsock:1",
        "ipv4:1",
        "xds:1",
    ],
)
def test_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="is not a valid address"):
        parse_address(text)
