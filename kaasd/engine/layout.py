"""What becomes of each slot of a plan on the device."""

from __future__ import annotations

from dataclasses import dataclass

from kaasd.request.plan import Plan, SlotArgument
from kaasd.request.types import Access

SMALL_BYTES = 64 << 10
"""Up to this size bytes travel with the launches, through host memory of the run: the host copies 64 KiB in 7 microseconds, and
a copy of its own, with what must be noted of it, takes 15 and more on an H100."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Slots by how they are filled and emptied, as indices into ``Plan.slots``; each is filled in one way."""

    uploaded: tuple[int, ...]
    """Small and loaded: part of the run."""
    shared: tuple[int, ...]
    """Loaded and never written, and large or constant: one copy on the device serves all requests while it is current."""
    copied: tuple[int, ...]
    """Large, loaded and written: copied anew for each request."""
    zeroed: tuple[int, ...]
    """Not loaded."""
    downloaded: tuple[int, ...]
    """Small and written: part of the run."""
    own: tuple[int, ...]
    """All but the shared ones: memory of one run at a time."""

    @classmethod
    def of(cls, plan: Plan) -> Layout:
        """Return the layout of a plan, which does not depend on its keys."""
        written = {
            argument.slot
            for launch in plan.launches
            for argument in launch.arguments
            if isinstance(argument, SlotArgument) and argument.access is not Access.INPUT
        }
        outputs = {
            argument.slot
            for launch in plan.launches
            for argument in launch.arguments
            if isinstance(argument, SlotArgument) and argument.access.writes
        }
        uploaded, shared, copied, zeroed, downloaded = [], [], [], [], []
        for index, slot in enumerate(plan.slots):
            small = slot.spec.size_bytes <= SMALL_BYTES
            if not slot.load:
                zeroed.append(index)
            elif index not in written and (slot.spec.constant or not small):
                shared.append(index)
            elif small:
                uploaded.append(index)
            else:
                copied.append(index)
            if small and index in outputs:
                downloaded.append(index)
        own = tuple(index for index in range(len(plan.slots)) if index not in shared)
        return cls(tuple(uploaded), tuple(shared), tuple(copied), tuple(zeroed), tuple(downloaded), own)
