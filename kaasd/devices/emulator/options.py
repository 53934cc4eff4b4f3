"""Settings of the emulated device. The front reads them too: nothing here imports what compiles or runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from kaasd.devices.emulator.ptx.architecture import NEWEST_PTX
from kaasd.request.device_checks import DeviceProperties

EMULATOR_CHECKS = ("races", "init")
_H100 = DeviceProperties("", "", 80 << 30)


def default_memory_bytes() -> int:
    """Return an H100's memory, or this machine's where that is less."""
    return min(_H100.memory_bytes, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


@dataclass(frozen=True, slots=True)
class EmulatorOptions:
    """Settings of the emulated device. What it pretends to be is by default an H100."""

    memory_bytes: int = field(default_factory=default_memory_bytes)
    """A limit, not a reservation."""
    checks: tuple[str, ...] = ()
    """Of ``EMULATOR_CHECKS``: data races, and reads of memory that nothing wrote."""
    seed: int | None = None
    """Of the random order in which blocks, warps and their threads run; None: a fixed order, and warps that advance together."""
    compute_capability: tuple[int, int] = _H100.compute_capability
    ptx_version: tuple[int, int] = NEWEST_PTX
    """The newest that it takes."""
    multiprocessors: int = _H100.multiprocessor_count
    shared_memory_bytes: int = _H100.max_shared_memory_bytes
    """Most of a block."""
    cores: int | None = None
    """Of this machine, to run the blocks of a launch; None: all that the process may use."""
