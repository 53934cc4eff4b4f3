"""Groups: who goes next on an executor's device, and what a cluster knows of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest
import ray
from ray.exceptions import TaskCancelledError

import kaas_client.ray as kaas_ray
from kaas_client.errors import GroupLimitError, GroupNotFoundError, InvalidArgumentError
from kaas_client.ray import queue as queue_module
from kaas_client.ray.queue import DeviceQueue
from kaasd.scheduling import Group, QueuedRequest
from kaasd.scheduling.durations import DEFAULT_S
from tests.ray.support import ZERO, cancel, dot_request, spin_request, vectors


@dataclass(eq=False)
class Waiting:
    """A call that is of a group, and takes as long as any other."""

    group: str
    priority: int = 0
    suspect: bool = False
    queued: QueuedRequest = field(init=False)

    def __post_init__(self) -> None:
        self.queued = QueuedRequest(self, self.group, expected_s=1.0, priority=self.priority)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> DeviceQueue[Waiting]:
    """A queue whose clock goes on by a second at each look, so that every call takes as long, however slow the machine is."""
    monkeypatch.setattr(queue_module, "monotonic", count(1.0).__next__)
    made: DeviceQueue[Waiting] = DeviceQueue(1)
    for group in (Group("small"), Group("large", share=3)):
        made.set_group(group)
    return made


def begun(queue: DeviceQueue[Waiting], may_begin: Callable[[Waiting], bool] = lambda _: True) -> list[Waiting]:
    """Return what begins now."""
    calls: list[Waiting] = []
    queue.begin(may_begin, calls.append)
    return calls


def order(queue: DeviceQueue[Waiting]) -> list[Waiting]:
    """Return the calls in the order in which they begin, each when the one before has left the device."""
    calls: list[Waiting] = []
    while len(queue):
        (call,) = begun(queue)
        calls.append(call)
        queue.left(call)
        queue.left(call)
    return calls


def test_groups_get_their_shares_whatever_they_have_waiting(queue: DeviceQueue[Waiting]) -> None:
    for group in ("small",) * 40 + ("large",) * 30:
        queue.push(Waiting(group))
    first = [call.group for call in order(queue)[:40]]
    assert first.count("large") == pytest.approx(30, abs=1)


def test_within_a_group_the_higher_priority_goes_first(queue: DeviceQueue[Waiting]) -> None:
    calls = [Waiting("small", priority) for priority in (0, 2, 1)]
    for call in calls:
        queue.push(call)
    assert order(queue) == [calls[1], calls[2], calls[0]]


def test_a_suspect_runs_alone() -> None:
    queue: DeviceQueue[Waiting] = DeviceQueue(3)
    one, suspect, other = Waiting("default"), Waiting("default", suspect=True), Waiting("default")
    for call in (one, suspect, other):
        queue.push(call)
    assert begun(queue) == [one]
    assert begun(queue) == []
    queue.left(one)
    assert begun(queue) == [suspect]
    assert begun(queue) == []
    queue.left(suspect)
    assert begun(queue) == [other]
    assert len(queue) == 0


def test_one_that_must_wait_for_another_keeps_its_turn(queue: DeviceQueue[Waiting]) -> None:
    first, second = Waiting("default"), Waiting("default")
    queue.push(first)
    queue.push(second)
    assert begun(queue, lambda call: call is not first) == []
    assert begun(queue) == [first]


@pytest.mark.parametrize("held_back", [False, True])
def test_one_that_is_removed_never_begins(queue: DeviceQueue[Waiting], held_back: bool) -> None:
    first, second = Waiting("default"), Waiting("default")
    queue.push(first)
    queue.push(second)
    if held_back:
        assert begun(queue, lambda _: False) == []
    assert queue.remove(first)
    assert not queue.remove(first)
    assert begun(queue) == [second]
    assert not queue.remove(second)


def test_a_group_that_is_not_known_is_refused(queue: DeviceQueue[Waiting]) -> None:
    with pytest.raises(GroupNotFoundError):
        queue.push(Waiting("none"))
    assert len(queue) == 0


def test_what_there_is_to_do_is_what_calls_of_each_function_took_before() -> None:
    queue: DeviceQueue[Waiting] = DeviceQueue(2)
    known, unknown, other = (Waiting("default") for _ in range(3))
    known.queued.expected_s, unknown.queued.expected_s, unknown.queued.function = 60.0, None, b"new"
    for call in (known, unknown, other):
        queue.push(call)
    load = queue.load(8)
    assert (load.calls, load.device_s, load.expected_s) == (3, pytest.approx((60 + DEFAULT_S + 1) / 2), {})
    assert begun(queue) == [known, unknown]
    assert 25 < queue.load(8).device_s < 31
    queue.left(unknown)
    load = queue.load(8)
    assert (load.calls, list(load.expected_s)) == (2, [b"new"])
    assert queue.load(0).expected_s == {}


@pytest.mark.usefixtures("cluster")
class TestOnACluster:
    def test_a_group_is_known_to_all_executors_once_it_is_set(self) -> None:
        a, b = vectors(90)
        dot = kaas_ray.remote(dot_request()).options(group="tests")
        with pytest.raises(GroupNotFoundError, match="set_group"):
            ray.get(dot.remote(a=a, b=b))
        kaas_ray.set_group("tests", share=2.5)
        for executor in kaas_ray.executors():
            assert ray.get(dot.options(executor=executor).remote(a=a, b=b)) == np.sum(a * b, dtype=np.uint32)

    def test_a_limit_of_a_group_holds(self) -> None:
        kaas_ray.set_group("few", max_queued=1)
        spin = kaas_ray.remote(spin_request()).options(group="few", executor="emulator:0")
        running = spin.remote(flag=ZERO)
        assert not ray.wait([running], timeout=0.5)[0]
        waiting = [spin.remote(flag=ZERO) for _ in range(2)]
        (refused,), (queued,) = ray.wait(waiting, timeout=30)
        with pytest.raises(GroupLimitError):
            ray.get(refused)
        for reference in (queued, running):
            cancel(reference)
            with pytest.raises(TaskCancelledError):
                ray.get(reference, timeout=30)

    def test_what_cannot_be_granted_is_refused(self) -> None:
        with pytest.raises(InvalidArgumentError, match="share"):
            kaas_ray.set_group("bad", share=0)


def test_no_function_is_known_as_quick_while_others_hold_up_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: DeviceQueue[Waiting] = DeviceQueue(1)
    now = [100.0]
    monkeypatch.setattr(queue_module, "monotonic", lambda: now[0])

    def begin_one(function: str) -> Waiting:
        call = Waiting("default")
        call.queued.function = function
        queue.push(call)
        queue.begin(lambda _: True, lambda _: None)
        return call

    quick = begin_one("quick")
    now[0] += 1e-4
    queue.left(quick)
    assert queue.short_ones(10, 1e-3) == {"quick"}
    slow = begin_one("slow")
    assert queue.short_ones(10, 1e-3) == {"quick"}
    now[0] += 1.0
    assert queue.short_ones(10, 1e-3) == set()
    queue.left(slow)
    assert queue.short_ones(10, 1e-3) == {"quick"}
