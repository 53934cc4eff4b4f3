"""How long kernels take on the emulated device, beside the same loops in C and in NumPy."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from ctypes import c_float, c_uint32, c_void_p
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.alternatives.plain import Plain, compiler
from benchmarks.bench import Bench
from benchmarks.emulator import PTX, Prepared, Problem
from benchmarks.problems import JACOBI_LAUNCHES, JACOBI_N, JACOBI_PTX, jacobi_steps, jacobi_system
from benchmarks.report import Row, Target, compare, targets
from benchmarks.turns import Contender, take_turns, timed
from kaas_core.request import Access
from kaasd.devices.base import BufferRef, Launch
from kaasd.devices.emulator.runtime.device import EmulatedDevice

Array = NDArray[Any]
LOOPS_PTX = Path(__file__).parents[1] / "kernels/loops.ptx"
ONE_CORE, ALL_CORES, NUMPY = "C -O2, one core", "C -O2, all cores", "NumPy"
JACOBI_S = 3.0
"""What the demo's Jacobi may take."""


@dataclass(frozen=True)
class Workload:
    """A kernel, and what does the same."""

    problem: Problem
    limit: float
    """Times what C takes on all cores."""
    function: str
    """Of ``plain.c``."""
    count: int
    """Its elements or rows."""
    arguments: Sequence[Any]
    numpy: Callable[[], object]


def emulated_rows(bench: Bench) -> Iterator[Row]:
    """Measure loops of arithmetic, of memory, and with barriers; and the demo's Jacobi."""
    if bench.cuda:
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kaasd-bench-")))
        plain = stack.enter_context(Plain(folder).running()) if compiler() else None
        for workload in (_fma(bench), _collatz(bench), _saxpy(bench), _matmul(bench)):
            yield _row(bench, workload, plain)
        yield _jacobi_row(bench, plain)


def _row(bench: Bench, workload: Workload, plain: Plain | None) -> Row:
    prepared = Prepared(workload.problem)
    assert prepared.is_right(), f"{workload.problem.name}: wrong result"
    contenders: dict[str, Contender] = {"kaasd": timed(prepared.run.start)}
    missing = {}
    if plain is None:
        missing = dict.fromkeys((ONE_CORE, ALL_CORES), "no C compiler")
    else:
        contenders[ONE_CORE] = timed(plain.on_one_core(workload.function, workload.count, *workload.arguments))
        contenders[ALL_CORES] = timed(plain.on_all_cores(workload.function, workload.count, *workload.arguments))
    contenders[NUMPY] = timed(workload.numpy)
    turns = take_turns(contenders, rounds=bench.pick(7, 3), seconds=bench.pick(5, 1))
    figure, beside = compare(turns, scale=1e3, missing=missing)
    return Row("emulator", workload.problem.name, "ms", figure, beside, targets(turns, at_most={ALL_CORES: workload.limit}))


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _repeated(times: int, *steps: Callable[[], object]) -> None:
    for _ in range(times):
        for step in steps:
            step()


def _pointer(array: Array) -> Any:
    return array.ctypes.data_as(c_void_p)  # which holds the array


def _fma(bench: Bench) -> Workload:
    n, steps, a, b = bench.pick(1 << 17, 1 << 12), 1000, 0.999, 0.25
    x = np.random.default_rng(1).random(n, dtype=np.float32)

    def by_numpy(x: Array, steps: int = steps) -> Array:
        value = x.copy()
        for _ in range(steps):
            value *= np.float32(a)
            value += np.float32(b)
        return value

    expected = by_numpy(x)
    problem = Problem(
        f"{n >> 10} K threads of {steps:,} fma", "fmaKern", LOOPS_PTX, (n // 256, 1, 1), (256, 1, 1),
        [_u32(n), _u32(steps), struct.pack("<f", a), struct.pack("<f", b), x],
        lambda found: np.allclose(found[0], expected, rtol=1e-3),
    )  # fmt: skip
    mine = x.copy()
    arguments = [c_uint32(steps), c_float(a), c_float(b), _pointer(mine)]
    return Workload(problem, 1.0, "fma_loop", n, arguments, lambda: by_numpy(mine))


def _collatz(bench: Bench) -> Workload:
    n = bench.pick(1 << 18, 1 << 12)

    def by_numpy() -> Array:
        value, steps = np.arange(1, n + 1, dtype=np.uint64), np.zeros(n, np.uint32)
        where = np.flatnonzero(value != 1)
        while where.size:
            now = value[where]
            value[where] = now = np.where(now & np.uint64(1), np.uint64(3) * now + np.uint64(1), now >> np.uint64(1))
            steps[where] += 1
            where = where[now != 1]
        return steps

    expected = by_numpy()
    problem = Problem(
        f"collatz, {n >> 10} K threads", "collatzKern", LOOPS_PTX, (n // 256, 1, 1), (256, 1, 1),
        [_u32(n), np.zeros(n, np.uint32)], lambda found: np.array_equal(found[0], expected),
    )  # fmt: skip
    mine = np.zeros(n, np.uint32)
    return Workload(problem, 1.2, "collatz", n, [_pointer(mine)], by_numpy)


def _saxpy(bench: Bench) -> Workload:
    n = bench.pick(16 << 20, 1 << 16)
    rng = np.random.default_rng(1)
    x, y = rng.random(n, dtype=np.float32), rng.random(n, dtype=np.float32)
    problem = Problem(
        f"saxpy, {n >> 20 or n} {'M ' * (n >= 1 << 20)}elements", "saxpyKern", PTX, (n // 256, 1, 1), (256, 1, 1),
        [_u32(n), struct.pack("<f", 2.5), x, y], lambda found: np.allclose(found[1], 2.5 * x + y, rtol=1e-6),
    )  # fmt: skip
    mine, product = y.copy(), np.empty_like(y)

    def by_numpy() -> None:
        np.multiply(x, np.float32(2.5), out=product)
        np.add(product, mine, out=mine)

    return Workload(problem, 2.0, "saxpy", n, [c_float(2.5), _pointer(x), _pointer(mine)], by_numpy)


def _matmul(bench: Bench) -> Workload:
    side = bench.pick(512, 128)
    rng = np.random.default_rng(1)
    a, b = (rng.random((side, side), dtype=np.float32) for _ in "ab")
    problem = Problem(
        f"matrix product, {side} by {side}, tiled, with barriers", "matmulKern", PTX, (side // 16, side // 16, 1), (16, 16, 1),
        [_u32(side), a, b, np.zeros_like(a)], lambda found: np.allclose(found[2], a @ b, rtol=1e-4),
    )  # fmt: skip
    mine = np.zeros_like(a)
    arguments = [c_uint32(side), _pointer(a), _pointer(b), _pointer(mine)]
    return Workload(problem, 8.0, "matmul", side, arguments, lambda: np.matmul(a, b, out=mine))


def _jacobi_row(bench: Bench, plain: Plain | None) -> Row:
    """As in the demo: two launches an iteration."""
    launches = bench.pick(JACOBI_LAUNCHES, 100)
    matrix, rhs = jacobi_system()
    device = EmulatedDevice()
    contents: dict[str, Array] = {
        "A": matrix,
        "b": rhs,
        "x": np.zeros(JACOBI_N),
        "y": np.zeros(JACOBI_N),
        "residual": np.zeros(2),
    }
    buffers = {name: device.allocate(content.nbytes) for name, content in contents.items()}
    kernel = device.load(JACOBI_PTX.read_bytes()).kernels["jacobiKern"]

    def step(phase: int, before: str, after: str) -> Launch:
        modes = {"A": Access.INPUT, "b": Access.INPUT, before: Access.INPUT, after: Access.OUTPUT, "residual": Access.INOUT}
        references = [BufferRef(name, buffers[name], mode) for name, mode in modes.items()]
        arguments: tuple[BufferRef | bytes, ...] = (_u32(JACOBI_N), _u32(phase), *references)
        return Launch(kernel, (JACOBI_N // 8, 1, 1), (256, 1, 1), 8 * JACOBI_N, arguments)

    run = device.prepare([step(0, "x", "y"), step(1, "y", "x")], launches // 2)

    def solve() -> None:
        for name, content in contents.items():
            buffers[name].write(content.data.cast("B"))
        run.start()

    solve()
    expected = jacobi_steps(matrix, rhs, launches)
    found = np.frombuffer(buffers["x"].view, "f8")
    assert np.allclose(found, expected, rtol=0, atol=1e-9 * np.abs(expected).max()), "Jacobi: wrong result"
    x, y = np.zeros(JACOBI_N), np.zeros(JACOBI_N)
    pointers = [c_uint32(JACOBI_N), _pointer(matrix), _pointer(rhs)]
    contenders: dict[str, Contender] = {"kaasd": timed(solve)}
    missing = {}
    if plain is None:
        missing = dict.fromkeys((ONE_CORE, ALL_CORES), "no C compiler")
    else:
        for name, made in ((ONE_CORE, plain.on_one_core), (ALL_CORES, plain.on_all_cores)):
            forth = made("jacobi_step", JACOBI_N, *pointers, _pointer(x), _pointer(y))
            back = made("jacobi_step", JACOBI_N, *pointers, _pointer(y), _pointer(x))
            contenders[name] = timed(partial(_repeated, launches // 2, forth, back))
    contenders[NUMPY] = timed(lambda: jacobi_steps(matrix, rhs, launches))
    turns = take_turns(contenders, rounds=bench.pick(5, 3), seconds=bench.pick(15, 1))
    figure, beside = compare(turns, missing=missing)
    limit = [] if bench.quick else [Target("s", turns.figure("kaasd"), at_most=JACOBI_S)]
    return Row("emulator", f"Jacobi, N = {JACOBI_N}, {launches:,} launches, as in the demo", "s", figure, beside, limit)
