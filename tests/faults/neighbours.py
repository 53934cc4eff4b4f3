"""Clients that run a known workload beside a fault, and what has to be true when it is over.

Every acknowledged output is there and right, and none in part; what failed did so with an error that the fault explains; the
daemon serves; and no process, thread, descriptor or shared memory is left.
"""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kaas_client import Client, Kernel, Request, inp, out, u64
from kaas_core.errors import KeyNotFoundError, UnavailableError
from kaasd.store.base import Namespace, Write
from kaasd.store.lmdb_store import LmdbStore
from tests.faults.support import wait_until

CHUNK_BYTES = 4096
"""So small that the values below have many, unless a test says otherwise."""
SIZES = [8, 4000, 40_000, 100_000, 1_500_000]
"""Of the values put: in the record, in one chunk, in several, in several messages of their own."""
OUTPUTS = {"small": 128, "large": 40_000}
"""Elements of what a request writes: in the record, and in forty chunks."""
LIMIT_BYTES = 256 << 20
TIMEOUT_S = 600
"""Of calls: pytest ends a test before. On a busy machine a worker may take half a minute to come up."""


class Daemon:
    """A store, and one daemon after another on it."""

    def __init__(
        self,
        folder: Path,
        library_root: Path,
        *options: str,
        chunk_bytes: int = CHUNK_BYTES,
        program: Sequence[str] = ("-m", "kaasd"),
    ) -> None:
        """``program`` is what Python runs."""
        self.store = folder / "store"
        self.chunk_bytes = chunk_bytes
        self.address = ""
        self.up = threading.Event()
        """It listens, as far as is known."""
        self.process: subprocess.Popen[str] | None = None
        self._folder = folder
        self._program = program
        self._options = ["--library-root", str(library_root), *options]
        self._starts = itertools.count()

    def start(self, *, same_address: bool = False) -> None:
        """Start one at an address of its own: gRPC waits ever longer before it tries again one that was dead."""
        if not same_address:
            self.address = f"unix:{self._folder}/{next(self._starts)}.sock"
        options = ["--listen", self.address, "--store", str(self.store), "--device", "emulator", "--log-level", "ERROR"]
        limits = ["--chunk-size", str(self.chunk_bytes), "--store-limit", str(LIMIT_BYTES), "--durability", "none"]
        command = [sys.executable, *self._program, *options, *limits, *self._options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def wait_until_up(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"listening on {self.address}\n"
        self.up.set()

    @property
    def pid(self) -> int:
        """The front's."""
        assert self.process is not None
        return self.process.pid

    def end(self, number: signal.Signals) -> int:
        """End it with a signal, and return its exit status."""
        assert self.process is not None
        self.up.clear()
        self.process.send_signal(number)
        self.process.communicate()
        return self.process.returncode


@contextmanager
def started(folder: Path, library_root: Path, *options: str, **more: Any) -> Iterator[Daemon]:
    """A daemon that serves, and is killed at the end where it has not ended before. The arguments are ``Daemon``'s."""
    daemon = Daemon(folder, library_root, *options, **more)
    daemon.start()
    try:
        daemon.wait_until_up()
        yield daemon
    finally:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.end(signal.SIGKILL)


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


def callers_of(library_root: Path, number: int) -> list[Caller]:
    """Return so many callers of daemons on one store."""
    versions = Versions()
    return [Caller(f"caller{index}", str(library_root / "dot.ptx"), versions) for index in range(number)]


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
    check()  # They have ended.
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
    settings = {"limit_bytes": LIMIT_BYTES, "chunk_bytes": daemon.chunk_bytes}
    with LmdbStore(daemon.store, **settings) as store, LmdbStore(daemon.store.with_name("fresh"), **settings) as fresh:
        store.expire(2**63, 1, 0, 0.0).result()  # replies, as if their time were over
        with store.snapshot() as snapshot:
            compiled = snapshot.list(namespace=Namespace.COMPILED, limit=10**6)
        for entry in compiled:
            store.delete(entry.key, Namespace.COMPILED).result()
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


def children(pid: int) -> set[int]:
    """Return the processes that a process has started, and that run."""
    return {int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()}


@dataclass(frozen=True)
class Resources:
    """What a process holds of the system."""

    processes: int
    """That it has started."""
    descriptors: Counter[str]
    """By what they are open for."""
    shared_memory: int
    """Pieces that are mapped."""
    threads: int

    @classmethod
    def of(cls, pid: int) -> Resources:
        """Look at a process. It may be busy meanwhile."""
        descriptors = Counter(re.sub(r"\d+", "N", str(link.readlink())) for link in Path(f"/proc/{pid}/fd").iterdir())
        maps = Path(f"/proc/{pid}/maps").read_text()
        threads = sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())
        return cls(len(children(pid)), descriptors, maps.count("/memfd:"), threads)
