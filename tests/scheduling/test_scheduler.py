"""The scheduler by its rules: one event after another, on few devices."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from kaas_core.errors import GroupLimitError, GroupNotFoundError, InvalidArgumentError, InvalidRequestError
from kaasd.scheduling import Datum, Group, GroupUse, Policy, QueuedRequest, Scheduler, Start, State


def scheduler(*groups: Group, devices: int = 1, slots: int = 1, policy: Policy = Policy.AFFINITY) -> Scheduler:
    made = Scheduler(groups, policy)
    for number in range(devices):
        made.add_device(f"d{number}", slots)
    return made


def submitted(to: Scheduler, *ids: object, ready: bool = True, **fields: object) -> list[QueuedRequest]:
    requests = [QueuedRequest(each, **fields) for each in ids]  # type: ignore[arg-type]
    for request in requests:
        to.submit(request, ready=ready)
    return requests


def started(by: Scheduler, now: float = 0.0) -> list[tuple[object, str]]:
    """Let it decide, and return what it started, and where."""
    decisions = by.decide(now)
    assert all(isinstance(decision, Start) for decision in decisions)
    return [(decision.request.id, decision.device) for decision in decisions if isinstance(decision, Start)]


class TestQueue:
    def test_requests_start_in_order_while_there_are_slots(self) -> None:
        queue = scheduler(slots=2)
        first, *_ = submitted(queue, 1, 2, 3)
        assert started(queue) == [(1, "d0"), (2, "d0")]
        assert started(queue) == []
        queue.finished(first, 1.0)
        assert started(queue, 1.0) == [(3, "d0")]

    def test_the_least_used_device_is_next(self) -> None:
        queue = scheduler(devices=3, slots=2)
        first, second, *_ = submitted(queue, 1, 2, 3, 4)
        assert started(queue) == [(1, "d0"), (2, "d1"), (3, "d2"), (4, "d0")]
        queue.finished(second, 1.0)
        queue.finished(first, 1.0)
        submitted(queue, 5, 6)
        assert started(queue, 1.0) == [(5, "d1"), (6, "d2")]

    def test_within_a_group_priority_then_deadline_then_arrival(self) -> None:
        queue = scheduler()
        for each, priority, deadline in [("a", 0, math.inf), ("b", 0, 9.0), ("c", 1, math.inf), ("d", 0, 3.0), ("e", 0, 9.0)]:
            submitted(queue, each, priority=priority, deadline=deadline)
        order = []
        for now in range(5):
            (decision,) = queue.decide(float(now))
            assert isinstance(decision, Start)
            order.append(decision.request.id)
            queue.finished(decision.request, now + 1.0)
        assert order == ["c", "d", "b", "e", "a"]

    def test_a_request_for_one_device_waits_for_it_and_delays_nobody(self) -> None:
        queue = scheduler(devices=2)
        (first,) = submitted(queue, 1, device="d1")
        submitted(queue, 2, device="d1")
        submitted(queue, 3)
        assert started(queue) == [(1, "d1"), (3, "d0")]
        queue.finished(first, 1.0)
        assert started(queue, 1.0) == [(2, "d1")]

    def test_there_must_be_such_a_device(self) -> None:
        with pytest.raises(InvalidRequestError, match="device: there is no device 'd7'; there are: d0, d1"):
            submitted(scheduler(devices=2), 1, device="d7")

    def test_a_request_is_submitted_once(self) -> None:
        queue = scheduler()
        (request,) = submitted(queue, 1)
        with pytest.raises(ValueError, match="once"):
            queue.submit(request)

    def test_only_what_runs_finishes(self) -> None:
        queue = scheduler()
        (request,) = submitted(queue, 1)
        with pytest.raises(ValueError, match="queued"):
            queue.finished(request, 1.0)
        with pytest.raises(ValueError, match="queued"):
            queue.run_again(request, 1.0)

    def test_a_group_that_was_charged_too_much_has_its_turn_earlier(self) -> None:
        queue = scheduler(Group("a"), Group("b"), devices=2)
        first, _ = submitted(queue, "a0", "a1", group="a", expected_s=10.0)
        submitted(queue, "b0", "b1", group="b", expected_s=1.0)
        assert started(queue) == [("a0", "d0"), ("b0", "d1")]
        queue.finished(first, 0.5, 0.5)
        assert started(queue, 0.5) == [("a1", "d0")]


class TestUnready:
    def test_one_among_a_hundred_delays_nobody(self) -> None:
        queue = scheduler(slots=100)
        (unready,) = submitted(queue, "unready", ready=False)
        submitted(queue, *range(100))
        assert started(queue) == [(each, "d0") for each in range(100)]
        queue.ready(unready)
        assert started(queue) == []
        assert unready.state is State.QUEUED

    def test_it_runs_when_it_is_ready_before_what_came_later(self) -> None:
        queue = scheduler()
        (unready,) = submitted(queue, "unready", ready=False)
        (running,) = submitted(queue, "running")
        assert started(queue) == [("running", "d0")]
        submitted(queue, "later")
        queue.ready(unready)
        queue.ready(unready)  # said twice
        queue.finished(running, 1.0)
        assert started(queue, 1.0) == [("unready", "d0")]

    def test_what_was_cancelled_does_not_become_ready(self) -> None:
        queue = scheduler()
        (unready,) = submitted(queue, "unready", ready=False)
        assert queue.cancel(unready)
        queue.ready(unready)
        assert started(queue) == []
        assert queue.use("default") == GroupUse(queued=0, queued_bytes=0, running=0, device_s=0.0, started=0, resident=0)


class TestCancel:
    def test_what_waits_is_forgotten(self) -> None:
        queue = scheduler()
        running, waiting, last = submitted(queue, 1, 2, 3)
        assert started(queue) == [(1, "d0")]
        assert queue.cancel(waiting)
        assert not queue.cancel(waiting)
        assert not queue.cancel(running)
        queue.finished(running, 1.0)
        assert started(queue, 1.0) == [(3, "d0")]
        queue.finished(last, 2.0)
        assert not queue.cancel(last)
        assert queue.use("default").queued == 0

    def test_thousands_leave_nothing_behind(self) -> None:
        queue = scheduler()
        submitted(queue, "running")
        assert started(queue) == [("running", "d0")]
        requests = submitted(queue, *range(5000))
        for request in requests[1:]:
            assert queue.cancel(request)
        flow = queue._groups["default"].flows[None]
        assert flow.waiting == 1
        assert flow._size < 100
        assert len(flow._places) < 100


class TestGroups:
    def test_a_group_must_exist(self) -> None:
        queue = scheduler(Group("a"))
        with pytest.raises(GroupNotFoundError, match="no group 'b'") as caught:
            submitted(queue, 1, group="b")
        assert caught.value.metadata == {"group": "b"}
        with pytest.raises(GroupNotFoundError):
            queue.use("b")
        assert [group.name for group in queue.groups()] == ["default", "a"]

    def test_a_removed_group_ends_with_its_last_request(self) -> None:
        queue = scheduler(Group("a"))
        first, second = submitted(queue, 1, 2, group="a")
        assert started(queue) == [(1, "d0")]
        queue.remove_group("a")
        assert [group.name for group in queue.groups()] == ["default"]
        assert queue.leaving() == ["a"]
        assert (queue.use("a").running, queue.use("a").queued) == (1, 1)
        with pytest.raises(GroupNotFoundError):
            submitted(queue, 3, group="a")
        queue.finished(first, 1.0)
        assert started(queue, 1.0) == [(2, "d0")]
        queue.finished(second, 2.0)
        assert queue.leaving() == []
        with pytest.raises(GroupNotFoundError):
            queue.use("a")
        assert "a" not in queue._groups

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"name": ""}, "1 to 64 of"),
            ({"name": "a/b"}, "1 to 64 of"),
            ({"name": "x" * 65}, "1 to 64 of"),
            ({"name": "a\n"}, "1 to 64 of"),
            ({"name": "a", "share": 0.0}, "share is 0.0"),
            ({"name": "a", "share": math.inf}, "share is inf"),
            ({"name": "a", "share": math.nan}, "share is nan"),
            ({"name": "a", "max_running": -1}, "max_running is -1"),
            ({"name": "a", "max_queued": -1}, "max_queued is -1"),
            ({"name": "a", "max_queued_bytes": -1}, "max_queued_bytes is -1"),
        ],
    )
    def test_what_no_group_can_be_is_refused(self, fields: dict, message: str) -> None:
        with pytest.raises(InvalidArgumentError, match=message):
            Group(**fields)


class TestLimits:
    def test_max_running_makes_requests_wait_though_there_are_slots(self) -> None:
        queue = scheduler(Group("a", max_running=1), Group("b"), slots=4)
        (first, *_) = submitted(queue, "a1", "a2", "a3", group="a")
        submitted(queue, "b1", group="b")
        assert started(queue) == [("a1", "d0"), ("b1", "d0")]
        queue.finished(first, 1.0)
        assert started(queue, 1.0) == [("a2", "d0")]
        queue.set_group(Group("a", max_running=2))
        assert started(queue, 1.0) == [("a3", "d0")]

    def test_max_queued_counts_what_waits_for_an_argument_too(self) -> None:
        queue = scheduler(Group("a", max_queued=2))
        (unready,) = submitted(queue, 1, group="a", ready=False)
        submitted(queue, 2, group="a")
        with pytest.raises(GroupLimitError, match="2 of its requests are waiting") as caught:
            submitted(queue, 3, group="a")
        assert caught.value.metadata == {"group": "a", "limit": "max_queued"}
        assert caught.value.retry_after_s is not None
        assert started(queue) == [(2, "d0")]
        submitted(queue, 3, group="a")
        assert queue.cancel(unready)
        submitted(queue, 4, group="a")
        assert queue.use("a").queued == 2

    def test_max_queued_bytes(self) -> None:
        queue = scheduler(Group("a", max_queued_bytes=100))
        submitted(queue, 1, group="a", size_bytes=60)
        with pytest.raises(GroupLimitError, match="hold 60 bytes and this one 41; it may have 100") as caught:
            submitted(queue, 2, group="a", size_bytes=41)
        assert caught.value.metadata == {"group": "a", "limit": "max_queued_bytes"}
        submitted(queue, 3, group="a", size_bytes=40)
        assert queue.use("a").queued_bytes == 100
        started(queue)
        assert queue.use("a").queued_bytes == 40


class TestDevices:
    def test_a_lost_device_says_what_it_ran(self) -> None:
        queue = scheduler(devices=2)
        first, second, _ = submitted(queue, 1, 2, 3)
        assert started(queue) == [(1, "d0"), (2, "d1")]
        assert queue.remove_device("d0") == [first]
        queue.run_again(first, 1.0)
        assert started(queue, 1.0) == []
        queue.finished(second, 2.0)
        assert started(queue, 2.0) == [(1, "d1")], "it comes before what came after it"
        queue.add_device("d0")
        assert started(queue, 2.0) == [(3, "d0")]

    def test_what_may_run_only_on_a_lost_device_waits_for_its_return(self) -> None:
        queue = scheduler(devices=2)
        submitted(queue, 1)
        submitted(queue, 2, device="d0")
        assert started(queue) == [(2, "d0"), (1, "d1")]
        submitted(queue, 3, device="d0")
        (ran,) = queue.remove_device("d0")
        queue.finished(ran, 1.0, 1.0)
        assert started(queue, 1.0) == []
        queue.add_device("d0")
        assert started(queue, 2.0) == [(3, "d0")]

    def test_a_finish_that_comes_after_the_device_has_returned_frees_no_slot_of_it(self) -> None:
        queue = scheduler()
        (lost, *_) = submitted(queue, 1, 2, 3)
        assert started(queue) == [(1, "d0")]
        queue.remove_device("d0")
        queue.add_device("d0")
        assert started(queue) == [(2, "d0")]
        queue.finished(lost, 1.0)
        assert started(queue, 1.0) == []

    def test_a_closed_device_starts_nothing_and_goes_on_with_what_it_runs(self) -> None:
        queue = scheduler(slots=2)
        (first,) = submitted(queue, 1)
        assert started(queue) == [(1, "d0")]
        queue.close_device("d0")
        queue.close_device("d0")
        submitted(queue, 2, 3)
        assert started(queue) == []
        queue.finished(first, 1.0)
        assert started(queue, 1.0) == []
        queue.open_device("d0")
        queue.open_device("d0")
        assert started(queue, 1.0) == [(2, "d0"), (3, "d0")]

    def test_a_name_is_one_device(self) -> None:
        with pytest.raises(ValueError, match="d0"):
            scheduler().add_device("d0")


class TestStatic:
    def test_a_group_has_its_devices_and_the_others_share_the_rest(self) -> None:
        queue = Scheduler([Group("a"), Group("b")], Policy.STATIC, owners={"d0": "a", "d1": "a"})
        for name in ("d0", "d1", "d2"):
            queue.add_device(name)
        submitted(queue, "b1", "b2", group="b")
        submitted(queue, "default1")
        submitted(queue, "a1", "a2", "a3", group="a")
        assert sorted(started(queue)) == [("a1", "d0"), ("a2", "d1"), ("b1", "d2")]

    def test_a_device_of_another_group_cannot_be_asked_for(self) -> None:
        queue = Scheduler([Group("a"), Group("b")], Policy.STATIC, owners={"d0": "a"})
        queue.add_device("d0")
        with pytest.raises(InvalidRequestError, match="device: group b cannot ask for d0"):
            submitted(queue, 1, group="b", device="d0")


def test_the_example_of_the_documentation(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs/scheduling.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "docs/scheduling.md", "exec"), {})
    assert capsys.readouterr().out == "send 1 to cuda:0 Placement.LOADED\n"


class TestStartAtOnce:
    def test_it_counts_as_what_was_submitted_and_decided(self) -> None:
        uses, tags = [], []
        for at_once in (True, False):
            queue = scheduler(Group("a", 2.0), devices=2, slots=2)
            for number in range(20):
                request = QueuedRequest(number, "a" if number % 3 else "default", function=number % 4)
                if at_once:
                    assert queue.start_at_once(request, float(number)) in ("d0", "d1")
                else:
                    queue.submit(request)
                    assert len(started(queue, float(number))) == 1
                queue.finished(request, number + 0.5, 0.25)
            uses.append((queue.use("a"), queue.use("default")))
            tags.append([state.tag for state in queue._groups.values()])
        assert uses[0] == uses[1]
        assert tags[0] == tags[1]

    @pytest.mark.parametrize("policy", [Policy.STATIC, Policy.EXCLUSIVE])
    def test_not_where_groups_have_devices(self, policy: Policy) -> None:
        assert scheduler(policy=policy).start_at_once(QueuedRequest(1), 0.0) is None

    def test_not_where_there_is_more_to_look_at(self) -> None:
        queue = scheduler(Group("a", max_running=1), Group("b", max_queued_bytes=10))
        for request in (
            QueuedRequest(1, "nobody"),
            QueuedRequest(1, device="d0"),
            QueuedRequest(1, data=(Datum("weights", 1.0),)),
            QueuedRequest(1, "b", size_bytes=11),
        ):
            assert queue.start_at_once(request, 0.0) is None
            assert request.state is State.NEW
        first = QueuedRequest(1, "a")
        assert queue.start_at_once(first, 0.0) == "d0"
        assert queue.start_at_once(QueuedRequest(2, "a"), 0.0) is None  # no slot
        queue.add_device("d1")
        assert queue.start_at_once(QueuedRequest(2, "a"), 0.0) is None  # its limit
        queue.finished(first, 1.0)
        assert queue.start_at_once(QueuedRequest(2, "a"), 0.0) is not None
