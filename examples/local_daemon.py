"""A private daemon for the time of a ``with`` block: for the demo, the benchmarks and the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

READY_TIMEOUT_S = 120
"""A first start of CUDA on a machine with many GPUs takes seconds; past this something is wrong."""
STOP_TIMEOUT_S = 60


@contextmanager
def local_daemon(*arguments: str, environ: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run kaasd on a unix socket and a store in a temporary directory; yield its address once it listens.

    ``arguments`` are added to its command line, ``environ`` to its environment; its log goes to our standard error. It is drained
    and stopped at the end of the block. Raises ``RuntimeError`` when it does not start, or ends with an error.
    """
    with tempfile.TemporaryDirectory(prefix="kaasd-") as directory:
        address = f"unix:{directory}/kaasd.sock"
        command = [sys.executable, "-m", "kaasd", "--listen", address, "--store", f"{directory}/store", *arguments]
        with server_process(command, environ or {}):
            yield address


@contextmanager
def server_process(command: Sequence[str | Path], environ: Mapping[str, str]) -> Iterator[None]:
    """Run a server that prints ``listening on ADDRESS`` once ready and ends with 0 on SIGTERM. Errors as ``local_daemon``."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environ})
    try:
        _wait_until_ready(process)
        yield
    finally:
        process.terminate()
        try:
            process.communicate(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    if process.returncode != 0:
        raise RuntimeError(f"{command[2]} ended with exit code {process.returncode}; its log says why")


def _wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    watchdog = threading.Timer(READY_TIMEOUT_S, process.kill)
    watchdog.start()
    try:
        for line in process.stdout:
            if line.startswith("listening on "):
                return
    finally:
        watchdog.cancel()
    raise RuntimeError(f"the server did not start: exit code {process.wait()}; its log says why")
