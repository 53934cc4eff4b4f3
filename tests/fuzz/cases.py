"""Single steps kept with what a GPU made of them: PTX files whose first lines hold the inputs and the outputs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kaasd.devices.base import Device
from tests.fuzz import blocks
from tests.fuzz.layout import Register, lay_out
from tests.fuzz.program import HEADER, Program, Step, entry
from tests.fuzz.record import run
from tests.fuzz.values import THREADS

Values = np.ndarray[Any, Any]
FOLDER = Path(__file__).with_name("cases")


@dataclass(frozen=True)
class Case:
    """An entry named ``case``, its table of inputs, a column for each thread, and its expected outputs."""

    text: str
    inputs: Values
    outputs: bytes

    def write(self, path: Path) -> None:
        head = f"// threads: {self.inputs.shape[1]}\n// inputs: {self.inputs.tobytes().hex()}\n// outputs: {self.outputs.hex()}\n"
        path.write_text(head + self.text)

    def run(self, device: Device) -> bytes:
        """Return the outputs on a device."""
        return run(device, self.text, ["case"], [len(self.outputs)], self.inputs)


def read(path: Path) -> Case:
    """Return a case that was written."""
    text = path.read_text()
    threads, inputs, outputs = re.findall(r"^// \w+: (\w*)$", text, re.MULTILINE)[:3]
    return Case(text, np.frombuffer(bytes.fromhex(inputs), np.uint64).reshape(-1, int(threads)), bytes.fromhex(outputs))


def make(program: Program, step: Step, thread: int, inputs: Values, known: dict[Register, Values]) -> Case:
    """Return a step as a case: of one thread by itself, or of the whole block where threads work together."""
    table = sources_of(program, step, inputs, known)
    chosen = slice(None) if step.together else slice(thread, thread + 1)
    layout = lay_out(step.writes)
    records = np.zeros((THREADS, layout.stride), np.uint8)
    for offset, group in layout.groups:
        for index, register in enumerate(group):
            start = offset + index * register.stored_bytes
            records[:, start : start + register.stored_bytes] = known[register]
    functions = blocks.FUNCTIONS if step.label in ("call", "ld const") else ""
    table = np.ascontiguousarray(table[:, chosen])
    text = f"{HEADER}{functions}{slice_of(program, step, table.shape[1])}"
    return Case(text, table, records[chosen].tobytes())


def slice_of(program: Program, step: Step, threads: int) -> str:
    """Return an entry ``case`` that takes one step alone, its sources loaded from rows of inputs in their order."""
    rows = {register: row for row, register in enumerate(step.reads)}
    text = entry("case", rows, [step], program, threads)
    used = set(re.findall(r"%[phrlx]\d+", text.partition("mov.u32 %thread")[2]))

    def declare(match: re.Match[str]) -> str:
        numbers = [int(name[2:]) for name in used if name.startswith(match[2])]
        return f".reg .{match[1]} {match[2]}<{max(numbers) + 1}>;\n" if numbers else ""

    return re.sub(r"\.reg \.(\w+) (%[phrlx])<\d+>;\n", declare, text)


def sources_of(program: Program, step: Step, inputs: Values, known: dict[Register, Values]) -> Values:
    """Return a table of inputs that holds what a step reads: a row for each source, 64 bits for each thread."""
    table = np.zeros((max(len(step.reads), 1), THREADS), np.uint64)
    for row, register in enumerate(step.reads):
        if register in known:
            width = min(register.stored_bytes, 8)
            table[row].view(np.uint8).reshape(THREADS, 8)[:, :width] = known[register][:, :width]
        else:
            table[row] = inputs[program.inputs[register]]
    return table
