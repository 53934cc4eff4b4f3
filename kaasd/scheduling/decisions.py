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


class Restart(NamedTuple):
    """Give an idle device to another group, as new, and report ``Scheduler.add_device`` when it is there again."""

    device: str
    group: str


Decision = Start | Restart
