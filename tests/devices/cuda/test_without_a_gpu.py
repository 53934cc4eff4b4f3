"""What of the CUDA device can be tested where there is no driver: its functions are replaced by recorders."""

from __future__ import annotations

import ctypes
import os
from typing import Any, cast

import pytest
from cuda.bindings import driver

from kaas_core.request import Access, KernelSpec
from kaasd.devices.base import BufferRef, DeviceUnavailable, Launch, PackedRefs
from kaasd.devices.cuda import driver as cuda_driver
from kaasd.devices.cuda.attributes import active_blocks
from kaasd.devices.cuda.buffers import CudaBuffer
from kaasd.devices.cuda.context import CudaContext
from kaasd.devices.cuda.device import CudaDevice
from kaasd.devices.cuda.driver import CudaError, check, initialize, see_only
from kaasd.devices.cuda.kernel import CudaKernel, LoadedCode
from kaasd.devices.cuda.launch import call_of, faulted_launch, update_call
from kaasd.devices.cuda.textures import RunTextures
from kaasd.request.device_checks import KernelAttributes, LaunchAttributes

CODE = LoadedCode("library", "module")
SUCCESS = driver.CUresult.CUDA_SUCCESS
NO_TEXTURES = RunTextures((), cast(CudaContext, None))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Record launches and function attributes, and have every call succeed."""
    made: list[tuple[Any, ...]] = []
    for name in ("cuLaunchKernel", "cuLaunchKernelEx", "cuFuncSetAttribute", "cuMemFreeAsync"):

        def record(*arguments: Any, name: str = name) -> tuple[Any, ...]:
            made.append((name, *arguments))
            return (SUCCESS,)

        monkeypatch.setattr(driver, name, record)
    return made


@pytest.mark.parametrize(("values", "expected"), [((), None), ((7,), 7), ((7, 8), (7, 8))])
def test_check_returns_what_is_beside_the_status(values: tuple[int, ...], expected: Any) -> None:
    assert check(lambda *arguments: (SUCCESS, *arguments), *values) == expected


def test_check_names_the_call_and_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def cuSomething(_: int) -> tuple[Any, ...]:
        return driver.CUresult.CUDA_ERROR_INVALID_VALUE, None

    monkeypatch.setattr(driver, "cuGetErrorString", lambda _: (SUCCESS, b"invalid argument"))
    with pytest.raises(CudaError) as error:
        check(cuSomething, 1)
    assert str(error.value) == "cuSomething: CUDA_ERROR_INVALID_VALUE: invalid argument"
    assert (error.value.call, error.value.name, error.value.text) == (
        "cuSomething",
        "CUDA_ERROR_INVALID_VALUE",
        "invalid argument",
    )


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def cuInit(_: int) -> tuple[Any, ...]:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(driver, "cuInit", cuInit)
    with pytest.raises(DeviceUnavailable, match="no CUDA driver"):
        initialize()
    with pytest.raises(DeviceUnavailable, match="no CUDA driver"):
        CudaDevice(0)


def test_a_driver_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def cuInit(_: int) -> tuple[Any, ...]:
        return (driver.CUresult.CUDA_ERROR_NO_DEVICE,)

    monkeypatch.setattr(driver, "cuInit", cuInit)
    monkeypatch.setattr(driver, "cuGetErrorString", lambda _: (SUCCESS, b"no CUDA-capable device is detected"))
    with pytest.raises(DeviceUnavailable, match="cuInit: CUDA_ERROR_NO_DEVICE: no CUDA-capable device"):
        initialize()


def test_an_ordinal_beyond_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "cuInit", lambda _: (SUCCESS,))
    monkeypatch.setattr(driver, "cuDeviceGetCount", lambda: (SUCCESS, 1))
    with pytest.raises(DeviceUnavailable, match="there is no cuda:1: the CUDA driver finds 1 GPU"):
        CudaDevice(1)


def kernel(static_shared: int = 0) -> CudaKernel:
    return CudaKernel("function", KernelAttributes("k", (4, 8, 2, 8), static_shared, 1024), CODE)


def buffer(address: int) -> CudaBuffer:
    return CudaBuffer(address, 64, "stream", cast(CudaContext, None), lambda _: None)


def test_parameters_are_laid_out_as_pointers_to_values(calls: list[tuple[Any, ...]]) -> None:
    arguments = (
        b"\x01\x02\x03\x04",
        BufferRef("a", buffer(0x7F00_1122_3344_5500), Access.INPUT),
        b"\x05\x06",
        BufferRef("b", buffer(0x1000), Access.OUTPUT),
    )
    launch = call_of(Launch(kernel(), (5, 6, 7), (2, 3, 4), 100, arguments), NO_TEXTURES)
    launch.enqueue("stream")
    ((name, *given, parameters, extra),) = calls
    assert (name, given, extra) == ("cuLaunchKernel", ["function", 5, 6, 7, 2, 3, 4, 100, "stream"], 0)
    pointers = (ctypes.c_uint64 * 4).from_address(parameters)
    values = [ctypes.string_at(pointer, size) for pointer, size in zip(pointers, (4, 8, 2, 8), strict=True)]
    assert values == [
        b"\x01\x02\x03\x04",
        (0x7F00_1122_3344_5500).to_bytes(8, "little"),
        b"\x05\x06",
        (0x1000).to_bytes(8, "little"),
    ]
    assert all(pointer % 8 == 0 for pointer in pointers)


def test_addresses_among_bytes_follow_their_buffers(calls: list[tuple[Any, ...]]) -> None:
    def launch(address: int, other: int) -> Launch:
        inner = ((8, BufferRef("a", buffer(address), Access.INPUT)), (16, BufferRef("b", buffer(other), Access.OUTPUT)))
        return Launch(kernel(), (1, 1, 1), (1, 1, 1), 0, (PackedRefs(bytes(range(25)), inner), b"next"))

    def given() -> tuple[bytes, bytes]:
        call.enqueue("stream")
        pointers = (ctypes.c_uint64 * 2).from_address(calls[-1][-2])
        return ctypes.string_at(pointers[0], 25), ctypes.string_at(pointers[1], 4)

    call = call_of(launch(0x1122, 0x3344), NO_TEXTURES)
    expected = bytes(range(8)) + (0x1122).to_bytes(8, "little") + (0x3344).to_bytes(8, "little") + b"\x18"
    assert given() == (expected, b"next")
    assert not update_call(call, launch(0x1122, 0x3344))
    assert update_call(call, launch(0x1122, 0x5566))
    assert given() == (expected.replace(b"\x44\x33", b"\x66\x55"), b"next")


def test_a_kernel_without_parameters(calls: list[tuple[Any, ...]]) -> None:
    call_of(Launch(kernel(), (1, 1, 1), (1, 1, 1), 0, ()), NO_TEXTURES).enqueue("stream")
    assert [call[0] for call in calls] == ["cuLaunchKernel"]


@pytest.mark.parametrize(
    ("static", "sizes", "asked"),
    [(0, [0, 48 << 10], []), (0, [50_000, 60_000, 55_000], [50_000, 60_000]), (40_000, [9_000, 10_000], [10_000])],
)
def test_dynamic_shared_memory_is_asked_for_once_and_only_beyond_48_kib(
    calls: list[tuple[Any, ...]], static: int, sizes: list[int], asked: list[int]
) -> None:
    k = kernel(static)
    for size in sizes:
        call_of(Launch(k, (1, 1, 1), (1, 1, 1), size, ()), NO_TEXTURES).enqueue("stream")
    assert [call[-1] for call in calls if call[0] == "cuFuncSetAttribute"] == asked


def given_attributes(configuration: Any) -> list[tuple[str, Any]]:
    """Return what a launch asks for, by the short name of each attribute."""
    read = {
        "CLUSTER_DIMENSION": lambda value: (value.clusterDim.x, value.clusterDim.y, value.clusterDim.z),
        "COOPERATIVE": lambda value: value.cooperative,
        "PROGRAMMATIC_STREAM_SERIALIZATION": lambda value: value.programmaticStreamSerializationAllowed,
    }
    names = [(each.id.name.removeprefix("CU_LAUNCH_ATTRIBUTE_"), each.value) for each in configuration.attrs]
    assert configuration.numAttrs == len(names)
    return [(name, read[name](value)) for name, value in names]


@pytest.mark.parametrize(
    ("attributes", "given", "asked"),
    [
        (LaunchAttributes(cluster=(2, 2, 2)), [("CLUSTER_DIMENSION", (2, 2, 2))], 0),
        (LaunchAttributes(cluster=(3, 3, 1)), [("CLUSTER_DIMENSION", (3, 3, 1))], 1),
        (LaunchAttributes(cooperative=True), [("COOPERATIVE", 1)], 0),
        (LaunchAttributes(programmatic=True), [("PROGRAMMATIC_STREAM_SERIALIZATION", 1)], 0),
        (
            LaunchAttributes((1, 2, 1), cooperative=True, programmatic=True),
            [("CLUSTER_DIMENSION", (1, 2, 1)), ("COOPERATIVE", 1), ("PROGRAMMATIC_STREAM_SERIALIZATION", 1)],
            0,
        ),
    ],
)
def test_launch_attributes(
    calls: list[tuple[Any, ...]], attributes: LaunchAttributes, given: list[tuple[str, Any]], asked: int
) -> None:
    launch = call_of(Launch(kernel(), (6, 6, 8), (2, 3, 4), 100, (), attributes), NO_TEXTURES)
    launch.enqueue(driver.CUstream(5))
    launch.enqueue(driver.CUstream(5))
    *before, (name, configuration, function, parameters, extra), _ = calls
    assert (name, function, parameters, extra) == ("cuLaunchKernelEx", "function", launch.parameters.address, 0)
    dimensions = [getattr(configuration, f"{of}Dim{axis}") for of in ("grid", "block") for axis in "XYZ"]
    assert (dimensions, configuration.sharedMemBytes, int(configuration.hStream)) == ([6, 6, 8, 2, 3, 4], 100, 5)
    assert given_attributes(configuration) == given
    large = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
    assert before == [("cuFuncSetAttribute", "function", large, 1)] * asked


def test_a_cluster_that_a_kernel_is_compiled_for_is_allowed_and_not_asked_for(calls: list[tuple[Any, ...]]) -> None:
    k = CudaKernel("function", KernelAttributes("k", (), 0, 1024, cluster=(16, 1, 1)), CODE)
    for _ in range(2):
        call_of(Launch(k, (16, 1, 1), (1, 1, 1), 0, ()), NO_TEXTURES).enqueue("stream")
    assert [call[0] for call in calls] == ["cuFuncSetAttribute", "cuLaunchKernel", "cuLaunchKernel"]


@pytest.mark.parametrize(
    ("cluster", "compiled", "asked", "expected"),
    [(None, None, None, 3 * 132), ((2, 1, 2), None, (2, 1, 2), 5 * 4), (None, (4, 2, 1), None, 5 * 8)],
)
def test_active_blocks(monkeypatch: pytest.MonkeyPatch, cluster: Any, compiled: Any, asked: Any, expected: int) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(driver, "cuOccupancyMaxActiveBlocksPerMultiprocessor", lambda *given: seen.append(given) or (SUCCESS, 3))
    monkeypatch.setattr(driver, "cuOccupancyMaxActiveClusters", lambda *given: seen.append(given) or (SUCCESS, 5))
    k = CudaKernel("function", KernelAttributes("k", (), 0, 1024, cluster=compiled), CODE)
    spec = KernelSpec("/k", "k", (8, 2, 2), (32, 2, 1), shared_memory_bytes=100, cluster=cluster, cooperative=True)
    assert active_blocks(k, spec, 132, check) == expected
    ((function, *given),) = seen
    assert function == "function"
    if cluster is None and compiled is None:
        assert given == [64, 100]
    else:
        assert given_attributes(given[0]) == ([("CLUSTER_DIMENSION", asked)] if asked else [])
        assert (given[0].blockDimX, given[0].blockDimY, given[0].sharedMemBytes) == (32, 2, 100)


def test_a_cluster_that_the_gpu_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "cuGetErrorString", lambda _: (SUCCESS, b""))
    refused = driver.CUresult.CUDA_ERROR_INVALID_CLUSTER_SIZE
    monkeypatch.setattr(driver, "cuOccupancyMaxActiveClusters", lambda *given: (refused, None))
    assert active_blocks(kernel(), KernelSpec("/k", "k", (2, 1, 1), (1, 1, 1), cluster=(2, 1, 1)), 132, check) == 0


@pytest.mark.parametrize(
    ("begun", "enqueued", "launches", "faulted"),
    [
        (0, 2, 2, 0),
        (1, 2, 2, 1),
        (5, 30, 3, 2),
        (63, 3000, 2, 1),
        (64, 65, 3, 1),
        (64, 3000, 2, -1),  # this one or any later one
        (64, 3000, 1, 0),
    ],
)
def test_which_launch_faulted(begun: int, enqueued: int, launches: int, faulted: int) -> None:
    assert faulted_launch(begun, enqueued, launches) == faulted


@pytest.mark.parametrize(("offset", "size"), [(-1, 1), (64, 1), (0, 65), (60, 5)])
def test_a_range_outside_of_a_buffer(offset: int, size: int) -> None:
    with pytest.raises(ValueError, match="of a buffer of 64"):
        buffer(0x1000).write(bytes(size), offset)
    with pytest.raises(ValueError, match="of a buffer of 64"):
        buffer(0x1000).read(bytearray(size), offset)


class TestTheOnlyOne:
    """Each process sees its own GPU, as the driver reads its environment when it is initialised."""

    @pytest.fixture(autouse=True)
    def fresh(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cuda_driver, "_seen", None)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    @pytest.fixture
    def initialised(self, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
        """Say whether the driver is."""
        state = [False]
        monkeypatch.setattr(
            driver, "cuDeviceGetCount", lambda: (SUCCESS, 2) if state[0] else (driver.CUresult.CUDA_ERROR_NOT_INITIALIZED, None)
        )
        return state

    @pytest.mark.parametrize(
        ("visible", "ordinal", "alone"), [(None, 1, "1"), (None, 0, "0"), ("3,GPU-7", 1, "GPU-7"), ("3, 5", 1, " 5")]
    )
    def test_it_is_named_as_before(
        self, initialised: list[bool], monkeypatch: pytest.MonkeyPatch, visible: str | None, ordinal: int, alone: str
    ) -> None:
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert see_only(ordinal) == 0
        assert os.environ["CUDA_VISIBLE_DEVICES"] == alone
        initialised[0] = True
        assert see_only(ordinal) == 0, "it is opened again"
        assert see_only(ordinal + 1) == ordinal + 1, "which is not there"
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def test_too_late(self, initialised: list[bool]) -> None:
        initialised[0] = True
        assert see_only(1) == 1
        assert "CUDA_VISIBLE_DEVICES" not in os.environ

    def test_one_that_is_not_there(self, initialised: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
        assert see_only(1) == 1
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"

    def test_no_driver(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing() -> tuple[Any, ...]:
            raise RuntimeError("libcuda.so.1 was not found")

        monkeypatch.setattr(driver, "cuDeviceGetCount", missing)
        assert see_only(1) == 1
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
