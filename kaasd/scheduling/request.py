"""What is scheduled: a request by its group, its data, and the time that it is likely to take."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from kaasd.scheduling.group import DEFAULT_GROUP


class Datum(NamedTuple):
    """Something that a request needs on its device: a constant, an input, a loaded library, a graph."""

    key: Hashable
    """What it is, its version included."""
    load_s: float
    """What bringing it to a device that lacks it takes."""
    size_bytes: int = 0
    """What it takes of the device's memory, where that is worth counting."""


class State(Enum):
    """Where a request is on its way."""

    NEW = "new"
    """Not submitted yet."""
    UNREADY = "unready"
    """It waits for an argument: it holds no slot, and delays nobody."""
    QUEUED = "queued"
    """It waits for any device that it may run on."""
    PROMISED = "promised"
    """It waits for a device that has its data."""
    OVERDUE = "overdue"
    """It has waited for that device as long as bringing its data elsewhere would have taken, and takes a slot of any."""
    RUNNING = "running"
    ENDED = "ended"
    """It has finished, or was cancelled."""


# A module's name, since looking a member up in its class takes 0.1 µs with Python 3.11, some twenty times a request.
NEW, UNREADY, QUEUED, PROMISED, OVERDUE, RUNNING, ENDED = State
WAITING = frozenset({UNREADY, QUEUED, PROMISED, OVERDUE})


@dataclass(eq=False, slots=True)
class QueuedRequest:
    """A request, from ``Scheduler.submit`` to ``finished`` or ``cancel``. Whoever submits it keeps it, to name it later."""

    id: Hashable
    """For whoever submits it; the scheduler does not look at it."""
    group: str = DEFAULT_GROUP
    function: Hashable = None
    """Requests of one function take about the same time. None: those of the group do."""
    data: Sequence[Datum] = ()
    expected_s: float | None = None
    """Device time that it is likely to take. None: as those of its function did."""
    priority: int = 0
    """Within its group, higher first."""
    deadline: float = math.inf
    """Of equal priority, the earliest first."""
    sender: Hashable = None
    """Who sends it: within a group, senders take turns."""
    device: str | None = None
    """The only device that it may run on, by name."""
    size_bytes: int = 0
    """What it holds while it waits, for ``max_queued_bytes``."""

    # What follows is the scheduler's to write.
    state: State = field(default=NEW, init=False)
    runs_on: str = field(default="", init=False)
    """The device that it was promised, or runs on; empty, where there is none."""
    number: int = field(default=0, init=False)
    """In order of arrival."""
    tag: float = field(default=0.0, init=False)
    """Its start in its group's virtual time."""
    charged_s: float = field(default=0.0, init=False)
    """What its group was charged when it left the queue: the device time expected of it."""
    started_at: float = field(default=0.0, init=False)
    least_s: float = field(default=0.0, init=False)
    """Device time that it takes at least, as far as is known."""
    to_bring: Sequence[Datum] = field(default=(), init=False)
    """What it was promised room for; where it runs, what it needs, if some of that is brought there."""
    in_own_slot: bool = field(default=False, init=False)
    """It runs in its group's own slot."""
    left_before: bool = field(default=False, init=False)
    """It has left its queue once, and comes before all others of its group."""
