"""kill -9 of workers and daemons at random moments, while clients write: what was acknowledged stays, and nothing is torn.

`make soak` does it more often, and as long as that takes.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kaas_client import Client, Kernel, Request, inp, out, u64
from kaas_core.errors import KeyNotFoundError, UnavailableError
from kaasd.store.base import Namespace, Write
from kaasd.store.lmdb_store import LmdbStore
from tests.faults.support import wait_until

CHUNK_BYTES = 4096
SIZES = [8, 4000, 40_000, 100_000, 1_500_000]
"""Of the values put: in the record, in one chunk, in several, in several messages of their own."""
OUTPUTS = {"small": 128, "large": 40_000}
"""Elements of what a request writes: in the record, and in forty chunks."""
LIMIT_BYTES = 256 << 20
TIMEOUT_S = 60
KILLS, KILLS_S = 20, 30.0
"""At most, where the command line says nothing; on a busy machine there are fewer."""
MIN_KILLS = 5


class Daemon:
    """A store, and one daemon after another on it."""

    def __init__(self, folder: Path, library_root: Path) -> None:
        self.store = folder / "store"
        self.address = ""
        self.up = threading.Event()
        """It listens, as far as is known."""
        self.process: subprocess.Popen[str] | None = None
        self._folder = folder
        self._roots = ["--library-root", str(library_root)]
        self._starts = itertools.count()

    def start(self) -> None:
        """Start one at an address of its own: gRPC waits ever longer before it tries again one that was dead."""
        self.address = f"unix:{self._folder}/{next(self._starts)}.sock"
        options = ["--listen", self.address, "--store", str(self.store), "--device", "emulator", "--log-level", "ERROR"]
        limits = ["--chunk-size", str(CHUNK_BYTES), "--store-limit", str(LIMIT_BYTES), "--durability", "none"]
        command = [sys.executable, "-m", "kaasd", *options, *limits, *self._roots]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def wait_until_up(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"listening on {self.address}\n"
        self.up.set()

    def end(self, number: signal.Signals) -> int:
        """End it with a signal, and return its exit status."""
        assert self.process is not None
        self.up.clear()
        self.process.send_signal(number)
        self.process.communicate()
        return self.process.returncode


class Versions:
    """The latest version that was acknowledged to anybody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.latest = 0

    def acknowledged(self, version: int, floor: int) -> None:
        """A write that began when ``floor`` was the latest got this version."""
        assert version > floor
        with self._lock:
            self.latest = max(self.latest, version)


class Caller:
    """One client that writes its own keys, and knows what may be there: number by number, so that no two writes are alike."""

    def __init__(self, name: str, library: str, versions: Versions) -> None:
        self.name = name
        self.done = 0
        """Writes that were acknowledged."""
        self.errors: list[UnavailableError] = []
        """What writes failed with."""
        self._library = library
        self._versions = versions
        self._numbers = itertools.count(1)
        self._possible: dict[str, set[int | None]] = {}
        """By key: the number of what was acknowledged last, and of what was tried since; None for a key that is not there."""

    def run(self, daemon: Daemon, stop: threading.Event) -> None:
        """Write until ``stop``."""
        while not stop.is_set():
            if not daemon.up.wait(0.1):
                continue
            try:
                with Client(daemon.address) as kaas:
                    while not stop.is_set():
                        for step in (self._put, self._submit, self._delete):
                            self.check(kaas)
                            step(kaas)
                            self.done += 1
            except UnavailableError as error:  # The daemon was killed, or a worker in the middle of a commit.
                self.errors.append(error)

    def check(self, kaas: Client) -> None:
        """See that each key has one of the values that it may have, which from then on is the only one."""
        for key, possible in self._possible.items():
            found = _number(kaas, key)
            assert found in possible, f"{key}: {found}, not one of {possible}"
            possible.clear()
            possible.add(found)
        outputs = {_number(kaas, f"{self.name}/{output}") for output in OUTPUTS}
        assert len(outputs) == 1, f"outputs of one request: {outputs}"
        # What others see at any moment is what would be there if all were killed at that moment.
        versions = {entry.key: entry.version for entry in kaas.list(timeout=TIMEOUT_S)}
        for key in versions:
            if key.endswith("/small"):
                large = versions.get(key.replace("small", "large"), 0)
                assert large == versions[key] + 1, f"outputs of one request have versions {versions[key]} and {large}"

    def _put(self, kaas: Client) -> None:
        key, number, floor = f"{self.name}/put", next(self._numbers), self._versions.latest
        self._try(key, number)
        entry = kaas.put(key, _value(number), timeout=TIMEOUT_S)
        self._versions.acknowledged(entry.version, floor)
        self._possible[key] = {number}

    def _submit(self, kaas: Client) -> None:
        number, floor = next(self._numbers), self._versions.latest
        size = max(OUTPUTS.values())
        kernels = [
            Kernel(
                self._library,
                "prodKern",
                grid=-(-count // 1024),
                block=1024,
                args=[
                    u64(count),
                    inp("a", 4 * size, ephemeral=True),
                    inp("b", 4 * size, ephemeral=True),
                    out(f"{self.name}/{name}", 4 * count),
                ],
            )
            for name, count in OUTPUTS.items()
        ]
        keys = [f"{self.name}/{name}" for name in OUTPUTS]
        for key in keys:
            self._try(key, number)
        inputs = {"a": np.full(size, number, np.uint32), "b": np.ones(size, np.uint32)}
        result = kaas.submit(Request(kernels), inputs=inputs, timeout=TIMEOUT_S)
        for key in keys:
            self._versions.acknowledged(result.versions[key], floor)
            self._possible[key] = {number}

    def _delete(self, kaas: Client) -> None:
        key, number = f"{self.name}/deleted", next(self._numbers)
        if self._possible.get(key, {None}) == {None}:
            self._try(key, number)
            kaas.put(key, _value(number), timeout=TIMEOUT_S)
            self._possible[key] = {number}
        else:
            self._try(key, None)
            kaas.delete(key, timeout=TIMEOUT_S)
            self._possible[key] = {None}

    def _try(self, key: str, number: int | None) -> None:
        self._possible.setdefault(key, {None}).add(number)


def _value(number: int) -> bytes:
    return np.full(SIZES[number % len(SIZES)] // 8, number, np.uint64).tobytes()


def _number(kaas: Client, key: str) -> int | None:
    """Return which write a key's value is of; None where it is not there. Fails where it is of several, or cut."""
    try:
        value = kaas.get(key, timeout=TIMEOUT_S)
    except KeyNotFoundError:
        return None
    *_, name = key.split("/")
    numbers = set(np.frombuffer(value, np.uint32 if name in OUTPUTS else np.uint64).tolist())
    assert len(numbers) == 1, f"{key} is mixed: {sorted(numbers)[:3]}"
    (number,) = numbers
    assert len(value) == (4 * OUTPUTS[name] if name in OUTPUTS else len(_value(number)))
    return int(number)


@pytest.fixture
def daemon(tmp_path: Path, library_root: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path, library_root)
    daemon.start()
    daemon.wait_until_up()
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.end(signal.SIGKILL)


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> Iterator[int]:
    """Count the kills."""
    wanted, start = request.config.getoption("--kills"), time.monotonic()
    return itertools.takewhile(
        lambda kill: wanted is not None or kill < MIN_KILLS or time.monotonic() - start < KILLS_S,
        range(KILLS if wanted is None else wanted),
    )


@pytest.fixture
def callers(library_root: Path) -> list[Caller]:
    versions = Versions()
    return [Caller(name, str(library_root / "dot.ptx"), versions) for name in ("one", "two", "three")]


@contextmanager
def running(callers: list[Caller], daemon: Daemon) -> Iterator[Callable[[], None]]:
    """The callers write meanwhile; yields what fails where one of them has failed. At the end each checks what it wrote."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(callers)) as threads:
        runs = [threads.submit(caller.run, daemon, stop) for caller in callers]

        def check() -> None:
            for run in runs:
                if run.done():
                    run.result()

        try:
            yield check
        finally:
            stop.set()
    check()
    with Client(daemon.address, wait_for_ready=True) as kaas:
        for caller in callers:
            caller.check(kaas)


def advance(callers: list[Caller], check: Callable[[], None]) -> None:
    """Wait until every caller has written again."""
    before = [caller.done for caller in callers]

    def advanced() -> bool:
        check()
        return all(caller.done > done for caller, done in zip(callers, before, strict=True))

    wait_until(advanced)


def assert_nothing_is_left(daemon: Daemon) -> None:
    """The store takes the pages that its values need, and none when they are gone."""
    settings = {"limit_bytes": LIMIT_BYTES, "chunk_bytes": CHUNK_BYTES}
    with LmdbStore(daemon.store, **settings) as store, LmdbStore(daemon.store.with_name("fresh"), **settings) as fresh:
        store.sweep().result()
        with store.snapshot() as snapshot:
            entries = snapshot.list()
            for entry in entries:
                fresh.commit([Write(entry.key, [b"".join(snapshot.pieces(entry.key))])]).result()
        assert pages(store) == pages(fresh)
        for entry in entries:
            store.delete(entry.key).result()
        store.sweep().result()
        assert store.stats().used_bytes == 0


def pages(store: LmdbStore) -> list[tuple[int, int]]:
    """Return the entries of each database and the pages of their values. Those of the trees depend on what was there before."""
    environment = store._environment
    txn = environment.begin()
    try:
        databases = [environment.entries[Namespace.VALUES], environment.chunks, environment.loose]
        stats = [txn.stat(database) for database in databases]
        return [(stat["entries"], stat["overflow_pages"]) for stat in stats]
    finally:
        environment.end(txn)


def test_killed_workers(daemon: Daemon, callers: list[Caller], kills: Iterator[int]) -> None:
    moments = random.Random()
    with running(callers, daemon) as check, Client(daemon.address) as kaas:
        for restarts in (kill + 1 for kill in kills):
            advance(callers, check)
            time.sleep(moments.uniform(0, 0.1))
            os.kill(kaas.devices()[0].worker_pid, signal.SIGKILL)
            wait_until(lambda restarts=restarts: kaas.devices()[0].restarts == restarts)
    errors = {error.message for caller in callers for error in caller.errors}
    assert all("died while it committed" in message for message in errors), "what was not committed is run again"
    assert daemon.end(signal.SIGTERM) == 0
    assert_nothing_is_left(daemon)


def test_killed_daemons(daemon: Daemon, callers: list[Caller], kills: Iterator[int]) -> None:
    """Every other one before it is ready; and some with their workers, as a system that is short of memory does."""
    moments = random.Random()
    with running(callers, daemon) as check:
        for kill in kills:
            if kill % 2:
                time.sleep(moments.uniform(0, 1))
            else:
                if not daemon.up.is_set():
                    daemon.wait_until_up()
                advance(callers, check)
                with Client(daemon.address) as kaas:
                    worker = kaas.devices()[0].worker_pid
                time.sleep(moments.uniform(0, 0.1))
                if kill % 4:
                    os.kill(worker, signal.SIGKILL)
            assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
            daemon.start()
        daemon.wait_until_up()
        advance(callers, check)
    assert daemon.end(signal.SIGTERM) == 0
    assert_nothing_is_left(daemon)
