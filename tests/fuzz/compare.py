"""Differences between two devices' outputs, and the small programs that show them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kaasd.devices.base import KernelFault, UnsupportedLibrary
from kaasd.devices.emulator import EmulatedDevice
from tests.fuzz import batch
from tests.fuzz.forms import Bound
from tests.fuzz.layout import Register
from tests.fuzz.program import Program, Step, entry
from tests.fuzz.values import THREADS

Values = np.ndarray[Any, Any]
_FLOATS = {"f16": np.float16, "f32": np.float32, "f64": np.float64}


@dataclass(frozen=True)
class Difference:
    """A step whose sources are the same on both devices and whose results are not."""

    program: Program
    step: Step
    register: Register
    threads: list[int]
    """Those whose values differ."""
    expected: dict[Register, Values]
    actual: dict[Register, Values]


def differences(
    program: Program, inputs: Values, expected: dict[Register, Values], actual: dict[Register, Values]
) -> list[Difference]:
    """Return the steps that went differently on the two devices, less those that differ because an earlier one did."""
    found, spoilt = [], set()
    for step in program.steps:
        if any(register in spoilt for register in step.reads):
            spoilt.update(step.writes)
            continue
        for register in step.writes:
            same = _agree(program, step, register, inputs, expected, actual)
            if not same.all():
                found.append(Difference(program, step, register, np.flatnonzero(~same).tolist(), expected, actual))
                spoilt.update(step.writes)
                break
    return found


def _agree(
    program: Program,
    step: Step,
    register: Register,
    inputs: Values,
    expected: dict[Register, Values],
    actual: dict[Register, Values],
) -> Values:
    one, two = expected[register], actual[register]
    same: Values = (one == two).all(axis=1)
    if same.all() or step.bound is None or register.bits == 1:
        return same
    return same | _near(step, register, program, inputs, expected, one, two)


def _near(
    step: Step, register: Register, program: Program, inputs: Values, known: dict[Register, Values], one: Values, two: Values
) -> Values:
    """Whether results of an approximation are as near to each other as they must be."""
    assert step.bound is not None
    parts = [_as_floats(values, register.kind) for values in (one, two)]
    near: Any = close(step.bound, *parts)
    if register.kind.endswith("x2"):
        near = near.reshape(THREADS, 2).all(axis=1)
    if np.isfinite(step.bound.largest_source):
        for source in step.reads:
            bits = known[source] if source in known else inputs[program.inputs[source]].view(np.uint8).reshape(THREADS, 8)
            near |= ~(np.abs(_as_floats(bits[:, : register.bits // 8].copy(), register.kind)) <= step.bound.largest_source)
    return near


def _as_floats(content: Values, kind: str) -> Values:
    kind = kind.removesuffix("x2")
    flat = np.ascontiguousarray(content).reshape(-1)
    if kind == "bf16":
        return (flat.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return flat.view(_FLOATS[kind]).astype(np.float64)


def close(bound: Bound, one: Values, two: Values) -> Values:
    """Whether numbers of two devices are within a bound of each other. Any NaN is as good as another."""
    with np.errstate(all="ignore"):
        size = np.maximum(np.abs(one), np.abs(two))
        apart = np.abs(one - two)
        ulp = np.maximum(np.exp2(np.floor(np.log2(size)) - 23), 2.0**-149)
        limit = np.maximum(np.maximum(bound.ulps * ulp, bound.relative * size), bound.absolute)
        near: Values = (apart <= limit) | (one == two) | (np.isnan(one) & np.isnan(two))
        return near


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


def describe(difference: Difference, inputs: Values) -> str:
    """Say what differs, with the step's PTX and its sources and results in one thread."""
    program, step, thread = difference.program, difference.step, difference.threads[0]
    table = sources_of(program, step, inputs, difference.expected)
    lines = [f"{step.label} in program {program.seed}: {len(difference.threads)} threads, first {thread}", *step.lines]
    lines += [f"  {register.name} ({register.kind}) = {int(table[row, thread]):#x}" for row, register in enumerate(step.reads)]
    for register in step.writes:
        recorded, here = (known[register][thread].tobytes()[::-1].hex() for known in (difference.expected, difference.actual))
        lines.append(f"  {register.name} ({register.kind}): recorded {recorded}, here {here}")
    return "\n".join(lines)


def compare_batch(job: tuple[Path, int, bytes]) -> tuple[int, list[tuple[str, str]]]:
    """Run a batch on the emulated device; return the labels and descriptions of what differs from the recorded outputs."""
    folder, number, expected = job
    made = batch.load(folder, number)
    device = EmulatedDevice()
    try:
        actual = made.run(device)
    except (KernelFault, UnsupportedLibrary) as error:
        return number, [("failed", f"{error}\n{getattr(error, 'report', '')}")]
    finally:
        device.close()
    found = []
    for (program, one), (_, two) in zip(made.take_apart(expected), made.take_apart(actual), strict=True):
        some = differences(program, made.inputs, one, two)
        found += [(difference.step.label, describe(difference, made.inputs)) for difference in some]
    return number, found
