"""Measures the store: commit latency by durability, group commits, and the speed of large values.

Run it with ``python -m benchmarks.store [FOLDER]``. ``FOLDER`` says which disk is measured; default: the temporary folder.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.table import Table

from kaasd.store.base import Durability, Namespace, Write
from kaasd.store.lmdb_store import LmdbStore

SMALL = b"x" * 1024
LARGE_BYTES = 64 << 20
WRITERS = 64


def main() -> None:
    """Print one table."""
    folder = sys.argv[1] if len(sys.argv) > 1 else None
    table = Table(title=f"store on {folder or tempfile.gettempdir()}")
    table.add_column("what")
    for durability in Durability:
        table.add_column(durability.value, justify="right")
    rows: dict[str, Callable[[LmdbStore], str]] = {
        "commit 1 KiB, p50 · p99": commit_latency,
        "the same with a reply of 100 B, in turns with it, p50 · ratio": commit_with_reply,
        f"commits of {WRITERS} threads": group_commits,
        "put 64 MiB from one buffer": put_large,
        "put 64 MiB staged in 1 MiB pieces": put_staged,
        "commit 1 KiB beside such a put, p50 · p99": commit_beside_put,
        "snapshot and stat, p50 · p99": stat_latency,
        "first views of 64 MiB, compared with checksums": view_first,
        "views of 64 MiB again, none copied": view_large,
        "read 64 MiB (summed)": read_large,
    }
    for name, measure in rows.items():
        table.add_row(name, *(run(measure, durability, folder) for durability in Durability))
    Console().print(table)


def run(measure: Callable[[LmdbStore], str], durability: Durability, folder: str | None) -> str:
    """Return what ``measure`` says of a fresh store."""
    with (
        tempfile.TemporaryDirectory(dir=folder) as path,
        LmdbStore(path, limit_bytes=4 << 30, durability=durability) as store,
    ):
        return measure(store)


def commit_latency(store: LmdbStore) -> str:
    return latency(1000, lambda i: store.commit([Write(f"k{i}", [SMALL])]).result())


def commit_with_reply(store: LmdbStore) -> str:
    """What a request costs more that has a ``request_id``."""
    took: tuple[list[int], list[int]] = [], []
    for i in range(1000):
        for with_reply in (False, True):
            writes = [Write(f"k{i % 50}", [SMALL])]
            if with_reply:
                writes.append(Write(f"default/{i:032x}", [SMALL[:100]], namespace=Namespace.REPLIES, must_be_new=True))
            start = time.perf_counter_ns()
            store.commit(writes).result()
            took[with_reply].append(time.perf_counter_ns() - start)
    without, with_it = (statistics.median(times) for times in took)
    return f"{with_it / 1e3:.0f} µs · {with_it / without:.2f}"


def group_commits(store: LmdbStore) -> str:
    each = 200

    def write(thread: int) -> None:
        for i in range(each):
            store.commit([Write(f"k{thread}/{i}", [SMALL])]).result()

    with ThreadPoolExecutor(WRITERS) as threads:
        start = time.perf_counter()
        for _ in threads.map(write, range(WRITERS)):
            pass
        return f"{WRITERS * each / (time.perf_counter() - start):,.0f}/s"


def put_large(store: LmdbStore) -> str:
    value = np.ones(LARGE_BYTES, "u1").data
    return rate(lambda: store.commit([Write("a", [value])]).result())


def put_staged(store: LmdbStore) -> str:
    piece = b"x" * (1 << 20)

    def put() -> None:
        staged = store.stage()
        for _ in range(LARGE_BYTES // len(piece)):
            staged.append(piece)
        store.commit([Write("a", staged)]).result()

    return rate(put)


def commit_beside_put(store: LmdbStore) -> str:
    with repeated(lambda: put_large(store)):
        return latency(200, lambda i: store.commit([Write(f"k{i}", [SMALL])]).result())


def stat_latency(store: LmdbStore) -> str:
    store.commit([Write("a", [SMALL])]).result()

    def stat(_: int) -> None:
        with store.snapshot() as snapshot:
            snapshot.stat("a")

    return latency(5000, stat)


def view_first(store: LmdbStore) -> str:
    times = []
    for _ in range(9):
        store.commit([Write("a", [bytes(LARGE_BYTES)])]).result()
        start = time.perf_counter()
        with store.snapshot() as snapshot:
            list(snapshot.pieces("a"))
        times.append(time.perf_counter() - start)
    return f"{statistics.median(times) * 1e3:.1f} ms"


def view_large(store: LmdbStore) -> str:
    store.commit([Write("a", [bytes(LARGE_BYTES)])]).result()

    def view(_: int) -> None:
        with store.snapshot() as snapshot:
            list(snapshot.pieces("a"))

    return latency(1000, view)


def read_large(store: LmdbStore) -> str:
    store.commit([Write("a", [bytes(LARGE_BYTES)])]).result()

    def read() -> None:
        with store.snapshot() as snapshot:
            for piece in snapshot.pieces("a"):
                total(piece)

    return rate(read)


def total(piece: memoryview) -> int:
    """Touch every byte; in a function, so that the array is gone before the snapshot."""
    return int(np.frombuffer(piece, "u8").sum())


def latency(count: int, work: Callable[[int], object]) -> str:
    """Return the median and the 99th percentile."""
    times = []
    for i in range(count):
        start = time.perf_counter()
        work(i)
        times.append((time.perf_counter() - start) * 1e6)
    centiles = statistics.quantiles(times, n=100)
    return f"{centiles[49]:,.0f} · {centiles[98]:,.0f} µs"


def rate(work: Callable[[], object]) -> str:
    """Return the median speed of moving a large value."""
    times = []
    for _ in range(9):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return f"{LARGE_BYTES / statistics.median(times) / 1e9:.2f} GB/s"


@contextmanager
def repeated(work: Callable[[], object]) -> Iterator[None]:
    """Do ``work`` again and again in another thread."""
    done = False

    def loop() -> None:
        while not done:
            work()

    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(loop)
        try:
            yield
        finally:
            done = True
            future.result()


if __name__ == "__main__":
    main()
