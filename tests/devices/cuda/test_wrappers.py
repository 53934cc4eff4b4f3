"""How wrappers are loaded and called: real host code, in this process, where no driver is needed for it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from cuda.bindings import driver

from kaasd.devices.base import Launch
from kaasd.devices.cuda.context import CudaContext
from kaasd.devices.cuda.launch import WrapperFailed, call_of
from kaasd.devices.cuda.module import CudaModule
from kaasd.devices.cuda.textures import RunTextures
from kaasd.devices.cuda.wrapper import HostCode
from kaasd.libraries import UnsupportedLibrary
from kaasd.request.device_checks import DeviceProperties
from tests.conformance.launching import u32, u64

DATA = Path(__file__).parents[2] / "libraries" / "data"
PROPERTIES = DeviceProperties("cuda:0", "a GPU", 1 << 30, max_threads_per_block=512)
SUCCESS = driver.CUresult.CUDA_SUCCESS
NO_TEXTURES = RunTextures((), cast(CudaContext, None))
STREAM = 0x7F00_1234_5678


def module(name: str, host_code: HostCode | None = None) -> CudaModule:
    return CudaModule(
        (DATA / name).read_bytes(), PROPERTIES, host_code or HostCode(), cast(CudaContext, None), lambda _: None, cast(Any, None)
    )


@pytest.fixture
def contexts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Contexts as they are made current."""
    current = ["ours"]

    def cuCtxSetCurrent(context: str) -> tuple[Any, ...]:
        current.append(context)
        return (SUCCESS,)

    monkeypatch.setattr(driver, "cuCtxGetCurrent", lambda: (SUCCESS, current[-1]))
    monkeypatch.setattr(driver, "cuCtxSetCurrent", cuCtxSetCurrent)
    return current


def call(name: str, *arguments: bytes) -> Any:
    kernel = module("convention.so").load_host_function(name)
    return call_of(Launch(kernel, (5, 6, 7), (2, 3, 4), 100, arguments), NO_TEXTURES)


def test_the_calling_convention(contexts: list[str]) -> None:
    told = np.zeros(11, np.uint64)
    call("record", u64(told.ctypes.data), u32(42), u32(0xFFFF_FFFF)).enqueue(STREAM)
    assert told.tolist() == [5, 6, 7, 2, 3, 4, 100, 3, STREAM, 42, 0xFFFF_FFFF]


def test_a_stream_of_the_driver(contexts: list[str]) -> None:
    told = np.zeros(9, np.uint64)
    call("record", u64(told.ctypes.data)).enqueue(driver.CUstream(STREAM))
    assert told[8] == STREAM


def test_a_parameter_that_changes(contexts: list[str]) -> None:
    first, second = np.zeros(10, np.uint64), np.zeros(10, np.uint64)
    calls = call("record", u64(first.ctypes.data), u32(1))
    calls.enqueue(STREAM)
    assert calls.parameters.set(0, u64(second.ctypes.data))
    assert not calls.parameters.set(1, u32(1))
    calls.enqueue(STREAM)
    assert (first[9], second[9]) == (1, 1)


@pytest.mark.parametrize("code", [1, -1, 700])
def test_another_return_value_than_0(contexts: list[str], code: int) -> None:
    with pytest.raises(WrapperFailed) as error:
        call("give", code.to_bytes(4, "little", signed=True)).enqueue(STREAM)
    assert (error.value.name, str(error.value)) == ("WRAPPER_FAILED", f"give returned {code}")
    assert not error.value.is_fault


def test_the_context_that_was_current_is_so_again(contexts: list[str]) -> None:
    call("give", u32(0)).enqueue(STREAM)
    assert contexts == ["ours", "ours"]
    with pytest.raises(WrapperFailed):
        call("give", u32(1)).enqueue(STREAM)
    assert contexts == ["ours"] * 3


def test_a_wrapper_has_no_kernels_and_declares_nothing() -> None:
    loaded = module("convention.so")
    assert loaded.kernels == {}
    assert loaded.host_functions == ("crash", "give", "record")
    attributes = loaded.load_host_function("give").attributes
    assert (attributes.name, attributes.parameter_size_bytes) == ("give", None)
    assert (attributes.static_shared_memory_bytes, attributes.max_threads_per_block) == (0, 512)


def test_two_libraries_and_each_only_once(contexts: list[str], tmp_path: Path) -> None:
    """The loader takes libraries of one path for the same: two must never share one, not even after a failure between."""
    host_code = HostCode()
    first = host_code.function((DATA / "convention.so").read_bytes(), "give")
    with pytest.raises(UnsupportedLibrary, match="undefined symbol: not_there"):
        host_code.function((DATA / "incomplete.so").read_bytes(), "give")
    again = host_code.function((DATA / "convention.so").read_bytes(), "give")
    other = host_code.function((DATA / "convention.so").read_bytes() + b"another", "give")
    addresses = [ctypes.cast(each, ctypes.c_void_p).value for each in (first, again, other)]  # type: ignore[arg-type]
    assert addresses[0] == addresses[1] != addresses[2]


def test_what_the_loader_refuses() -> None:
    with pytest.raises(UnsupportedLibrary, match=r"^it cannot be loaded: undefined symbol: not_there$"):
        module("incomplete.so").load_host_function("give")
    with pytest.raises(UnsupportedLibrary, match="absent"):
        module("convention.so").load_host_function("absent")
