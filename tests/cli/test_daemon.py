"""``kaasctl`` and both kinds of client against the real daemon, its socket, its store and the emulated device."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from examples.local_daemon import local_daemon
from kaas_client import AsyncClient, Client, Kernel, Key, Request, inp, out, tmp, u64
from kaas_client.errors import FunctionNotFoundError, InvalidRequestError, KeyNotFoundError, LibraryNotFoundError
from tests.cli.conftest import run_kaasctl

KERNELS = Path(__file__).parent.parent.parent / "examples/kernels"
REQUESTS = Path(__file__).parent.parent / "testdata/requests"
COUNT = 1024
A = np.arange(COUNT, dtype="u4")
B = np.arange(COUNT, 2 * COUNT, dtype="u4")
DOT = int(np.sum(A * B, dtype="u4"))

Kaasctl = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture(scope="module")
def library_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def daemon(library_root: Path) -> Iterator[str]:
    with local_daemon("--device", "emulator", "--log-level", "WARNING", "--library-root", str(library_root)) as address:
        yield address


@pytest.fixture
def kaasctl(daemon: str, tmp_path: Path) -> Kaasctl:
    return partial(run_kaasctl, daemon, tmp_path)


def dot(library: str, iterations: int = 1) -> Request:
    size = A.nbytes
    product = Kernel(library, "prodKern", grid=1, block=COUNT, args=[u64(COUNT), inp("a", size), inp("b", size), tmp("p", size)])
    total = Kernel(library, "sumKern", grid=1, block=512, args=[inp("p"), out("c", 4)])
    return Request([product, total], iterations=iterations)


def test_a_request_from_the_shell(kaasctl: Kaasctl, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(A.tobytes())
    (tmp_path / "b").write_bytes(B.tobytes())
    library = kaasctl("library", "upload", str(KERNELS / "dot.ptx")).stdout.decode().strip()
    (tmp_path / "dot.json").write_text(dot(library).to_json())

    done = kaasctl("-o", "json", "submit", "dot.json", "--input", "a=a", "--input", "b=b", "--output", "c=c")
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(json.loads(done.stdout)["versions"]) == ["c"]
    assert int.from_bytes((tmp_path / "c").read_bytes(), "little") == DOT
    assert int.from_bytes(kaasctl("kv", "get", "c").stdout, "little") == DOT

    assert kaasctl("function", "register", "shell/dot", "dot.json").returncode == 0
    done = kaasctl("function", "invoke", "shell/dot", "--input", "a=b", "--key", "b=a", "--output", "c=-")
    assert int.from_bytes(done.stdout, "little") == DOT


def test_a_trace_from_the_shell(kaasctl: Kaasctl, daemon: str, tmp_path: Path) -> None:
    with Client(daemon) as kaas:
        kaas.put("a", A)
        kaas.put("b", B)
        library = kaas.upload(KERNELS / "dot.ptx")
    (tmp_path / "dot.json").write_text(dot(library, iterations=3).to_json())
    for command in (["submit", "dot.json"], ["function", "invoke", "traced"]):
        if command[0] == "function":
            assert kaasctl("function", "register", "traced", "dot.json").returncode == 0
        done = kaasctl(*command, "--trace", "trace.json")
        assert (done.returncode, done.stderr) == (0, b"")
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        rows = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
        assert rows == ["request", "launch", "gpu", "kernels", "prodKern", "sumKern"]
        launches = [event for event in events if event.get("cat") == "kernel"]
        assert len(launches) == 2 * 2 * 3  # on the row of the stream, and on that of the kernel
        assert int.from_bytes(kaasctl("kv", "get", "c").stdout, "little") == DOT


@pytest.mark.parametrize("name", ["original_pairs", "original_type_list", "original_by_use"])
def test_requests_of_the_original_format(name: str, kaasctl: Kaasctl, tmp_path: Path, library_root: Path) -> None:
    """As they stand, but for the folder of the library."""
    (library_root / "dot.so").write_bytes((KERNELS / "dot.ptx").read_bytes())
    text = (REQUESTS / f"{name}.json").read_text()
    assert "/opt/kernels/dot.so" in text
    (tmp_path / "request.json").write_text(text.replace("/opt/kernels", str(library_root)))
    (tmp_path / "a").write_bytes(A.tobytes())
    (tmp_path / "b").write_bytes(B.tobytes())
    done = kaasctl("submit", "request.json", "--input", "a=a", "--input", "b=b", "--output", "c=c")
    assert (done.returncode, done.stderr) == (0, b"")
    assert int.from_bytes((tmp_path / "c").read_bytes(), "little") == DOT


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("{", "line 1"),
        ("[]", "object"),
        ('{"kernels": {}}', "kernels"),
        ('{"kernels": [], "kernel": 1}', "kernel"),
        ('{"kernels": [{"library": "/x", "name": "k", "nGrid": -1, "nBlock": 1}]}', "kernels[0].grid[0]"),
        ('{"kernels": [{"library": "/x", "name": "k", "nGrid": 1, "nBlock": 1, "arguments": [["a", "x"]]}]}', "arguments[0]"),
    ],
    ids=["not JSON", "not an object", "wrong shape", "unknown field", "negative grid", "unknown access letter"],
)
def test_a_request_file_that_is_wrong(text: str, where: str, kaasctl: Kaasctl, tmp_path: Path) -> None:
    (tmp_path / "request.json").write_text(text)
    before = kaasctl("-o", "json", "kv", "ls").stdout
    done = kaasctl("submit", "request.json")
    assert (done.returncode, done.stdout) == (1, b"")
    assert where in done.stderr.decode()
    assert kaasctl("-o", "json", "kv", "ls").stdout == before


def test_looking_around_from_the_shell(kaasctl: Kaasctl, daemon: str) -> None:
    kaasctl("kv", "put", "looking/around", "-", stdin=b"abc")
    (entry,) = json.loads(kaasctl("-o", "json", "kv", "ls", "looking/").stdout)
    assert (entry["key"], entry["size_bytes"]) == ("looking/around", 3)
    library = kaasctl("library", "upload", str(KERNELS / "dot.ptx")).stdout.decode().strip()
    inspection = json.loads(kaasctl("-o", "json", "library", "inspect", library).stdout)
    assert [kernel["name"] for kernel in inspection["kernels"]] == ["prodKern", "sumKern"]
    assert library in [item["id"] for item in json.loads(kaasctl("-o", "json", "library", "ls").stdout)]
    assert [item["name"] for item in json.loads(kaasctl("-o", "json", "device", "ls").stdout)] == ["emulator"]
    assert json.loads(kaasctl("-o", "json", "stats").stdout)["store_keys"] >= 1
    assert kaasctl("health").stdout == b"SERVING\n"
    versions = json.loads(kaasctl("-o", "json", "version").stdout)
    assert versions["server"] == versions["client"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["kv", "get", "no such key"], 4),
        (["kv", "rm", "no such key"], 4),
        (["library", "rm", "sha256:" + "0" * 64], 4),
        (["function", "invoke", "no-such-function"], 4),
        (["kv", "put", "k" * 401, "-"], 1),
        (["kv", "stat", ""], 1),
        (["library", "upload", "-"], 1),
    ],
)
def test_failures_from_the_shell(kaasctl: Kaasctl, arguments: list[str], code: int) -> None:
    done = kaasctl(*arguments, stdin=b"not GPU code")
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.startswith(b"kaasctl: ")


def test_the_clients_first_request(daemon: str) -> None:
    with Client(daemon) as kaas:
        kaas.put("a", A)
        kaas.put("b", B)
        request = dot(kaas.upload(KERNELS / "dot.ptx"))
        kaas.submit(request)
        assert kaas.get("c", dtype="u4").tolist() == [DOT]
        function = kaas.register("python/dot", request)
        assert function(a=B, b=B).array("c", "u4").tolist() == [int(np.sum(B * B, dtype="u4"))]
        assert function(b=Key("a")).array("c", "u4").tolist() == [int(np.sum(A * A, dtype="u4"))]
        assert kaas.function("python/dot").request == function.request
        assert "python/dot" in [f.name for f in kaas.functions("python/")]
        with kaas.stream() as stream:
            sums = [r.array("c", "u4")[0] for r in stream.map("python/dot", [{"a": A * i} for i in range(20)], returns=["c"])]
        assert sums == [np.sum(A * i * B, dtype="u4") for i in range(20)]


def test_the_clients_first_request_asyncio(daemon: str) -> None:
    async def run() -> None:
        async with AsyncClient(daemon) as kaas:
            await asyncio.gather(kaas.put("a", A), kaas.put("b", B))
            request = dot(await kaas.upload(KERNELS / "dot.ptx"))
            result = await kaas.submit(request, returns=["c"])
            assert result.array("c", "u4").tolist() == [DOT]
            function = await kaas.register("asyncio/dot", request)
            results = await asyncio.gather(*(function(a=A * i) for i in range(8)))
            assert [r.array("c", "u4")[0] for r in results] == [np.sum(A * i * B, dtype="u4") for i in range(8)]
            async with kaas.stream() as stream:
                invocations = [{"a": A * i} for i in range(8)]
                sums = [r.array("c", "u4")[0] async for r in stream.map("asyncio/dot", invocations, returns=["c"])]
            assert sums == [np.sum(A * i * B, dtype="u4") for i in range(8)]

    asyncio.run(run())


def test_large_values(daemon: str, tmp_path: Path) -> None:
    content = np.random.default_rng(1).integers(0, 256, (40 << 20) + 5, dtype="u1")
    with Client(daemon) as kaas:
        entry = kaas.put("large", content)
        assert entry.size_bytes == content.nbytes
        assert np.array_equal(kaas.get("large", dtype="u1"), content)
        assert kaas.get("large", offset=17 << 20, size=5) == content[17 << 20 :][:5].tobytes()
        with (tmp_path / "large").open("wb") as file:
            assert kaas.get("large", into=file) == content.nbytes
        assert kaas.put("large", tmp_path / "large").version > entry.version
        assert kaas.get("large") == content.tobytes()


def test_errors_of_the_client(daemon: str) -> None:
    with Client(daemon) as kaas:
        with pytest.raises(KeyNotFoundError):
            kaas.get("no such key")
        with pytest.raises(FunctionNotFoundError):
            kaas.function("no-such-function")
        with pytest.raises(LibraryNotFoundError):
            kaas.inspect("sha256:" + "0" * 64)
        library = kaas.upload(KERNELS / "dot.ptx")
        with pytest.raises(InvalidRequestError) as caught:
            kaas.submit(Request([Kernel(library, "sumKern", grid=1, block=512, args=[out("c", 4)])]))
        assert [violation.field for violation in caught.value.violations] == ["kernels[0].arguments"]
