"""Compacting the store between and beside requests: the device sees what is stored, and never what its pages held before."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from kaas_client import Client, Request, inp, out
from kaasd.devices.base import Device
from kaasd.libraries.registry import Libraries, describe_library
from kaasd.store.lmdb_store import LmdbStore
from kaasd.worker.executor import Executor
from tests.conformance.launching import library
from tests.conformance.test_executor import Bench
from tests.conformance.test_requests import numbers, product

N = 6 << 20
"""Elements: the values are of several chunks, and on a GPU of pages that the driver has registered."""


@pytest.fixture
def multiply(dot: str) -> Request:
    """p = a * b."""
    return Request([product(dot, inp("a", 4 * N), inp("b", 4 * N), out("p", 4 * N), n=N)])


def submitted(kaas: Client, multiply: Request, a: np.ndarray, b: np.ndarray) -> None:
    """Put the inputs, run the request, and check its output."""
    kaas.put("a", a)
    kaas.put("b", b)
    kaas.submit(multiply)
    np.testing.assert_array_equal(kaas.get("p", dtype="u4"), a * b)


def test_values_put_where_blocks_were_given_back_are_those_that_the_device_reads(kaas: Client, multiply: Request) -> None:
    """The second request's inputs lie in pages that the first one's lay in, which the driver had registered."""
    submitted(kaas, multiply, numbers(1, N), numbers(2, N))
    for round_ in range(3):
        for key in ("a", "b", "p"):
            kaas.delete(key)
        done = kaas.compact_store()
        assert done.disk_after_bytes < done.disk_before_bytes - 8 * N
        submitted(kaas, multiply, numbers(10 + round_, N), numbers(20 + round_, N))
        assert kaas.compact_store().file_after_bytes < 2 * done.file_before_bytes
    for key in ("a", "b", "p"):
        kaas.delete(key)


def test_requests_go_on_while_the_store_is_compacted(kaas: Client, address: str, multiply: Request) -> None:
    stop, failed = threading.Event(), list[Exception]()
    compacted = 0

    def compact() -> None:
        nonlocal compacted
        with Client(address) as other:
            while not stop.is_set():
                try:
                    other.compact_store()
                    compacted += 1
                except Exception as error:
                    failed.append(error)
                    return

    thread = threading.Thread(target=compact)
    thread.start()
    try:
        for seed in range(6):
            submitted(kaas, multiply, numbers(seed, N), numbers(seed + 100, N))
            kaas.delete("a")
    finally:
        stop.set()
        thread.join()
    assert failed == []
    assert compacted >= 2


def test_an_executor_holds_no_pages_while_it_must_not(device: Device, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("compaction") / "store"
    with LmdbStore(path, limit_bytes=512 << 20) as store:
        libraries = Libraries(store)
        libraries.put(describe_library(library("dot")), library("dot"))
        executor = Executor(device, store, libraries)
        bench = Bench(executor, store)
        multiply, b = bench.multiply(N), numbers(3, N)
        bench.put("b", b)
        for seed in range(6):
            a = numbers(seed, N)
            bench.put("a", a)
            bench.run(multiply)
            np.testing.assert_array_equal(bench.get("p"), a * b)
            executor.hold_pages(allowed=False)
            store.delete("a").result()
            store.compact()
            a = numbers(seed + 50, N)
            bench.put("a", a)
            bench.run(multiply)
            np.testing.assert_array_equal(bench.get("p"), a * b)
            store.delete("a").result()
            store.compact()
            executor.hold_pages(allowed=True)
        executor.close()
