"""Groups with the real daemon: its sockets, its settings file, its workers, and what they store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from examples.local_daemon import server_process
from kaas_client import Client, Request, errors, inp, out, tmp, u64
from kaas_client.builders import Kernel

KERNELS = Path(__file__).parent.parent.parent / "examples/kernels"
COUNT = 1024
SIZE = 4 * COUNT
SETTINGS = """
[groups.research]
share = 2
max_keys = 3

[groups.teaching]
max_stored_bytes = "10KiB"
"""


@contextmanager
def daemon(directory: Path, *arguments: str) -> Iterator[str]:
    """Run kaasd on ``all.sock`` in ``directory``, with a store there that stays."""
    address = f"unix:{directory}/all.sock"
    command = [sys.executable, "-m", "kaasd", "--listen", address, "--store", str(directory / "store")]
    with server_process([*command, "--device", "emulator", "--log-level", "WARNING", *arguments], {}):
        yield address


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("groups")


@pytest.fixture(scope="module")
def address(directory: Path) -> Iterator[str]:
    """A daemon with the groups of ``SETTINGS``, and a socket for one of them."""
    config = directory / "kaasd.toml"
    config.write_text(SETTINGS)
    with daemon(directory, "--config", str(config), "--listen", f"{directory}/research.sock,group=research") as address:
        yield address


def dot(library: str, *, to: str = "c") -> Request:
    product = Kernel(library, "prodKern", grid=1, block=COUNT, args=[u64(COUNT), inp("a", SIZE), inp("b", SIZE), tmp("p", SIZE)])
    total = Kernel(library, "sumKern", grid=1, block=512, args=[inp("p"), out(to, 4)])
    return Request([product, total])


def use(client: Client, group: str) -> tuple[int, int]:
    found = client.group(group).use
    return found.stored_bytes, found.keys


def test_the_group_of_a_socket(address: str, directory: Path) -> None:
    with Client(address) as everyone, Client(f"unix:{directory}/research.sock") as research:
        library = everyone.upload(KERNELS / "dot.ptx")
        inputs = {"a": bytes(SIZE), "b": bytes(SIZE)}
        assert research.submit(dot(library), inputs=inputs).group == "research"
        assert everyone.submit(dot(library), inputs=inputs).group == "default"
        assert everyone.submit(dot(library), inputs=inputs, group="teaching", priority=3).group == "teaching"
        for group in ("teaching", "default", "unknown"):
            with pytest.raises(errors.GroupNotFoundError):
                research.submit(dot(library), inputs=inputs, group=group)
        with everyone.stream() as stream:
            function = everyone.register("dot", dot(library))
            assert stream.submit("dot", inputs, group="research").result().group == "research"
        assert function.options(group="teaching")(**inputs).group == "teaching"


def test_a_reply_that_is_kept_tells_its_group(address: str) -> None:
    with Client(address, group="research") as client:
        library = client.upload(KERNELS / "dot.ptx")
        inputs = {"a": bytes(SIZE), "b": bytes(SIZE)}
        first = client.submit(dot(library), inputs=inputs, request_id="id")
        again = client.submit(dot(library), inputs=inputs, request_id="id", priority=5)
        assert (first.versions, first.group) == (again.versions, again.group)
        other = client.submit(dot(library), inputs=inputs, request_id="id", group="default")
        assert other.versions != first.versions


def test_outputs_count_for_the_group_of_their_request(address: str) -> None:
    with Client(address, retry=None) as client:
        library = client.upload(KERNELS / "dot.ptx")
        inputs = {"a": bytes(SIZE), "b": bytes(SIZE)}
        for key in ("c", "x", "y", "z"):
            client.put(key, b"1234", group="default")
        bytes_before, keys_before = use(client, "research")
        assert keys_before == 0
        for key in ("x", "y", "z"):
            client.submit(dot(library, to=key), inputs=inputs, group="research")
        assert use(client, "research") == (bytes_before + 12, 3)
        version = client.stat("c").version
        with pytest.raises(errors.GroupLimitError) as raised:
            client.submit(dot(library), inputs=inputs, group="research")
        assert raised.value.metadata == {"group": "research", "limit": "max_keys"}
        assert client.stat("c").version == version
        client.submit(dot(library, to="x"), inputs=inputs, group="research")
        client.submit(dot(library, to="x"), inputs=inputs, group="default")
        client.submit(dot(library), inputs=inputs, group="research")
        assert use(client, "research") == (bytes_before + 12, 3)
        with pytest.raises(errors.GroupLimitError) as raised:
            client.put("large", bytes(20_000), group="teaching")
        assert raised.value.metadata == {"group": "teaching", "limit": "max_stored_bytes"}


def test_groups_of_the_settings_file_are_changed_there(address: str) -> None:
    with Client(address) as client:
        assert [(group.name, group.share) for group in client.groups()] == [("default", 1), ("research", 2), ("teaching", 1)]
        assert client.group("research").fixed
        with pytest.raises(errors.NotEnabledError, match="settings file"):
            client.set_group("research", share=3)


def test_kaasctl(address: str) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kaas_client.cli.main", "--address", address, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env={**os.environ})

    assert run("group", "set", "new", "--share", "0.5", "--max-stored-bytes", "1MiB").returncode == 0
    assert run("group", "set", "new", "--max-running", "2").returncode == 0
    lines = [line.split() for line in run("group", "ls").stdout.splitlines()]
    assert ["new", "0.5", "0", "2", "0", "0", "B", "1.0", "MiB", "0"] in lines
    done = run("group", "set", "new", "--share", "-1")
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "kaasctl: the request is not valid:")
    assert run("--group", "new", "kv", "ls").returncode == 0
    assert run("group", "rm", "new").returncode == 0
    done = run("--group", "new", "kv", "ls")
    assert (done.returncode, done.stderr) == (4, "kaasctl: there is no group 'new'\n")


def test_what_was_set_and_stored_is_there_after_a_crash(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/all.sock"
    command = [sys.executable, "-m", "kaasd", "--listen", address, "--store", str(tmp_path / "store"), "--device", "emulator"]
    process = subprocess.Popen([*command, "--log-level", "WARNING"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == f"listening on {address}\n"
        with Client(address) as client:
            client.set_group("a", share=3, max_keys=2)
            client.put("k", bytes(100_000), group="a")
            client.put("l", b"12", group="a")
    finally:
        process.kill()
        process.communicate()
    with daemon(tmp_path, "--listen", f"{tmp_path}/a.sock,group=a") as address, Client(address, retry=None) as client:
        assert (client.group("a").group.share, use(client, "a")) == (3, (100_002, 2))
        with pytest.raises(errors.GroupLimitError):
            client.put("m", b"", group="a")
        client.delete_group("a")
        with Client(f"unix:{tmp_path}/a.sock", retry=None) as other, pytest.raises(errors.GroupNotFoundError):
            other.stat("k")


@pytest.mark.parametrize(
    ("settings", "listen", "said"),
    [
        ("", ",group=absent", "a.sock is for the group 'absent', which there is not: make it first"),
        (
            "[groups.a]\nreserved_multiprocessors = 8",
            "",
            "groups.a.reserved_multiprocessors: no device of this server can reserve",
        ),
    ],
)
def test_it_does_not_start(tmp_path: Path, settings: str, listen: str, said: str) -> None:
    (tmp_path / "kaasd.toml").write_text(settings)
    command = [sys.executable, "-m", "kaasd", "--listen", f"{tmp_path}/a.sock{listen}", "--store", str(tmp_path / "store")]
    command += ["--config", str(tmp_path / "kaasd.toml"), "--device", "emulator", "--log-level", "ERROR"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("kaasd: ") and said in line
    assert not (tmp_path / "a.sock").exists()
