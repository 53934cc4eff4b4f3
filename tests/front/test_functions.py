"""Requests validated once: what a caller's buffers are checked against, and the registry of functions, on a real store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import pytest

from kaas.v1 import executor_pb2, types_pb2
from kaas_core.errors import DataDamagedError, FunctionNotFoundError, InvalidArgumentError, InvalidRequestError
from kaasd.front.functions import FunctionRegistry, RegisteredFunction, RequestValidator, ValidatedRequest, describe
from kaasd.store.base import Durability, Namespace, Write
from kaasd.store.lmdb_store import LmdbStore

LIBRARY = "sha256:" + "b" * 64


def request(*uses: tuple[str, int], size: int = 8, ephemeral: tuple[str, ...] = ()) -> types_pb2.Request:
    """Return a request of one kernel that uses its buffers so."""
    names = dict.fromkeys(name for name, _ in uses)
    return types_pb2.Request(
        kernels=[
            types_pb2.KernelSpec(
                library=LIBRARY,
                name="k",
                grid=types_pb2.Dim3(x=1),
                block=types_pb2.Dim3(x=1),
                arguments=[
                    types_pb2.Argument(buffer=types_pb2.BufferArgument(buffer=name, access=access)) for name, access in uses
                ],
            )
        ],
        buffers=[
            *(types_pb2.BufferSpec(name=name, size_bytes=size, ephemeral=name in ephemeral) for name in names),
            types_pb2.BufferSpec(name="unused", size_bytes=1),
        ],
    )


async def call_here(size_bytes: int, function: Callable[..., Any], *arguments: object) -> Any:
    return function(*arguments)


def validated(message: types_pb2.Request, validator: RequestValidator | None = None) -> ValidatedRequest:
    return asyncio.run((validator or RequestValidator(call_here)).validate(message))


@pytest.fixture
def valid() -> ValidatedRequest:
    message = request(
        ("in", types_pb2.ACCESS_INPUT),
        ("out", types_pb2.ACCESS_OUTPUT),
        ("both", types_pb2.ACCESS_INOUT),
        ("scratch", types_pb2.ACCESS_TEMPORARY),
        ("passing", types_pb2.ACCESS_INPUT),
        ephemeral=("passing",),
    )
    return validated(message)


def fields(call: Callable[[], object]) -> list[str]:
    with pytest.raises(InvalidRequestError) as raised:
        call()
    return [violation.field for violation in raised.value.violations]


def test_what_may_be_given_inline(valid: ValidatedRequest) -> None:
    valid.check_inputs({"in": bytes(8), "both": bytes(8), "passing": bytes(8)})
    bad = {"out": bytes(8), "scratch": bytes(8), "unused": b"1", "absent": b"", "in": bytes(9)}
    assert fields(lambda: valid.check_inputs(bad)) == [f'inputs["{name}"]' for name in bad]


def test_what_may_be_bound_to_a_key(valid: ValidatedRequest) -> None:
    valid.check_keys({"in": "k", "out": "k2", "both": "ä" * 200})
    bad = {"scratch": "k", "passing": "k", "unused": "k", "absent": "k", "in": "", "out": "ä" * 201}
    assert fields(lambda: valid.check_keys(bad)) == [f'bindings["{name}"]' for name in bad]


def test_what_may_be_returned(valid: ValidatedRequest) -> None:
    assert valid.check_return_buffers([]) == 0
    assert valid.check_return_buffers(["out", "scratch", "out", "passing"]) == 24
    assert fields(lambda: valid.check_return_buffers(["out", "absent", "unused"])) == [
        "return_buffers[1]",
        "return_buffers[2]",
    ]


def test_a_request_seen_before_is_not_validated_again() -> None:
    validator = RequestValidator(call_here)
    message = request(("a", types_pb2.ACCESS_INPUT))
    same = types_pb2.Request.FromString(message.SerializeToString())
    assert validated(message, validator) is validated(same, validator)
    assert validated(message, validator) is not validated(request(("a", types_pb2.ACCESS_INPUT), size=9), validator)


def test_a_bad_request_is_never_remembered() -> None:
    validator = RequestValidator(call_here)
    for _ in range(2):
        assert fields(lambda: validated(request(("a", types_pb2.ACCESS_UNSPECIFIED)), validator)) == ["kernels[0].arguments[0]"]


def test_the_cache_is_bounded() -> None:
    first = request(("a", types_pb2.ACCESS_INPUT), size=1)
    validator = RequestValidator(call_here, limit_bytes=3 * len(first.SerializeToString()))
    kept = validated(first, validator)
    for size in range(2, 10):
        validated(request(("a", types_pb2.ACCESS_INPUT), size=size), validator)
    assert validated(first, validator) is not kept


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    with LmdbStore(tmp_path / "store", limit_bytes=64 << 20, durability=Durability.NONE) as opened:
        yield opened


def function(name: str, kernel: str = "k") -> RegisteredFunction:
    argument = types_pb2.Argument(buffer=types_pb2.BufferArgument(buffer="a", access=types_pb2.ACCESS_INPUT))
    spec = types_pb2.KernelSpec(
        library=LIBRARY, name=kernel, grid=types_pb2.Dim3(x=1), block=types_pb2.Dim3(x=1), arguments=[argument]
    )
    return describe(name, types_pb2.Request(kernels=[spec], buffers=[types_pb2.BufferSpec(name="a", size_bytes=8)]))


def registry(store: LmdbStore, *functions: RegisteredFunction) -> FunctionRegistry:
    async def fill() -> FunctionRegistry:
        filled = FunctionRegistry(store)
        for one in functions:
            await filled.register(one)
        return filled

    return asyncio.run(fill())


def kernel_of(registered: RegisteredFunction) -> str:
    return types_pb2.Request.FromString(registered.validated.serialized.content).kernels[0].name


def test_a_function_is_ready_to_be_invoked(store: LmdbStore) -> None:
    got = registry(store, function("f", "sum")).get("f")
    assert got.function.name == "f"
    assert kernel_of(got) == "sum"
    got.validated.check_inputs({"a": bytes(8)})


def test_registering_again_replaces(store: LmdbStore) -> None:
    functions = registry(store, function("f", "old"), function("f", "new"))
    assert kernel_of(functions.get("f")) == "new"
    assert len(functions) == 1


def test_functions_outlive_the_registry(store: LmdbStore) -> None:
    many = [function(f"f{number:04}", f"k{number}") for number in range(1005)]
    before = registry(store, *many)
    after = registry(store)
    assert len(after) == 1005
    assert after.list(limit=2000) == before.list(limit=2000) == [one.function for one in many]
    assert after.get("f0999").validated == before.get("f0999").validated


def test_a_deleted_function_stays_away(store: LmdbStore) -> None:
    async def scenario() -> None:
        functions = FunctionRegistry(store)
        await functions.register(function("f"))
        await functions.delete("f")
        with pytest.raises(FunctionNotFoundError, match="'f'"):
            functions.get("f")
        with pytest.raises(FunctionNotFoundError):
            await functions.delete("f")

    asyncio.run(scenario())
    assert len(registry(store)) == 0


class HeldStore:
    """The real store; what is asked of it is done at once, and answered by ``answer_last``."""

    def __init__(self, store: LmdbStore) -> None:
        self.snapshot = store.snapshot
        self._store = store
        self._unanswered: list[tuple[Future[Any], object]] = []

    def commit(self, writes: Sequence[Write]) -> Future[Any]:
        return self._hold(self._store.commit(writes).result())

    def delete(self, key: str, namespace: Namespace) -> Future[Any]:
        return self._hold(self._store.delete(key, namespace).result())

    def answer_last(self) -> None:
        if self._unanswered:
            future, result = self._unanswered.pop()
            future.set_result(result)

    def _hold(self, result: object) -> Future[Any]:
        self._unanswered.append((Future(), result))
        return self._unanswered[-1][0]


@pytest.mark.parametrize("calls", [("register", "register"), ("register", "delete"), ("delete", "register")])
def test_memory_follows_the_store_whatever_order_it_answers_in(store: LmdbStore, calls: tuple[str, str]) -> None:
    registry(store, function("f", "old"))

    async def scenario() -> list[executor_pb2.Function]:
        held = HeldStore(store)
        functions = FunctionRegistry(cast("LmdbStore", held))
        writers = [
            asyncio.ensure_future(
                functions.register(function("f", f"k{number}")) if call == "register" else functions.delete("f")
            )
            for number, call in enumerate(calls)
        ]
        while not all(writer.done() for writer in writers):
            await asyncio.sleep(0)  # both writers run as far as they come
            held.answer_last()
        await asyncio.gather(*writers)
        return functions.list()

    in_memory = asyncio.run(scenario())
    assert registry(store).list() == in_memory


def test_what_this_version_cannot_read_is_left_alone(store: LmdbStore, caplog: pytest.LogCaptureFixture) -> None:
    registry(store, function("good"))
    later = executor_pb2.Function(name="later", request=types_pb2.Request()).SerializeToString()
    writes = [Write("broken", [b"\xff\xff\xff"], namespace=Namespace.FUNCTIONS)]
    writes.append(Write("later", [later], namespace=Namespace.FUNCTIONS))
    store.commit(writes).result(30)
    with caplog.at_level(logging.WARNING):
        functions = registry(store)
    assert [one.name for one in functions.list()] == ["good"]
    assert "broken" in caplog.text and "later" in caplog.text
    with store.snapshot() as snapshot:
        assert len(snapshot.list(namespace=Namespace.FUNCTIONS)) == 3


@pytest.mark.parametrize("ends", ["register", "delete"])
def test_a_damaged_function_is_an_error_until_it_is_replaced_or_deleted(store: LmdbStore, ends: str) -> None:
    registry(store, function("f", "old"))
    environment = store._environment
    with environment.write() as txn:
        database = environment.entries[Namespace.FUNCTIONS]
        txn.put(b"f", bytes(txn.get(b"f", db=database))[:-1], db=database)

    async def scenario() -> None:
        functions = FunctionRegistry(store)
        with pytest.raises(DataDamagedError, match="the function 'f' is damaged"):
            functions.get("f")
        assert functions.list() == [executor_pb2.Function(name="f")]
        if ends == "register":
            await functions.register(function("f", "new"))
            assert kernel_of(functions.get("f")) == "new"
            await functions.delete("f")
        else:
            await functions.delete("f")
        with pytest.raises(FunctionNotFoundError, match="'f'"):
            functions.get("f")
        with pytest.raises(FunctionNotFoundError):
            await functions.delete("f")

    asyncio.run(scenario())
    assert len(registry(store)) == 0


def test_damaged_functions_are_listed_in_their_place(store: LmdbStore) -> None:
    registry(store, *(function(name) for name in "abcd"))
    environment = store._environment
    with environment.write() as txn:
        database = environment.entries[Namespace.FUNCTIONS]
        for name in (b"b", b"d"):
            txn.put(name, bytes(txn.get(name, db=database))[:-1], db=database)
    functions = registry(store)
    assert [(one.name, one.HasField("request")) for one in functions.list()] == [
        ("a", True),
        ("b", False),
        ("c", True),
        ("d", False),
    ]
    assert [one.name for one in functions.list(after="a", limit=2)] == ["b", "c"]
    assert len(functions) == 2


def test_which_functions_have_a_request(store: LmdbStore) -> None:
    functions = registry(store, *map(function, ("c", "a", "b")), function("other", "k2"))
    digest, other = (functions.get(name).validated.serialized.digest for name in ("a", "other"))
    assert functions.names_by_request({digest, b"unknown"}, 2) == {digest: ["a", "b"], b"unknown": []}
    assert functions.names_by_request({digest, other}, 10) == {digest: ["a", "b", "c"], other: ["other"]}


def test_listing(store: LmdbStore) -> None:
    functions = registry(store, *(function(name) for name in ["b", "a/2", "a/1", "a/3", "A"]))
    assert [one.name for one in functions.list()] == ["A", "a/1", "a/2", "a/3", "b"]
    assert [one.name for one in functions.list(prefix="a/", after="a/1", limit=1)] == ["a/2"]
    assert functions.list(prefix="c") == []


@pytest.mark.parametrize("name", ["a", "x" * 200, "Zz09._-/"])
def test_good_names(name: str) -> None:
    assert function(name).function.name == name


@pytest.mark.parametrize("name", ["", "x" * 201, "a b", "a:b", "é", "a\n", "٣"])
def test_bad_names(store: LmdbStore, name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="is not a valid function name"):
        function(name)
    with pytest.raises(InvalidArgumentError, match="is not a valid function name"):
        registry(store).get(name)


def test_a_bad_request_is_no_function() -> None:
    with pytest.raises(InvalidRequestError, match="kernels"):
        describe("f", types_pb2.Request())


def test_defaults_are_filled_in() -> None:
    described = function("f").function
    assert described.request.iterations == 1
    assert described.request.buffers[0].key == "a"
    assert described.request.kernels[0].block == types_pb2.Dim3(x=1, y=1, z=1)
    assert described.create_time.seconds > 0
