"""Whatever text is loaded, the emulated device runs it or says why not."""

from __future__ import annotations

import random

import pytest
from llvmlite import binding

from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.libraries import UnsupportedLibrary
from tests.devices.emulator.runner import load_all
from tests.fuzz import mutate

SOURCES = mutate.sources()


def load(device: EmulatedDevice, text: str) -> bool:
    """Load a module; return whether it was taken. What was must be valid to LLVM."""
    try:
        module = load_all(device, text.encode())
    except UnsupportedLibrary as error:
        assert str(error)
        return False
    for unit in device._translator._units(text.encode()):
        for name in unit.kernels:
            binding.parse_assembly(str(unit.lowered(name).image.module)).verify()
    module.close()
    return True


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.timeout(60)
def test_changed_modules(seed: int) -> None:
    rng = random.Random(f"changed {seed}")
    device = EmulatedDevice()
    try:
        taken = sum(load(device, mutate.mutated(rng, rng.choice(SOURCES).read_text())) for _ in range(40))
    finally:
        device.close()
    assert 0 < taken < 40  # some changes do no harm, others must be found


@pytest.mark.timeout(60)
def test_noise() -> None:
    rng = random.Random("noise")
    device = EmulatedDevice()
    try:
        assert sum(load(device, mutate.noise(rng)) for _ in range(500)) < 100
    finally:
        device.close()
