"""Code is loaded when no kernel runs; those that have theirs go on meanwhile, nearly as fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaas_core.errors import (
    CancelledError,
    DeadlineExceededError,
    KernelFaultError,
    KeyNotFoundError,
    WorkerRestartingError,
)
from kaas_core.request import BufferSpec, Request
from kaasd.devices.base import DeviceLost, KernelFault, Stopped
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.devices.emulator.runtime.module import EmulatedKernel
from kaasd.worker.cancellation import Cancellation
from kaasd.worker.execution import Invocation, Job, execute
from kaasd.worker.preparation import inspect, prepare
from kaasd.worker.turns import CYCLE, FIRST_HOLD_S, LoadGate
from tests.conformance.test_executor import SMALL, Bench, finish, serialize

STEP_S = FIRST_HOLD_S / 4


def held(gate: LoadGate, until_s: float) -> list[bool]:
    """Return for each step of the time whether launches are held back."""
    return [gate.holds_back(step * STEP_S) for step in range(round(until_s / STEP_S))]


def test_nobody_is_held_back_when_nobody_waits() -> None:
    gate = LoadGate()
    assert not any(held(gate, 1.0))
    gate.enter(0.0)
    gate.enter(0.1)
    gate.leave()
    assert any(held(gate, 1.0))
    gate.leave()
    assert not any(held(gate, 1.0))


@settings(deadline=None)
@given(st.integers(1, 60))
def test_what_runs_comes_to_an_end_within_a_hold(multiple: int) -> None:
    """And all holds together take about a tenth of the time, however long somebody waits."""
    gate = LoadGate()
    gate.enter(0.0)
    duration_s = multiple * FIRST_HOLD_S
    steps = held(gate, CYCLE * FIRST_HOLD_S + 2 * CYCLE * duration_s + 2 * duration_s)
    longest = run = 0
    for step in steps:
        run = run + 1 if step else 0
        longest = max(longest, run)
    assert longest * STEP_S >= duration_s * 0.99
    cycles = held(gate, FIRST_HOLD_S * CYCLE * (2**6 - 1))
    assert sum(cycles) == pytest.approx(len(cycles) / CYCLE, rel=0.02)


class BusyDevice(EmulatedDevice):
    """As one on which a kernel runs that does not end."""

    busy = False

    @property
    def is_busy(self) -> bool:
        return self.busy


@pytest.fixture
def device() -> Iterator[BusyDevice]:
    with closing(BusyDevice()) as opened:
        yield opened


def test_a_new_library_waits_and_a_known_one_does_not(device: BusyDevice, bench: Bench) -> None:
    bench.put("a", np.full(SMALL, 3, np.uint32))
    known, another = bench.multiply(SMALL), bench.multiply(SMALL, offset=16)
    a, p = BufferSpec("a", 4 * SMALL), BufferSpec("q", 4 * SMALL)

    device.busy = True
    cancellation = Cancellation()
    first = serialize(Request((bench.product(SMALL, a, a, p),), (a, p)))
    waits = execute(bench.executor, Invocation(first, {}, {}, [], cancellation))
    inspects = Job(inspect(bench.executor, bench.library, None, cancellation))
    prepares = Job(prepare(bench.executor, first, cancellation))
    for job in (waits, inspects, prepares) * 3:
        assert job.poll() is None
    cancellation.reason = CancelledError("the caller went away")
    with pytest.raises(CancelledError):
        inspects.poll()
    cancellation.reason = None
    device.busy = False
    while (result := waits.poll()) is None:
        pass
    assert prepares.poll()
    assert result.versions.keys() == {"q"}

    # The code is there now, so that another program of it is made at once.
    device.busy = True
    assert bench.run(known, {"a": "a", "b": "a", "p": "p"}).versions.keys() == {"p"}
    assert Job(prepare(bench.executor, another, Cancellation())).poll()
    assert Job(inspect(bench.executor, bench.library, None, Cancellation())).poll()
    bench.put("long", np.zeros(SMALL + 4, np.uint32))
    assert bench.run(another, {"a": "long", "b": "a", "p": "p"}).versions.keys() == {"p"}


def test_a_run_that_needs_a_copy_of_its_code_waits_and_one_that_has_one_does_not(
    device: BusyDevice, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As kernels do that write module variables, on a GPU."""
    bench.put("a", np.full(SMALL, 3, np.uint32))
    known = bench.multiply(SMALL)
    bench.run(known, {"a": "a", "b": "a", "p": "p"})
    monkeypatch.setattr(EmulatedKernel, "is_ready", False)
    device.busy = True
    bench.run(known, {"a": "a", "b": "a", "p": "p"})
    program = bench.executor.programs.get(known)
    bench.executor.memory.drop(program.idle[0])
    waits = bench.begin(known, {"a": "a", "b": "a", "p": "p"})
    prepares = Job(prepare(bench.executor, known, Cancellation()))
    for job in (waits, prepares) * 3:
        assert job.poll() is None
    assert bench.executor.load_gate.waiting == 2
    device.busy = False
    assert finish([waits])[0].versions.keys() == {"p"}
    assert prepares.poll()
    assert bench.executor.load_gate.waiting == 0


def test_who_waits_while_another_loses_the_device_runs_again(device: BusyDevice, bench: Bench) -> None:
    device.busy = True
    inspects = Job(inspect(bench.executor, bench.library, None, Cancellation()))
    assert inspects.poll() is None
    bench.executor.mark_device_lost()
    device.busy = False
    with pytest.raises(WorkerRestartingError):
        inspects.poll()


def test_a_launch_is_held_back_while_the_gate_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in "ab":
        bench.put(key, np.full(SMALL, 3, np.uint32))
    holding = True
    monkeypatch.setattr(bench.executor.load_gate, "holds_back", lambda now_s: holding)
    request = bench.multiply(SMALL)
    bench.run(request)  # Nobody waits to load.
    bench.executor.load_gate.enter(0.0)
    job, cancelled = bench.begin(request, {"p": "q"}), Cancellation()
    other = execute(bench.executor, Invocation(request, {"p": "r"}, {}, [], cancelled))
    for each in (job, other) * 3:
        assert each.poll() is None
        assert not each.is_committing
    cancelled.reason = CancelledError("the caller went away")
    with pytest.raises(CancelledError):
        other.poll()
    holding = False
    assert finish([job])[0].versions.keys() == {"q"}
    with bench.store.snapshot() as snapshot, pytest.raises(KeyNotFoundError):
        snapshot.stat("r")


def test_stopped_kernels_say_why(bench: Bench) -> None:
    plan = bench.executor.programs.get(bench.multiply(SMALL)).plan
    cancellation = Cancellation()
    assert isinstance(bench.executor.explain(Stopped(), plan, cancellation), CancelledError)
    cancellation.reason = DeadlineExceededError("late")
    assert bench.executor.explain(Stopped(), plan, cancellation) is cancellation.reason
    assert not bench.executor.device_lost


@pytest.mark.parametrize("lost", [False, True])
@pytest.mark.parametrize(
    ("index", "kernel", "who"), [(0, "prodKern", "kernels[0] (prodKern)"), (-1, "unknown", "one of the request's kernels")]
)
def test_a_fault_is_told_with_all_that_is_known(bench: Bench, index: int, kernel: str, who: str, lost: bool) -> None:
    plan = bench.executor.programs.get(bench.multiply(SMALL)).plan
    fault = KernelFault("CUDA_ERROR_TRAP", index, "it trapped", device_lost=lost)
    error = bench.executor.explain(fault, plan, Cancellation())
    assert isinstance(error, KernelFaultError)
    assert error.message == f"{who} faulted: CUDA_ERROR_TRAP: it trapped"
    assert error.metadata == {"fault": "CUDA_ERROR_TRAP", "kernel_index": str(index), "kernel": kernel}
    assert bench.executor.device_lost is lost
    more = bench.executor.explain(KernelFault("x", index, "", report="where", suspects=2), plan, Cancellation())
    assert (more.metadata["report"], more.metadata["suspects"]) == ("where", "2")
    assert bench.executor.device_lost is lost


def test_a_device_that_another_lost_is_worth_another_try(bench: Bench) -> None:
    plan = bench.executor.programs.get(bench.multiply(SMALL)).plan
    assert isinstance(bench.executor.explain(DeviceLost(), plan, Cancellation()), WorkerRestartingError)
    assert bench.executor.device_lost
