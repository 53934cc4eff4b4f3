"""Requests that wait for a device: whose is next, and where, is ``Scheduler``'s to decide; here is what that brings about.

A request is placed before it goes to a worker, and has left when it is done. One whose worker was lost before it had begun it is
placed again. Everything runs on the event loop of the front.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from time import perf_counter_ns

from kaas_core.errors import DeadlineExceededError, KaasError, QueueFullError
from kaasd.front.call_queue import CancelReason, Deadlines
from kaasd.front.pending_call import PendingCall
from kaasd.scheduling import Decision, Group, GroupUse, QueuedRequest, Restart, Scheduler, State
from kaasd.scheduling.shares import SAMPLE_S, ShareMeter, Shares

RUNNING, ENDED = State.RUNNING, State.ENDED


class RequestQueue:
    """The requests of all groups, for all devices."""

    def __init__(
        self,
        scheduler: Scheduler,
        devices: Sequence[str],
        *,
        max_queued: int = 1024,
        max_queued_bytes: float = math.inf,
    ) -> None:
        """``devices`` are all that there will be. ``max_queued`` and ``max_queued_bytes`` are for each of them, of what waits."""
        self._loop = asyncio.get_running_loop()
        self._scheduler = scheduler
        self._devices = tuple(devices)
        self._max_queued = max_queued * len(devices)
        self._max_queued_bytes = max_queued_bytes * len(devices)
        self._ready: set[str] = set()
        """Devices that can run requests."""
        self._closed: set[str] = set()
        """Devices that are to run none."""
        self._waiting: dict[int, PendingCall] = {}
        self._waiting_bytes = 0
        self._deadlines = Deadlines()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        self.begin: Callable[[PendingCall], None]
        """Has a request served by the device that it has now. Raises ``KaasError``."""
        self.restart: Callable[[str], object]
        """Has a device start anew for another group; then it is lost, and ready again."""
        self.waited_ns: Counter[str] = Counter()
        """For a device, by group, of all requests that have come to one."""
        self.resident: Counter[str] = Counter()
        """Requests that have found all that they need on their device, by group, as the workers say."""
        self._share_meter = ShareMeter()
        self._sample()

    @property
    def waiting(self) -> Iterable[PendingCall]:
        """Those that wait, in the order in which they came."""
        return self._waiting.values()

    def next_for(self, device: str, most: int) -> Iterator[PendingCall]:
        """Yield some of those that wait and may run on a device, in the order in which they came: of the first ``most``."""
        return (call for call in islice(self._waiting.values(), most) if _queued(call).device in (None, device))

    def queued(self, device: str) -> int:
        """Return how many wait that may run on a device."""
        if len(self._devices) == 1:
            return len(self._waiting)
        return sum(_queued(call).device in (None, device) for call in self._waiting.values())

    # Groups

    def set_group(self, group: Group) -> None:
        """Make a group, or change what it is granted."""
        self._scheduler.set_group(group)
        self._decide()

    def remove_group(self, name: str) -> None:
        """Take no more requests of a group. Raises ``GroupNotFoundError``."""
        self._scheduler.remove_group(name)

    def use(self, name: str) -> GroupUse:
        """Return what a group uses, also one that is ``leaving``. Raises ``GroupNotFoundError``."""
        return replace(self._scheduler.use(name), resident=self.resident[name])

    def leaving(self) -> list[str]:
        """Return the groups that were removed and have requests still."""
        return self._scheduler.leaving()

    def shares(self) -> dict[str, Shares]:
        """Return which part of the devices each group is due, and which it has got lately, by name."""
        return self._share_meter.shares(self._uses())

    def _uses(self) -> dict[Group, GroupUse]:
        return {group: self._scheduler.use(group.name) for group in self._scheduler.groups()}

    def _sample(self) -> None:
        self._share_meter.sample(self._uses(), self._loop.time())
        self._next_sample = self._loop.call_later(SAMPLE_S, self._sample)

    def granted(self, group: str) -> Group | None:
        """Return what a group is granted; None for one that there is not."""
        return self._scheduler.granted(group)

    # Devices

    def device_ready(self, device: str, slots: int, memory_bytes: float = math.inf, *, divides: bool = False) -> None:
        """A device can run so many requests at once; it has nothing yet. ``divides`` as for ``Scheduler.add_device``."""
        self._ready.add(device)
        self._scheduler.add_device(device, slots, memory_bytes, divides=divides)
        if device in self._closed:
            self._scheduler.close_device(device)
        self._decide()

    def device_lost(self, device: str, not_begun: Iterable[PendingCall]) -> None:
        """A device can run nothing more. What it had ``not_begun`` waits for any again, and for its return."""
        if device not in self._ready:
            return
        self._ready.remove(device)
        self._scheduler.remove_device(device)
        now = self._loop.time()
        for call in not_begun:
            queued = _queued(call)
            if queued.state is RUNNING:
                self._scheduler.run_again(queued, now)
                self._wait(call)
        self._decide()

    def close_device(self, device: str) -> None:
        """Send nothing more to a device. Idempotent."""
        if device not in self._closed:
            self._closed.add(device)
            if device in self._ready:
                self._scheduler.close_device(device)
                self._decide()

    def open_device(self, device: str) -> None:
        """Undo ``close_device``. Idempotent."""
        if device in self._closed:
            self._closed.remove(device)
            if device in self._ready:
                self._scheduler.open_device(device)
                self._decide()

    def dropped(self, device: str, keys: Iterable[object], *, is_full: bool) -> None:
        """Data are no longer on a device; where it ``is_full`` since it needed the room, else since a group may have no more."""
        if device in self._ready:
            for key in keys:
                self._scheduler.dropped(device, key, is_full=is_full)

    # Requests

    @property
    def has_room(self) -> bool:
        """Whether a request that comes now has a device at once, unless its group may not have more."""
        return not self._waiting and self._scheduler.has_slot

    def place(self, call: PendingCall) -> None:
        """Have a request served as soon as a device has a slot for it. Raises ``KaasError``, and then it is not here."""
        queued, scheduler, now = _queued(call), self._scheduler, self._loop.time()
        if queued.deadline < math.inf:
            least_s = scheduler.least_wait_s(queued)
            if now + least_s > queued.deadline:
                scheduler.doubt(queued)
                raise DeadlineExceededError(
                    f"the deadline is in {max(0.0, queued.deadline - now):.3g} s, and what this request takes, with those of its"
                    f" caller that wait before it, has taken {least_s:.3g} s at least",
                    {"stage": "admission"},
                )
        if not self._waiting and scheduler.start_at_once(queued, now):
            self._begin(call)
            return
        scheduler.submit(queued)
        if scheduler.may_start:
            self._decide(call)
        if queued.state is not RUNNING:
            if problem := self._no_room(queued.size_bytes):
                scheduler.cancel(queued)
                raise QueueFullError(problem)
            self._wait(call)

    def left(self, call: PendingCall, device_s: float | None = None) -> None:
        """A request is done, or its caller has gone, wherever it is. Idempotent. ``device_s``: what it used, if it succeeded."""
        queued = _queued(call)
        if queued.state is RUNNING:
            if call.waited_ns:
                self.waited_ns[queued.group] += call.waited_ns
            self._scheduler.finished(queued, self._loop.time(), device_s, succeeded=device_s is not None)
            if self._waiting or self._scheduler.decides_idly:
                self._decide()
        elif queued.state is not ENDED:
            self._forget_wait(call)
            self._scheduler.cancel(queued)

    def leaves_slot(self, call: PendingCall) -> None:
        """A request that has a device waits there for its code, so that another may come. Idempotent."""
        self._scheduler.leave_slot(_queued(call), self._loop.time())
        self._decide()

    def cancel(self, id: int, reason: CancelReason) -> bool:
        """End a request that waits; return whether it does."""
        if (call := self._waiting.get(id)) is None:
            return False
        self._fail(call, reason.error("queued"))
        return True

    def fail_all(self, error: KaasError, device: str | None = None) -> None:
        """Fail all requests that wait, or those for one device only."""
        for call in list(self._waiting.values()):
            if device is None or _queued(call).device == device:
                self._fail(call, error)

    # Parts

    def _no_room(self, size_bytes: int) -> str:
        """Say why a request may not wait; empty, where it may."""
        waiting = len(self._waiting)
        if waiting >= self._max_queued:
            return f"{waiting} requests are waiting already, the most that this server allows"
        if self._waiting_bytes + size_bytes > self._max_queued_bytes:
            return (
                f"requests with {self._waiting_bytes} bytes of inputs are waiting already, and with the {size_bytes} of this one"
                f" it would be more than the {self._max_queued_bytes} that this server allows"
            )
        return ""

    def _wait(self, call: PendingCall) -> None:
        call.waits_since_ns = perf_counter_ns()
        self._waiting[call.id] = call
        self._waiting_bytes += _queued(call).size_bytes
        if self._deadlines.add(call.id, _queued(call).deadline):
            self._set_timer()

    def _forget_wait(self, call: PendingCall) -> None:
        if self._waiting.pop(call.id, None) is not None:
            self._waiting_bytes -= _queued(call).size_bytes
            self._deadlines.discard(call.id)

    def _fail(self, call: PendingCall, error: KaasError) -> None:
        self._forget_wait(call)
        self._scheduler.cancel(_queued(call))
        call.fail(error)

    def _decide(self, coming: PendingCall | None = None) -> None:
        """Do what the scheduler decides; ``coming`` is not waiting yet."""
        for decision in self._scheduler.decide(self._loop.time()):
            self._act(decision, coming)
        if self._scheduler.wakes_at != self._wakes_at:
            self._set_wake()

    def _act(self, decision: Decision, coming: PendingCall | None) -> None:
        if isinstance(decision, Restart):
            self._ready.discard(decision.device)
            self.restart(decision.device)
            return
        call: PendingCall = decision.request.id  # type: ignore[assignment]
        call.placement = decision.placement
        if call is not coming:
            self._forget_wait(call)
            call.waited_ns += perf_counter_ns() - call.waits_since_ns
        self._begin(call)

    def _begin(self, call: PendingCall) -> None:
        try:
            self.begin(call)
        except KaasError as error:
            call.fail(error)

    # Timers

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadlines.wakes_at, self._deadlines_passed)

    def _deadlines_passed(self) -> None:
        self._timer = None
        passed = self._deadlines.passed(self._loop.time())
        if self._deadlines.wakes_at < math.inf:
            self._set_timer()
        for id in passed:
            self.cancel(id, CancelReason.DEADLINE)

    def _set_wake(self) -> None:
        """Have the scheduler asked again when it wants to be."""
        if self._wakes is not None:
            self._wakes.cancel()
            self._wakes = None
        self._wakes_at = self._scheduler.wakes_at
        if self._wakes_at < math.inf:
            self._wakes = self._loop.call_at(self._wakes_at, self._decide)

    def close(self) -> None:
        """Set no timer any more."""
        for timer in (self._timer, self._wakes, self._next_sample):
            if timer is not None:
                timer.cancel()


def _queued(call: PendingCall) -> QueuedRequest:
    assert call.queued is not None
    return call.queued
