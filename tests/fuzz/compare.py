"""Differences between two devices' outputs, and the small programs that show them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kaasd.devices.base import KernelFault
from kaasd.devices.emulator.runtime.device import EmulatedDevice
from kaasd.libraries import UnsupportedLibrary
from tests.fuzz import batch, cases
from tests.fuzz.forms import Bound, is_left_out
from tests.fuzz.layout import Register
from tests.fuzz.program import Program, Step
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
    """Return the steps that went differently on the two devices, less those that differ because an earlier one did.

    Steps made before one of their instructions was left out count as different.
    """
    found, spoilt = [], set()
    for step in program.steps:
        if any(register in spoilt for register in step.reads) or any(map(is_left_out, step.lines)):
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
    near = close(step.bound, *parts)
    if register.kind.endswith("x2"):
        near = np.logical_and(near[::2], near[1::2])
    if np.isfinite(step.bound.largest_source):
        for source in step.reads:
            bits = known[source] if source in known else inputs[program.inputs[source]].view(np.uint8).reshape(THREADS, 8)
            size = np.abs(_as_floats(bits[:, : register.bits // 8].copy(), register.kind))
            near = np.logical_or(near, ~(size <= step.bound.largest_source))
    return near


def _as_floats(content: Values, kind: str) -> Values:
    kind = kind.removesuffix("x2")
    flat = np.ascontiguousarray(content).reshape(-1)
    if kind == "bf16":
        flat, kind = (flat.view(np.uint16).astype(np.uint32) << 16), "f32"
    with np.errstate(invalid="ignore"):  # signalling NaN
        return flat.view(_FLOATS[kind]).astype(np.float64)


def close(bound: Bound, one: Values, two: Values) -> Values:
    """Whether numbers of two devices are within a bound of each other. Any NaN is as good as another.

    An infinity is what comes after the largest number: a result just below may be rounded to it.
    """
    with np.errstate(all="ignore"):
        if bound.ulps:
            one, two = (np.clip(values, -(2.0**128), 2.0**128) for values in (one, two))
        size = np.maximum(np.abs(one), np.abs(two))
        apart = np.abs(one - two)
        ulp = np.maximum(np.exp2(np.floor(np.log2(size)) - 23), 2.0**-149)
        limit = np.maximum(np.maximum(bound.ulps * ulp, bound.relative * size), bound.absolute)
        near: Values = (apart <= limit) | (one == two) | (np.isnan(one) & np.isnan(two))
        return near


def describe(difference: Difference, inputs: Values) -> str:
    """Say what differs, with the step's PTX and its sources and results in one thread."""
    program, step, thread = difference.program, difference.step, difference.threads[0]
    table = cases.sources_of(program, step, inputs, difference.expected)
    lines = [f"{step.label} in program {program.seed}: {len(difference.threads)} threads, first {thread}", *step.lines]
    lines += [f"  {register.name} ({register.kind}) = {int(table[row, thread]):#x}" for row, register in enumerate(step.reads)]
    for register in step.writes:
        recorded, here = (known[register][thread].tobytes()[::-1].hex() for known in (difference.expected, difference.actual))
        lines.append(f"  {register.name} ({register.kind}): recorded {recorded}, here {here}")
    return "\n".join(lines)


@dataclass(frozen=True)
class Compared:
    """A batch on two devices."""

    number: int
    whole: int
    """Programs none of whose steps is left out."""
    found: list[tuple[str, str, cases.Case | None]]
    """What differs: its label, a description, the case."""


def compare_batch(job: tuple[Path, int, bytes]) -> Compared:
    """Run a batch on the emulated device and compare it with the recorded outputs."""
    folder, number, expected = job
    made = batch.load(folder, number)
    whole = sum(not any(is_left_out(line) for step in program.steps for line in step.lines) for program in made.programs)
    device = EmulatedDevice()
    try:
        actual = made.run(device)
    except (KernelFault, UnsupportedLibrary) as error:
        return Compared(number, 0, [("failed", f"{error}\n{getattr(error, 'report', '')}", None)])
    finally:
        device.close()
    found: list[tuple[str, str, cases.Case | None]] = []
    for (program, one), (_, two) in zip(made.take_apart(expected), made.take_apart(actual), strict=True):
        for difference in differences(program, made.inputs, one, two):
            step = difference.step
            case = cases.make(program, step, difference.threads[0], made.inputs, one)
            found.append((step.label, describe(difference, made.inputs), case))
    return Compared(number, whole, found)


def exact_programs(made: batch.Batch, expected: bytes) -> list[bool]:
    """Which of a batch's programs leave the same bytes on the emulated device."""
    device = EmulatedDevice()
    try:
        actual = made.run(device)
    finally:
        device.close()
    starts = [0, *accumulate(made.sizes)]
    return [actual[start:end] == expected[start:end] for start, end in pairwise(starts)]
