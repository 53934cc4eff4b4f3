"""A call whose caller waits for the answer, wherever it is: in the queue of all requests, or with who keeps a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from kaas.v1 import admin_pb2
from kaas.worker.v1 import worker_pb2
from kaas_core.errors import KaasError
from kaasd.front.needs import StoredInput
from kaasd.ipc.messages import SerializedRequest, error_from_failed
from kaasd.scheduling import Placement, QueuedRequest


class Holder(Protocol):
    """Who has a call: ``WorkerCalls``."""

    def abandon(self, call: PendingCall) -> None:
        """Its caller has gone."""

    def forget(self, call: PendingCall) -> None:
        """Its caller has its answer, or waits for none."""


@dataclass(slots=True, eq=False)
class PendingCall:
    """A call."""

    message: worker_pb2.ToWorker
    answer: asyncio.Future[worker_pb2.FromWorker]
    request: SerializedRequest | None = None
    """What the message is about."""
    deadline: float | None = None
    """In the loop's time."""
    queued: QueuedRequest | None = None
    """What it is to the scheduler, where it is a request: it goes elsewhere where a worker is lost before it has begun it."""
    function: str = ""
    """The request's name, if it has one."""
    stays: Mapping[str, StoredInput] = field(default_factory=dict)
    """Of a request, the stored inputs that stay on a device, by buffer name; as it was registered."""
    came_at_ns: int = 0
    """By ``perf_counter_ns``, as the times below."""
    held_by: Holder | None = None
    placement: Placement = Placement.UNSPECIFIED
    waits_since_ns: int = 0
    waited_ns: int = 0
    """For a device."""
    sent_at_ns: int = 0
    attempts: int = 0
    """Workers that it was sent to."""

    @property
    def id(self) -> int:
        """Its number, which no other call has."""
        return self.message.id

    @property
    def device(self) -> str:
        """The device that a request was sent to; empty, where it waits for one."""
        return "" if self.queued is None else self.queued.runs_on

    async def outcome(self) -> worker_pb2.FromWorker:
        """Return the answer. When the awaiting task is cancelled the call is too. Raises ``KaasError``."""
        try:
            answered = await self.answer
        except asyncio.CancelledError:
            if self.held_by is not None:
                self.held_by.abandon(self)
            raise
        finally:
            if self.held_by is not None:
                self.held_by.forget(self)
        if answered.HasField("failed"):
            raise error_from_failed(answered.failed)
        if answered.HasField("executed"):
            answered.executed.reply.attempts = self.attempts
        return answered

    def fail(self, error: KaasError) -> None:
        """Tell the caller, unless it knows already."""
        if not self.answer.done():
            self.answer.set_exception(error)

    def info(self, now_ns: int, device: str = "") -> admin_pb2.RequestInfo:
        """Describe a request, as long as it waits, maybe for one ``device``; ``now_ns`` is a ``perf_counter_ns``."""
        queued = self.queued
        assert queued is not None
        info = admin_pb2.RequestInfo(
            id=str(self.id),
            function=self.function,
            device=queued.device or device,
            state=admin_pb2.REQUEST_STATE_QUEUED,
            input_bytes=queued.size_bytes,
            group=queued.group,
        )
        info.age.FromNanoseconds(now_ns - self.came_at_ns)
        return info
