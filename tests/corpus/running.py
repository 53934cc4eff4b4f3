"""Running a kernel of the corpus on arrays."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from kaas_core.request import Dim3
from kaasd.devices.base import Device, Module
from tests.conformance.launching import Call, Use, launch, tmp

HERE = Path(__file__).parent
Arrays = dict[str, np.ndarray]
Check = Callable[..., None]
"""The fixture ``same_as_gpu``."""


class Corpus:
    """The corpus on one device. A library is loaded once; variables of its module start each run as it has them."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._modules: dict[str, Module] = {}
        self.printed = ""
        """By the kernels of the last ``run``, where the device keeps it: on a GPU it goes to standard output."""

    def run(self, name: str, *calls: Call, iterations: int = 1, **buffers: np.ndarray) -> Arrays:
        """Run ``calls`` of kernels of ``cuda/NAME.ptx`` with buffers that start as given; return what they are afterwards."""
        printed: list[str] = []
        results = launch(self._device, self._module(f"cuda/{name}.ptx"), calls, buffers, iterations, printed)
        self.printed = "".join(printed)
        return results

    def run_triton(self, name: str, grid: Dim3 | int, arguments: Mapping[str, Use | bytes], **buffers: np.ndarray) -> Arrays:
        """Run a Triton kernel; its arguments are those of its signature, and a buffer of each pointer's name holds its data."""
        facts = json.loads((HERE / "triton" / f"{name}.json").read_text())
        assert list(arguments) == list(facts["signature"])
        scratch = {pointer: np.zeros(max(16, facts["global_scratch_bytes"]), np.uint8) for pointer in facts["trailing_pointers"]}
        call = Call(
            facts["kernel"],
            grid,
            32 * facts["num_warps"],
            [*arguments.values(), *map(tmp, scratch)],
            facts["shared_memory_bytes"],
        )
        return launch(self._device, self._module(f"triton/{name}.ptx"), [call], buffers | scratch)

    def _module(self, path: str) -> Module:
        if path not in self._modules:
            self._modules[path] = self._device.load((HERE / path).read_bytes())
        return self._modules[path]


def words(seed: int, count: int, high: int = 2**32) -> np.ndarray:
    """Return random uint32 below ``high``."""
    return np.random.default_rng(seed).integers(0, high, count, np.uint32)


def wides(seed: int, count: int, high: int = 2**64) -> np.ndarray:
    """Return random uint64 below ``high``."""
    return np.random.default_rng(seed).integers(0, high, count, np.uint64)


def normals(seed: int, *shape: int) -> np.ndarray:
    """Return random float32, normally distributed."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def i32(value: int) -> bytes:
    return struct.pack("<i", value)


def f32(value: float) -> bytes:
    return struct.pack("<f", value)


def f64(value: float) -> bytes:
    return struct.pack("<d", value)
