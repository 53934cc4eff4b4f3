"""Which request runs next, and on which device: groups, shares and placement, as state machines without I/O.

``Scheduler`` has a queue for one device or many. ``Executors`` is for who has no queue, and picks an executor as it submits.
``Leases`` is for who only hands out devices, to one group at a time.
"""

from kaasd.scheduling.decisions import Close, Decision, Give, LeaseDecision, Restart, Start
from kaasd.scheduling.executors import Chosen, Executors
from kaasd.scheduling.group import DEFAULT_GROUP, Group, GroupUse
from kaasd.scheduling.leases import Leases
from kaasd.scheduling.placement import Placement
from kaasd.scheduling.request import Datum, QueuedRequest, State
from kaasd.scheduling.scheduler import Policy, Scheduler

__all__ = [
    "DEFAULT_GROUP", "Chosen", "Close", "Datum", "Decision", "Executors", "Give", "Group", "GroupUse", "LeaseDecision", "Leases",
    "Placement", "Policy", "QueuedRequest", "Restart", "Scheduler", "Start", "State",
]  # fmt: skip
