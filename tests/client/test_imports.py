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


WITHOUT_KAASD = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "kaasd":
            raise ModuleNotFoundError(f"{name} is not installed here")

sys.meta_path.insert(0, Refuse())
"""
"""As on a machine that has only the client: ``kaas``, ``kaas_core`` and ``kaas_client``."""


@pytest.mark.parametrize(
    "code",
    [
        "import pkgutil, importlib, kaas_client, kaas_core\n"
        "for package in (kaas_client, kaas_core):\n"
        "    for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if found.name != 'kaas_client.ray': importlib.import_module(found.name)\n",
        "from kaas_client import Client, Kernel, Request, inp, out, u64\n"
        "from kaas_core.protobuf import request_to_proto\n"
        "request = Request([Kernel('/lib/x.ptx', 'k', args=[u64(1), inp('a', 8), out('c', 8)])])\n"
        "assert Request.from_json(request.to_json()) == request and request_to_proto(request.spec).iterations == 1\n"
        "Client('unix:/nowhere').close()\n",
    ],
    ids=["every module but ray", "building requests"],
)
def test_the_client_needs_no_daemon(code: str) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_KAASD + code], check=True, timeout=60)


def test_a_daemon_that_is_imported_would_be_noticed() -> None:
    done = subprocess.run([sys.executable, "-c", f"{WITHOUT_KAASD}import kaasd.config"], stderr=subprocess.PIPE, timeout=60)
    assert b"kaasd is not installed here" in done.stderr
