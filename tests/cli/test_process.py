"""``kaasctl`` as a process of its own: interrupts, pipes, terminals and shells."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kaas.v1 import executor_pb2, kv_pb2
from tests.client.fake_server import FakeServer
from tests.client.test_calls import REQUEST, entry_message

KAASCTL = [sys.executable, "-m", "kaas_client.cli.main"]
MIB = 1 << 20


@pytest.fixture
def environ(address: str) -> dict[str, str]:
    return {**os.environ, "KAAS_ADDRESS": address, "TERM": "xterm", "COLUMNS": "100"}


def test_an_interrupt_cancels_the_call(server: FakeServer, environ: dict[str, str], tmp_path: Path) -> None:
    running, cancelled = threading.Event(), threading.Event()

    def run(request: Any, context: Any) -> executor_pb2.SubmitResponse:
        context.add_callback(cancelled.set)
        running.set()
        cancelled.wait(60)
        return executor_pb2.SubmitResponse()

    (tmp_path / "request.json").write_text(REQUEST.to_json())
    server.expect("Submit", run)
    command = [*KAASCTL, "submit", "request.json"]
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert running.wait(60)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, b"")
    assert b"Traceback" not in stderr
    assert cancelled.wait(60)


def test_an_interrupt_leaves_no_part_of_a_file(server: FakeServer, environ: dict[str, str], tmp_path: Path) -> None:
    sending, ended = threading.Event(), threading.Event()

    def send(request: Any, context: Any) -> Iterator[kv_pb2.GetResponse]:
        context.add_callback(ended.set)
        yield kv_pb2.GetResponse(entry=entry_message("k", size_bytes=2 * MIB))
        yield kv_pb2.GetResponse(chunk=bytes(MIB))
        sending.set()
        ended.wait(60)

    server.expect("Get", send)
    with subprocess.Popen([*KAASCTL, "kv", "get", "k", "out"], cwd=tmp_path, env=environ) as process:
        assert sending.wait(60)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_had_enough(server: FakeServer, environ: dict[str, str]) -> None:
    def send(request: Any, context: Any) -> Iterator[kv_pb2.GetResponse]:
        yield kv_pb2.GetResponse(entry=entry_message("k", size_bytes=64 * MIB))
        for _ in range(64):
            yield kv_pb2.GetResponse(chunk=bytes(MIB))

    server.expect("Get", send)
    with subprocess.Popen([*KAASCTL, "kv", "get", "k"], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(10) == bytes(10)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("words", "offered"),
    [("kaasctl k", ["kv"]), ("kaasctl kv p", ["put"]), ("kaasctl function re", ["register"]), ("kaasctl li", ["library"])],
)
def test_completion_answers_a_shell(environ: dict[str, str], words: str, offered: list[str]) -> None:
    asked = {"_KAASCTL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = subprocess.run(KAASCTL, env=environ | asked, stdout=subprocess.PIPE, text=True, check=True, timeout=60)
    assert done.stdout.split() == offered


def test_the_bash_script_completes(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "kaasctl").write_text(f'#!/bin/sh\nexec {" ".join(KAASCTL)} "$@"\n')
    (tmp_path / "kaasctl").chmod(0o755)
    script = (
        "source <(kaasctl completion bash); COMP_WORDS=(kaasctl device l); COMP_CWORD=2; "
        "$(complete -p kaasctl | sed 's/.*-F \\([^ ]*\\) .*/\\1/') kaasctl; echo ${COMPREPLY[@]}"
    )
    path = f"{tmp_path}{os.pathsep}{environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], env=environ | {"PATH": path}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["ls"]


@pytest.mark.parametrize(("size_bytes", "drawn"), [(32 * MIB, True), (MIB, False)])
def test_progress_of_a_long_transfer_on_a_terminal(
    server: FakeServer, environ: dict[str, str], tmp_path: Path, size_bytes: int, drawn: bool
) -> None:
    (tmp_path / "value").write_bytes(bytes(size_bytes))
    server.expect("Put", kv_pb2.PutResponse(entry=entry_message("weights[0]")))
    ours, theirs = pty.openpty()
    command = [*KAASCTL, "-o", "json", "kv", "put", "weights[0]", "value"]
    with subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        stdout, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b'"key": "weights[0]"' in stdout
    assert (b"weights[0]" in shown) is drawn


def read_terminal(descriptor: int) -> bytes:
    """Return all that was written to a terminal; reading its end fails with EIO once nobody has it open."""
    shown = b""
    try:
        while piece := os.read(descriptor, 65536):
            shown += piece
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return shown
