"""What every device does alike: memory, loading, kernels' attributes, the order of launches."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest

from kaasd.devices.base import Device, OutOfMemory
from kaasd.libraries import UnsupportedLibrary
from tests.conformance.launching import DATA, Call, execute, inout, inp, library, out, tmp, u32, u64

MIB = 1 << 20
SIGNATURES = {
    "dot": {"prodKern": (8, 8, 8, 8), "sumKern": (8, 8)},
    "jacobi": {"jacobiKern": (4, 4, 8, 8, 8, 8, 8)},
    "matmul": {"matmulKern": (4, 4, 4, 8, 8, 8)},
    "blur": {"blurKern": (4, 4, 4, 8, 8)},
    "histogram": {"histogramKern": (8, 8, 8)},
    "softmax": {"softmaxKern": (4, 8, 8)},
    "faults": {
        "writeAtKern": (8, 8),
        "readAtKern": (8, 8, 8),
        "misalignedKern": (8,),
        "trapKern": (8,),
        "expectKern": (8, 4, 8),
        "writeInputKern": (8,),
        "spinKern": (8,),
    },
}
"""As the sources declare them: pointers and uint64_t 8 bytes, uint32_t 4."""
STATIC_SHARED = {"prodKern": 0, "sumKern": 4096, "jacobiKern": 0, "matmulKern": 2048, "histogramKern": 1024, "softmaxKern": 256}


def test_properties(device: Device, device_name: str) -> None:
    properties = device.properties
    assert properties.name == device_name
    assert properties.model
    assert properties.memory_bytes >= MIB
    assert properties.warp_size == 32
    assert properties.max_threads_per_block == 1024
    assert properties.max_block == (1024, 1024, 64)
    assert properties.max_grid == (2**31 - 1, 65535, 65535)
    assert properties.max_shared_memory_bytes >= 48 << 10


@pytest.mark.parametrize("name", SIGNATURES)
def test_attributes_of_the_example_kernels(device: Device, name: str) -> None:
    with closing(device.load(library(name))) as module:
        assert {kernel: each.attributes.parameter_size_bytes for kernel, each in module.kernels.items()} == SIGNATURES[name]
        for kernel, each in module.kernels.items():
            assert each.attributes.name == kernel
            assert each.attributes.static_shared_memory_bytes == STATIC_SHARED.get(kernel, 0)
            assert 32 <= each.attributes.max_threads_per_block <= device.properties.max_threads_per_block
            assert each.attributes.required_block is None


def test_required_block_of_ptx(device: Device) -> None:
    code = library("dot").replace(b"prodKern_param_3\n)", b"prodKern_param_3\n)\n.reqntid 64, 2, 1")
    with closing(device.load(code)) as module:
        assert module.kernels["prodKern"].attributes.required_block == (64, 2, 1)
        assert module.kernels["sumKern"].attributes.required_block is None


@pytest.mark.parametrize("name", ["dot.fatbin", "dot.zstd.fatbin", "dot.lz4.fatbin", "two_units.so"])
def test_containers_of_ptx(device: Device, name: str) -> None:
    p = np.arange(64, dtype=np.uint32)
    results = execute(
        device, (DATA / name).read_bytes(), [Call("sumKern", 1, 32, [inp("p"), out("c")])], {"p": p, "c": np.zeros(1, np.uint32)}
    )
    assert results["c"][0] == 2016


def test_shared_object_has_the_kernels_of_all_its_units(device: Device) -> None:
    with closing(device.load((DATA / "two_units.so").read_bytes())) as module:
        assert set(module.kernels) == {"prodKern", "sumKern", "histogramKern"}


def test_cubin_runs_on_its_architecture_only(device: Device, device_name: str) -> None:
    code = (DATA / "dot.sm_90.cubin").read_bytes()
    arguments = [Call("sumKern", 1, 32, [inp("p"), out("c")])], {"p": np.ones(64, np.uint32), "c": np.zeros(1, np.uint32)}
    if device_name.startswith("cuda") and device.properties.compute_capability == (9, 0):
        assert execute(device, code, *arguments)["c"][0] == 64
    else:
        with pytest.raises(UnsupportedLibrary, match="cubin"):
            device.load(code)


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"no PTX at all",
        library("dot")[:-30],
        (DATA / "dot.fatbin").read_bytes()[:5000],
        (DATA / "dot.sm_90.cubin").read_bytes()[:90],
    ],
    ids=["empty", "text", "cut PTX", "cut fatbin", "cut cubin"],
)
def test_what_is_no_library_is_refused(device: Device, code: bytes) -> None:
    with pytest.raises(UnsupportedLibrary):
        device.load(code)


def test_an_unknown_instruction_is_refused_by_name(device: Device) -> None:
    code = library("dot").replace(b"mul.lo.s32", b"mul.bogus.s32", 1)
    buffers = {"a": np.zeros(1, np.uint32), "b": np.zeros(1, np.uint32), "p": np.zeros(1, np.uint32)}
    with pytest.raises(UnsupportedLibrary, match="bogus"):
        execute(device, code, [Call("prodKern", 1, 1, [u64(1), inp("a"), inp("b"), out("p")])], buffers)


def test_module_closes_twice(device: Device) -> None:
    module = device.load(library("dot"))
    module.close()
    module.close()
    with closing(device.load(library("dot"))) as again:
        assert "prodKern" in again.kernels


def test_zero_fills_the_whole_buffer(device: Device) -> None:
    with closing(device.allocate(10_001)) as buffer:
        buffer.write(b"\xff" * 10_001)
        buffer.zero()
        content = bytearray(b"\x01" * 10_001)
        buffer.read(content)
        assert content == bytes(10_001)


def test_parts_are_written_and_read_at_their_offsets(device: Device) -> None:
    with closing(device.allocate(1000)) as buffer:
        assert buffer.size_bytes == 1000
        buffer.zero()
        buffer.write(b"first", 0)
        buffer.write(memoryview(b"--inner--")[2:7], 500)
        buffer.write(bytearray(b"last"), 996)
        content = bytearray(1000)
        buffer.read(content)
        assert content == b"first" + bytes(495) + b"inner" + bytes(491) + b"last"
        part = bytearray(9)
        buffer.read(memoryview(part)[2:7], 500)
        assert part == b"\0\0inner\0\0"


@pytest.mark.parametrize("size", [1, 256 << 10, (256 << 10) + 1, MIB, 19 * MIB + 7])
def test_a_written_source_may_change_at_once(device: Device, size: int) -> None:
    content = np.resize(np.arange(251, dtype=np.uint8), size)
    source = bytearray(content.tobytes())
    with closing(device.allocate(size)) as buffer:
        buffer.write(source)
        source[:] = bytes(size)
        back = bytearray(size)
        buffer.read(back)
    assert np.array_equal(np.frombuffer(back, np.uint8), content)


def test_many_small_writes_and_reads_keep_their_order(device: Device) -> None:
    pieces = [bytes([i % 256]) * (1 + 977 * i % 70_000) for i in range(200)]
    expected = bytearray(70_000)
    with closing(device.allocate(70_000)) as buffer:
        buffer.zero()
        for i, piece in enumerate(pieces):
            buffer.write(piece)
            expected[: len(piece)] = piece
            if i % 50 == 49:
                back = bytearray(70_000)
                buffer.read(back)
                assert back == expected


def test_buffer_closes_twice(device: Device) -> None:
    buffer = device.allocate(16)
    buffer.close()
    buffer.close()
    with closing(device.allocate(16)) as first, closing(device.allocate(16)) as second:
        first.write(b"1" * 16)
        second.write(b"2" * 16)
        content = bytearray(16)
        first.read(content)
        assert content == b"1" * 16, "its memory was given back once, and so to one of them"


def test_more_memory_than_there_is(device: Device) -> None:
    size = device.properties.memory_bytes + 1
    with pytest.raises(OutOfMemory, match=str(size)):
        device.allocate(size)
    with closing(device.allocate(16)) as buffer:
        buffer.zero()


def test_iterations_repeat_all_launches_in_order(device: Device) -> None:
    p = np.arange(64, dtype=np.uint32)
    results = execute(
        device,
        library("dot"),
        [
            Call("prodKern", 1, 64, [u64(64), inp("p"), inp("three"), inout("p")]),
            Call("sumKern", 1, 32, [inp("p"), out("c")]),
            Call("prodKern", 1, 1, [u64(1), inp("c"), inp("three"), out("d")]),
        ],
        {"p": p, "three": np.full(64, 3, np.uint32), "c": np.zeros(1, np.uint32), "d": np.zeros(1, np.uint32)},
        iterations=5,
    )
    assert np.array_equal(results["p"], p * 3**5)
    assert results["c"][0] == 2016 * 3**5
    assert results["d"][0] == 2016 * 3**6


def test_more_launches_than_are_marked(device: Device) -> None:
    results = execute(
        device,
        library("dot"),
        [Call("prodKern", 1, 32, [u64(1), inp("p"), inp("three"), inout("p")])] * 3,
        {"p": np.ones(1, np.uint32), "three": np.full(1, 3, np.uint32)},
        iterations=50,
    )
    assert results["p"][0] == 3**150 % 2**32


def test_dynamic_shared_memory_beyond_what_needs_no_opt_in(device: Device) -> None:
    n = 64
    a, b = np.eye(n, dtype=np.float32) * 4, np.arange(n, dtype=np.float64)
    results = execute(
        device,
        library("jacobi"),
        [Call("jacobiKern", 8, 256, [u32(n), u32(0), inp("a"), inp("b"), inp("x"), out("y"), inout("r")], 96 << 10)],
        {"a": a, "b": b, "x": np.zeros(n), "y": np.zeros(n), "r": np.zeros(2)},
    )
    assert np.array_equal(results["y"], b / 4)
    assert np.array_equal(results["r"], [b.sum(), 0])


def test_a_temporary_lives_between_launches_only(device: Device) -> None:
    ones = np.ones(64, np.uint32)
    results = execute(
        device,
        library("dot"),
        [
            Call("prodKern", 2, 32, [u64(64), inp("a"), inp("a"), tmp("t")]),
            Call("sumKern", 1, 32, [inp("t"), out("c")]),
        ],
        {"a": ones, "t": np.zeros(64, np.uint32), "c": np.zeros(1, np.uint32)},
    )
    assert results["c"][0] == 64
