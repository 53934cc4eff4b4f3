"""Each run has module variables of its own, which start as the library has them; the driver is replaced by a recorder."""

from __future__ import annotations

import ctypes
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cuda.bindings import driver

from kaasd.devices.base import Launch, OutOfMemory
from kaasd.devices.cuda.device import CudaDevice
from kaasd.devices.cuda.driver import CudaError
from kaasd.devices.cuda.kernel import MAX_IDLE_COPIES
from kaasd.devices.cuda.module import CudaModule
from kaasd.devices.cuda.run import CudaRun
from kaasd.devices.cuda.tracer import CudaTracer
from kaasd.libraries import UnsupportedLibrary
from tests.conformance.launching import library
from tests.devices.cuda.fake_driver import FREED_BY, OUT_OF_MEMORY, SUCCESS, FakeDriver

DATA = Path(__file__).parents[2] / "conformance/data"
PTX = (DATA / "variables.ptx").read_bytes()
VARIABLES = {
    b"_ZZN42_INTERNAL_aacdf2e3_12_variables_cu_counter5timesEvE5calls": (0x100, 4),
    b"arrived": (0x104, 4),
    b"kept": (0x108, 4096),
    b"counter": (0x2018, 4),
}
MOVED = [(0x100, 4), (0x104, 4), (0x108, 8), (0x110, 4088), (0x2018, 4)]
"""Each by itself, though some follow each other: the driver refuses a copy across the edge of two."""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    made = FakeDriver(monkeypatch)
    made.variables = VARIABLES
    return made


def prepare(device: CudaDevice, module: CudaModule, count: int = 1) -> CudaRun:
    (kernel,) = module.kernels.values()
    return device.prepare([Launch(kernel, (1, 1, 1), (1, 1, 1), 0, (bytes(8), bytes(8), bytes(8)))] * count, 1)


def calls(fake: FakeDriver, name: str) -> int:
    return fake.calls.count(name)


def moved(monkeypatch: pytest.MonkeyPatch, run: CudaRun, tracer: CudaTracer | None = None) -> list[tuple[int, int, int]]:
    """Return what the first launch of a run that starts now moves. The second is of the kernel of the same copy of the code."""
    tables: list[list[Any]] = []
    functions: list[int] = []

    def cuLaunchKernel(*arguments: Any) -> tuple[Any, ...]:
        table = ctypes.string_at(ctypes.c_uint64.from_address(arguments[-2]).value, 768)
        functions.append(int(arguments[0]))
        tables.append([each for each in struct.iter_unpack("<QQQ", table) if each != (0, 0, 0)])
        return (SUCCESS,)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "cuLaunchKernel", cuLaunchKernel)
        run.start(tracer=tracer)
        run.wait()
    assert functions[1] << 16 == tables[0][0][0] - 0x100
    return tables[0]


def test_a_library_without_them_pays_nothing(fake: FakeDriver, device: CudaDevice) -> None:
    with closing(device.load(library("dot"))) as module:
        loaded = calls(fake, "cuLibraryLoadData")
        (kernel,) = module.kernels.values()
        assert kernel.is_ready  # type: ignore[attr-defined]
        with closing(prepare(device, module)) as first, closing(prepare(device, module)):
            launched = calls(fake, "cuLaunchKernel")
            first.start()
            first.wait()
            assert calls(fake, "cuLaunchKernel") - launched == 3  # what notes the begin, the kernel, and what sets the flag
        assert calls(fake, "cuLibraryLoadData") == loaded
    assert not calls(fake, "cuModuleGetGlobal")
    assert not calls(fake, "cuMemcpyDtoDAsync")


def test_runs_at_the_same_time_have_copies_of_their_own(fake: FakeDriver, device: CudaDevice) -> None:
    with closing(device.load(PTX)) as module:
        (kernel,) = module.kernels.values()
        loaded = calls(fake, "cuLibraryLoadData")
        with closing(prepare(device, module, count=3)):
            assert calls(fake, "cuLibraryLoadData") == loaded  # the one that told of the kernels
            assert not kernel.is_ready  # type: ignore[attr-defined]
            with closing(prepare(device, module)):
                assert calls(fake, "cuLibraryLoadData") == loaded + 1
            assert kernel.is_ready  # type: ignore[attr-defined]
            with closing(prepare(device, module)):
                assert calls(fake, "cuLibraryLoadData") == loaded + 1
        runs = [prepare(device, module) for _ in range(MAX_IDLE_COPIES + 3)]
        for run in runs:
            run.close()
        assert fake.held["cuLibraryLoadData"] == loaded - 1 + MAX_IDLE_COPIES


def test_variables_are_moved_before_the_launches(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    with (
        closing(CudaDevice(0, plain_starts=None)) as device,
        closing(device.load(PTX)) as module,
        closing(prepare(device, module)) as first,
        closing(prepare(device, module)) as second,
    ):
        for run in (first, second, first, second):
            moves = moved(monkeypatch, run)
            base = moves[0][0] - 0x100
            assert [(to - base, size) for to, _, size in moves] == MOVED
            assert all(size < 16 or to % 16 == of % 16 == 0 for to, of, size in moves)
            seen.append(moves)
    assert seen[0] == seen[2] != seen[1]


def test_a_traced_run_begins_with_them_too(fake: FakeDriver, device: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        closing(device.load(PTX)) as module,
        closing(prepare(device, module)) as run,
        closing(device.tracer()) as tracer,
    ):
        assert [size for _, _, size in moved(monkeypatch, run, tracer)] == [size for _, size in MOVED]


def test_ranges_that_begin_anywhere_are_moved_in_two(
    fake: FakeDriver, device: CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.variables = VARIABLES | {b"kept": (0x3007, 4096)}
    with closing(device.load(PTX)) as module, closing(prepare(device, module)) as run:
        moves = moved(monkeypatch, run)
    base = moves[0][0] - 0x100
    assert [(to - base, size) for to, _, size in moves] == [(0x100, 4), (0x104, 4), (0x2018, 4), (0x3007, 9), (0x3010, 4087)]
    assert all(size < 16 or to % 16 == of % 16 == 0 for to, of, size in moves)
    (kept, more) = moves[3:]
    assert kept[1] + kept[2] == more[1]


def test_a_graph_begins_with_the_move(fake: FakeDriver, device: CudaDevice) -> None:
    with closing(device.load(PTX)) as module, closing(prepare(device, module)) as run:
        run.warm()
    assert calls(fake, "cuGraphAddKernelNode") == 3


def test_a_variable_that_the_driver_does_not_find(fake: FakeDriver, device: CudaDevice) -> None:
    fake.variables = {name: place for name, place in VARIABLES.items() if name != b"kept"}
    held = +fake.held
    with pytest.raises(UnsupportedLibrary, match=r"cannot tell where all of these are: .*kept"):
        device.load(PTX)
    assert +fake.held == held


def test_a_fatbin_whose_machine_code_hides_its_variables(fake: FakeDriver, device: CudaDevice) -> None:
    fake.variables = {name: place for name, place in VARIABLES.items() if name != b"place"}  # of the cubins alone
    loaded, held = calls(fake, "cuLibraryLoadData"), fake.held["cuLibraryLoadData"]
    with closing(device.load((DATA / "variables.fatbin").read_bytes())):
        assert calls(fake, "cuLibraryLoadData") == loaded + 2
        assert fake.held["cuLibraryLoadData"] == held + 1


@pytest.mark.parametrize("what", ["load", "prepare"])
def test_what_fails_half_way_leaves_nothing_behind(what: str, fake: FakeDriver, device: CudaDevice) -> None:
    def act() -> None:
        with closing(device.load(PTX)) as module:
            if what == "prepare":
                with closing(prepare(device, module)), closing(prepare(device, module)):
                    pass

    act()
    start, held = len(fake.calls), +fake.held
    act()
    assert +fake.held == held
    names = fake.calls[start:]
    for index, name in enumerate(names):
        if name in FREED_BY.values():
            continue
        fake.fail_at(index, OUT_OF_MEMORY)
        with pytest.raises((OutOfMemory, UnsupportedLibrary, CudaError)):
            act()
        fake.work_again()
        for kind in ("cuMemAllocAsync", "cuLibraryLoadData"):
            assert fake.held[kind] == held[kind], (index, name)


def test_what_a_run_takes_beside_its_buffers(device: CudaDevice) -> None:
    module = device.load(PTX)
    (kernel,) = module.kernels.values()
    variables = sum(size for _, size in VARIABLES.values())
    taken = device.run_bytes([kernel, kernel])
    assert len(PTX) + 2 * variables < taken < len(PTX) + 2 * variables + 1024
    assert device.run_bytes(device.load(library("dot")).kernels.values()) == 0
