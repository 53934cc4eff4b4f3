"""NVIDIA's Multi-Process Service, of one's own for the time of a ``with`` block; no setting of the GPU is touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONTROL = "nvidia-cuda-mps-control"
_START_TIMEOUT_S = 10
_STOP_TIMEOUT_S = 20


def missing() -> str | None:
    """Say why there can be no MPS, or None."""
    return None if shutil.which(CONTROL) else f"{CONTROL} not installed"


@contextmanager
def mps() -> Iterator[dict[str, str]]:
    """Run a control daemon in a private directory; yield the environment that makes a process its client.

    Raises ``RuntimeError`` where it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="kaasd-mps-") as directory:
        environ = {"CUDA_MPS_PIPE_DIRECTORY": f"{directory}/pipe", "CUDA_MPS_LOG_DIRECTORY": f"{directory}/log"}
        for path in environ.values():
            Path(path).mkdir()
        environment = {**os.environ, **environ}
        control = subprocess.Popen([CONTROL, "-f"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_for(Path(directory) / "pipe" / "control", control)
            yield environ
        finally:
            _quit(control, environment)


def _wait_for(pipe: Path, control: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_TIMEOUT_S
    while not pipe.exists():
        if control.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{CONTROL} did not start")
        time.sleep(0.05)


def _quit(control: subprocess.Popen[bytes], environment: dict[str, str]) -> None:
    try:
        subprocess.run(
            [CONTROL], input=b"quit\n", env=environment, timeout=_STOP_TIMEOUT_S, stdout=subprocess.DEVNULL, check=False
        )
        control.wait(timeout=_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        control.kill()
        control.wait()
