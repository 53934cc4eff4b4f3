"""Where the API hands over: picks a device for a call, keeps its deadline, and knows when all is done."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from time import perf_counter_ns
from types import MappingProxyType

from google.protobuf import duration_pb2

from kaas.v1 import admin_pb2, executor_pb2, library_pb2, trace_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import (
    CommitUnknownError,
    DrainingError,
    GroupLimitError,
    InvalidRequestError,
    KaasError,
    RequestIdReusedError,
    RequestNotFoundError,
)
from kaasd.front.call_queue import CancelReason
from kaasd.front.in_flight import BusyPoll, InFlight
from kaasd.front.needs import Needs, StoredInput, dropped, stored_inputs
from kaasd.front.pending_call import PendingCall
from kaasd.front.quarantine import MOST_WORKERS
from kaasd.front.request_ids import IdentifiedCall
from kaasd.front.request_queue import RequestQueue
from kaasd.front.reservations import Reservable
from kaasd.front.supervisor import Supervisor
from kaasd.ipc.messages import SerializedRequest
from kaasd.scheduling import DEFAULT_GROUP, Group, Placement, QueuedRequest

RELEASE_TIMEOUT_S = 10.0
"""A worker whose place for calls is taken by long kernels comes to it only when one has ended."""


SHORT_S = 1.0
"""For so long a device counts as short of memory that has dropped something."""
MOST_AWAITED = 32
"""Requests that wait of which a worker is told what they need, and the most that it is told: 1 microsecond each."""


class Dispatcher:
    """All devices of this server."""

    def __init__(self, supervisors: Sequence[Supervisor], max_run_s: float, busy_poll: BusyPoll, queue: RequestQueue) -> None:
        """``queue`` is where requests wait for the devices of these ``supervisors``."""
        self._supervisors = {s.info.name: s for s in supervisors}
        self._max_run_s = max_run_s
        self._queue = queue
        self._needs = Needs()
        self._short_until: dict[str, float] = {}
        """Devices that have dropped something lately, and when that is so no longer, in the loop's time."""
        self._in_flight = InFlight(busy_poll)
        self._irrevocable: KaasError | None = None
        """Why calls are refused for good."""
        self._loop = asyncio.get_running_loop()
        self._state_changed = asyncio.Event()
        self._ids = itertools.count(1)
        queue.begin = self._begin
        queue.restart = lambda device: self._supervisors[device].replace()
        for supervisor in supervisors:
            supervisor.on_state = self._state_changed.set
            supervisor.ids = self._ids
            supervisor.requests_wait = queue
            if supervisor.info.state == admin_pb2.WORKER_STATE_READY:
                supervisor.tell_ready()

    @property
    def draining(self) -> bool:
        """True after ``drain``, until ``resume``, and after ``give_up``: new calls fail."""
        return self._in_flight.refusal is not None

    async def execute(
        self,
        request: SerializedRequest,
        *,
        keys: Mapping[str, str] | None = None,
        inputs: Mapping[str, bytes] | None = None,
        return_buffers: Sequence[str] = (),
        device: str = "",
        group: str = DEFAULT_GROUP,
        priority: int = 0,
        deadline: float | None = None,
        trace: bool = False,
        function: str = "",
        sender: Callable[[], Hashable] = lambda: None,
        identified: IdentifiedCall | None = None,
        stays: Mapping[str, StoredInput] = MappingProxyType({}),
        device_bytes: int = 0,
    ) -> executor_pb2.InvokeResponse:
        """Run ``request``, which was validated.

        ``keys`` and ``inputs`` re-bind buffers by name; ``group`` is whom it is for, and ``priority`` its place among that one's
        requests; ``deadline`` is in the loop's time; ``trace`` asks for a trace; ``function`` is the request's name, if it has
        one; ``sender`` is asked, where the call has to wait, whose it is; ``identified`` is set where it must have its effect
        once; ``stays`` are its inputs that stay on a device, and ``device_bytes`` what all of its buffers take there. Cancelling
        the awaiting task cancels the call. Raises ``KaasError``.
        """
        arrived_ns = perf_counter_ns()  # uvloop's own time has a resolution of 1 ms.
        if device:
            self._named("device", device)
        # With one device there is nothing to choose.
        data = self._needs.of(request, stays, keys or {}, inputs or ()) if len(self._supervisors) > 1 else ()
        message = worker_pb2.ToWorker()
        input_bytes = _fill(message.execute, keys or {}, inputs or {}, return_buffers)
        del keys, inputs, return_buffers  # The message has them now, and may wait for long.
        message.execute.group = group
        if (granted := self._queue.granted(group)) is not None:
            if granted.priority:
                message.execute.priority = granted.priority
            if granted.max_device_memory_bytes:
                _check_device_memory(granted, device_bytes, message.execute, stays)
                message.execute.max_device_memory_bytes = granted.max_device_memory_bytes
        if trace:
            message.execute.trace_from_ns = arrived_ns
        if identified is not None:
            message.execute.keep_as.key, message.execute.keep_as.fingerprint = identified.as_key
        due = self._due(deadline)
        queued = QueuedRequest(
            None,
            group,
            request.digest,
            data,
            priority=priority,
            deadline=due,
            sender=None if self._queue.has_room else sender(),
            device=device or None,
            size_bytes=input_bytes,
        )
        message.id = next(self._ids)
        call = queued.id = PendingCall(message, self._loop.create_future(), request, due, queued, function, stays, arrived_ns)
        with self._in_flight:
            message.only_call = self._in_flight.only_call
            try:
                answer = await self._serve(call, identified)
            except (KaasError, asyncio.CancelledError):
                self._counters_of(call)["failed"] += 1
                raise
        executed = answer.executed
        reply = executed.reply
        timing = reply.timing
        supervisor = self._supervisors[call.device]
        counters = supervisor.counters  # Not by Counter.update, which takes 10 times as long.
        counters["succeeded"] += 1
        counters["kernels_launched"] += executed.kernels_launched
        counters["device_ns"] += executed.device_ns
        supervisor.info.memory_used_bytes = executed.memory_used_bytes
        timing.queue_ns += call.sent_at_ns - arrived_ns  # its worker has said for how long it waited there
        timing.total_ns = perf_counter_ns() - arrived_ns
        reply.group = group
        reply.placement = self._placement(call, executed)
        if trace:
            _add_stage(reply.trace, "request", timing.total_ns)
            _add_stage(reply.trace, "queue", timing.queue_ns)
        return reply

    async def _serve(self, call: PendingCall, identified: IdentifiedCall | None) -> worker_pb2.FromWorker:
        """Have a request served, and once where it is ``identified``, though its worker may have died after it has committed.

        Where another one has committed it, maybe a worker of a front that is gone, the answer is that one's.
        """
        queued, request = call.queued, call.request
        assert queued is not None and request is not None
        try:
            if queued.device is not None or not self._queue.has_room:
                next(iter(self._supervisors.values())).check_quarantine(request)
                self._refuse_what_cannot_start(queued.device)
            self._queue.place(call)
            for attempt in range(1, MOST_WORKERS + 1):
                try:
                    return await call.outcome()
                except (CommitUnknownError, RequestIdReusedError):
                    if identified is None:
                        raise
                    if (reply := identified.find()) is not None:
                        reply.attempts += attempt - 1
                        call.sent_at_ns = perf_counter_ns()
                        return worker_pb2.FromWorker(executed=worker_pb2.Executed(reply=reply))
                    if attempt == MOST_WORKERS:
                        raise
                call.answer = self._loop.create_future()
                self._supervisors[queued.runs_on].begin(call)
        finally:
            self._queue.left(call)
            queued.id = None  # A cycle would keep the inputs until Python next looks for cycles.
        raise AssertionError("the last attempt returns or raises")

    def _placement(self, call: PendingCall, executed: worker_pb2.Executed) -> executor_pb2.Placement:
        """Return where a request has run, by what the worker says; learn from that for the next."""
        assert call.request is not None and call.queued is not None
        if executed.dropped:
            self._short_until[call.device] = self._loop.time() + SHORT_S
            self._queue.dropped(call.device, dropped(executed), is_full=executed.device_full)
        if not executed.brought_bytes and not executed.new_program:
            self._queue.resident[call.queued.group] += 1
            return executor_pb2.PLACEMENT_RESIDENT
        if self._needs.learn(call.request, executed):
            self._reckon_anew()
        replicated = call.placement is Placement.REPLICATED
        return executor_pb2.PLACEMENT_REPLICATED if replicated else executor_pb2.PLACEMENT_LOADED

    def _reckon_anew(self) -> None:
        """Have the scheduler know what bringing the data of those takes that wait."""
        for call in self._queue.waiting:
            execute = call.message.execute
            if call.queued is not None and call.queued.data and call.request is not None:
                call.queued.data = self._needs.of(call.request, call.stays, execute.keys, execute.inputs)

    def _refuse_what_cannot_start(self, device: str | None) -> None:
        """Raise the reason where no device that a request may run on has started for some time."""
        concerned = self._supervisors.values() if device is None else (self._supervisors[device],)
        refusals = [supervisor.refusal for supervisor in concerned]
        if None not in refusals:
            raise refusals[0].with_traceback(None)  # type: ignore[union-attr]

    def _begin(self, call: PendingCall) -> None:
        """Have a request served by the device where it is placed."""
        if self._short_until and self._loop.time() < self._short_until.get(call.device, 0.0):
            self._tell_awaited(call)
        self._supervisors[call.device].begin(call)

    def _tell_awaited(self, call: PendingCall) -> None:
        """Have the device's worker know what those need that wait: it has to drop something for most that it brings."""
        execute = call.message.execute
        del execute.awaited[:]
        waiting = self._queue.next_for(call.device, MOST_AWAITED)
        needed = (stored for other in waiting for stored in stored_inputs(other.message.execute, other.stays))
        for key, offset_bytes, size_bytes in islice(dict.fromkeys(needed), MOST_AWAITED):
            execute.awaited.add(key=key, offset_bytes=offset_bytes, size_bytes=size_bytes)

    def _counters_of(self, call: PendingCall) -> Counter[str]:
        """Return the counters of the device that a request was sent to, or could have been."""
        asked = call.queued.device if call.queued is not None else None
        return self._supervisors[call.device or asked or next(iter(self._supervisors))].counters

    async def prepare(self, request: SerializedRequest, deadline: float | None = None) -> None:
        """Check a request against its libraries and every device whose worker is ready, and have each that can run it prepare it.

        Waits for the workers where none is ready. ``deadline`` as for ``execute``. Raises ``KaasError`` where none can run it.
        """
        prepare = worker_pb2.Prepare()
        due = self._due(deadline)
        everyone = self._supervisors.values()
        ready = [s for s in everyone if s.info.state == admin_pb2.WORKER_STATE_READY]
        with self._in_flight:
            results = await asyncio.gather(
                *(s.call(worker_pb2.ToWorker(prepare=prepare), request, due) for s in ready or everyone),
                return_exceptions=True,
            )
        errors = [result for result in results if isinstance(result, BaseException)]
        if len(errors) == len(results):
            raise errors[0]

    async def inspect(
        self, library: str, content: bytes | None = None, deadline: float | None = None
    ) -> library_pb2.InspectLibraryResponse:
        """Describe a library, or ``content`` that is not stored yet. ``deadline`` as for ``execute``. Raises ``KaasError``."""
        with self._in_flight:
            inspect = worker_pb2.Inspect(library=library, content=content)
            answer, _ = await self._least_loaded().call(worker_pb2.ToWorker(inspect=inspect), deadline=self._due(deadline))
        return answer.inspected

    def forget_library(self, library_id: str) -> None:
        """Tell every worker that an uploaded library was deleted: no call that is sent from now on finds it."""
        for supervisor in self._supervisors.values():
            supervisor.forget_library(library_id)

    @asynccontextmanager
    async def pages_released(self) -> AsyncIterator[None]:
        """No device holds on to pages of the store in the ``with`` block, other than by a snapshot. Requests go on.

        Raises ``WorkerBusyError``, ``WorkerRestartingError``.
        """
        supervisors = self._supervisors.values()
        try:
            results = await asyncio.gather(*(s.release_pages(RELEASE_TIMEOUT_S) for s in supervisors), return_exceptions=True)
            for error in results:
                if error is not None:
                    raise error
            yield
        finally:
            for supervisor in supervisors:
                supervisor.hold_pages()

    async def drain(self, *, for_good: bool = False) -> None:
        """Take no new call, and return when none is left. Idempotent. What is once ``for_good`` cannot be undone.

        Raises ``CancelledError`` where ``resume`` undoes it meanwhile.
        """
        if for_good and self._irrevocable is None:
            self._irrevocable = DrainingError("the server is shutting down, and takes no requests any more")
        if not self.draining:
            self._refuse(DrainingError("the server is draining"))
        await self._in_flight.none_left()

    def resume(self) -> None:
        """Undo ``drain``. Idempotent. Raises ``DrainingError`` where that was for good, and after ``give_up`` its error."""
        if self._irrevocable is not None:
            raise self._irrevocable.with_traceback(None)
        self._in_flight.resume()
        self._state_changed.set()

    async def drain_device(self, name: str) -> None:
        """Send no more requests to a device, and return when it has none. Idempotent.

        Raises ``InvalidRequestError`` for an unknown one, ``CancelledError`` where ``resume_device`` undoes it meanwhile.
        """
        supervisor = self._named("name", name)
        self._queue.close_device(name)
        await supervisor.drain()

    def resume_device(self, name: str) -> None:
        """Undo ``drain_device``, and try a device again that was lost. Idempotent. Raises ``InvalidRequestError``."""
        self._named("name", name).resume()
        self._queue.open_device(name)

    def give_up(self, error: KaasError) -> None:
        """Fail all calls, those that run too and those to come, with ``error``."""
        self._irrevocable = error
        self._refuse(error)
        self._queue.fail_all(error)
        for supervisor in self._supervisors.values():
            supervisor.give_up(error)

    async def readiness(self) -> AsyncIterator[bool]:
        """Yield whether calls are taken and the worker of any device is ready: now, and whenever that has changed.

        For one reader.
        """
        known: bool | None = None
        while True:
            self._state_changed.clear()
            ready = not self.draining and any(s.info.state == admin_pb2.WORKER_STATE_READY for s in self._supervisors.values())
            if ready is not known:
                known = ready
                yield ready
            await self._state_changed.wait()

    def requests(self, after: str = "", limit: int | None = None) -> list[admin_pb2.RequestInfo]:
        """Return up to ``limit`` requests that wait or run, in the order in which they came, from behind the id ``after``."""
        now_ns, first = perf_counter_ns(), _place(after)
        requests = [r for s in self._supervisors.values() for r in s.requests(now_ns)]
        requests += (call.info(now_ns, self._only_device) for call in self._queue.waiting)
        requests = [r for r in requests if _place(r.id) > first]
        return sorted(requests, key=lambda request: _place(request.id))[:limit]

    def cancel_request(self, request_id: str) -> None:
        """Have a request that waits or runs end early, for an operator. Raises ``RequestNotFoundError``."""
        if request_id.isdecimal() and self._queue.cancel(int(request_id), CancelReason.OPERATOR):
            return
        if not any(supervisor.cancel_request(request_id) for supervisor in self._supervisors.values()):
            raise RequestNotFoundError(f"no request {request_id!r} waits or runs")

    def devices(self) -> list[admin_pb2.Device]:
        """Return the devices and the states of their workers."""
        return [s.info for s in self._supervisors.values()]

    def reservable(self) -> list[Reservable]:
        """Return what each device has of multiprocessors that groups may have for their own."""
        return [Reservable(s.info.name, s.info.multiprocessors, s.multiprocessor_unit) for s in self._supervisors.values()]

    def reserve(self, groups: Mapping[str, int]) -> None:
        """Give groups so many multiprocessors of each device for their own, in place of those that they had."""
        for supervisor in self._supervisors.values():
            supervisor.reserve(groups)

    def stats(self) -> list[admin_pb2.DeviceStats]:
        """Return counters since start and gauges of now."""
        rows = []
        for name, supervisor in self._supervisors.items():
            counters = supervisor.counters
            run_time = duration_pb2.Duration()
            run_time.FromNanoseconds(counters["device_ns"])
            rows.append(
                admin_pb2.DeviceStats(
                    device=name,
                    requests_succeeded=counters["succeeded"],
                    requests_failed=counters["failed"],
                    kernels_launched=counters["kernels_launched"],
                    queued=supervisor.queued + self._queue.queued(name),
                    running=supervisor.running,
                    run_time=run_time,
                )
            )
        return rows

    def _named(self, field: str, name: str) -> Supervisor:
        """Return who has a device. Raises ``InvalidRequestError`` for the ``field`` of a call that names another."""
        if (supervisor := self._supervisors.get(name)) is None:
            known = ", ".join(self._supervisors)
            raise InvalidRequestError.at(field, f"this server has no device {name!r}; it has {known}")
        return supervisor

    def _refuse(self, error: KaasError) -> None:
        """Have further calls fail with ``error``."""
        self._in_flight.refusal = error
        self._state_changed.set()

    def _due(self, deadline: float | None) -> float:
        """Return when a call has to end: at its ``deadline``, and at the latest after the longest time."""
        latest = self._loop.time() + self._max_run_s
        return latest if deadline is None else min(deadline, latest)

    @property
    def _only_device(self) -> str:
        """The device on which all requests run; empty where there are several."""
        return next(iter(self._supervisors)) if len(self._supervisors) == 1 else ""

    def _least_loaded(self) -> Supervisor:
        """Return that of a ready device, if there is one."""
        return min(self._supervisors.values(), key=lambda s: (s.info.state != admin_pb2.WORKER_STATE_READY, s.queue.load))


def _fill(
    execute: worker_pb2.Execute, keys: Mapping[str, str], inputs: Mapping[str, bytes], return_buffers: Sequence[str]
) -> int:
    """Fill in a message in its place: handing over its parts would copy each twice. Return the size of the inputs."""
    for name, key in keys.items():
        execute.keys[name] = key
    input_bytes = 0
    for name, data in inputs.items():
        execute.inputs[name] = data
        input_bytes += len(data)
    execute.return_buffers.extend(return_buffers)
    return input_bytes


def _check_device_memory(
    granted: Group, device_bytes: int, execute: worker_pb2.Execute, stays: Mapping[str, StoredInput]
) -> None:
    """Raise ``GroupLimitError`` where a request needs more of a device than its group may take of it.

    ``device_bytes`` is what all of its buffers take; those of ``stays`` that are read from one value take its room once.
    """
    limit = granted.max_device_memory_bytes
    if device_bytes > limit:
        stored = [
            read._replace(key=execute.keys.get(name, read.key)) for name, read in stays.items() if name not in execute.inputs
        ]
        device_bytes -= sum(read.size_bytes for read in stored) - sum(read.size_bytes for read in set(stored))
    if device_bytes > limit:
        raise GroupLimitError(
            f"group {granted.name}: the request's buffers take {device_bytes} bytes of a device, where all that its requests use"
            f" may take {limit}",
            {"group": granted.name, "limit": "max_device_memory_bytes"},
        )


def _place(request_id: str) -> tuple[int, str]:
    """Return what puts ids, which are numbers, in their order; also what is none."""
    return len(request_id), request_id


def _add_stage(trace: trace_pb2.Trace, name: str, duration_ns: int) -> None:
    """Add a stage that begins with the trace."""
    trace.spans.add(kind=trace_pb2.SPAN_KIND_STAGE, name=name, duration_ns=duration_ns)
