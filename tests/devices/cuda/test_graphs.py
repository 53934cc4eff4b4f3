"""How launches become a graph, and how small ranges are moved; the driver's functions are replaced by recorders."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest
from cuda.bindings import driver

from kaasd.devices.cuda.context import MAX_IDLE_BYTES, LaneKind, PinnedPool, capacity_of
from kaasd.devices.cuda.driver import CudaError, check
from kaasd.devices.cuda.graph import MAX_REPEATED_LAUNCHES, CallRefused, CudaGraph, split_iterations
from kaasd.devices.cuda.kernel import CudaKernel, LoadedCode
from kaasd.devices.cuda.launch import KernelCall
from kaasd.devices.cuda.moves import RANGES, move_calls
from kaasd.request.device_checks import PLAIN, KernelAttributes, LaunchAttributes

CODE = LoadedCode("library", "module")
KERNEL = CudaKernel("function", KernelAttributes("k", (768, 8, 8), 0, 1024), CODE)


@pytest.mark.parametrize("launches", [1, 2, 3, 90, 129, 256, 800])
@pytest.mark.parametrize("iterations", [1, 2, 3, 127, 128, 1499, 1500, 100_003])
def test_every_iteration_runs_once(launches: int, iterations: int) -> None:
    single, inside, repeats = split_iterations(launches, iterations)
    assert single + inside * repeats == iterations
    assert inside >= 1 <= repeats
    assert inside == 1 or inside * launches <= MAX_REPEATED_LAUNCHES
    assert single <= iterations / 50


def test_no_launch_at_all() -> None:
    assert split_iterations(0, 1) == (0, 1, 1)


def read_call(call: KernelCall, monkeypatch: pytest.MonkeyPatch) -> tuple[tuple[Any, ...], list[tuple[int, int, int]], list[int]]:
    """Return grid and block, the ranges, and the three addresses of one launch of moveKern."""
    seen: list[Any] = []

    def cuLaunchKernel(*arguments: Any) -> tuple[Any, ...]:
        pointers = (ctypes.c_uint64 * 4).from_address(arguments[-2])
        table, *addresses = (ctypes.string_at(pointer, size) for pointer, size in zip(pointers, (768, 8, 8, 8), strict=True))
        ranges = [each for each in struct.iter_unpack("<QQQ", table) if each != (0, 0, 0)]
        seen.append((arguments[1:7], ranges, [int.from_bytes(address, "little") for address in addresses]))
        return (driver.CUresult.CUDA_SUCCESS,)

    monkeypatch.setattr(driver, "cuLaunchKernel", cuLaunchKernel)
    call.enqueue("stream")
    return seen[0]  # type: ignore[no-any-return]


def test_moves_share_launches_and_the_last_one_sets_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = [(0x1000 * i, 0x10, 100 + i) for i in range(1, RANGES + 4)]
    first, last = (read_call(call, monkeypatch) for call in move_calls(KERNEL, moves, 0xAA, 0xBB, ended=0xCC))
    assert first == ((1, RANGES, 1, 256, 1, 1), moves[:RANGES], [0, 0, 0])
    assert last == ((1, 3, 1, 256, 1, 1), moves[RANGES:], [0xAA, 0xBB, 0xCC])


def test_the_first_launch_tells_when_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    moves = [(0x1000 * i, 0x10, 100 + i) for i in range(1, RANGES + 4)]
    told = [read_call(call, monkeypatch)[2] for call in move_calls(KERNEL, moves, begun=0xDD)]
    assert told == [[0, 0, 0xDD], [0, 0, 0]]
    assert [read_call(call, monkeypatch) for call in move_calls(KERNEL, [], begun=0xDD)] == [
        ((1, 1, 1, 256, 1, 1), [], [0, 0, 0xDD])
    ]


def test_a_flag_needs_a_launch_and_nothing_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    (only,) = (read_call(call, monkeypatch) for call in move_calls(KERNEL, [], 0xAA, 0xBB))
    assert only == ((1, 1, 1, 256, 1, 1), [], [0xAA, 0xBB, 0])
    assert list(move_calls(KERNEL, [])) == []


def test_large_ranges_get_more_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    (call,) = (read_call(call, monkeypatch) for call in move_calls(KERNEL, [(1 << 20, 0, 5), (1 << 21, 0, 40_000)]))
    assert call[0] == (3, 2, 1, 256, 1, 1)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record what is done to graphs."""
    done: list[tuple[Any, ...]] = []
    success = driver.CUresult.CUDA_SUCCESS

    def add(graph: Any, before: list[Any], count: int, parameters: Any) -> tuple[Any, ...]:
        assert count == len(before)
        if parameters.gridDimX == 13:
            return driver.CUresult.CUDA_ERROR_INVALID_VALUE, None
        done.append(("add", *before, f"node{len(done)}"))
        return success, done[-1][-1]

    def record(name: str, *results: Any) -> None:
        def call(*arguments: Any) -> tuple[Any, ...]:
            done.append((name, *arguments))
            return success, *results

        monkeypatch.setattr(driver, name, call)

    monkeypatch.setattr(driver, "cuGraphCreate", lambda flags: (success, "graph"))
    monkeypatch.setattr(driver, "cuGraphAddKernelNode", add)
    monkeypatch.setattr(driver, "cuGetErrorString", lambda _: (success, b""))
    record("cuGraphInstantiate", "executable")
    record("cuGraphExecKernelNodeSetParams")
    record("cuGraphKernelNodeSetAttribute")
    record("cuGraphAddDependencies")
    record("cuGraphDestroy")
    record("cuGraphExecDestroy")
    return done


def call(grid: int, attributes: LaunchAttributes = PLAIN) -> KernelCall:
    kernel = CudaKernel(driver.CUfunction(1), KernelAttributes("k", (8,), 0, 1024), CODE)
    return KernelCall(kernel, (grid, 1, 1), (1, 1, 1), 0, [bytes(8)], attributes)


def test_a_graph_is_a_chain_whose_nodes_follow_their_call(nodes: list[tuple[Any, ...]]) -> None:
    a, b, c = call(1), call(2), call(3)
    graph = CudaGraph([a, b, a], lambda function, *arguments: function(*arguments), LaneKind())
    assert nodes == [("add", "node0"), ("add", "node0", "node1"), ("add", "node1", "node2"), ("cuGraphInstantiate", "graph", 0)]
    nodes.clear()
    assert a.parameters.set(0, b"01234567")
    assert not a.parameters.set(0, b"01234567")
    graph.update(a)
    graph.update(c)
    assert [entry[:3] for entry in nodes] == [("cuGraphExecKernelNodeSetParams", "executable", f"node{i}") for i in (0, 2)]
    nodes.clear()
    graph.close()
    graph.close()
    assert nodes == [("cuGraphExecDestroy", "executable"), ("cuGraphDestroy", "graph")]


def test_nodes_have_the_attributes_of_their_launches(nodes: list[tuple[Any, ...]]) -> None:
    early = call(2, LaunchAttributes(programmatic=True))
    graph = CudaGraph(
        [early, call(2, LaunchAttributes(cluster=(2, 1, 1), cooperative=True)), early],
        lambda function, *arguments: function(*arguments),
        LaneKind(),
    )
    kinds = driver.CUlaunchAttributeID
    first, second, cluster, cooperative, third, edge, _ = nodes
    assert (first, second) == (("add", "node0"), ("add", "node0", "node1"))
    assert cluster[:3] == ("cuGraphKernelNodeSetAttribute", "node1", kinds.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION)
    assert (cluster[3].clusterDim.x, cluster[3].clusterDim.y, cluster[3].clusterDim.z) == (2, 1, 1)
    assert cooperative[:3] == ("cuGraphKernelNodeSetAttribute", "node1", kinds.CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
    assert cooperative[3].cooperative == 1
    # It does not wait for the end of the one before, but for its word.
    assert third == ("add", "node4")
    assert edge[:4] == ("cuGraphAddDependencies", "graph", ["node1"], ["node4"])
    assert edge[4][0].type == driver.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC
    assert edge[4][0].from_port == driver.CU_GRAPH_KERNEL_NODE_PORT_PROGRAMMATIC
    graph.close()


def test_a_refused_node_is_named_and_the_graph_freed(nodes: list[tuple[Any, ...]]) -> None:
    with pytest.raises(CallRefused) as refused:
        CudaGraph([call(1), call(13)], lambda function, *arguments: function(*arguments), LaneKind())
    assert refused.value.index == 1
    assert isinstance(refused.value.error, CudaError)
    assert nodes[-1] == ("cuGraphDestroy", "graph")


def test_pinned_pieces_are_kept_for_the_next_of_about_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    freed: list[int] = []

    def cuMemHostAlloc(size: int, flags: int) -> tuple[Any, int]:
        taken.append((ctypes.c_uint8 * min(size, 1 << 20))())
        return driver.CUresult.CUDA_SUCCESS, ctypes.addressof(taken[-1])

    monkeypatch.setattr(driver, "cuMemHostAlloc", cuMemHostAlloc)
    pool = PinnedPool(check, lambda function, address: freed.append(address))
    first = pool.take(10_000)
    assert len(first.view) == 10_000
    address = first.address
    first.close()
    first.close()
    again, other = pool.take(9_000), pool.take(9_000)
    assert again.address == address != other.address
    large = [pool.take(MAX_IDLE_BYTES // 2 + 1) for _ in range(2)]
    for piece in large:
        piece.close()
    assert freed == [large[1].address]
    again.close()
    other.close()
    pool.close()
    assert len(freed) == len(taken) == 4


@pytest.mark.parametrize("size", [1, 4096, 4097, 65_536, 100_000, 1 << 20, (1 << 20) + 1, 123_456_789])
def test_capacity(size: int) -> None:
    capacity = capacity_of(size)
    assert size <= capacity <= max(1.25 * size, 4096 + size)
    assert capacity % 4096 == 0
