"""Bytes of a store's file that were changed, before a daemon starts or while it runs: no wrong answer, and the rest goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from examples.local_daemon import local_daemon
from kaas_client import Client, Kernel, Request, inp, out, tmp, u64
from kaas_core.errors import DataDamagedError, KaasError

N = 1024
LARGE = 1 << 20
KERNELS = Path(__file__).parents[2] / "examples/kernels"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


class Daemons:
    """One daemon after another on a store."""

    def __init__(self, device: str, store: Path) -> None:
        self._options = ["--device", device, "--store", str(store), "--chunk-size", "64KiB", "--log-level", "ERROR"]
        self._running = ExitStack()

    def start(self) -> Client:
        """Start one, once the one before has ended; return a client of it."""
        self.stop()
        address = self._running.enter_context(local_daemon(*self._options))
        return self._running.enter_context(Client(address))

    def stop(self) -> None:
        self._running.close()


@pytest.fixture
def daemons(device_name: str, store: Path) -> Iterator[Daemons]:
    with closing_at_end(Daemons(device_name, store)) as daemons:
        yield daemons


@contextmanager
def closing_at_end(daemons: Daemons) -> Iterator[Daemons]:
    try:
        yield daemons
    finally:
        daemons.stop()


def overwrite(store: Path, piece: bytes) -> None:
    """Change all that the file holds of these bytes."""
    raw = (store / "data.mdb").read_bytes()
    assert piece in raw
    (store / "data.mdb").write_bytes(raw.replace(piece, bytes(len(piece))))


def dot(library: str, a: str = "a", b: str = "b") -> Request:
    product = [u64(N), inp(a, 4 * N), inp(b, 4 * N), tmp("p", 4 * N)]
    return Request(
        [
            Kernel(library, "prodKern", grid=1, block=N, args=product),
            Kernel(library, "sumKern", grid=1, block=N // 2, args=[inp("p", 4 * N, ephemeral=True), out("c", 4)]),
        ]
    )


@pytest.fixture
def values() -> dict[str, np.ndarray]:
    chance = np.random.default_rng(1)
    sizes = {"a": N, "b": N, "inline": N, "large": LARGE // 4}
    return {key: chance.integers(0, 2**32, size, dtype=np.uint32) for key, size in sizes.items()}


def expected(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(dtype=np.uint32)


def damaged(call: Callable[[], object], kind: str, key: str) -> None:
    with pytest.raises(DataDamagedError) as caught:
        call()
    assert dict(caught.value.metadata) == {"kind": kind, "key": key}
    assert caught.value.code == "DATA_LOSS"
    assert f"the {kind} {key!r} is damaged: " in str(caught.value)


def test_damaged_values(daemons: Daemons, store: Path, values: dict[str, np.ndarray]) -> None:
    kaas = daemons.start()
    for key, value in values.items():
        kaas.put(key, value)
    library = kaas.upload(KERNELS / "dot.ptx")
    daemons.stop()
    overwrite(store, values["inline"][7:15].tobytes())
    overwrite(store, values["large"][100:108].tobytes())
    kaas = daemons.start()
    for key in ("inline", "large"):
        damaged(lambda: kaas.get(key), "value", key)  # noqa: B023
        damaged(lambda: kaas.submit(dot(library, a=key)), "value", key)  # noqa: B023
        damaged(lambda: kaas.submit(dot(library, b=key)), "value", key)  # noqa: B023
    kaas.submit(dot(library))
    assert kaas.get("c", dtype="u4") == expected(values["a"], values["b"])
    assert [entry.key for entry in kaas.list()] == ["a", "b", "c", "inline", "large"]
    assert [(entry.kind, entry.key) for entry in kaas.check_store().damaged] == [("value", "inline"), ("value", "large")]
    for key in ("inline", "large"):
        kaas.put(key, values[key])
        kaas.submit(dot(library, a=key))
        assert kaas.get("c", dtype="u4") == expected(values[key][:N], values["b"])
    assert kaas.check_store().damaged == ()
    assert kaas.devices()[0].restarts == 0


def test_damaged_libraries_and_functions(daemons: Daemons, store: Path, values: dict[str, np.ndarray]) -> None:
    kaas = daemons.start()
    for key, value in values.items():
        kaas.put(key, value)
    library = kaas.upload(KERNELS / "dot.ptx")
    other = kaas.upload(KERNELS / "jacobi.ptx")
    kaas.register("broken/dot", dot(library))
    kaas.register("dot", dot(library))
    daemons.stop()
    overwrite(store, (KERNELS / "dot.ptx").read_bytes()[200:240])
    overwrite(store, b"broken/dot\x12")  # as it stands in the message; the key is followed by something else
    kaas = daemons.start()
    damaged(lambda: kaas.submit(dot(library)), "library", library)
    damaged(lambda: kaas.inspect(library), "library", library)
    damaged(lambda: kaas.function("dot")(), "library", library)
    damaged(lambda: kaas.function("broken/dot")(), "function", "broken/dot")
    assert {found.id: found.damaged for found in kaas.libraries()} == {library: True, other: False}
    assert [(function.name, function.damaged) for function in kaas.functions()] == [("broken/dot", True), ("dot", False)]
    damaged(next(kaas.functions()), "function", "broken/dot")
    assert kaas.inspect(other)
    assert {(entry.kind, entry.key) for entry in kaas.check_store().damaged} == {
        ("library", library),
        ("function", "broken/dot"),
    }
    assert kaas.upload(KERNELS / "dot.ptx") == library
    assert kaas.function("dot")(a=values["a"], b=values["b"]).array("c", "u4") == expected(values["a"], values["b"])
    kaas.register("broken/dot", dot(library))
    kaas.function("broken/dot")()
    assert [function.damaged for function in kaas.functions()] == [False, False]
    assert kaas.check_store().damaged == ()


def test_a_damaged_function_can_be_deleted(daemons: Daemons, store: Path) -> None:
    kaas = daemons.start()
    kaas.register("broken/dot", dot(kaas.upload(KERNELS / "dot.ptx")))
    daemons.stop()
    overwrite(store, b"broken/dot\x12")
    kaas = daemons.start()
    kaas.delete_function("broken/dot")
    assert kaas.check_store().damaged == ()


class Daemon:
    """A daemon that may end by itself."""

    def __init__(self, tmp_path: Path, stack: ExitStack) -> None:
        self.address, self.store = f"unix:{tmp_path}/kaasd.sock", tmp_path / "store"
        options = ["--listen", self.address, "--store", str(self.store), "--device", "emulator"]
        self.process = stack.enter_context(
            subprocess.Popen([sys.executable, "-m", "kaasd", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        stack.callback(self.process.kill)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"listening on {self.address}\n"
        self.kaas = stack.enter_context(Client(self.address))


def test_trees_that_are_damaged_while_it_runs(tmp_path: Path) -> None:
    """A check finds them; the daemon then answers nothing any more, ends, and does not start again."""
    with ExitStack() as stack:
        daemon = Daemon(tmp_path, stack)
        kaas = daemon.kaas
        for number in range(300):
            kaas.put(f"key/{number:03}", bytes(50))
        with (daemon.store / "data.mdb").open("r+b") as file:
            raw = file.read()
            place = raw.rindex(b"key/200")
            while place >= 0:  # the copies in pages that are free do no harm
                file.seek(place)
                file.write(b"key/2/0")
                place = raw.rfind(b"key/200", 0, place)
        found = kaas.check_store().damaged
        assert (found[0].kind, found[0].key) == ("store", "")
        assert daemon.process.wait(60) == 1
        with pytest.raises(KaasError):
            kaas.put("a", b"1")
        assert daemon.process.stderr is not None
        log = daemon.process.stderr.read()
        assert "the store is lost, so all requests fail and kaasd ends: " in log
        assert "has the entry of another key" in log
        again = subprocess.run(
            [sys.executable, "-m", "kaasd", "--listen", f"unix:{tmp_path}/second.sock", "--store", str(daemon.store)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert again.returncode == 1
        assert "is damaged" in again.stderr.splitlines()[-1]
        assert "Put back a copy of the store's file" in again.stderr


def test_the_shell_shows_what_is_damaged(store: Path, values: dict[str, np.ndarray]) -> None:
    with closing_at_end(Daemons("emulator", store)) as daemons:
        kaas = daemons.start()
        kaas.put("inline", values["inline"])
        daemons.stop()
        overwrite(store, values["inline"][7:15].tobytes())
        address = daemons.start().address

        def kaasctl(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "kaas_client.cli.main", "--address", address, *arguments]
            return subprocess.run(command, capture_output=True, text=True, check=False)

        got = kaasctl("kv", "get", "inline", "-")
        assert (got.returncode, got.stdout) == (1, "")
        assert "the value 'inline' is damaged: its bytes are not those that were written" in got.stderr
        assert kaasctl("store", "check").returncode == 1
        assert kaasctl("kv", "rm", "inline").returncode == 0
        assert kaasctl("store", "check").returncode == 0
