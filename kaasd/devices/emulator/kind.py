"""The emulated device's entry in the registry."""

from __future__ import annotations

import logging
from pathlib import Path

from kaasd.devices.base import Device, DeviceKind, Found, LibraryCompiler
from kaasd.devices.emulator.options import EmulatorOptions
from kaasd.request.device_checks import DeviceProperties, max_cluster_blocks

_NAME = "emulator"

_log = logging.getLogger(__name__)


def _find(count: int) -> Found:
    return Found([_NAME] if count == 1 else [f"{_NAME}:{index}" for index in range(count)])


def _open(name: str, options: EmulatorOptions | None, code_cache: Path | None, _: int) -> Device:
    from kaasd.devices.code_directory import CodeDirectory, CodeDirectoryError
    from kaasd.devices.emulator.runtime.device import MODEL, EmulatedDevice
    from kaasd.devices.targets import targets_of

    options = options or EmulatorOptions()
    code = None
    if code_cache is not None:
        try:
            code = CodeDirectory(code_cache)
        except CodeDirectoryError as error:
            _log.warning("compiled code is not kept: %s", error)
    properties = DeviceProperties(
        name,
        MODEL,
        options.memory_bytes,
        compute_capability=options.compute_capability,
        multiprocessor_count=options.multiprocessors,
        max_shared_memory_bytes=options.shared_memory_bytes,
        max_ptx_version=10 * options.ptx_version[0] + options.ptx_version[1],
        targets=targets_of(options.compute_capability),
        max_cluster_blocks=max_cluster_blocks(options.compute_capability),
    )
    return EmulatedDevice(
        properties,
        checks=options.checks,
        seed=options.seed,
        ptx_version=options.ptx_version,
        code=code,
        cores=options.cores,
    )


def _compiler(target: str) -> LibraryCompiler:
    from kaasd.devices.emulator.translation.translator import Translator

    return Translator.for_target(target)


KIND = DeviceKind(
    _NAME,
    pattern=r"emulator(:(0|[1-9]\d{0,3}))?",
    example="emulator, emulator:N",
    find=_find,
    open=_open,
    options=EmulatorOptions,
    compiler=_compiler,
    runs_aside=False,  # it runs on the thread that serves it
)
