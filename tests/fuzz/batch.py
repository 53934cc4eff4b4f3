"""Many programs in one module, made once and kept, so that outputs recorded elsewhere can be compared later."""

from __future__ import annotations

import lzma
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from kaasd.devices.base import Device
from tests.fuzz import blocks, values
from tests.fuzz.layout import Register
from tests.fuzz.program import HEADER, Program
from tests.fuzz.record import names, run
from tests.fuzz.values import THREADS

SIZE = 100
"""Programs of a batch: enough to share what a module costs the driver."""

Values = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Batch:
    """A module's programs."""

    number: int
    programs: tuple[Program, ...]
    inputs: Values
    text: str

    @property
    def sizes(self) -> list[int]:
        """Bytes of each program's outputs."""
        return [program.layout.stride * THREADS for program in self.programs]

    def run(self, device: Device) -> bytes:
        """Run all programs and return their outputs, one after another."""
        return run(device, self.text, names(len(self.programs)), self.sizes, self.inputs)

    def take_apart(self, content: bytes) -> Iterator[tuple[Program, dict[Register, Values]]]:
        """Take apart what ``run`` returned: each program with the values of its registers."""
        start = 0
        for program, size in zip(self.programs, self.sizes, strict=True):
            yield program, program.layout.take_apart(content[start : start + size], THREADS)
            start += size


def make(seed: int, number: int) -> Batch:
    """Return the batch of a seed and number: the same on every machine, as long as the table of instructions is."""
    programs = tuple(blocks.make(f"{seed}/{number}/{index}") for index in range(SIZE))
    entries = [program.text(name) for name, program in zip(names(SIZE), programs, strict=True)]
    return Batch(number, programs, values.inputs(seed * 1000 + number), "".join([HEADER, blocks.FUNCTIONS, *entries]))


def save(batches: Iterator[Batch], folder: Path) -> None:
    """Keep batches in a folder: their programs, and in one file the modules that a device needs."""
    folder.mkdir(parents=True, exist_ok=True)
    modules: dict[str, Any] = {}
    for batch in batches:
        (folder / f"programs{batch.number}.pickle").write_bytes(pickle.dumps(batch))
        modules[f"text{batch.number}"] = np.frombuffer(batch.text.encode(), np.uint8)
        modules[f"sizes{batch.number}"] = np.array(batch.sizes)
        modules[f"inputs{batch.number}"] = batch.inputs
    np.savez_compressed(folder / "modules.npz", **modules)


def keep(made: Batch, expected: bytes, same: Sequence[bool], count: int, path: Path) -> None:
    """Keep the first ``count`` programs that are the ``same`` on both devices and defined exactly, with their outputs."""
    ends = list(accumulate(made.sizes))
    every = zip(made.programs, [0, *ends], ends, same, strict=False)
    fit = [(p, start, end) for p, start, end, is_same in every if is_same and p.is_exact][:count]
    entries = [program.text(name) for name, (program, _, _) in zip(names(len(fit)), fit, strict=True)]
    parts: dict[str, Any] = {
        "text": np.frombuffer("".join([HEADER, blocks.FUNCTIONS, *entries]).encode(), np.uint8),
        "sizes": np.array([end - start for _, start, end in fit]),
        "inputs": made.inputs,
        "output": np.frombuffer(b"".join(expected[start:end] for _, start, end in fit), np.uint8),
    }
    with path.open("wb") as file, lzma.open(file, "wb") as packed:
        np.savez(packed, **parts)


def load(folder: Path, number: int) -> Batch:
    """Return a batch that was kept."""
    batch = pickle.loads((folder / f"programs{number}.pickle").read_bytes())
    assert isinstance(batch, Batch)
    return batch
