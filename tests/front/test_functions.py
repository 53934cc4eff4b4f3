"""The registry of functions, on a real store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaas.v1 import executor_pb2, types_pb2
from kaas_core.errors import FunctionNotFoundError, InvalidArgumentError, InvalidRequestError
from kaasd.front.functions import FunctionRegistry, RegisteredFunction, describe
from kaasd.store.base import Namespace, Write
from kaasd.store.lmdb_store import LmdbStore

LIBRARY = "sha256:" + "b" * 64


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbStore]:
    with LmdbStore(tmp_path / "store", limit_bytes=64 << 20) as opened:
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
    return types_pb2.Request.FromString(registered.checked.serialized.content).kernels[0].name


def test_a_function_is_ready_to_be_invoked(store: LmdbStore) -> None:
    got = registry(store, function("f", "sum")).get("f")
    assert got.function.name == "f"
    assert kernel_of(got) == "sum"
    got.checked.check_inputs({"a": bytes(8)})


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
    assert after.get("f0999").checked == before.get("f0999").checked


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


def test_writers_at_once_leave_memory_and_store_alike(store: LmdbStore) -> None:
    async def scenario() -> str:
        functions = FunctionRegistry(store)
        await asyncio.gather(*(functions.register(function("f", f"k{number}")) for number in range(50)))
        return kernel_of(functions.get("f"))

    in_memory = asyncio.run(scenario())
    assert kernel_of(registry(store).get("f")) == in_memory


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
    with pytest.raises(InvalidArgumentError, match="is no function name"):
        function(name)
    with pytest.raises(InvalidArgumentError, match="is no function name"):
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
