"""Multiprocessors of groups: which the driver is asked for, and what is freed; its functions are replaced by recorders."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from cuda.bindings import driver

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, Launch
from kaasd.devices.cuda.device import CudaDevice
from tests.conformance.launching import library
from tests.devices.cuda.fake_driver import OTHER, SUCCESS, FakeDriver


def parts(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Return the sizes of the parts of each partition that is made from now on."""
    made: list[list[int]] = []

    def generate(resources: list[Any], number: int) -> tuple[Any, ...]:
        assert len(resources) == number
        made.append([each.sm.smCount for each in resources])
        return SUCCESS, "description"

    monkeypatch.setattr(driver, "cuDevResourceGenerateDesc", generate)
    return made


def run_of(device: CudaDevice) -> Any:
    (kernel,) = device.load(library("dot")).kernels.values()
    buffer = device.allocate(256)
    return device.prepare([Launch(kernel, (1, 1, 1), (1, 1, 1), 0, (BufferRef("b", buffer, Access.OUTPUT),))], 1)


def test_groups_get_whole_units_and_all_others_the_rest(
    device: CudaDevice, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = parts(fake, monkeypatch)
    device.reserve({"b": 9, "a": 8})
    assert made == [[8], [8, 8], [108]]
    device.reserve({"a": 1})
    assert made[3:] == [[8], [124]]
    device.reserve({})
    device.reserve({"b": 3})
    assert len(made) == 5, "what was made before is used again"


def test_some_are_left_for_others(device: CudaDevice, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    made = parts(fake, monkeypatch)
    device.reserve({"a": 120})
    with pytest.raises(ValueError, match="16 units of 8 multiprocessors are to be reserved, of 16"):
        device.reserve({"a": 113, "b": 1})
    assert len(made) == 2


def test_a_driver_that_cannot(fake: FakeDriver) -> None:
    fake.fail_in("cuDeviceGetDevResource", driver.CUresult.CUDA_ERROR_NOT_SUPPORTED)
    with closing(CudaDevice(0)) as device:
        assert device.properties.multiprocessor_unit == 0


def test_each_run_keeps_to_its_groups(device: CudaDevice, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    parts(fake, monkeypatch)
    contexts = iter((driver.CUcontext(21), driver.CUcontext(22)))
    monkeypatch.setattr(driver, "cuCtxFromGreenCtx", lambda _: (SUCCESS, next(contexts)))
    nodes: list[tuple[int, int, int]] = []

    def add(graph: Any, before: Any, number: int, node: Any) -> tuple[Any, ...]:
        nodes.append((int(node.func), int(node.kern), int(node.ctx)))
        return SUCCESS, "node"

    monkeypatch.setattr(driver, "cuGraphAddKernelNode", add)
    run = run_of(device)

    def start(group: str) -> list[str]:
        """Start it; return the calls that made a stream or a graph."""
        before = len(fake.calls)
        run.start(group=group)
        run._flag.value = 1
        assert run.done()
        return [name for name in fake.calls[before:] if "StreamCreate" in name or name in ("cuGraphLaunch", "cuLaunchKernel")]

    assert start("") == ["cuStreamCreateWithPriority", *["cuLaunchKernel"] * 3]
    device.reserve({"a": 8})
    assert start("a") == ["cuGreenCtxStreamCreate", "cuGraphLaunch"]
    assert {context for _, kernel, context in nodes} == {21}
    assert {(function, kernel) for function, kernel, _ in nodes} == {(0, 9)}
    nodes.clear()
    assert start("b") == ["cuGreenCtxStreamCreate", "cuGraphLaunch"]
    assert start("") == ["cuGraphLaunch"]
    assert {context for _, _, context in nodes} == {22}
    assert start("a") == ["cuGraphLaunch"]
    nodes.clear()
    device.reserve({})
    assert start("a")[-1] == "cuGraphLaunch"
    assert {(kernel, context) for _, kernel, context in nodes} == {(0, 0)}


@pytest.mark.parametrize("name", ["cuGreenCtxCreate", "cuCtxFromGreenCtx", "cuDevSmResourceSplitByCount"])
def test_what_failed_is_freed_and_nothing_changes(
    device: CudaDevice, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    parts(fake, monkeypatch)
    fake.fail_in(name, OTHER)
    with pytest.raises(Exception, match=name):
        device.reserve({"a": 8})
    fake.work_again()
    run = run_of(device)
    run.start(group="a")
    assert "cuGreenCtxStreamCreate" not in fake.calls
    run._flag.value = 1
    assert run.done()
