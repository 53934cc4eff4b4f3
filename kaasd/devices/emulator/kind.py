"""The emulated device's entry in the registry, and its settings."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from kaasd.devices.base import Device, DeviceKind, Found
from kaasd.request.device_checks import DeviceProperties

EMULATOR_CHECKS = ("races", "init")
_NAME = "emulator"
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
    """Of the random order in which blocks and warps run; None: a fixed order."""
    compute_capability: tuple[int, int] = _H100.compute_capability
    multiprocessors: int = _H100.multiprocessor_count
    shared_memory_bytes: int = _H100.max_shared_memory_bytes
    """Most of a block."""


def _find(count: int) -> Found:
    return Found([_NAME] if count == 1 else [f"{_NAME}:{index}" for index in range(count)])


def _open(name: str, options: EmulatorOptions | None, code_cache: Path | None) -> Device:
    from kaasd.devices.emulator.device import MODEL, EmulatedDevice

    options = options or EmulatorOptions()
    properties = DeviceProperties(
        name,
        MODEL,
        options.memory_bytes,
        compute_capability=options.compute_capability,
        multiprocessor_count=options.multiprocessors,
        max_shared_memory_bytes=options.shared_memory_bytes,
    )
    return EmulatedDevice(properties, checks=options.checks, seed=options.seed)


KIND = DeviceKind(
    _NAME,
    pattern=r"emulator(:(0|[1-9]\d{0,3}))?",
    example="emulator, emulator:N",
    find=_find,
    open=_open,
    options=EmulatorOptions,
    runs_aside=False,  # it runs on the thread that serves it
)
