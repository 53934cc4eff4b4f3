"""A driver that does not answer in time has lost its device, and somebody hears of it."""

from __future__ import annotations

import threading

import pytest

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, KernelFault, Launch
from kaasd.devices.cuda import silence
from kaasd.devices.cuda.device import CudaDevice
from kaasd.devices.cuda.silence import Questions
from tests.devices.cuda.fake_driver import SUCCESS, FakeDriver
from tests.devices.cuda.test_pieces import FAULT, KERNEL, NOT_READY, polled


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "LOOK_S", 0.001)


def test_a_question_that_gets_no_answer_is_noticed() -> None:
    questions, silent = Questions(), threading.Event()
    questions.watch(silent.set)
    questions.expect()
    questions.number += 1
    assert silent.wait(60)


@pytest.mark.parametrize("number", [0, 2])
def test_no_silence_without_a_question(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    questions, silent, looked = Questions(), threading.Event(), threading.Event()

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) > 10 * silence.MOST_LOOKS:
            looked.set()
            threading.Event().wait()  # for the rest of the process

    monkeypatch.setattr(silence, "sleep", sleep)
    questions.number = number
    questions.watch(silent.set)
    assert not looked.wait(0.01), "nothing is looked at while no run is under way"
    questions.expect()
    assert looked.wait(60)
    assert not silent.is_set()


def test_questions_that_are_answered_are_none_however_many(monkeypatch: pytest.MonkeyPatch) -> None:
    questions, silent, looked = Questions(), threading.Event(), threading.Event()
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        questions.number += 2  # another one is open
        if len(looks) > 10 * silence.MOST_LOOKS:
            looked.set()
            threading.Event().wait()

    monkeypatch.setattr(silence, "sleep", sleep)
    questions.number = 1
    questions.expect()
    questions.watch(silent.set)
    assert looked.wait(60)
    assert not silent.is_set()


def test_who_has_no_processor_is_not_taken_for_one_who_waits_for_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    questions, silent, looked = Questions(), threading.Event(), threading.Event()
    waited = iter(number * silence.LOOK_S for number in range(10**6))
    starved = threading.Event()
    starved.set()
    asked: list[int] = []

    def waited_s(thread: int) -> float:
        asked.append(thread)
        if len(asked) > 20 * silence.MOST_LOOKS:
            looked.set()
        return next(waited) if starved.is_set() else 0.0

    monkeypatch.setattr(silence, "waited_s", waited_s)
    questions.number = 1
    questions.expect()
    questions.watch(silent.set)
    assert looked.wait(60)
    assert not silent.is_set() and set(asked) == {threading.get_native_id()}
    starved.clear()
    assert silent.wait(60)


def test_the_kernel_tells_how_long_a_thread_has_waited() -> None:
    assert silence.waited_s(threading.get_native_id()) >= 0.0
    assert silence.waited_s(0) == 0.0


@pytest.mark.parametrize("asks", ["cuStreamQuery", "cuStreamSynchronize"])
def test_a_device_whose_driver_keeps_who_asks_is_found_lost(asks: str, device: CudaDevice, fake: FakeDriver) -> None:
    buffer = device.allocate(1)
    run = device.prepare([Launch(KERNEL, (1, 1, 1), (1, 1, 1), 0, (BufferRef("a", buffer, Access.INOUT),))], 1, zeroed=[buffer])
    silent = threading.Event()
    device.watch(silent.set)
    noticed: list[bool] = []

    def status(_: int, name: str) -> object:
        if name == asks:
            noticed.append(silent.wait(60))
            return FAULT
        return SUCCESS

    fake.fails = status
    run.start()
    with pytest.raises(KernelFault):
        polled(run)
    assert noticed == [True]


def test_nothing_is_open_when_a_run_goes_on_has_ended_or_has_faulted(device: CudaDevice, fake: FakeDriver) -> None:
    buffer = device.allocate(1)
    run = device.prepare([Launch(KERNEL, (1, 1, 1), (1, 1, 1), 0, (BufferRef("a", buffer, Access.INOUT),))], 1, zeroed=[buffer])
    questions = device._context.questions
    for answer in (NOT_READY, SUCCESS, FAULT):
        before = questions.number
        fake.fail_in("cuStreamQuery", answer)
        run.start()
        if answer == FAULT:
            with pytest.raises(KernelFault):
                polled(run)
        else:
            assert polled(run) == (answer == SUCCESS)
        assert questions.number > before and questions.number % 2 == 0
        run.wait()


@pytest.mark.parametrize(("runs", "queues"), [(1, "8"), (4, "8"), (5, "9"), (16, "20"), (64, "32")])
def test_as_many_queues_as_runs_at_once_and_a_few_more(
    runs: int, queues: str, fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.delenv("CUDA_DEVICE_MAX_CONNECTIONS")
    CudaDevice(0, runs=runs).close()
    assert os.environ["CUDA_DEVICE_MAX_CONNECTIONS"] == queues
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", queues)


def test_a_new_run_waits_for_nothing_on_the_device(device: CudaDevice, fake: FakeDriver) -> None:
    """What waits for the device is kept for as long as it takes the driver to say that another's kernel has trapped."""
    buffer = device.allocate(1)
    runs = []
    for _ in range(3):
        before = len(fake.calls)
        launch = Launch(KERNEL, (1, 1, 1), (1, 1, 1), 0, (BufferRef("a", buffer, Access.INOUT),))
        runs.append(device.prepare([launch], 1, zeroed=[buffer]))
        runs[-1].start()
        assert not [name for name in fake.calls[before:] if "Synchronize" in name]
    assert len({run._moves._signal[0] for run in runs}) == len(runs), "each has a word of its own"
