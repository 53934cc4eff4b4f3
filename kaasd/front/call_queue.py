"""Which calls a worker has, when each is due, and what becomes of it: events in, decisions out, no I/O.

A worker begins its calls in the order in which they were sent, ``concurrency`` at a time, so the oldest unanswered ones are
taken for those that it is serving. When it dies it has left word which it had begun: the others are sent to its successor. Those
that had changed nothing yet are run again elsewhere, where they hurt nobody, since one of them may be why it died; but not again
and again. Likewise where a fault took the device from several requests and nobody can tell which of them did it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import NamedTuple

from kaas_core.errors import (
    CancelledError,
    CommitUnknownError,
    DeadlineExceededError,
    KaasError,
    QuarantinedError,
    QueueFullError,
)
from kaasd.front.quarantine import MOST_WORKERS
from kaasd.ipc.channel import Stage
from kaasd.ipc.messages import WAITING_AT_WORKER

DEATH = "the worker's process ended"
"""How a worker is lost that says nothing."""


class CancelReason(Enum):
    """Why a call is to end early."""

    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    OPERATOR = "operator"

    @property
    def is_final(self) -> bool:
        """Whether the call is to end even where that costs its worker. Who went away has a deadline still."""
        return self is not CancelReason.CANCELLED

    def error(self, stage: str) -> KaasError:
        """Return the error for a call cancelled while it was ``stage``: queued or running."""
        if self is CancelReason.DEADLINE:
            return DeadlineExceededError(f"the deadline passed while the request was {stage}")
        who = "an operator cancelled it" if self is CancelReason.OPERATOR else "the caller went away"
        return CancelledError(f"{who} while the request was {stage}")


class Send(NamedTuple):
    """Send the call to the worker."""

    call: int


class Fail(NamedTuple):
    """Tell the caller that the call failed."""

    call: int
    error: KaasError


class Cancel(NamedTuple):
    """Ask the worker to cancel the call, or to skip it; for a final reason, report ``grace_over`` when it had time enough."""

    call: int
    reason: CancelReason


class Kill(NamedTuple):
    """Kill the worker: it serves a call that cannot be ended otherwise."""


class Blame(NamedTuple):
    """The worker's end is this call's doing: no other was under way."""

    call: int


class Isolate(NamedTuple):
    """Run the call where it can hurt no other. It is this queue's no more."""

    call: int
    losses: int
    """Workers that have died while they ran it."""


Decision = Send | Fail | Cancel | Kill | Blame | Isolate


@dataclass(slots=True)
class _Sent:
    """A call at the worker."""

    cancelled: CancelReason | None = None
    failed: bool = False
    """Its caller has been told already; the worker skips it."""


class CallQueue:
    """The calls of one worker, waiting and sent. Requests come when there is a place for them, and wait in ``RequestQueue``."""

    def __init__(self, max_queued: float, concurrency: int = 1) -> None:
        self._max_queued = max_queued
        self._concurrency = concurrency
        self._ready = False
        self._waiting: OrderedDict[int, None] = OrderedDict()
        self._sent: OrderedDict[int, _Sent] = OrderedDict()
        self._compiling: set[int] = set()
        """Calls at the worker that wait for their code there, and leave their places to others."""
        self._alone: set[int] = set()
        """Calls that must not run beside others."""
        self._losses: dict[int, int] = {}
        """Workers that have died while they ran a call."""
        self._killing = False
        """The worker is killed for a call that is known."""
        self._last_served: list[int] | None = None
        """What the worker served when it lost its device: since then it has begun nothing."""

    @property
    def queued(self) -> int:
        """Calls that wait behind those being served."""
        return self.load - self.running

    @property
    def running(self) -> int:
        """Calls being served."""
        return min(self._concurrency, len(self._sent) - len(self._compiling))

    @property
    def load(self) -> int:
        """All calls."""
        return len(self._waiting) + len(self._sent)

    @property
    def waiting(self) -> Iterable[int]:
        """Calls that are not at the worker, in order."""
        return self._waiting

    def is_sent(self, call: int) -> bool:
        """Return whether a call is at the worker."""
        return call in self._sent

    def submit(self, call: int) -> list[Decision]:
        """Take a new call. Raises ``QueueFullError``."""
        if not self._waiting and self._has_place and not self._alone:
            self._sent[call] = _Sent()
            return [Send(call)]
        if len(self._waiting) >= self._max_queued:
            raise QueueFullError(f"{len(self._waiting)} calls are waiting already, the most that this server allows")
        self._waiting[call] = None
        return self._next()

    def admit(self, call: int, losses: int = 0, *, alone: bool = False) -> list[Decision]:
        """Take a call that another queue had, and that has cost ``losses`` workers there. It is refused nothing.

        ``alone``, where it must not run beside others.
        """
        if losses:
            self._losses[call] = losses
        if alone:
            self._alone.add(call)
        self._waiting[call] = None
        return self._next()

    def withdraw(self, call: int) -> None:
        """A call that waits goes elsewhere."""
        del self._waiting[call]
        self._forget(call)

    def is_alone(self, call: int) -> bool:
        """Whether a call must not run beside others."""
        return call in self._alone

    def set_concurrency(self, concurrency: int) -> list[Decision]:
        """The worker serves so many at a time from now on."""
        self._concurrency = concurrency
        return self._next()

    def worker_ready(self) -> list[Decision]:
        """A worker has started."""
        self._ready = True
        return self._next()

    def sent_again(self, call: int) -> None:
        """The worker has not begun a call, and got it anew: it comes behind the others that are there."""
        if call in self._sent:
            self._sent.move_to_end(call)

    def compiling(self, call: int, *, begins: bool) -> list[Decision]:
        """A call at the worker waits for its code now, so that another may come there; or no longer does."""
        if not begins or call not in self._sent:
            self._compiling.discard(call)
            return []
        self._compiling.add(call)
        return self._next()

    def answered(self, call: int, *, device_lost: bool = False) -> list[Decision]:
        """The worker has answered a call; where it has lost its device meanwhile, it begins no other."""
        if device_lost:
            self._device_lost()
        self._sent.pop(call, None)
        self._forget(call)
        return self._next()

    def run_again(self, call: int, *, suspect: bool) -> list[Decision]:
        """The worker has lost its device while it served a call, and changed nothing: the call is to run again.

        Its successor runs it, or, where it is a ``suspect``, that may be the one at fault, who runs these.
        """
        self._device_lost()
        sent = self._sent.pop(call, _Sent())
        self._compiling.discard(call)
        if sent.cancelled is not None:
            return [] if sent.failed else [Fail(call, sent.cancelled.error("running"))]
        if suspect:
            return self._suspect(call)
        self._wait_first(call)
        return []

    def worker_lost(self, begun: Mapping[int, Stage]) -> list[Decision]:
        """The worker has gone, which had begun these calls and not answered them.

        What it committed fails. What it ran is run again as suspects are, unless it has cost several workers; what only waited
        there waits for the next one.
        """
        self._ready = False
        decisions: list[Decision] = []
        waiting, suspects = [], []
        for call, sent in self._sent.items():
            stage = begun.get(call)
            if sent.failed:
                continue
            if sent.cancelled is not None:
                decisions.append(self._fail(call, sent.cancelled.error("running")))
            elif stage is Stage.COMMITTING:
                text = "the worker died while it committed what this request wrote; all of its outputs are stored, or none is"
                decisions.append(self._fail(call, CommitUnknownError(text)))
            elif stage is Stage.RUNNING and not self._killing:
                suspects.append(call)
            else:
                waiting.append(call)
        for call in reversed(waiting):
            self._wait_first(call)
        if len(suspects) == 1:
            decisions.append(Blame(suspects[0]))
        for call in suspects:
            decisions += self._suspect(call)
        self._sent.clear()
        self._compiling.clear()
        self._last_served, self._killing = None, False
        return decisions

    def cancel(self, call: int, reason: CancelReason) -> list[Decision]:
        """A call's deadline has passed, its caller has gone, or an operator wants its end."""
        if call in self._waiting:
            del self._waiting[call]
            return [self._fail(call, reason.error("queued"))]
        sent = self._sent.get(call)
        if sent is None or (sent.cancelled is not None and sent.cancelled.is_final):
            return []
        sent.cancelled = reason
        if sent.failed or call in self._served():
            return [Cancel(call, reason)]
        sent.failed = True
        stage = "waiting for its code to be compiled" if call in self._compiling else "queued"
        return [Fail(call, reason.error(stage)), Cancel(call, reason)]

    def grace_over(self, call: int) -> list[Decision]:
        """A call that was to end for a final reason had time enough to do so."""
        reason = self._sent[call].cancelled if call in self._served() else None
        if reason is None or not reason.is_final:
            return []
        self._killing = True
        return [Kill()]

    def fail_all(self, error: KaasError) -> list[Decision]:
        """No worker will come, or none soon."""
        return [self._fail(call, error) for call in self.take_all()]

    def take_all(self) -> list[int]:
        """Take out all calls whose callers have not been told of their end."""
        calls = [*(call for call, sent in self._sent.items() if not sent.failed), *self._waiting]
        self._sent.clear()
        self._compiling.clear()
        self._waiting.clear()
        return calls

    def losses(self, call: int) -> int:
        """Return how many workers have died while they ran a call that is here."""
        return self._losses.get(call, 0)

    def _next(self) -> list[Decision]:
        decisions: list[Decision] = []
        while self._waiting and self._has_place:
            others = len(self._sent) > len(self._compiling)
            if others and self._alone and (next(iter(self._waiting)) in self._alone or not self._alone.isdisjoint(self._sent)):
                break
            call, _ = self._waiting.popitem(last=False)
            self._sent[call] = _Sent()
            decisions.append(Send(call))
        return decisions

    @property
    def _has_place(self) -> bool:
        """Whether the worker takes another call."""
        return self._ready and len(self._sent) - len(self._compiling) < self._concurrency + WAITING_AT_WORKER

    def _wait_first(self, call: int) -> None:
        self._waiting[call] = None
        self._waiting.move_to_end(call, last=False)

    def _suspect(self, call: int) -> list[Decision]:
        """A call was running when a worker was lost."""
        losses = self._losses.get(call, 0) + 1
        self._forget(call)
        if losses >= MOST_WORKERS:
            workers = {"workers": str(losses), "last_fault": DEATH}
            text = f"the request was running each time when {losses} workers died; nothing was changed"
            return [Fail(call, QuarantinedError(text, workers))]
        return [Isolate(call, losses)]

    def _fail(self, call: int, error: KaasError) -> Fail:
        self._forget(call)
        return Fail(call, error)

    def _forget(self, call: int) -> None:
        """A call has ended, or gone elsewhere."""
        if self._alone:
            self._alone.discard(call)
        if self._compiling:
            self._compiling.discard(call)
        if self._losses:
            self._losses.pop(call, None)

    def _device_lost(self) -> None:
        if self._last_served is None:
            self._last_served = self._served()
        self._ready = False

    def _served(self) -> list[int]:
        if self._last_served is not None:
            return [call for call in self._last_served if call in self._sent]
        return list(islice((call for call in self._sent if call not in self._compiling), self._concurrency))


class SeenRequests:
    """The requests that a worker has seen, by digest: their content need not go to it again.

    A guess: a worker that no longer knows one asks for it.
    """

    def __init__(self, most: int) -> None:
        """``most`` are remembered; past that, all are forgotten."""
        self._most = most
        self._digests: set[bytes] = set()

    def add(self, digest: bytes) -> bool:
        """Note that a request goes to the worker; return whether it is the first time."""
        if digest in self._digests:
            return False
        if len(self._digests) >= self._most:
            self._digests.clear()
        self._digests.add(digest)
        return True

    def clear(self) -> None:
        """Another worker has taken the place of the one before."""
        self._digests.clear()


class Deadlines:
    """When calls are due. Most end long before: one timer serves all, set for ``wakes_at`` and hardly ever set anew."""

    def __init__(self) -> None:
        self._due: dict[int, float] = {}
        self.wakes_at = math.inf
        """When ``passed`` is to be asked next: at the earliest deadline, or at that of a call which has ended."""

    def add(self, call: int, deadline: float) -> bool:
        """A call is due at ``deadline``. Return whether ``wakes_at`` is now earlier."""
        self._due[call] = deadline
        if deadline >= self.wakes_at:
            return False
        self.wakes_at = deadline
        return True

    def discard(self, call: int) -> None:
        """A call has ended, or not even begun."""
        self._due.pop(call, None)

    def passed(self, now: float) -> list[int]:
        """Return the calls whose deadlines have passed, each once, and move ``wakes_at``."""
        now = max(now, self.wakes_at)  # a loop's timers may be early by its clock's resolution
        passed = [call for call, deadline in self._due.items() if deadline <= now]
        for call in passed:
            del self._due[call]
        self.wakes_at = min(self._due.values(), default=math.inf)
        return passed
