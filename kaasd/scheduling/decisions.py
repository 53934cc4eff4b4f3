"""What a scheduler decides."""

from __future__ import annotations

from typing import NamedTuple

from kaasd.scheduling.placement import Placement
from kaasd.scheduling.request import QueuedRequest


class Start(NamedTuple):
    """Send the request to the device: it has a slot there."""

    request: QueuedRequest
    device: str
    placement: Placement


class Give(NamedTuple):
    """The group may use the device, as it is."""

    device: str
    group: str


class Close(NamedTuple):
    """Start nothing more on the device: once it is idle another group gets it."""

    device: str


class Restart(NamedTuple):
    """The device is idle: restart it for the group, and tell ``add_device`` when it is there again."""

    device: str
    group: str


Decision = Start | Restart
"""Of a ``Scheduler``."""
LeaseDecision = Give | Close | Restart
"""Of ``Leases``."""
