"""The dispatcher with real supervisors, whose workers do as the calls say."""

from __future__ import annotations

import asyncio
import itertools
import os
import selectors
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from kaas.v1 import admin_pb2, trace_pb2
from kaas_core.errors import (
    DeadlineExceededError,
    GroupLimitError,
    InvalidLibraryError,
    InvalidRequestError,
    StoreFullError,
    WorkerRestartingError,
)
from kaasd.front.dispatcher import Dispatcher
from kaasd.front.in_flight import BusyPoll
from kaasd.front.needs import StoredInput
from kaasd.front.request_queue import RequestQueue
from kaasd.scheduling import Group, Policy, Scheduler
from tests.front.support import REQUEST, dispatching, execute, later, run, seen, supervised, until


class TestExecute:
    def test_a_request_and_its_reply(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path) as (dispatcher, _):
                reply = await dispatcher.execute(
                    REQUEST, keys={"do": "look", "b": "k"}, inputs={"a": b"123"}, return_buffers=["c", "d"]
                )
                call = seen(reply)
                assert (call["keys"], call["inputs"]) == ({"do": "look", "b": "k"}, {"a": 3})
                assert (call["return_buffers"], call["traced"]) == (["c", "d"], False)
                assert not reply.HasField("trace")
                assert reply.timing.run_ns == 5
                assert 0 < reply.timing.queue_ns < reply.timing.total_ns

        run(body())

    def test_inputs_of_a_call_are_held_by_its_message_alone(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path) as (dispatcher, (worker,)):
                data = b"some input"
                references = sys.getrefcount(data)
                held = asyncio.create_task(dispatcher.execute(REQUEST, keys={"do": "hold"}, inputs={"a": data}))
                await until(lambda: worker.queue.running == 1)
                assert sys.getrefcount(data) == references
                held.cancel()

        run(body())

    def test_a_trace_has_the_stages_that_the_front_knows(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path) as (dispatcher, _):
                reply = await execute(dispatcher, trace=True)
                assert seen(reply)["traced"]
                assert [(span.kind, span.name, span.start_ns, span.duration_ns) for span in reply.trace.spans] == [
                    (trace_pb2.SPAN_KIND_STAGE, "request", 0, reply.timing.total_ns),
                    (trace_pb2.SPAN_KIND_STAGE, "queue", 0, reply.timing.queue_ns),
                ]

        run(body())

    def test_a_worker_is_told_whether_a_call_is_the_only_one(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path) as (dispatcher, (worker,)):
                assert seen(await execute(dispatcher))["only_call"]
                held = later(dispatcher, "hold")
                await until(lambda: worker.queue.running == 1)
                assert not seen(await execute(dispatcher))["only_call"]
                held.cancel()
                await until(lambda: worker.queue.running == 0)
                assert seen(await execute(dispatcher))["only_call"]

        run(body())

    def test_the_earlier_of_its_deadline_and_the_longest_time(self, tmp_path: Path) -> None:
        async def body() -> None:
            loop = asyncio.get_running_loop()
            async with dispatching(tmp_path, max_run_s=0.2) as (dispatcher, _):
                for deadline in (None, loop.time() + 1000):
                    with pytest.raises(DeadlineExceededError):
                        await execute(dispatcher, "hold", deadline=deadline)
            async with dispatching(tmp_path, max_run_s=1000) as (dispatcher, _):
                with pytest.raises(DeadlineExceededError):
                    await execute(dispatcher, "hold", deadline=loop.time() + 0.1)

        run(body())


class TestDeviceMemory:
    def test_a_worker_that_had_to_drop_something_is_told_what_is_needed_next(self, tmp_path: Path) -> None:
        async def test() -> None:
            async with dispatching(tmp_path) as (dispatcher, (supervisor,)):
                stays = {"a": StoredInput("k", 0, 10), "b": StoredInput("l", 20, 30), "do": StoredInput("m", 0, 1)}
                for script, told in (("look", False), ("drop", True)):
                    await execute(dispatcher, script)
                    held = [later(dispatcher, "hold") for _ in range(3)]
                    await until(lambda: supervisor.queue.load == 3)
                    first = later(dispatcher, "look")
                    second = later(dispatcher, "look", stays=stays, inputs={"b": b"given"})
                    third = later(dispatcher, "look", stays={"b": stays["b"], "a": stays["a"]})
                    await until(lambda: dispatcher.stats()[0].queued == 4)
                    for task in held:
                        task.cancel()
                    await asyncio.gather(*held, return_exceptions=True)
                    needed = [["k", 0, 10], ["look", 0, 1], ["l", 20, 30]] if told else []
                    assert seen(await first)["awaited"] == needed
                    assert seen(await second)["awaited"] == ([["l", 20, 30], ["k", 0, 10]] if told else [])
                    assert seen(await third)["awaited"] == []

        run(test())

    def test_a_request_that_needs_more_than_its_group_may_take_is_refused_at_once(self, tmp_path: Path) -> None:
        async def test() -> None:
            async with dispatching(tmp_path, groups=[Group("small", max_device_memory_bytes=100)]) as (dispatcher, _):
                reply = await execute(dispatcher, group="small", device_bytes=100)
                assert seen(reply)["max_device_memory"] == 100
                assert seen(await execute(dispatcher, device_bytes=101))["max_device_memory"] == 0
                with pytest.raises(GroupLimitError) as error:
                    await execute(dispatcher, group="small", device_bytes=101)
                assert error.value.metadata == {"group": "small", "limit": "max_device_memory_bytes"}

        run(test())


class TestChoice:
    def test_calls_go_where_the_fewest_are(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, "", "", "", policy=Policy.BALANCE) as (dispatcher, workers):
                held = [later(dispatcher, "hold") for _ in range(6)]
                await until(lambda: sum(worker.queue.load for worker in workers) == 6)
                assert [worker.queue.load for worker in workers] == [2, 2, 2]
                for call in held:
                    call.cancel()

        run(body())

    def test_a_device_that_is_named_is_taken_whatever_its_load(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, "", "", policy=Policy.BALANCE) as (dispatcher, workers):
                held = later(dispatcher, "hold", device="d1")
                await until(lambda: workers[1].queue.running == 1)
                assert (await execute(dispatcher, device="d1")).device == "d1"
                assert (await execute(dispatcher)).device == "d0"
                held.cancel()

        run(body())

    @pytest.mark.parametrize("scripts", [("",), ("", "")], ids=["one device", "two"])
    def test_a_device_that_is_not_there(self, scripts: tuple[str, ...], tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, *scripts) as (dispatcher, _):
                with pytest.raises(InvalidRequestError, match="no device 'd7'; it has d0") as caught:
                    await execute(dispatcher, device="d7")
                assert [violation.field for violation in caught.value.violations] == ["device"]
                assert dispatcher.stats()[0].requests_failed == 0

        run(body())

    def test_a_worker_that_is_not_ready_is_taken_last(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, "", "") as (dispatcher, workers):
                held = later(dispatcher, "deaf", device="d1")
                await until(lambda: workers[1].queue.running == 1)
                os.kill(workers[0].info.worker_pid, signal.SIGKILL)
                await until(lambda: workers[0].info.state != admin_pb2.WORKER_STATE_READY)
                assert (await execute(dispatcher)).device == "d1"
                held.cancel()

        run(body())


def test_counters_of_each_device(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path, "", "") as (dispatcher, _):
            for _ in range(2):
                await execute(dispatcher, device="d1")
            with pytest.raises(StoreFullError):
                await execute(dispatcher, "fail", device="d1")
            held = [later(dispatcher, "hold", device="d0") for _ in range(4)]
            await until(lambda: len(dispatcher.requests()) == 4)
            first, second = dispatcher.stats()
            assert (first.device, first.running, first.queued) == ("d0", 2, 2)
            assert (first.requests_succeeded, first.requests_failed, first.kernels_launched) == (0, 0, 0)
            assert (second.device, second.running, second.queued) == ("d1", 0, 0)
            assert (second.requests_succeeded, second.requests_failed, second.kernels_launched) == (2, 1, 6)
            assert second.run_time.ToNanoseconds() == 10
            for call in held:
                call.cancel()
            await asyncio.wait(held)
            assert dispatcher.stats()[0].requests_failed == 4
            assert [(device.name, device.memory_used_bytes) for device in dispatcher.devices()] == [("d0", 0), ("d1", 1000)]

    run(body())


class TestPrepare:
    def test_it_is_enough_that_one_device_can_run_it(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, "unable", "") as (dispatcher, _):
                await dispatcher.prepare(REQUEST)
                for device in ("d0", "d1"):
                    assert seen(await execute(dispatcher, device=device))["log"][0] == ["prepare", len(REQUEST.content)]

        run(body())

    def test_a_worker_that_is_not_ready_holds_nobody_up(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, "", "die in second life") as (dispatcher, workers):
                os.kill(workers[1].info.worker_pid, signal.SIGKILL)
                await until(lambda: workers[1].info.state != admin_pb2.WORKER_STATE_READY)
                await dispatcher.prepare(REQUEST)
                assert workers[1].queue.load == 0
                await until(lambda: workers[1].info.state == admin_pb2.WORKER_STATE_READY)
                assert "prepare" not in {entry[0] for entry in seen(await execute(dispatcher, device="d1"))["log"]}

        run(body())

    def test_it_fails_where_none_can(self, tmp_path: Path) -> None:
        async def body() -> None:
            async with dispatching(tmp_path, "unable", "unable") as (dispatcher, _):
                with pytest.raises(InvalidLibraryError, match="d0 cannot load it"):
                    await dispatcher.prepare(REQUEST)

        run(body())


def test_libraries_are_inspected_on_one_device_and_forgotten_on_all(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path, "", "") as (dispatcher, _):
            assert (await dispatcher.inspect("sha256:x")).device == "d0 sha256:x b'' False"
            assert (await dispatcher.inspect("", b"abc")).device == "d0  b'abc' True"
            dispatcher.forget_library("sha256:x")
            for device in ("d0", "d1"):
                assert ["forget_library", "sha256:x"] in seen(await execute(dispatcher, device=device))["log"]

    run(body())


@pytest.mark.parametrize("max_run_s", [0.1, 1000.0])
def test_what_is_no_request_ends_at_its_deadline_too(tmp_path: Path, max_run_s: float) -> None:
    async def body() -> None:
        async with dispatching(tmp_path, "holds what is no request", max_run_s=max_run_s) as (dispatcher, _):
            deadline = None if max_run_s == 0.1 else asyncio.get_running_loop().time() + 0.1
            with pytest.raises(DeadlineExceededError):
                await dispatcher.prepare(REQUEST, deadline)
            with pytest.raises(DeadlineExceededError):
                await dispatcher.inspect("", b"abc", deadline)

    run(body())


def test_readiness_is_told_when_it_changes(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path, "", "") as (dispatcher, workers):
            readiness = dispatcher.readiness()
            assert await anext(readiness) is True
            changed = asyncio.ensure_future(anext(readiness))
            for worker in workers:  # One after the other: one of them is ready all the time.
                with pytest.raises(WorkerRestartingError):
                    await execute(dispatcher, "die committing", device=worker.info.name)
                await execute(dispatcher, device=worker.info.name)
            assert not changed.done()
            for worker in workers:
                os.kill(worker.info.worker_pid, signal.SIGSTOP)  # so that none is ready again before the other is lost
            lost = [worker.info.worker_pid for worker in workers]
            for pid in lost:
                os.kill(pid, signal.SIGKILL)
            assert await changed is False
            assert await anext(readiness) is True

    run(body())


class Selector(selectors.DefaultSelector):
    """Counts the times that the loop looks for events without waiting for them."""

    looks = 0

    def select(self, timeout: float | None = None) -> Any:
        self.looks += timeout == 0
        return super().select(timeout)


class TestBusyPoll:
    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A clock that goes on by 0.1 ms whenever it is read, so that a busy machine changes nothing."""
        monkeypatch.setattr("kaasd.front.in_flight.perf_counter_ns", itertools.count(0, 100_000).__next__)

    def looks(self, duration_s: float, *, ended: bool = False, at_least: int = 0) -> int:
        """Return how often a loop looks for events within 20 ms after a request, or until it is ``at_least`` so often."""
        selector = Selector()

        async def body() -> int:
            poll = BusyPoll(duration_s)
            poll.extend()
            if ended:
                poll.end()
            await asyncio.sleep(0.02)
            while selector.looks < at_least:
                await asyncio.sleep(0.02)
            return selector.looks

        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            return runner.run(body())

    def test_the_loop_looks_for_events_for_a_while(self) -> None:
        assert 15 < self.looks(0.002) < 35
        assert self.looks(10.0, at_least=100) >= 100

    def test_it_sleeps_where_it_is_not_to(self) -> None:
        assert self.looks(0.0) < 10
        assert self.looks(10.0, ended=True) < 10

    def test_one_look_a_turn_however_many_requests(self) -> None:
        calls = 0

        class Counting(BusyPoll):
            def _again(self) -> None:
                nonlocal calls
                calls += 1
                super()._again()

        async def body() -> None:
            poll = Counting(10.0)
            for _ in range(5):
                poll.extend()
            for _ in range(3):
                await asyncio.sleep(0)
            assert 1 < calls <= 4
            poll.end()

        asyncio.run(body())

    @pytest.mark.parametrize(("in_flight", "polls"), [(1, True), (2, False)])
    def test_with_several_in_flight_it_ends(self, in_flight: int, polls: bool, tmp_path: Path) -> None:
        async def body() -> None:
            events: list[str] = []

            class Noted(BusyPoll):
                def extend(self) -> None:
                    events.append("extend")

                def end(self) -> None:
                    events.append("end")

            async with supervised(tmp_path, concurrency=2) as worker:
                queue = RequestQueue(Scheduler(), [worker.info.name])
                dispatcher = Dispatcher([worker], 100.0, Noted(1.0), queue)
                held = [later(dispatcher, "hold") for _ in range(in_flight)]
                await until(lambda: worker.queue.running == in_flight)
                assert (events[-1] == "extend") is polls
                for call in held:
                    call.cancel()
                await until(lambda: worker.queue.running == 0)
                await asyncio.wait(held)
                assert events[-1] == "extend"  # the last has gone: the next may come soon
                queue.close()

        run(body())


def test_what_waits_is_reckoned_anew_once_it_is_seen_how_fast_a_device_brings(tmp_path: Path) -> None:
    async def body() -> None:
        async with dispatching(tmp_path, "", "") as (dispatcher, _):
            held = [later(dispatcher, "hold", device="d0") for _ in range(3)]
            brings = later(dispatcher, "bring", device="d1")
            held += [later(dispatcher, "hold", device="d1") for _ in range(3)]
            stays = {"a": StoredInput("a", 0, 1 << 30)}
            waits = [later(dispatcher, "look", stays=stays) for _ in range(2)]
            await brings
            await until(lambda: dispatcher.stats()[0].queued > 2)
            (waiting, *_) = dispatcher._queue.waiting
            assert waiting.queued is not None
            assert waiting.queued.data[1].load_s == pytest.approx(1.0, rel=0.01)
            for call in held:
                call.cancel()
            await asyncio.wait([*waits, *held])

    run(body())
