"""``kaasctl`` in this process, against the fake server of the client's tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kaas_client.cli.main import app
from tests.client.fake_server import FakeServer


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode()


def succeed(done: Done) -> Done:
    assert (done.code, done.stderr) == (0, "")
    return done


def run_kaasctl(address: str, folder: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run ``kaasctl`` in a process of its own, in a folder, for the daemon at ``address``."""
    return subprocess.run(
        [sys.executable, "-m", "kaas_client.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "KAAS_ADDRESS": address, "COLUMNS": "200"},
        input=stdin,
        capture_output=True,
        timeout=100,
        check=False,
    )


@pytest.fixture
def address() -> str:
    return f"unix:/tmp/kaas-test-{uuid.uuid4().hex[:12]}.sock"


@pytest.fixture
def server(address: str) -> Iterator[FakeServer]:
    with FakeServer(address) as server:
        yield server


@pytest.fixture
def kaasctl(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """A function that runs a command line in a folder of its own and returns how it ended."""
    monkeypatch.chdir(tmp_path)
    for variable in ("KAAS_OUTPUT", "KAAS_GROUP"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("KAAS_ADDRESS", address)

    def run(*arguments: str, stdin: bytes = b"") -> Done:
        done = CliRunner().invoke(app, arguments, input=stdin, prog_name="kaasctl")
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        return Done(done.exit_code, done.stdout_bytes, done.stderr)

    return run


@pytest.fixture(autouse=True)
def heed_interrupts() -> Iterator[None]:
    """What a shell starts in the background ignores SIGINT, and so does what that starts in turn."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
