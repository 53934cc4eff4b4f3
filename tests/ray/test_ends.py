"""Calls on a real cluster that end otherwise than with results: errors, cancellations, deadlines; and calls that wait."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import TaskCancelledError

import kaas_client.ray as kaas_ray
from kaas_client import Kernel, Request, out, u64
from kaas_client.errors import (
    CancelledError,
    DeadlineExceededError,
    InvalidArgumentError,
    InvalidRequestError,
    KaasError,
    KernelFaultError,
    KernelNotFoundError,
    ValueTooShortError,
)
from tests.ray.support import DOT, FAULTS, ONE, ZERO, Words, cancel, dot_request, spin_request, vectors, when

pytestmark = pytest.mark.usefixtures("cluster")

FIRST = {"executor": "emulator:0"}


def faulty() -> kaas_ray.RemoteFunction:
    far = Kernel(FAULTS, "writeAtKern", args=[u64(1 << 40), out("c")])
    return kaas_ray.remote(Request([Kernel(FAULTS, "writeAtKern", args=[u64(0), out("c", dtype="u4")]), far]))


def serves(executor: str = "emulator:0") -> bool:
    """Return whether an executor's next call is answered rightly."""
    spin = kaas_ray.remote(spin_request()).options(executor=executor)
    return int(ray.get(spin.remote(flag=ONE), timeout=30)) == 1


def test_a_fault_comes_out_with_its_kernel() -> None:
    with pytest.raises(KernelFaultError, match="writeAtKern") as fault:
        ray.get(faulty().options(**FIRST).remote())
    assert (fault.value.metadata["kernel_index"], fault.value.metadata["kernel"]) == ("1", "writeAtKern")
    assert fault.value.metadata["fault"] == "CUDA_ERROR_ILLEGAL_ADDRESS"
    assert (fault.value.reason, fault.value.code) == ("KERNEL_FAULT", "ABORTED")
    assert serves()


def test_the_plain_exception_is_to_be_had_too() -> None:
    with pytest.raises(KernelFaultError) as fault:
        kaas_ray.get(faulty().remote())
    assert type(fault.value) is KernelFaultError
    again = pickle.loads(pickle.dumps(fault.value))
    assert (type(again), again.message, again.metadata) == (KernelFaultError, fault.value.message, fault.value.metadata)
    results = kaas_ray.get([kaas_ray.remote(spin_request()).remote(flag=ONE) for _ in range(2)])
    assert [int(result) for result in results] == [1, 1]


def test_an_error_goes_on_to_what_was_to_use_the_result() -> None:
    @ray.remote
    def user(value: Words) -> Words:
        return value

    for reference in (user.remote(faulty().remote()), kaas_ray.remote(spin_request()).remote(flag=faulty().remote())):
        with pytest.raises(KernelFaultError, match="writeAtKern"):
            ray.get(reference)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kaas_ray.remote(spin_request()).remote(flag=ray.put({"no": "array"})), InvalidRequestError, "type 'dict'"),
        (lambda: kaas_ray.remote(dot_request()).remote(a=ray.put(ONE), b=vectors(1)[0]), ValueTooShortError, "4 bytes"),
        (lambda: kaas_ray.remote(Request([Kernel(DOT, "none", args=[out("c", 4)])])).remote(), KernelNotFoundError, "prodKern"),
    ],
)
def test_what_only_an_executor_can_see_is_an_error_of_the_call(make: Any, error: type[KaasError], message: str) -> None:
    with pytest.raises(error, match=message):
        ray.get(make())


def test_one_call_that_waits_for_an_input_delays_none_of_100_others(tmp_path: Path) -> None:
    a, b = vectors(41)
    dot = kaas_ray.remote(dot_request()).options(**FIRST)
    waiting = dot.remote(a=when.remote(tmp_path / "go", a), b=b)
    waiting_until = dot.options(timeout=60).remote(a=when.remote(tmp_path / "go", a), b=b)
    expected = np.sum(a * b, dtype=np.uint32)
    assert ray.get([dot.remote(a=a, b=b) for _ in range(100)], timeout=60) == [expected] * 100
    assert not ray.wait([waiting, waiting_until], timeout=0)[0]
    (tmp_path / "go").touch()
    assert ray.get([waiting, waiting_until], timeout=60) == [expected] * 2


def test_a_call_that_waits_for_an_input_is_cancelled(tmp_path: Path) -> None:
    a, b = vectors(42)
    dot = kaas_ray.remote(dot_request()).options(**FIRST)
    never = when.remote(tmp_path / "never", a)
    for waiting in (dot.remote(a=never, b=b), dot.options(timeout=60).remote(a=never, b=b)):
        cancel(waiting)
        with pytest.raises(TaskCancelledError):
            ray.get(waiting, timeout=10)
    assert serves()
    ray.cancel(never, force=True)


def test_a_deadline_passes_while_an_input_is_awaited(tmp_path: Path) -> None:
    a, b = vectors(43)
    never = when.remote(tmp_path / "never", a)
    due = kaas_ray.remote(dot_request()).options(timeout=0.3, **FIRST).remote(a=never, b=b)
    with pytest.raises(DeadlineExceededError, match="waited for an input"):
        ray.get(due, timeout=30)
    ray.cancel(never, force=True)


def test_a_deadline_ends_a_kernel() -> None:
    due = kaas_ray.remote(spin_request()).options(timeout=0.3, **FIRST).remote(flag=ZERO)
    with pytest.raises(DeadlineExceededError, match="while the request was running"):
        ray.get(due, timeout=30)
    assert serves()


def test_cancelling_ends_a_kernel_and_what_waits_behind_it() -> None:
    spin = kaas_ray.remote(spin_request()).options(**FIRST)
    running = spin.remote(flag=ZERO)
    assert not ray.wait([running], timeout=0.5)[0]  # calls that come at once may overtake each other
    queued, behind = spin.remote(flag=ONE), spin.remote(flag=ONE)
    assert not ray.wait([running, queued, behind], timeout=0.5)[0]
    cancel(queued)
    with pytest.raises(TaskCancelledError):
        ray.get(queued, timeout=30)
    cancel(running)
    with pytest.raises(TaskCancelledError):
        ray.get(running, timeout=30)
    with pytest.raises(CancelledError):
        kaas_ray.get(running)
    assert int(ray.get(behind, timeout=30)) == 1


def test_cancelling_what_is_done_changes_nothing() -> None:
    done = kaas_ray.remote(spin_request()).options(**FIRST).remote(flag=ONE)
    assert int(ray.get(done)) == 1
    ray.cancel(done)
    assert int(ray.get(done)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timeout": 0}, "timeout must be"),
        ({"timeout": float("inf")}, "timeout must be"),
        ({"max_retries": -1}, "max_retries"),
        ({"group": "a group"}, "a name has 1 to 64"),
        ({"executor": "emulator:7"}, "there are emulator:0, emulator:1"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        kaas_ray.remote(spin_request()).options(**options).remote(flag=ONE)


def test_an_executor_touches_no_gpu_and_brings_nothing_of_the_daemon() -> None:
    executor = ray.get_actor("emulator:0", kaas_ray.NAMESPACE)
    names = ray.get(executor.__ray_call__.remote(lambda _: list(sys.modules)))
    brought = {"cuda", "grpc", "lmdb", "kaasd.api", "kaasd.front", "kaasd.app"}
    assert not [name for name in names if name.split(".")[0] in brought or name in brought]
