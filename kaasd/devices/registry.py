"""Devices by name: ``cuda:N``, ``emulator``, and ``auto`` for what the machine has."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from kaasd.devices.base import Device, DeviceUnavailable
from kaasd.devices.cuda.discover import count_gpus
from kaasd.devices.options import EmulatorOptions
from kaasd.request.device_checks import DeviceProperties

AUTO = "auto"
EMULATOR = "emulator"
DEFAULT_EMULATOR = EmulatorOptions()

_logger = logging.getLogger(__name__)
_CUDA = re.compile(r"cuda:(0|[1-9]\d{0,3})")


def available(names: Sequence[str]) -> list[str]:
    """Return the devices that ``names`` stand for, in order, each once, and log what was found.

    ``auto`` stands for every CUDA GPU, or for the emulated device where there is none. The driver is asked in another process,
    and only where a name needs it. Raises ``ValueError`` for a name that is none, ``DeviceUnavailable`` for a GPU that is named
    and not there.
    """
    ordinals = [_ordinal(name) for name in names if name not in (AUTO, EMULATOR)]
    gpus, reason = 0, ""
    if ordinals or AUTO in names:
        try:
            gpus = count_gpus()
        except DeviceUnavailable as error:
            reason = str(error)
    for ordinal in ordinals:
        if ordinal >= gpus:
            raise DeviceUnavailable(f"there is no cuda:{ordinal}: {reason or f'the CUDA driver finds {_count(gpus)}'}")

    found = [f"cuda:{ordinal}" for ordinal in range(gpus)] or [EMULATOR]
    if AUTO in names:
        _logger.info("Device auto: using %s; %s", ", ".join(found), reason or f"the CUDA driver finds {_count(gpus)}")
    resolved = [device for name in names for device in (found if name == AUTO else [name])]
    return list(dict.fromkeys(resolved))


def open_device(name: str, emulator: EmulatorOptions = DEFAULT_EMULATOR, code_cache: Path | None = None) -> Device:
    """Open ``cuda:N`` or ``emulator``; the thread that opens a device is the one that uses it.

    ``emulator`` says how the emulated device is to be. In ``code_cache``, a directory, a device keeps what it compiles for the
    next process. Raises ``ValueError`` for a name that is neither, ``DeviceUnavailable``.
    """
    # What a device needs is loaded when it is opened: the driver's bindings, or a compiler.
    if name == EMULATOR:
        from kaasd.devices.emulator.device import MODEL, EmulatedDevice

        properties = DeviceProperties(
            EMULATOR,
            MODEL,
            emulator.memory_bytes,
            compute_capability=emulator.compute_capability,
            multiprocessor_count=emulator.multiprocessor_count,
            max_shared_memory_bytes=emulator.shared_memory_bytes,
        )
        return EmulatedDevice(properties, checks=emulator.checks, seed=emulator.seed)
    ordinal = _ordinal(name)
    try:
        from kaasd.devices.cuda.device import CudaDevice
    except ImportError as error:
        raise DeviceUnavailable(f"{name} cannot be opened: cuda-bindings is not installed ({error})") from error
    return CudaDevice(ordinal, code_cache=code_cache)


def _ordinal(name: str) -> int:
    match = _CUDA.fullmatch(name)
    if not match:
        raise ValueError(f"there is no device '{name}': a device is {AUTO}, {EMULATOR}, or cuda:N such as cuda:0")
    return int(match[1])


def _count(gpus: int) -> str:
    return f"{gpus} GPU{'s' * (gpus != 1)}"
