"""Where registers are kept that outlast the code at hand: places in a thread's frame, shared by those that never meet."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from heapq import heappop, heappush

from kaasd.devices.emulator.codegen.liveness import Liveness
from kaasd.devices.emulator.ptx.routine import Register
from kaasd.devices.emulator.ptx.types import align


def homes_of(
    registers: Collection[Register], liveness: Liveness, ends: Mapping[int, int], start: int
) -> tuple[dict[int, int], int]:
    """Give each register a place from offset ``start`` of the frame on; return the offsets by registers' numbers, and the end.

    From where one is first needed or written, in the order of the text, to where it is last, its place is its own.
    """
    spans = _spans({register.index for register in registers}, liveness, ends)
    free: dict[int, list[int]] = {}
    taken: list[tuple[int, int, int]] = []
    homes: dict[int, int] = {}
    for register in sorted(registers, key=lambda register: spans[register.index]):
        first, last = spans[register.index]
        while taken and taken[0][0] < first:
            _, size, offset = heappop(taken)
            free.setdefault(size, []).append(offset)
        size = max(register.type.bytes, 1)
        if places := free.get(size):
            offset = places.pop()
        else:
            offset = align(start, size)
            start = offset + size
        homes[register.index] = offset
        heappush(taken, (last, size, offset))
    return homes, start


def _spans(chosen: set[int], liveness: Liveness, ends: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    spans: dict[int, tuple[int, int]] = {}

    def extend(indices: Collection[int], place: int) -> None:
        for index in indices:
            if index in chosen:
                first, last = spans.get(index, (place, place))
                spans[index] = min(first, place), max(last, place)

    for block, end in ends.items():
        extend(liveness.entering[block], block)
        extend(liveness.leaving[block], end)
        for index in range(block, end):
            extend(liveness.reads[index], index)
            extend(liveness.writes[index], index)
    return spans
