"""Runs modules of programs on a device and records what they leave: ``python -m tests.fuzz.record MODULES OUT``.

Needs NumPy, lz4, zstandard and the device's bindings, and nothing of the emulated device: it runs on any machine with a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import struct
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from kaas_core.request import Access
from kaasd.devices.base import BufferRef, Device, Launch
from kaasd.devices.registry import open_device

SCRATCH_BYTES = 16384
"""Global memory that a program may use."""

SECONDS_EACH = 20
"""A process that ends no module in so long is stopped. A module of 100 programs takes an H100's driver under 2 seconds."""

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


def _run_all(device_name: str, modules: Path, numbers: list[int], folder: Path) -> None:
    """Run modules one after another; leave each one's outputs in a file of its own."""
    device = open_device(device_name)
    with np.load(modules) as made:
        for number in numbers:
            text, sizes, inputs = (made[f"{part}{number}"] for part in ("text", "sizes", "inputs"))
            content = run(device, text.tobytes().decode(), names(len(sizes)), sizes.tolist(), inputs)
            np.save(folder / f"part{number}.npy", np.frombuffer(content, np.uint8))
    device.close()


def _share(device_name: str, modules: Path, numbers: list[int], folder: Path, index: int) -> list[int]:
    """Run modules in a process, and in a new one past each that faults or does not end. Returns those."""
    context = multiprocessing.get_context("spawn")
    left, failed = numbers, []
    while left:
        worker = context.Process(target=_run_all, args=(device_name, modules, left, folder))
        worker.start()
        count = -1
        while worker.is_alive() and count < (count := sum((folder / f"part{number}.npy").exists() for number in left)):
            worker.join(SECONDS_EACH)
        worker.kill()
        worker.join()
        left = [number for number in left if not (folder / f"part{number}.npy").exists()]
        if left:
            failed.append(left.pop(0))
    parts = {f"output{number}": folder / f"part{number}.npy" for number in numbers if number not in failed}
    outputs: dict[str, Any] = {name: np.load(path) for name, path in parts.items()}
    np.savez_compressed(folder / f"outputs{index}.npz", **outputs)
    for path in parts.values():
        path.unlink()
    return failed


def record(device_name: str, modules: Path, folder: Path, processes: int) -> list[int]:
    """Run all modules of a file on a device; leave a file of outputs for each of ``processes`` in ``folder``.

    Returns the modules that faulted or did not end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with np.load(modules) as made:
        numbers = sorted(int(name.removeprefix("sizes")) for name in made.files if name.startswith("sizes"))
    with ThreadPoolExecutor(processes) as pool:
        shares = [
            pool.submit(_share, device_name, modules, numbers[index::processes], folder, index) for index in range(processes)
        ]
        failed = sorted(number for share in shares for number in share.result())
    print(f"{len(numbers)} modules on {device_name} in {time.monotonic() - started:.1f} s; failed: {failed or 'none'}")
    return failed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--processes", type=int, default=8)
    given = parser.parse_args()
    sys.exit(bool(record(given.device, given.modules, given.folder, given.processes)))
