"""What the executor promises whatever it keeps on the device: the right bytes, never old ones, and errors that change nothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kaas_core.errors import CancelledError, KeyNotFoundError, OutOfDeviceMemoryError, ValueTooShortError
from kaas_core.protobuf import request_to_proto
from kaas_core.request import Access, BufferArgument, BufferSpec, KernelSpec, Literal, Request
from kaasd.devices.base import Device
from kaasd.ipc.messages import SerializedRequest
from kaasd.libraries.registry import Libraries, describe_library
from kaasd.store.base import Write
from kaasd.store.lmdb_store import LmdbStore
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.execution import Invocation, Job, Result, execute
from kaasd.worker.executor import Executor
from kaasd.worker.preparation import prepare
from tests.conformance.launching import library

SMALL, LARGE = 1024, 50_000
"""Elements of 4 bytes: below and above what travels with the launches."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    """A store whose chunks are smaller than the large values."""
    with LmdbStore(tmp_path / "store", limit_bytes=256 << 20, chunk_bytes=64 << 10) as opened:
        libraries = Libraries(opened)
        libraries.put(describe_library(library("dot")), library("dot"))
        yield opened


class Bench:
    """An executor and its store, with NumPy arrays as values."""

    def __init__(self, executor: Executor, store: LmdbStore) -> None:
        self.executor = executor
        self.store = store
        self.library = describe_library(library("dot")).id

    def put(self, key: str, value: np.ndarray) -> None:
        self.store.commit([Write(key, [value.tobytes()])]).result()

    def get(self, key: str) -> np.ndarray:
        with self.store.snapshot() as snapshot:
            return np.frombuffer(b"".join(snapshot.pieces(key)), np.uint32)

    def product(self, n: int, a: BufferSpec, b: BufferSpec, p: BufferSpec, access: Access = Access.OUTPUT) -> KernelSpec:
        """Return p = a * b."""
        arguments = (
            Literal("Q", n),
            BufferArgument(a.name, Access.INPUT),
            BufferArgument(b.name, Access.INPUT),
            BufferArgument(p.name, access),
        )
        return KernelSpec(self.library, "prodKern", (-(-n // 256), 1, 1), (256, 1, 1), arguments)

    def multiply(self, n: int, *, constant: bool = False, offset: int = 0) -> SerializedRequest:
        """Return the request p = a * b."""
        a = BufferSpec("a", 4 * n, offset_bytes=offset)
        b, p = BufferSpec("b", 4 * n, constant=constant), BufferSpec("p", 4 * n)
        return serialize(Request((self.product(n, a, b, p),), (a, b, p)))

    def begin(
        self,
        request: SerializedRequest,
        keys: Mapping[str, str] | None = None,
        inputs: Mapping[str, bytes] | None = None,
        return_buffers: Sequence[str] = (),
    ) -> Job[Result]:
        invocation = Invocation(request, keys or {}, inputs or {}, return_buffers, Cancellation())
        return execute(self.executor, invocation)

    def prepare(self, request: SerializedRequest) -> None:
        job = Job(prepare(self.executor, request, Cancellation()))
        while not job.poll():
            job.wait()

    def run(
        self,
        request: SerializedRequest,
        keys: Mapping[str, str] | None = None,
        inputs: Mapping[str, bytes] | None = None,
        return_buffers: Sequence[str] = (),
    ) -> Result:
        return finish([self.begin(request, keys, inputs, return_buffers)])[0]


def serialize(request: Request) -> SerializedRequest:
    return SerializedRequest.of(request_to_proto(request).SerializeToString(deterministic=True))


def numbers(seed: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**32, n, dtype=np.uint32)


def finish(jobs: Sequence[Job[Result]]) -> list[Result]:
    """Poll all jobs in turns until each has its result."""
    results: dict[int, Result] = {}
    while len(results) < len(jobs):
        for index, job in enumerate(jobs):
            if index not in results and (result := job.poll()) is not None:
                results[index] = result
    return [results[index] for index in range(len(jobs))]


@pytest.fixture
def bench(device: Device, store: LmdbStore) -> Iterator[Bench]:
    with closing(Executor(device, store, Libraries(store))) as executor:
        yield Bench(executor, store)


def devices(device: Device, device_name: str) -> Iterator[tuple[str, Device]]:
    """Yield devices that differ in how they launch, one after the other."""
    yield "", device
    if device_name.startswith("cuda"):
        from kaasd.devices.cuda.device import CudaDevice

        for name, plain_starts in ((", graphs at once", 0), (", no graphs", None)):
            with closing(CudaDevice(0, plain_starts=plain_starts)) as other:
                yield name, other


def variants(device: Device, device_name: str, store: LmdbStore, tiny_bytes: int) -> Iterator[tuple[str, Bench]]:
    """Yield executors that differ in what they keep, too; nothing of all this must show."""
    for name, each in devices(device, device_name):
        for kind, limit, unused in (
            ("all stays", None, None),
            ("nothing stays", None, 0),
            ("little memory", tiny_bytes, None),
        ):
            libraries = Libraries(store)
            with closing(Executor(each, store, libraries, memory_limit_bytes=limit, unused_limit_bytes=unused)) as executor:
                yield kind + name, Bench(executor, store)


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_what_stays_on_the_device_does_not_show(n: int, device: Device, device_name: str, store: LmdbStore) -> None:
    for name, bench in variants(device, device_name, store, tiny_bytes=13 * n):
        rng = random.Random(n)
        values = {key: numbers(index, n) for index, key in enumerate("abcd")}
        for key, value in values.items():
            bench.put(key, value)
        request = bench.multiply(n)
        for step in range(25):
            if step % 3 == 2:
                key = rng.choice("abcd")
                values[key] = numbers(100 + step, n)
                bench.put(key, values[key])
            keys = {"a": rng.choice("abcd"), "b": rng.choice("abcd"), "p": f"p{step}"}
            result = bench.run(request, keys, return_buffers=["p"])
            expected = values[keys["a"]] * values[keys["b"]]
            assert np.array_equal(np.frombuffer(result.outputs["p"], np.uint32), expected), (name, step)
            assert np.array_equal(bench.get(keys["p"]), expected), (name, step)


def test_an_output_is_the_next_input_at_once(bench: Bench) -> None:
    value, factor = numbers(1, LARGE), numbers(2, LARGE)
    bench.put("a", value)
    bench.put("b", factor)
    request = bench.multiply(LARGE)
    for _ in range(6):
        bench.run(request, {"p": "a"})
        value = value * factor
        assert np.array_equal(bench.get("a"), value)


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_inline_bytes_go_before_what_is_stored_or_kept(n: int, bench: Bench) -> None:
    stored, factor = numbers(1, n), numbers(2, n)
    bench.put("a", stored)
    bench.put("b", factor)
    for constant in (False, True):
        request = bench.multiply(n, constant=constant)
        for seed in range(4):
            given = numbers(10 + seed, n)
            for name in ("a", "b"):
                other = factor if name == "a" else stored
                result = bench.run(request, inputs={name: given.tobytes()}, return_buffers=["p"])
                assert np.array_equal(np.frombuffer(result.outputs["p"], np.uint32), given * other)
            result = bench.run(request, return_buffers=["p"])
            assert np.array_equal(np.frombuffer(result.outputs["p"], np.uint32), stored * factor)


def test_a_constant_is_kept_and_anything_else_is_not_taken_for_it(bench: Bench) -> None:
    bench.put("a", np.ones(LARGE, np.uint32))
    bench.put("b", np.full(LARGE, 5, np.uint32))
    assert bench.run(bench.multiply(LARGE, constant=True), return_buffers=["p"]).outputs["p"][:4] == b"\5\0\0\0"
    bench.put("b", np.full(LARGE, 6, np.uint32))
    assert bench.run(bench.multiply(LARGE, constant=True), return_buffers=["p"]).outputs["p"][:4] == b"\5\0\0\0"
    assert bench.run(bench.multiply(LARGE), return_buffers=["p"]).outputs["p"][:4] == b"\6\0\0\0"


def test_a_deleted_value_is_not_found_though_it_was_on_the_device(bench: Bench) -> None:
    for n in (SMALL, LARGE):
        for key in "ab":
            bench.put(key, numbers(3, n))
        request = bench.multiply(n)
        bench.run(request)
        bench.store.delete("b").result()
        with pytest.raises(KeyNotFoundError):
            bench.run(request)
        bench.put("b", numbers(4, n)[: n // 2])
        with pytest.raises(ValueTooShortError):
            bench.run(request)
        bench.put("b", numbers(5, n))
        assert np.array_equal(
            np.frombuffer(bench.run(request, return_buffers=["p"]).outputs["p"], np.uint32), numbers(3, n) * numbers(5, n)
        )


def test_one_copy_serves_all_who_read_a_value(bench: Bench) -> None:
    bench.put("a", numbers(1, LARGE))
    bench.put("b", numbers(2, LARGE))
    bench.run(bench.multiply(LARGE), {"p": "p0"})
    held = bench.executor.memory.held_bytes
    assert held >= 12 * LARGE
    a, p = BufferSpec("x", 4 * LARGE, key="a"), BufferSpec("q", 4 * LARGE)
    other = serialize(Request((bench.product(LARGE, a, a, p),), (a, p)))
    result = bench.run(other, return_buffers=["q"])
    assert np.array_equal(np.frombuffer(result.outputs["q"], np.uint32), numbers(1, LARGE) ** 2)
    assert bench.executor.memory.held_bytes == held + 4 * LARGE


def test_ranges_of_one_value_are_told_apart(bench: Bench) -> None:
    value = numbers(1, 3 * LARGE)
    bench.put("a", value)
    bench.put("b", np.ones(LARGE, np.uint32))
    for start in (0, LARGE, 7, 2 * LARGE, 0):
        result = bench.run(bench.multiply(LARGE, offset=4 * start), return_buffers=["p"])
        assert np.array_equal(np.frombuffer(result.outputs["p"], np.uint32), value[start : start + LARGE])


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_what_is_loaded_and_written_starts_anew(n: int, bench: Bench) -> None:
    x, m = BufferSpec("x", 4 * n), BufferSpec("m", 4 * n)
    request = serialize(Request((bench.product(n, m, x, x, Access.INOUT),), (x, m), iterations=3))
    bench.put("m", numbers(1, n))
    for seed in range(4):
        value = numbers(10 + seed, n)
        bench.put("x", value)
        bench.run(request)
        assert np.array_equal(bench.get("x"), value * numbers(1, n) ** 3)


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_what_is_not_loaded_starts_as_zeros_each_time(n: int, bench: Bench) -> None:
    a, t, p = BufferSpec("a", 4 * n), BufferSpec("t", 4 * n, ephemeral=True), BufferSpec("p", 4 * n)
    half = bench.product(n // 2, a, a, t, Access.TEMPORARY)
    request = serialize(Request((half, bench.product(n, t, a, p)), (a, t, p)))
    for seed in range(4):
        value = numbers(seed, n)
        bench.put("a", value)
        result = bench.run(request, return_buffers=["p", "t"])
        expected = np.concatenate([value[: n // 2] ** 2, np.zeros(n - n // 2, np.uint32)])
        assert np.array_equal(np.frombuffer(result.outputs["t"], np.uint32), expected)
        assert np.array_equal(bench.get("p"), expected * value)


@pytest.mark.parametrize("n", [SMALL, LARGE])
def test_requests_of_one_function_at_once(n: int, bench: Bench) -> None:
    request = bench.multiply(n)
    bench.put("b", numbers(0, n))
    for _ in range(3):
        jobs = []
        for seed in range(12):
            bench.put(f"a{seed}", numbers(seed + 1, n))
            jobs.append(bench.begin(request, {"a": f"a{seed}", "p": f"p{seed}"}, return_buffers=["p"]))
        results = finish(jobs)
        for seed, result in enumerate(results):
            expected = numbers(seed + 1, n) * numbers(0, n)
            assert np.array_equal(np.frombuffer(result.outputs["p"], np.uint32), expected)
            assert np.array_equal(bench.get(f"p{seed}"), expected)


def test_requests_wait_for_memory_that_others_use(device: Device, store: LmdbStore) -> None:
    with closing(Executor(device, store, Libraries(store), memory_limit_bytes=13 * LARGE)) as executor:
        bench = Bench(executor, store)
        request = bench.multiply(LARGE)
        for seed in range(6):
            bench.put(f"v{seed}", numbers(seed, LARGE))
        jobs = [bench.begin(request, {"a": f"v{seed}", "b": f"v{5 - seed}", "p": f"p{seed}"}) for seed in range(6)]
        finish(jobs)
        for seed in range(6):
            assert np.array_equal(bench.get(f"p{seed}"), numbers(seed, LARGE) * numbers(5 - seed, LARGE))
        assert executor.memory.held_bytes <= 13 * LARGE


def test_more_than_the_limit_is_an_error_that_says_how_much(device: Device, store: LmdbStore) -> None:
    with closing(Executor(device, store, Libraries(store), memory_limit_bytes=10 * LARGE)) as executor:
        bench = Bench(executor, store)
        for key in "ab":
            bench.put(key, numbers(1, LARGE))
        with pytest.raises(OutOfDeviceMemoryError) as error:
            bench.run(bench.multiply(LARGE))
        assert error.value.metadata["asked_bytes"] == str(12 * LARGE)
        assert error.value.metadata["limit_bytes"] == str(10 * LARGE)
        bench.put("c", numbers(1, SMALL))
        bench.run(bench.multiply(SMALL), {"a": "c", "b": "c"})


def test_a_cancelled_request_changes_nothing(bench: Bench) -> None:
    for key in "ab":
        bench.put(key, numbers(1, LARGE))

    cancellation = Cancellation()
    cancellation.reason = CancelledError("the caller went away")
    job = execute(bench.executor, Invocation(bench.multiply(LARGE), {}, {}, [], cancellation))
    with pytest.raises(CancelledError):
        finish([job])
    with pytest.raises(KeyNotFoundError):
        bench.get("p")
    bench.run(bench.multiply(LARGE))
    assert np.array_equal(bench.get("p"), numbers(1, LARGE) ** 2)


def test_a_job_that_is_closed_frees_what_it_holds(bench: Bench) -> None:
    for key in "ab":
        bench.put(key, numbers(1, LARGE))
    job = bench.begin(bench.multiply(LARGE))
    job.poll()
    job.close()
    job.close()
    bench.run(bench.multiply(LARGE))
    assert np.array_equal(bench.get("p"), numbers(1, LARGE) ** 2)
    assert bench.executor.memory.held_bytes == 12 * LARGE


@pytest.mark.parametrize("constant", [False, True])
def test_preparing_does_not_need_what_is_not_there_yet(constant: bool, bench: Bench) -> None:
    request = bench.multiply(LARGE, constant=constant)
    bench.prepare(request)
    for key in "ab":
        bench.put(key, numbers(1, LARGE))
    bench.prepare(request)
    assert bench.executor.memory.held_bytes == 12 * LARGE
    bench.put("a", numbers(2, LARGE))
    bench.run(request)
    assert np.array_equal(bench.get("p"), numbers(1, LARGE) * numbers(2, LARGE))
