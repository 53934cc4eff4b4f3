"""The engine of an executor without Ray: what is copied, what stays on the device, what ends a call early."""

from __future__ import annotations

import gc
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from kaas_client import Kernel, Request, inout, inp, out, u64
from kaas_client.errors import (
    CancelledError,
    DeadlineExceededError,
    GroupLimitError,
    InvalidRequestError,
    KernelFaultError,
    KeyNotFoundError,
)
from kaas_client.ray.arrays import Form, LentArray
from kaas_client.ray.engine import Engine
from kaas_client.ray.jobs import Job, Outputs
from kaas_client.ray.tasks import Task
from kaas_core.request import BufferSpec
from kaasd.libraries.registry import ResolvedLibrary, content_id
from kaasd.scheduling import Group
from tests.ray.support import DOT, FAULTS, ONE, ZERO, Words, dot_request, product_kernel, product_request, spin_request, vectors

LARGE = 1 << 18
"""Words of a vector: 1 MiB."""
FORM = Form.of(BufferSpec("p", 4 * LARGE, dtype="uint32", shape=(LARGE,)))


class Files:
    """Libraries by their path."""

    def resolve(self, reference: str) -> ResolvedLibrary:
        content = Path(reference).read_bytes()
        return ResolvedLibrary(reference, content_id(content), content, None)

    def is_current(self, resolved: ResolvedLibrary) -> bool:
        return True


@pytest.fixture
def engine(device_name: str) -> Iterator[Engine]:
    """An engine with the device of this name: on the emulated device, and with ``-m gpu`` on a GPU."""
    with closing(Engine(device_name, Files())) as opened:
        yield opened


@pytest.fixture
def emulated() -> Iterator[Engine]:
    """An engine with the emulated device, which survives faults and can stop kernels."""
    with closing(Engine("emulator", Files())) as opened:
        yield opened


_numbers = count()


def job(request: Request, *, keys: dict[str, str] | None = None, **inputs: Words) -> Job:
    """Return a job whose ``inputs`` come inline; ``keys`` are objects by buffer name."""
    task = Task.of(request.spec)
    outputs = {spec.name: f"output-{next(_numbers)}" for spec in task.outputs}
    names = {**(keys or {}), **task.names_of(outputs)}
    values = {name: memoryview(value.tobytes()) for name, value in inputs.items()}
    return Job(task.serialized, names, values, {}, outputs)


def words(outputs: Outputs, position: int = 0) -> Words:
    """Return a copy of an output; whoever has ``outputs`` holds the loan."""
    return np.frombuffer(list(outputs.contents.values())[position], np.uint32).copy()


def wait_until_unused(engine: Engine) -> None:
    """Wait until the engine has heard that nobody uses its outputs any more."""
    gc.collect()
    engine.run(job(dot_request(), a=np.ones(1024, "u4"), b=np.ones(1024, "u4")))


def host_addresses(engine: Engine) -> list[int]:
    """Return where what the emulated device holds lies in host memory."""
    return [cast(Any, buffer).host_address for held in engine.executor.memory._held.values() for buffer in held.buffers]


def test_a_large_output_is_handed_over_where_the_device_has_it(emulated: Engine) -> None:
    """So the one copy of it is Ray's own, into its store."""
    a, b = vectors(1, LARGE)
    outputs = emulated.run(job(product_request(LARGE), a=a, b=b))
    (content,) = outputs.contents.values()
    address = np.frombuffer(content, np.uint8).ctypes.data
    assert address in host_addresses(emulated)
    assert content.readonly
    array = LentArray.of(content, FORM, outputs.loan)
    pieces: list[pickle.PickleBuffer] = []
    pickle.dumps(array, protocol=5, buffer_callback=pieces.append)
    assert np.frombuffer(pieces[0].raw(), np.uint8).ctypes.data == address
    assert np.array_equal(words(outputs), a * b)


def test_outputs_are_lent_until_the_last_user_has_gone(engine: Engine) -> None:
    a, b = vectors(2, LARGE)
    outputs = engine.run(job(product_request(LARGE), a=a, b=b))
    array = LentArray.of(next(iter(outputs.contents.values())), FORM, outputs.loan)
    pickled: list[pickle.PickleBuffer] = []
    pickle.dumps(array, protocol=5, buffer_callback=pickled.append)
    del outputs, array
    wait_until_unused(engine)
    assert engine.executor.memory.in_use_bytes == 4 * LARGE
    assert np.array_equal(np.frombuffer(pickled[0].raw(), np.uint32), a * b)
    pickled.clear()
    wait_until_unused(engine)
    assert engine.executor.memory.in_use_bytes == 0


def test_an_output_is_not_uploaded_for_the_next_request_of_a_chain(engine: Engine) -> None:
    a, b = vectors(3, LARGE)
    first = job(product_request(LARGE), a=a, b=b)
    assert np.array_equal(words(engine.run(first)), a * b)
    before = engine.executor.uploaded_bytes
    second = engine.run(job(product_request(LARGE), keys={"a": first.outputs["p"]}, b=b))
    assert np.array_equal(words(second), a * b * b)
    assert engine.executor.uploaded_bytes - before == b.nbytes


def test_an_object_is_uploaded_once(engine: Engine) -> None:
    a, b = vectors(4, LARGE)
    values = {"object": memoryview(a.tobytes())}
    for _ in range(3):
        outputs = engine.run(replace(job(product_request(LARGE), keys={"a": "object"}, b=b), values=values))
        assert np.array_equal(words(outputs), a * b)
        del outputs
    assert engine.executor.uploaded_bytes == a.nbytes + 3 * b.nbytes


def test_an_object_that_is_not_there_is_named(engine: Engine) -> None:
    _, b = vectors(5, LARGE)
    with pytest.raises(KeyNotFoundError) as missing:
        engine.run(job(product_request(LARGE), keys={"a": "object"}, b=b))
    assert missing.value.metadata["key"] == "object"


def test_a_buffer_that_is_read_and_written_is_a_new_object(engine: Engine) -> None:
    a, b = vectors(6, LARGE)
    args = [u64(LARGE), inout("a", a.nbytes), inp("b", b.nbytes), inout("a")]
    in_place = Request([Kernel(DOT, "prodKern", grid=LARGE // 1024, block=1024, args=args)])
    first = job(in_place, a=a, b=b)
    assert np.array_equal(words(engine.run(first)), a * b)
    before = engine.executor.uploaded_bytes
    (made,) = first.outputs.values()
    again = replace(job(in_place, a=a * b, b=b), input_keys={"a": made})
    assert np.array_equal(words(engine.run(again)), a * b * b)
    assert engine.executor.uploaded_bytes - before == b.nbytes
    outputs = engine.run(job(product_request(LARGE), keys={"a": first.outputs["a"]}, b=b))
    assert np.array_equal(words(outputs), a * b * b)


def test_a_group_takes_no_more_device_memory_than_it_may(engine: Engine) -> None:
    a, b = vectors(6, LARGE)
    engine.set_group(Group("small", max_device_memory_bytes=3 * a.nbytes - 1))
    with pytest.raises(GroupLimitError) as error:
        engine.run(replace(job(product_request(LARGE), a=a, b=b), group="small"))
    assert error.value.metadata == {"group": "small", "limit": "max_device_memory_bytes"}
    engine.set_group(Group("small", max_device_memory_bytes=3 * a.nbytes))
    assert np.array_equal(words(engine.run(replace(job(product_request(LARGE), a=a, b=b), group="small"))), a * b)


def test_a_request_that_fails_leaves_nothing(emulated: Engine) -> None:
    a, b = vectors(7, LARGE)
    far = Kernel(FAULTS, "writeAtKern", args=[u64(1 << 40), out("p")])
    with pytest.raises(KernelFaultError) as fault:
        emulated.run(job(Request([product_kernel(LARGE), far]), a=a, b=b))
    assert (fault.value.metadata["kernel_index"], fault.value.metadata["kernel"]) == ("1", "writeAtKern")
    wait_until_unused(emulated)
    assert emulated.executor.memory.in_use_bytes == 0
    assert not [each for each in emulated.executor.memory._held if "value" in each]  # type: ignore[operator]


def test_what_nobody_uses_is_held_up_to_a_limit() -> None:
    a, b = vectors(8, LARGE)
    limit = 3 * a.nbytes
    with closing(Engine("emulator", Files(), unused_limit_bytes=limit)) as engine:
        for _ in range(10):
            assert np.array_equal(words(engine.run(job(product_request(LARGE), a=a, b=b))), a * b)
            wait_until_unused(engine)
            assert engine.executor.memory.held_bytes <= limit


def test_requests_of_several_threads_are_all_right(engine: Engine) -> None:
    def caller(seed: int) -> list[bool]:
        a, b = vectors(seed)
        expected = np.sum(a * b, dtype=np.uint32)
        return [int(words(engine.run(job(dot_request(), a=a, b=b)))[0]) == expected for _ in range(25)]

    with ThreadPoolExecutor(8) as threads:
        assert all(all(right) for right in threads.map(caller, range(8)))


class Caller:
    """A call in a thread of its own."""

    def __init__(self, engine: Engine, wanted: Job) -> None:
        self.cancelled = threading.Event()
        self._future = ThreadPoolExecutor(1).submit(engine.run, wanted, self.cancelled.is_set)

    def error(self) -> BaseException | None:
        return self._future.exception(timeout=30)

    def outputs(self) -> Outputs:
        return self._future.result(timeout=30)


def wait_until_running(engine: Engine) -> None:
    """Wait until the device has taken all that waits."""
    ticks = threading.Event()
    while engine.queued or not engine.running:
        ticks.wait(0.001)


def test_a_running_kernel_is_cancelled_and_the_next_call_is_served(emulated: Engine) -> None:
    spinning = Caller(emulated, job(spin_request(), flag=ZERO))
    wait_until_running(emulated)
    spinning.cancelled.set()
    error = spinning.error()
    assert isinstance(error, CancelledError)
    assert error.message == "the call was cancelled while the request was running"
    assert words(emulated.run(job(spin_request(), flag=ONE)))[0] == 1


def test_a_waiting_call_is_cancelled_at_once(emulated: Engine) -> None:
    spinning = Caller(emulated, job(spin_request(), flag=ZERO))
    wait_until_running(emulated)
    waiting = Caller(emulated, job(spin_request(), flag=ONE))
    also_waiting = Caller(emulated, job(spin_request(), flag=ONE))
    waiting.cancelled.set()
    error = waiting.error()
    assert isinstance(error, CancelledError)
    assert error.message == "the call was cancelled while the request was queued"
    spinning.cancelled.set()
    assert words(also_waiting.outputs())[0] == 1


@pytest.mark.parametrize("behind", [False, True])
def test_a_deadline_holds_for_what_runs_and_what_waits(emulated: Engine, behind: bool) -> None:
    first = Caller(emulated, job(spin_request(), flag=ZERO)) if behind else None
    if behind:
        wait_until_running(emulated)
    due = Caller(emulated, replace(job(spin_request(), flag=ZERO), deadline=time.monotonic() + 0.2))
    error = due.error()
    assert isinstance(error, DeadlineExceededError)
    assert error.message.endswith("queued" if behind else "running")
    if first is not None:
        first.cancelled.set()
        assert isinstance(first.error(), CancelledError)
    assert words(emulated.run(job(spin_request(), flag=ONE)))[0] == 1


def test_a_deadline_in_the_past_is_never_run(emulated: Engine) -> None:
    with pytest.raises(DeadlineExceededError):
        emulated.run(replace(job(spin_request(), flag=ZERO), deadline=time.monotonic() - 1))
    assert words(emulated.run(job(spin_request(), flag=ONE)))[0] == 1


def test_what_is_handed_over_is_not_cancelled_any_more(emulated: Engine) -> None:
    a, b = vectors(9, LARGE)
    caller = Caller(emulated, job(product_request(LARGE), a=a, b=b))
    outputs = caller.outputs()
    caller.cancelled.set()
    spinning = Caller(emulated, job(spin_request(), flag=ZERO))
    wait_until_running(emulated)
    spinning.cancelled.set()
    assert isinstance(spinning.error(), CancelledError)
    assert np.array_equal(words(outputs), a * b)


@pytest.fixture
def drivers(device_name: str) -> Iterator[tuple[Engine, list[str]]]:
    """An engine, and the names of the threads that ran its requests."""
    names: list[str] = []
    with closing(Engine(device_name, Files(), on_result=lambda _: names.append(threading.current_thread().name))) as opened:
        yield opened, names


def in_a_thread(engine: Engine, wanted: Job) -> Outputs:
    """Run a job in a thread of the name ``caller``."""
    with ThreadPoolExecutor(1, "caller") as threads:
        return threads.submit(engine.run, wanted).result(timeout=30)


def test_who_brings_a_call_runs_it_once_its_function_is_known(drivers: tuple[Engine, list[str]]) -> None:
    engine, names = drivers
    for _ in range(5):
        assert words(in_a_thread(engine, job(spin_request(), flag=ONE)))[0] == 1
    assert names[0] == "device"  # it brings the code there
    assert names[-1] == "caller_0"


def test_the_main_thread_runs_nothing(drivers: tuple[Engine, list[str]]) -> None:
    """Where an interrupt would end it in the middle of anything."""
    engine, names = drivers
    for _ in range(3):
        assert words(engine.run(job(spin_request(), flag=ONE)))[0] == 1
    assert names == ["device"] * 3


@pytest.mark.parametrize("by_deadline", [False, True])
def test_a_call_that_goes_on_unexpectedly_ends_early_as_others_do(emulated: Engine, by_deadline: bool) -> None:
    """Its own thread runs the kernel, and so cannot look whether it is to end."""
    in_a_thread(emulated, job(spin_request(), flag=ONE))
    wanted = job(spin_request(), flag=ZERO)
    spinning = Caller(emulated, replace(wanted, deadline=time.monotonic() + 0.2) if by_deadline else wanted)
    wait_until_running(emulated)
    behind = Caller(emulated, job(spin_request(), flag=ONE))
    if not by_deadline:
        spinning.cancelled.set()
    error = spinning.error()
    assert isinstance(error, DeadlineExceededError if by_deadline else CancelledError)
    assert error.message.endswith("while the request was running")
    assert words(behind.outputs())[0] == 1


def test_a_call_that_goes_on_unexpectedly_is_right(emulated: Engine) -> None:
    """It begins anew, with its inputs as they were."""
    a, b = vectors(10, LARGE)
    times = 100
    args = [u64(LARGE), inout("a", a.nbytes), inp("b", b.nbytes), inout("a")]
    powers = Request([Kernel(DOT, "prodKern", grid=LARGE // 1024, block=1024, args=args)], iterations=times)
    expected = a.copy()
    for _ in range(times):
        expected *= b
    for _ in range(2):
        assert np.array_equal(words(in_a_thread(emulated, job(powers, a=a, b=b))), expected)
        known = emulated._queue._scheduler._durations._least_s
        known.update(dict.fromkeys(known, 1e-6))  # as if it had been short


def test_a_call_that_fails_keeps_nothing_of_who_ran_it(emulated: Engine) -> None:
    """Whose outputs would be lent for ever: an error has the frames of the thread that met it."""
    a, b = vectors(11, LARGE)
    in_a_thread(emulated, job(product_request(LARGE), a=a, b=b))
    failing = job(product_request(LARGE), a=a, b=b)
    failing = replace(failing, inputs={"a": failing.inputs["a"][:4], "b": failing.inputs["b"]})
    errors: list[Exception] = []

    def caller(seed: int) -> None:
        try:
            emulated.run(failing if seed % 2 else job(product_request(LARGE), a=a, b=b))
        except InvalidRequestError as error:
            errors.append(error)

    gc.disable()
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(caller, range(64)))
        assert len(errors) == 32
        for _ in range(50):
            if emulated.running:
                emulated.run(job(spin_request(), flag=ONE))
        assert not emulated.running
        assert emulated.executor.memory.in_use_bytes == 0
    finally:
        gc.enable()


def test_calls_whose_threads_come_and_go_are_all_served(emulated: Engine) -> None:
    """Short ones, ones of new functions, ones that are cancelled: whoever drives hands that on."""
    in_a_thread(emulated, job(spin_request(), flag=ONE))

    def caller(seed: int) -> bool:
        a, b = vectors(seed)
        right = True
        for turn in range(20):
            right &= int(words(emulated.run(job(spin_request(), flag=ONE)))[0]) == 1
            if (seed + turn) % 7 == 0:
                spinning = Caller(emulated, job(spin_request(), flag=ZERO))
                spinning.cancelled.set()
                right &= isinstance(spinning.error(), CancelledError)
            right &= int(words(emulated.run(job(dot_request(), a=a, b=b)))[0]) == np.sum(a * b, dtype=np.uint32)
        return right

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(caller, range(8)))


def test_a_call_of_a_new_function_is_served_behind_one_that_goes_on_unexpectedly(emulated: Engine) -> None:
    """The new one is for the engine's own thread, which is needed to stop the other as well."""
    in_a_thread(emulated, job(spin_request(), flag=ONE))
    spinning = Caller(emulated, job(spin_request(), flag=ZERO))
    wait_until_running(emulated)
    a, b = vectors(12)
    behind = Caller(emulated, job(dot_request(), a=a, b=b))
    spinning.cancelled.set()
    assert isinstance(spinning.error(), CancelledError)
    assert int(words(behind.outputs())[0]) == np.sum(a * b, dtype=np.uint32)
