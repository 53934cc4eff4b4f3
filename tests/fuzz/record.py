"""Runs modules of programs on a device and records what they leave: ``python -m tests.fuzz.record MODULES OUT``.

Needs NumPy and the device's bindings, and nothing of the emulated device, so that it runs on any machine with a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from kaasd.devices.base import BufferRef, Device, Launch
from kaasd.devices.open import open_device
from kaasd.request.types import Access

SCRATCH_BYTES = 16384
"""Global memory that a program may use."""

Values = np.ndarray[Any, Any]


def names(count: int) -> list[str]:
    """The entries of a module of so many programs."""
    return [f"program{index}" for index in range(count)]


def run(device: Device, text: str, entries: Sequence[str], sizes: Sequence[int], inputs: Values) -> bytes:
    """Run entries of a module, each over one block of as many threads as inputs has columns.

    Returns their outputs, of ``sizes`` bytes, one after another.
    """
    module = device.load(text.encode())
    buffers = [device.allocate(size) for size in (inputs.nbytes, max(sum(sizes), 1), SCRATCH_BYTES)]
    try:
        buffers[0].write(inputs.tobytes())
        for buffer in buffers[1:]:
            buffer.zero()
        roles = zip(("inputs", "outputs", "scratch"), buffers, strict=True)
        named = [BufferRef(role, buffer, Access.INOUT) for role, buffer in roles]
        launches, place = [], 0
        for name, size in zip(entries, sizes, strict=True):
            arguments: list[BufferRef | bytes] = [*named, struct.pack("<I", place)]
            launches.append(Launch(module.kernels[name], (1, 1, 1), (inputs.shape[1], 1, 1), 0, tuple(arguments)))
            place += size
        with closing(device.prepare(launches, 1)) as prepared:
            prepared.start()
            prepared.wait()
            prepared.done()
        content = bytearray(sum(sizes))
        buffers[1].read(content)
    finally:
        for buffer in buffers:
            buffer.close()
        module.close()
    return bytes(content)


def _share(device_name: str, modules: Path, numbers: list[int], out: Path) -> None:
    device = open_device(device_name)
    outputs: dict[str, Any] = {}
    with np.load(modules) as made:
        for number in numbers:
            text, sizes, inputs = (made[f"{part}{number}"] for part in ("text", "sizes", "inputs"))
            content = run(device, text.tobytes().decode(), names(len(sizes)), sizes.tolist(), inputs)
            outputs[f"output{number}"] = np.frombuffer(content, np.uint8)
    np.savez_compressed(out, **outputs)
    device.close()


def record(device_name: str, modules: Path, folder: Path, processes: int) -> bool:
    """Run all modules of a file on a device; each process leaves a file in ``folder``. Returns whether all went well."""
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with np.load(modules) as made:
        numbers = sorted(int(name.removeprefix("sizes")) for name in made.files if name.startswith("sizes"))
        count = sum(len(made[f"sizes{number}"]) for number in numbers)
    context = multiprocessing.get_context("spawn")
    workers = []
    for index in range(min(processes, len(numbers))):
        share = (device_name, modules, numbers[index::processes], folder / f"outputs{index}.npz")
        workers.append(context.Process(target=_share, args=share))
        workers[-1].start()
    for worker in workers:
        worker.join()
    print(f"{count} programs on {device_name} in {time.monotonic() - started:.1f} s")
    return all(worker.exitcode == 0 for worker in workers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--processes", type=int, default=8)
    given = parser.parse_args()
    sys.exit(not record(given.device, given.modules, given.folder, given.processes))
