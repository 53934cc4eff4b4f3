"""Which request runs next, and on which device: groups, shares and placement, as state machines without I/O.

``Scheduler`` has a queue for one device or many. ``Executors`` is for who has no queue, and picks an executor as it submits.
"""

from kaasd.scheduling.decisions import Decision, Restart, Start
from kaasd.scheduling.executors import Chosen, Executors
from kaasd.scheduling.group import DEFAULT_GROUP, Group, GroupUse
from kaasd.scheduling.placement import Placement
from kaasd.scheduling.request import Datum, QueuedRequest, State
from kaasd.scheduling.scheduler import Policy, Scheduler

__all__ = [
    "DEFAULT_GROUP", "Chosen", "Datum", "Decision", "Executors", "Group", "GroupUse", "Placement", "Policy", "QueuedRequest",
    "Restart", "Scheduler", "Start", "State",
]  # fmt: skip
