"""Groups: what each is granted, and what it uses."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from kaas_core.errors import InvalidArgumentError

DEFAULT_GROUP = "default"
"""The group of requests that name none. It always exists."""

PRIORITY_STEP_S = 0.1
"""Virtual time by which one step of priority brings a group forward."""
MAX_PRIORITY = 10
"""Further steps change nothing: priority is a bounded advance, so that it delays nobody without end."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Group:
    """What a group is granted: the fields of ``kaas.v1.Group`` that concern scheduling. As a limit, 0 is none.

    Raises ``InvalidArgumentError`` for a name or a number that cannot be.
    """

    name: str
    share: float = 1.0
    """Its part of the devices, beside the shares of the other groups that have requests: more is more."""
    priority: int = 0
    """Higher goes first: ``PRIORITY_STEP_S`` of virtual time a step, at most ``MAX_PRIORITY`` steps either way."""
    max_running: int = 0
    """Requests at devices; more wait."""
    max_queued: int = 0
    """Requests that wait, for an argument too; more are refused."""
    max_queued_bytes: int = 0
    """What came with the requests that wait."""
    max_device_memory_bytes: int = 0
    """Memory of each device that its requests take. The scheduler leaves this to who runs them."""
    reserves: bool = False
    """It has a part of each device to itself that can be divided: one of its requests runs there beside those in the slots."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise InvalidArgumentError(f"group {self.name!r}: a name has 1 to 64 of A-Z a-z 0-9 . _ -")
        if not (math.isfinite(self.share) and self.share > 0):
            raise InvalidArgumentError(f"group {self.name}: share is {self.share}; it must be a number above 0")
        for limit in ("max_running", "max_queued", "max_queued_bytes", "max_device_memory_bytes"):
            if (value := getattr(self, limit)) < 0:
                raise InvalidArgumentError(f"group {self.name}: {limit} is {value}; it must be 0, for no limit, or more")

    @property
    def advance_s(self) -> float:
        """Virtual time by which its priority brings it forward; negative, where it holds it back."""
        return max(-MAX_PRIORITY, min(self.priority, MAX_PRIORITY)) * PRIORITY_STEP_S


@dataclass(frozen=True, slots=True)
class GroupUse:
    """What a group uses: gauges of now, and counters since it was made."""

    queued: int
    """Requests that wait, for a device or an argument."""
    queued_bytes: int
    running: int
    """Requests at devices, and those that were promised one which has their data."""
    device_s: float
    """Device time of the requests that have finished."""
    started: int
    resident: int
    """Those of ``started`` whose data were where they ran."""
