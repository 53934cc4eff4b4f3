"""Any sequence of events: nothing is lost, run twice or run where it may not, no slot is left idle, and all counts agree."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kaas_core.errors import GroupLimitError
from kaasd.scheduling import Datum, Group, Policy, QueuedRequest, Restart, Scheduler, State

DEVICES = ("d0", "d1", "d2")
GROUPS = ("a", "b", "default")
DIVIDE = ("d0", "d1")
"""Where groups that reserve have a slot of their own."""
KEYS = ("k0", "k1", "k2")

shares = st.sampled_from([0.5, 1.0, 4.0])
limits = st.sampled_from([0, 0, 1, 2, 5])
times = st.sampled_from([0.0, 0.1, 0.1, 1.0, 3.0])
datum = st.builds(Datum, st.sampled_from(KEYS), st.sampled_from([0.5, 2.0]))
"""Some devices have them, and waiting for a request that takes 0.1 s costs less than bringing them elsewhere."""
policy = st.sampled_from(list(Policy))
data = st.lists(datum, max_size=2, unique_by=lambda each: each.key)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(policies=st.sampled_from(list(Policy)).map(lambda one: [one] * 3) | st.lists(policy, min_size=3, max_size=3))
    def begin(self, policies: list[Policy]) -> None:
        self.policies = dict(zip(DEVICES, policies, strict=True))
        self.owners = {"d0": "a"} if policies[0] is Policy.STATIC else {}
        self.exclusive = {name for name, each in self.policies.items() if each is Policy.EXCLUSIVE}
        self.scheduler = Scheduler(policy=policies[2], owners=self.owners, policies=self.policies, restart_s=0.05)
        self.now = 0.0
        self.slots: dict[str, int] = {}
        self.restarting: dict[str, str] = {}
        """Devices, and the groups for which they restart."""
        self.served: dict[str, str] = {}
        """The groups that devices have served since they were new."""
        self.closed: set[str] = set()
        self.granted = {"a": Group("a", max_running=2), "b": Group("b", 2.0), "default": Group("default")}
        for name in GROUPS:
            self.scheduler.set_group(self.granted[name])
        self.requests: list[QueuedRequest] = []
        self.running: dict[QueuedRequest, str] = {}
        self.lost: list[QueuedRequest] = []
        self.ended: Counter[object] = Counter()
        self.decided = True
        for device in DEVICES[: 1 if len(self.exclusive) == 3 else 3]:
            self.add_device(device, 1)
        for device, key in [("d0", "k0"), ("d1", "k1"), ("d0", "k2"), ("d1", "k2")]:
            self.scheduler.holds(device, key)

    # Events

    @rule(
        group=st.sampled_from(GROUPS),
        data=data,
        expected_s=st.none() | times | st.just(0.1),
        priority=st.integers(-1, 1),
        deadline=st.sampled_from([1.0, math.inf]),
        device=st.none() | st.none() | st.sampled_from(DEVICES),
        size=st.integers(0, 10),
        ready=st.booleans() | st.just(True),
        times=st.integers(1, 4),
    )
    def submit(self, times: int, group: str, device: str | None, ready: bool, data: list[Datum], **fields: Any) -> None:
        if device in self.exclusive or device not in self.slots or not self.may_use(group, device):
            device = None
        fields["size_bytes"] = fields.pop("size")
        granted = self.granted[group]
        for _ in range(times):
            request = QueuedRequest(len(self.requests), group, len(data), tuple(data), device=device, **fields)
            waiting = [each for each in self.requests if each.group == group and each.state in (State.UNREADY, State.QUEUED)]
            waiting_bytes = sum(each.size_bytes for each in waiting) + request.size_bytes
            over = set()
            if granted.max_queued and len(waiting) >= granted.max_queued:
                over.add("max_queued")
            if granted.max_queued_bytes and waiting_bytes > granted.max_queued_bytes:
                over.add("max_queued_bytes")
            try:
                self.scheduler.submit(request, ready=ready)
            except GroupLimitError as error:
                assert error.metadata["limit"] in over
            else:
                assert not over
                self.requests.append(request)
                self.decided = False

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 50))
    def make_ready(self, which: int) -> None:
        self.scheduler.ready(self.requests[which % len(self.requests)])
        self.decided = False

    @precondition(lambda self: self.requests)
    @rule(which=st.integers(0, 50))
    def cancel(self, which: int) -> None:
        request = self.requests[which % len(self.requests)]
        waited = request.state in (State.UNREADY, State.QUEUED, State.PROMISED, State.OVERDUE)
        assert self.scheduler.cancel(request) is waited
        if waited:
            self.ended[request.id] += 1
        self.decided = False

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 10), device_s=st.none() | times)
    def finish(self, which: int, device_s: float | None) -> None:
        request = list(self.running)[which % len(self.running)]
        del self.running[request]
        self.scheduler.finished(request, self.now, device_s)
        self.ended[request.id] += 1
        self.decided = False

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 10))
    def run_again(self, which: int) -> None:
        request = list(self.running)[which % len(self.running)]
        del self.running[request]
        self.scheduler.run_again(request, self.now)
        self.decided = False

    @precondition(lambda self: self.lost)
    @rule(again=st.booleans())
    def settle(self, again: bool) -> None:
        request = self.lost.pop()
        if again:
            self.scheduler.run_again(request, self.now)
        else:
            self.scheduler.finished(request, self.now)
            self.ended[request.id] += 1
        self.decided = False

    @rule(event=st.sampled_from(["add", "lose", "close or open"]), device=st.sampled_from(DEVICES), slots=st.integers(1, 3))
    def change_device(self, event: str, device: str, slots: int) -> None:
        if device in self.restarting and event == "lose":
            assert self.scheduler.remove_device(device) == []
            del self.restarting[device]
        elif device not in self.slots:
            self.add_device(device, slots)
        elif event == "lose":
            self.lose_device(device)
        elif event == "close or open":
            self.close_or_open(device)
        self.decided = False

    def add_device(self, device: str, slots: int) -> None:
        self.scheduler.add_device(device, slots, divides=device in DIVIDE)
        self.slots[device] = slots
        self.restarting.pop(device, None)
        self.served.pop(device, None)

    def lose_device(self, device: str) -> None:
        lost = self.scheduler.remove_device(device)
        assert set(lost) == {request for request, where in self.running.items() if where == device}
        for request in lost:
            del self.running[request]
        self.lost += lost
        del self.slots[device]
        self.closed.discard(device)

    def close_or_open(self, device: str) -> None:
        if device in self.closed:
            self.scheduler.open_device(device)
            self.closed.discard(device)
        else:
            self.scheduler.close_device(device)
            self.closed.add(device)

    @rule(device=st.sampled_from(DEVICES), key=st.sampled_from(KEYS), there=st.booleans())
    def tell_of_data(self, device: str, key: str, there: bool) -> None:
        if device in self.slots and there:
            self.scheduler.holds(device, key)
        else:
            self.scheduler.dropped(device, key)

    @rule(
        group=st.sampled_from(GROUPS),
        share=shares,
        priority=st.integers(-20, 20),
        running=limits,
        queued=limits,
        size=limits,
        reserves=st.booleans(),
    )
    def grant(self, group: str, share: float, priority: int, running: int, queued: int, size: int, reserves: bool) -> None:
        self.granted[group] = Group(group, share, priority, running, queued, size, reserves=reserves)
        self.scheduler.set_group(self.granted[group])
        self.decided = False

    @rule(later=times)
    def decide(self, later: float) -> None:
        self.now += later
        promised = {request for request in self.requests if request.state in (State.PROMISED, State.OVERDUE)}
        for decision in self.scheduler.decide(self.now):
            if isinstance(decision, Restart):
                self.restart(decision)
                continue
            request, device = decision.request, decision.device
            assert device in self.slots and device not in self.closed
            assert device not in self.exclusive or self.served.setdefault(device, request.group) == request.group
            assert request.device in (None, device)
            assert self.may_use(request.group, device)
            assert request not in self.running and request not in self.lost
            assert not self.ended[request.id]
            most = self.granted[request.group].max_running
            running = sum(each.group == request.group for each in self.running)
            assert not most or running < most or request in promised, (
                "the limit may have been higher when it was promised its device"
            )
            self.running[request] = device
            assert self.used(device) <= self.slots[device]
            if request.in_own_slot:
                assert self.granted[request.group].reserves and device in DIVIDE
                assert self.uses_own_slot(request.group, device) == 1
        self.decided = True

    def restart(self, restart: Restart) -> None:
        assert restart.device in self.exclusive
        assert restart.device in self.slots and restart.device not in self.running.values()
        assert self.served.get(restart.device) != restart.group
        del self.slots[restart.device]
        self.restarting[restart.device] = restart.group

    # What always holds

    @invariant()
    def states_agree(self) -> None:
        for request in self.requests:
            at_device = request in self.running or request in self.lost
            assert (request.state is State.RUNNING) == at_device
            assert (request.state is State.ENDED) == (self.ended[request.id] == 1)
            assert self.ended[request.id] <= 1

    @invariant()
    def counts_agree(self) -> None:
        for group in GROUPS:
            use = self.scheduler.use(group)
            mine = [request for request in self.requests if request.group == group]
            queued = [request for request in mine if request.state in (State.UNREADY, State.QUEUED)]
            assert use.queued == len(queued)
            assert use.queued_bytes == sum(request.size_bytes for request in queued)
            at_devices = (State.PROMISED, State.OVERDUE, State.RUNNING)
            assert use.running == sum(request.state in at_devices for request in mine)

    @precondition(lambda self: self.decided)
    @invariant()
    def no_slot_is_idle(self) -> None:
        for device in self.slots:
            if device in self.closed:
                continue
            own = [
                group
                for group, granted in self.granted.items()
                if granted.reserves and device in DIVIDE and not self.uses_own_slot(group, device)
            ]
            full = self.used(device) == self.slots[device]
            if device in self.exclusive and device in self.served:
                continue  # it is kept for the group that it has served
            for request in self.requests:
                if request.device not in (None, device) or not self.may_use(request.group, device):
                    continue
                if full and (request.group not in own or device in self.exclusive):
                    continue
                assert request.state is not State.OVERDUE
                if request.state is State.QUEUED:
                    most = self.granted[request.group].max_running
                    assert most and self.scheduler.use(request.group).running >= most
                if request.state is State.PROMISED:
                    assert request.runs_on != device
                    assert self.scheduler.wakes_at > self.now

    def teardown(self) -> None:
        """All that was not cancelled runs to its end, once all devices are there and every argument is ready."""
        if not hasattr(self, "scheduler"):
            return
        for request in self.requests:
            self.scheduler.ready(request)
        while self.lost:
            self.scheduler.run_again(self.lost.pop(), self.now)
        for device in DEVICES:
            if device not in self.slots:
                self.add_device(device, 1)
            elif device in self.closed:
                self.close_or_open(device)
        for _ in range(4 * len(self.requests) + 4):
            self.decide(max(0.0, min(self.scheduler.wakes_at, self.now + 100.0) - self.now) if not self.running else 0.0)
            while self.running:
                self.finish(0, 0.1)
            for device in list(self.restarting):
                self.add_device(device, 1)
        assert all(self.ended[request.id] == 1 for request in self.requests)
        for group in GROUPS:
            use = self.scheduler.use(group)
            assert (use.queued, use.queued_bytes, use.running) == (0, 0, 0)
        assert self.scheduler.wakes_at == math.inf

    # The model

    def may_use(self, group: str, device: str) -> bool:
        own = [each for each, owner in self.owners.items() if owner == group]
        return device in own if own else device not in self.owners

    def used(self, device: str) -> int:
        return sum(where == device and not request.in_own_slot for request, where in self.running.items())

    def uses_own_slot(self, group: str, device: str) -> int:
        return sum(where == device and each.in_own_slot and each.group == group for each, where in self.running.items())


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
