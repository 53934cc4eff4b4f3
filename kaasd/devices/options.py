"""Moved to ``kaasd.devices.emulator.kind``."""

from kaasd.devices.emulator.kind import EMULATOR_CHECKS, EmulatorOptions, default_memory_bytes

__all__ = ["EMULATOR_CHECKS", "EmulatorOptions", "default_memory_bytes"]
