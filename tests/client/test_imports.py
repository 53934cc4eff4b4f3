"""What importing the client brings in: it must stay light for everyone who only talks to a server."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import kaas_client", "grpc google.protobuf asyncio numpy llvmlite cuda lmdb rich typer"),
        ("from kaas_client import Client, AsyncClient", "numpy llvmlite cuda lmdb rich typer"),
        ("import kaas_client.cli.main", "grpc google.protobuf asyncio numpy llvmlite cuda lmdb rich.table"),
    ],
)
def test_what_is_not_imported(code: str, absent: str) -> None:
    program = f"import sys; {code}; print(*(name for name in {absent.split()} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
