"""What a group is granted, checked and with its defaults filled in: as the wire and the settings file say it."""

from __future__ import annotations

from dataclasses import dataclass

from kaas.v1 import admin_pb2
from kaas_core.errors import InvalidArgumentError
from kaas_core.violations import Violations
from kaasd import scheduling

MAX_REGION_BYTES = 4 << 30
"""Of a group for which nothing is said."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What one group is granted."""

    message: admin_pb2.Group
    """All of it, defaults filled in. Not to be changed."""
    scheduled: scheduling.Group
    """What of it concerns the scheduler."""
    fixed: bool = False
    """It is in the settings file, and cannot be changed otherwise."""

    @property
    def name(self) -> str:
        return self.scheduled.name


def check(message: admin_pb2.Group, *, path: str = "group", fixed: bool = False) -> Grant:
    """Return what ``message`` grants. Raises ``InvalidRequestError`` naming fields below ``path``."""
    filled = admin_pb2.Group()
    filled.CopyFrom(message)
    if filled.share == 0:
        filled.share = 1
    filled.max_region_bytes = filled.max_region_bytes or MAX_REGION_BYTES
    found = Violations()
    # The numbers that are limits have no sign, so all of them can be.
    for field, name, share in (("name", filled.name, 1.0), ("share", "it", filled.share)):
        try:
            scheduling.Group(name, share)
        except InvalidArgumentError as error:
            found.add(f"{path}.{field}", error.message.removeprefix("group it: "))
    found.raise_if_any()
    scheduled = scheduling.Group(
        filled.name,
        share=filled.share,
        priority=filled.priority,
        max_running=filled.max_running,
        max_queued=filled.max_queued,
        max_queued_bytes=filled.max_queued_bytes,
        max_device_memory_bytes=filled.max_device_memory_bytes,
        reserves=filled.reserved_multiprocessors > 0,
    )
    return Grant(filled, scheduled, fixed)
