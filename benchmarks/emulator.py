"""Measures the emulated device: how many instructions of how many threads a second, beside NumPy and beside an interpreter.

Run with ``python -m benchmarks.emulator``. The interpreter is the alternative that was
decided against: the same instructions, each one NumPy operation over all threads, with a mask and with every access checked.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.bench import machine
from benchmarks.counting import counted
from benchmarks.problems import JACOBI_N, JACOBI_PTX, jacobi_steps, jacobi_system
from benchmarks.report import number
from benchmarks.turns import Turns, take_turns, timed
from kaas_core.request import Access, Dim3
from kaasd.devices.base import BufferRef, Launch
from kaasd.devices.emulator.runtime.address_space import Allocation
from kaasd.devices.emulator.runtime.device import EmulatedDevice

PTX = Path(__file__).parent / "kernels/emulated.ptx"
Array = NDArray[Any]

CHECKED = (("races",), ("init",), ("races", "init"))

TARGET_M = 150
"""Million thread-instructions a second, for saxpy and the matrix product."""


@dataclass(frozen=True)
class Problem:
    """A kernel with its arguments and what has to come out."""

    name: str
    kernel: str
    ptx: Path
    grid: Dim3
    block: Dim3
    arguments: Sequence[Array | bytes]
    check: Callable[[Sequence[Array]], bool]
    """Whether the buffers are right after one launch."""
    shared: int = 0
    target_m: float | None = None


def problems(scale: int) -> list[Problem]:
    """Return what is measured; ``scale`` divides the sizes."""
    rng = np.random.default_rng(1)
    n = (16 << 20) // scale
    x, y = rng.random(n, dtype=np.float32), rng.random(n, dtype=np.float32)
    saxpy = Problem(
        f"saxpy, {n >> 20 or n} {'M ' * (n >= 1 << 20)}elements", "saxpyKern", PTX, (n // 256, 1, 1), (256, 1, 1),
        [_u32(n), struct.pack("<f", 2.5), x, y], lambda a: np.allclose(a[1], 2.5 * x + y, rtol=1e-6), target_m=TARGET_M,
    )  # fmt: skip
    side = 512 // (4 if scale > 1 else 1)
    a, b = (rng.random((side, side), dtype=np.float32) for _ in "ab")
    matmul = Problem(
        f"matrix product, {side} x {side}, tiled", "matmulKern", PTX, (side // 16, side // 16, 1), (16, 16, 1),
        [_u32(side), a, b, np.zeros_like(a)], lambda z: np.allclose(z[2], a @ b, rtol=1e-4), target_m=TARGET_M,
    )  # fmt: skip
    matrix, rhs = jacobi_system()
    jacobi = Problem(
        f"Jacobi step, N = {JACOBI_N}", "jacobiKern", JACOBI_PTX, (JACOBI_N // 8, 1, 1), (256, 1, 1),
        [_u32(JACOBI_N), _u32(0), matrix, rhs, np.zeros(JACOBI_N), np.zeros(JACOBI_N), np.zeros(2)],
        lambda z: np.allclose(z[3], jacobi_steps(matrix, rhs, 1)), shared=8 * JACOBI_N,
    )  # fmt: skip
    reduction = Problem(
        "reduction, shuffles and a barrier", "reduceKern", PTX, (256, 1, 1), (256, 1, 1),
        [_u32(n), x, np.zeros(256, np.float32)], lambda z: np.allclose(z[1].sum(dtype="f8"), x.sum(dtype="f8"), rtol=1e-5),
    )  # fmt: skip
    width = 1024 // (4 if scale > 1 else 1)
    mandelbrot = Problem(
        f"mandelbrot, {width} x {width}, 256 steps", "mandelbrotKern", PTX, (width // 16, width // 16, 1), (16, 16, 1),
        [_u32(width), _u32(width), _u32(256), np.zeros((width, width), np.uint32)], _mandelbrot_is_right,
    )  # fmt: skip
    return [saxpy, matmul, jacobi, reduction, mandelbrot]


def _resident_kib(which: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{which}:"))
    return int(line.split()[1])


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _mandelbrot_is_right(buffers: Sequence[Array]) -> bool:
    """The kernel rounds to single precision on the way, so a few points at the edge may differ."""
    (steps,) = buffers
    height, width = steps.shape
    c = (-2 + 2.5 * np.arange(width) / width) + 1j * (-1.25 + 2.5 * np.arange(height)[:, None] / height)
    z, expected = np.zeros_like(c), np.zeros(c.shape, np.uint32)
    for _ in range(256):
        inside = np.abs(z) <= 2
        z = np.where(inside, z * z + c, z)
        expected += inside
    return bool((steps == expected).mean() > 0.98)


class Prepared:
    """A problem on a device of its own, ready to run."""

    def __init__(self, problem: Problem, checks: Sequence[str] = ()) -> None:
        self._problem = problem
        self._device = open_emulator(checks)
        self._text = problem.ptx.read_text()
        self._arguments: list[bytes | BufferRef] = []
        self._contents: list[tuple[Allocation, Array]] = []
        for index, data in enumerate(problem.arguments):
            if isinstance(data, bytes):
                self._arguments.append(data)
            else:
                buffer = self._device.allocate(data.nbytes)
                self._contents.append((buffer, data))
                self._arguments.append(BufferRef(f"argument {index}", buffer, Access.INOUT))
        self.run = self._device.prepare([self._launch(self._text)], 1)

    def _launch(self, text: str, *further: BufferRef) -> Launch:
        problem = self._problem
        kernel = self._device.load(text.encode()).kernels[problem.kernel]
        return Launch(kernel, problem.grid, problem.block, problem.shared, (*self._arguments, *further))

    def reset(self) -> None:
        """Give the buffers their first content."""
        for buffer, data in self._contents:
            buffer.write(data.tobytes())

    def is_right(self) -> bool:
        """Run once and check what comes out."""
        self.reset()
        self.run.start()
        return self._problem.check(
            [np.frombuffer(buffer.view, data.dtype).reshape(data.shape) for buffer, data in self._contents]
        )

    def grown_kib(self) -> int:
        """Return by how much resident memory grows, at its peak, when the launch is prepared anew and run."""
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        before = _resident_kib("VmRSS")
        self._device.prepare([self._launch(self._text)], 1).start()
        return _resident_kib("VmHWM") - before

    def count(self) -> int:
        """Return the thread-instructions of one launch."""
        self.reset()
        counter = self._device.allocate(8)
        counter.zero()
        reference = BufferRef("counter", counter, Access.INOUT)
        self._device.prepare([self._launch(counted(self._text, self._problem.kernel), reference)], 1).start()
        return int.from_bytes(counter.view, "little")


def open_emulator(checks: Sequence[str]) -> EmulatedDevice:
    """Return a device, with the checks named."""
    return EmulatedDevice(checks=checks)


class Interpreter:
    """The body of ``saxpyKern``, each instruction one NumPy operation over all threads, a buffer's accesses checked."""

    def __init__(self, n: int) -> None:
        self.threads = n
        rng = np.random.default_rng(1)
        self._memory = {3: rng.random(n, dtype=np.float32), 4: rng.random(n, dtype=np.float32)}
        """By segment, as device addresses name them."""

    def run(self) -> None:
        """Run all threads, 65536 at a time so that registers stay in the cache."""
        for start in range(0, self.threads, 1 << 16):
            index = np.arange(start, min(start + (1 << 16), self.threads), dtype=np.uint32)
            block, thread = index >> 8, index & 255
            i = block * np.uint32(256) + thread  # mad.lo
            mask = ~(i >= np.uint32(self.threads))  # setp, bra
            offset = i.astype(np.uint64) * np.uint64(4)  # mul.wide
            x_address = np.uint64(3 << 44) + offset  # add
            x = self._load(x_address, mask)
            y_address = np.uint64(4 << 44) + offset
            y = self._load(y_address, mask)
            result = np.where(mask, x * np.float32(2.5) + y, np.float32(0))  # fma, near enough
            self._store(y_address, result, mask)

    def _place(self, address: Array, mask: Array) -> tuple[Array, Array]:
        segment, offset = int(address[0] >> np.uint64(44)), address & np.uint64((1 << 44) - 1)
        memory = self._memory[segment]
        same = (address >> np.uint64(44)) == np.uint64(segment)
        good = same & (offset + np.uint64(4) <= np.uint64(memory.nbytes)) & ((offset & np.uint64(3)) == 0)
        if not (good | ~mask).all():
            raise IndexError("illegal address")
        return memory, (offset >> np.uint64(2)).astype(np.int64)

    def _load(self, address: Array, mask: Array) -> Array:
        memory, index = self._place(address, mask)
        return np.where(mask, memory[np.where(mask, index, 0)], np.float32(0))

    def _store(self, address: Array, value: Array, mask: Array) -> None:
        memory, index = self._place(address, mask)
        memory[index[mask]] = value[mask]


def measure(problem: Problem, seconds: float) -> tuple[int, int, Turns]:
    """Return a launch's thread-instructions, its memory in KiB, and how long launches take beside NumPy adding, in turns."""
    prepared = Prepared(problem)
    if not prepared.is_right():
        raise AssertionError(f"{problem.name}: wrong result")
    grown_kib = prepared.grown_kib()
    n = 1 << 22
    a, b, c = (np.ones(n, np.float32) for _ in range(3))
    turns = take_turns(
        {"emulator": timed(prepared.run.start), "add": timed(lambda: np.add(a, b, out=c), 5)},
        rounds=15, seconds=seconds,
    )  # fmt: skip
    return prepared.count(), grown_kib, turns


def cost_of_checks(found: Sequence[Problem]) -> Table:
    """Return how many times as long launches take with each check, and with both."""
    table = Table(title="What the checks cost: times as long as without", title_justify="left")
    for column in ("kernel", "ms without", *(" and ".join(checks) for checks in CHECKED)):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for problem in found:
        contenders = {}
        for checks in ((), *CHECKED):
            prepared = Prepared(problem, checks)
            if not prepared.is_right():
                raise AssertionError(f"{problem.name}: wrong result with {checks}")
            contenders[" and ".join(checks)] = timed(prepared.run.start)
        turns = take_turns(contenders, rounds=5, seconds=3)
        without = turns.figure("").median * 1e3
        ratios = [number(turns.ratio(" and ".join(checks), "").median) for checks in CHECKED]
        table.add_row(problem.name, number(without), *ratios)
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emulator", description="Measure the emulated device.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, to see that all runs")
    options = parser.parse_args()
    scale, seconds = (64, 0.5) if options.quick else (1, 6)
    console = Console()
    if not console.is_terminal:
        console.width = 150
    table = Table(title=f"The emulated device on {machine()['processor']}, one core; medians", title_justify="left")
    for column in (
        "kernel",
        "thread-instructions",
        "ms",
        "M thread-instr/s",
        "NumPy: M float32 adds/s",
        "ratio",
        "target",
        "KiB beyond buffers",
    ):
        table.add_column(column, justify="left" if column == "kernel" else "right")

    def add_row(name: str, count: int, seconds: float, adds: float, target: float | None, grown_kib: int | None = None) -> None:
        rate = count / seconds / 1e6
        verdict = "" if target is None else f"{'pass' if rate >= target else 'MISS'} (≥ {target:g})"
        grown = "" if grown_kib is None else f"{grown_kib:,}"
        table.add_row(name, f"{count:,}", number(seconds * 1e3), number(rate), number(adds), number(rate / adds), verdict, grown)

    found = problems(scale)
    for problem in found:
        count, grown_kib, turns = measure(problem, seconds)
        adds = (1 << 22) / turns.figure("add").median / 1e6
        add_row(problem.name, count, turns.figure("emulator").median, adds, problem.target_m, grown_kib)
        if problem is found[0]:
            interpreter = Interpreter(problem.grid[0] * problem.block[0])
            taken = take_turns({"interpreter": timed(interpreter.run)}, rounds=5, seconds=seconds).figure("interpreter").median
            add_row("  the same by NumPy, instruction by instruction", count, taken, adds, None)
    console.print(table)
    console.print(cost_of_checks(problems(64)))


if __name__ == "__main__":
    main()
