"""Requests that wait for a device: limits, deadlines, devices that come and go, callers that leave."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from kaas.worker.v1 import worker_pb2
from kaas_core.errors import (
    CancelledError,
    DeadlineExceededError,
    DrainingError,
    GroupLimitError,
    GroupNotFoundError,
    QueueFullError,
)
from kaasd.front.call_queue import CancelReason
from kaasd.front.pending_call import PendingCall
from kaasd.front.request_queue import RequestQueue
from kaasd.scheduling import Group, Policy, QueuedRequest, Scheduler
from tests.front.support import run

IDS = itertools.count(1)


def request(group: str = "default", **options: Any) -> PendingCall:
    queued = QueuedRequest(None, group, **options)
    message = worker_pb2.ToWorker(id=next(IDS))
    made = queued.id = PendingCall(message, asyncio.get_running_loop().create_future(), queued=queued)
    return made


def with_queue(body: Callable[[RequestQueue], Awaitable[None]], *devices: str, slots: int = 1, **options: Any) -> None:
    """Run a test with a queue whose devices are ready, and answer a request when one begins it."""

    async def ready() -> None:
        queue = RequestQueue(Scheduler(policy=Policy.AFFINITY), devices or ("d0",), **options)
        queue.begin = lambda call: call.answer.done() or call.answer.set_result(worker_pb2.FromWorker())  # type: ignore[func-returns-value]
        for device in devices or ("d0",):
            queue.device_ready(device, slots)
        try:
            await body(queue)
        finally:
            queue.close()

    run(ready())


def waiting(queue: RequestQueue, *calls: PendingCall) -> list[asyncio.Task[worker_pb2.FromWorker]]:
    """Place requests for which there is no device."""
    for one in calls:
        queue.place(one)
        assert one in queue.waiting
    return [asyncio.create_task(one.outcome()) for one in calls]


def test_what_has_a_slot_goes_at_once_and_others_come_as_slots_are_left() -> None:
    async def body(queue: RequestQueue) -> None:
        first, second, third = request(), request(), request()
        assert queue.has_room
        queue.place(first)
        assert (first.device, queue.has_room) == ("d0", False)
        tasks = waiting(queue, second, third)
        assert (second.device, queue.queued("d0")) == ("", 2)
        queue.left(first, 0.001)
        await tasks[0]
        assert (second.device, second.waited_ns > 0) == ("d0", True)
        queue.left(second, 0.001)
        await tasks[1]
        queue.left(third, 0.001)
        assert queue.has_room
        assert queue.waited_ns["default"] == second.waited_ns + third.waited_ns

    with_queue(body)


def test_groups_get_their_shares() -> None:
    async def body(queue: RequestQueue) -> None:
        queue.set_group(Group("big", 3.0))
        queue.set_group(Group("small"))
        order: list[str] = []

        async def serve(one: PendingCall) -> None:
            queue.place(one)
            await one.outcome()
            order.append(one.queued.group if one.queued else "")
            await asyncio.sleep(0)
            queue.left(one, 0.01)

        await asyncio.gather(*(serve(request(group)) for _ in range(40) for group in ("big", "small")))
        assert 28 <= order[:40].count("big") <= 32
        assert queue.use("big").device_s == pytest.approx(0.4)
        shares = queue.shares()
        assert (shares["big"].wanted, shares["small"].wanted) == (0, 0)
        assert (shares["big"].got, shares["small"].got) == (pytest.approx(0.5), pytest.approx(0.5))
        queue.place(request("big"))
        assert (queue.shares()["big"].wanted, queue.shares()["small"].wanted) == (1, 0)
        queue.remove_group("small")
        assert set(queue.shares()) == {"default", "big"}

    with_queue(body)


class TestLimits:
    def test_of_requests(self) -> None:
        async def body(queue: RequestQueue) -> None:
            queue.place(request())
            tasks = waiting(queue, request(), request())
            with pytest.raises(QueueFullError, match="2 requests are waiting already"):
                queue.place(request())
            tasks[0].cancel()
            assert queue.queued("d0") == 2  # whoever placed it has to say that its caller has gone

        with_queue(body, max_queued=2)

    def test_of_bytes(self) -> None:
        async def body(queue: RequestQueue) -> None:
            queue.place(request(size_bytes=1000))  # it does not wait
            waiting(queue, request(size_bytes=60))
            with pytest.raises(QueueFullError, match="60 bytes of inputs are waiting already, and with the 41 of this one"):
                queue.place(request(size_bytes=41))
            last = request(size_bytes=40)
            waiting(queue, last)
            queue.left(last)
            waiting(queue, request(size_bytes=40))

        with_queue(body, max_queued_bytes=100)

    def test_of_a_group(self) -> None:
        async def body(queue: RequestQueue) -> None:
            queue.set_group(Group("g", max_queued=1, max_running=1))
            queue.place(request("g"))
            waiting(queue, request("g"))
            with pytest.raises(GroupLimitError) as caught:
                queue.place(request("g"))
            assert caught.value.metadata == {"group": "g", "limit": "max_queued"}
            queue.place(request())  # another group's slot

        with_queue(body, slots=3)

    def test_a_group_that_there_is_not(self) -> None:
        async def body(queue: RequestQueue) -> None:
            with pytest.raises(GroupNotFoundError):
                queue.place(request("nobody"))

        with_queue(body)


class TestEnds:
    def test_a_deadline_that_passes(self) -> None:
        async def body(queue: RequestQueue) -> None:
            queue.place(request())
            late = request(deadline=asyncio.get_running_loop().time() + 0.05)
            queue.place(late)
            with pytest.raises(DeadlineExceededError, match="the deadline passed while the request was queued"):
                await late.outcome()
            assert queue.queued("d0") == 0
            queue.left(late)

        with_queue(body)

    def test_a_deadline_that_cannot_be_met_is_refused_at_once_but_not_for_ever(self) -> None:
        async def body(queue: RequestQueue) -> None:
            now = asyncio.get_running_loop().time
            known = request(function="slow")
            queue.place(known)
            queue.left(known, 100.0)
            hopeless = request(function="slow", deadline=now() + 50)
            with pytest.raises(DeadlineExceededError, match="has taken 100 s at least") as caught:
                queue.place(hopeless)
            assert caught.value.metadata == {"stage": "admission"}
            queue.left(hopeless)
            possible = request(function="slow", deadline=now() + 1000)
            queue.place(possible)
            queue.left(possible)
            for _ in range(10):
                again = request(function="slow", deadline=now() + 50)
                try:
                    queue.place(again)
                except DeadlineExceededError:
                    continue
                break
            assert again.device == "d0"

        with_queue(body)

    def test_what_a_sender_has_waiting_counts(self) -> None:
        async def body(queue: RequestQueue) -> None:
            now = asyncio.get_running_loop().time
            known = request(function="slow")
            queue.place(known)
            queue.left(known, 10.0)
            queue.place(request(function="slow", sender="a"))
            waiting(queue, *(request(function="slow", sender="a") for _ in range(3)))
            with pytest.raises(DeadlineExceededError, match="40 s at least"):
                queue.place(request(function="slow", sender="a", deadline=now() + 35))
            waiting(queue, request(function="slow", sender="b", deadline=now() + 35))

        with_queue(body)

    def test_an_operator(self) -> None:
        async def body(queue: RequestQueue) -> None:
            running, one = request(), request()
            queue.place(running)
            (task,) = waiting(queue, one)
            assert not queue.cancel(running.id, CancelReason.OPERATOR)
            assert queue.cancel(one.id, CancelReason.OPERATOR)
            with pytest.raises(CancelledError, match="an operator cancelled it while the request was queued"):
                await task
            queue.left(one)
            assert not queue.cancel(one.id, CancelReason.OPERATOR)

        with_queue(body)

    def test_all_at_once_or_those_of_one_device(self) -> None:
        async def body(queue: RequestQueue) -> None:
            for device in ("d0", "d1"):
                queue.place(request(device=device))
            tasks = waiting(queue, request(device="d0"), request(device="d1"), request())
            queue.fail_all(DrainingError("over"), "d1")
            with pytest.raises(DrainingError):
                await tasks[1]
            queue.fail_all(DrainingError("over"))
            for task in (tasks[0], tasks[2]):
                with pytest.raises(DrainingError):
                    await task
            assert not list(queue.waiting)

        with_queue(body, "d0", "d1")

    def test_a_caller_that_goes_as_its_turn_comes_leaves_its_slot(self) -> None:
        async def body(queue: RequestQueue) -> None:
            first, gone, next_ = request(), request(), request()
            queue.place(first)
            gone_task, next_task = waiting(queue, gone, next_)
            queue.left(first, 0.001)
            gone_task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone_task
            queue.left(gone)
            await next_task
            assert next_.device == "d0"

        with_queue(body)


class TestDevices:
    def test_what_a_lost_device_had_not_begun_goes_to_another_first(self) -> None:
        async def body(queue: RequestQueue) -> None:
            held = [request(device="d0"), request(device="d0"), request(device="d1"), request(device="d1")]
            for one in held:
                queue.place(one)
            moved, later = request(), request()
            queue.left(held[1], 0.001)
            queue.place(moved)
            assert moved.device == "d0"
            (task,) = waiting(queue, later)
            queue.device_lost("d0", [moved])
            assert list(queue.waiting) == [later, moved]
            queue.left(held[2], 0.001)
            assert (moved.device, later.device) == ("d1", "")
            queue.left(held[0])  # that was lost with its device
            queue.device_ready("d0", 1)
            await task
            assert later.device == "d0"

        with_queue(body, "d0", "d1", slots=2)

    def test_what_may_run_on_a_lost_device_only_waits_for_its_return(self) -> None:
        async def body(queue: RequestQueue) -> None:
            queue.device_lost("d0", [])
            queue.device_lost("d0", [])
            (task,) = waiting(queue, request(device="d0"))
            other = request()
            queue.place(other)
            assert other.device == "d1"
            queue.device_ready("d0", 1)
            await task

        with_queue(body, "d0", "d1")

    def test_a_closed_device_gets_nothing_also_after_it_was_lost(self) -> None:
        async def body(queue: RequestQueue) -> None:
            for _ in range(2):
                queue.close_device("d0")
            queue.device_lost("d0", [])
            queue.device_ready("d0", 1)
            (task,) = waiting(queue, request())
            assert not queue.has_room
            for _ in range(2):
                queue.open_device("d0")
            await task

        with_queue(body)

    def test_a_request_that_waits_for_its_code_leaves_its_slot(self) -> None:
        async def body(queue: RequestQueue) -> None:
            compiling = request()
            queue.place(compiling)
            (task,) = waiting(queue, request())
            for _ in range(2):
                queue.leaves_slot(compiling)
            await task
            assert not queue.has_room
            queue.left(compiling, 0.001)
            assert not queue.has_room

        with_queue(body)
