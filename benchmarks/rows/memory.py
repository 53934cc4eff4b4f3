"""Device memory of many functions in one daemon without a spare, beside a process for each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.bench import NO_GPU, TIMEOUT_S, Bench
from benchmarks.crew import Crew
from benchmarks.problems import DOT_PTX, dot_vectors, unseen_dot_ptx
from benchmarks.report import Row, Target
from benchmarks.requests import dot_request
from benchmarks.turns import Figure
from kaas_client import Client

if TYPE_CHECKING:
    from benchmarks.alternatives import raw

MIB = 1 << 20
FUNCTIONS = (1, 10, 100)
PROCESSES = 10
"""Most that are started; the memory of more is reckoned from these."""
EACH = "a process each"


def memory_rows(bench: Bench) -> Iterator[Row]:
    """Measure what the whole GPU's memory grows by."""
    if not bench.cuda:
        yield Row("memory", "device memory of functions", "MiB", NO_GPU)
        return
    from benchmarks.alternatives import raw

    with raw.Gpu() as gpu:
        processes = {number: process_bytes(gpu, number) for number in (1, PROCESSES)}
        context = processes[1]
        before = gpu.used_bytes()
        with bench.daemon("--spare", "0") as address, Client(address, timeout=TIMEOUT_S) as kaas:
            a, b = dot_vectors()
            kaas.put("b", b)
            # The first request of all makes the pool of device memory that all buffers come from.
            kaas.submit(dot_request(kaas.upload(DOT_PTX)), inputs={"a": a})
            empty = gpu.used_bytes() - before
            registered = 0
            for functions in FUNCTIONS:
                for number in range(registered, functions):
                    ptx, suffix = unseen_dot_ptx()
                    library = kaas.upload(ptx, file_name="dot.ptx")
                    kaas.register(f"dot-{number}", dot_request(library, suffix=suffix))(a=a)
                registered = functions
                used = gpu.used_bytes() - before
                each = processes.get(functions, processes[PROCESSES] / PROCESSES * functions)
                word = "" if functions in processes else f", reckoned from {PROCESSES}"
                beside: dict[str, Figure | str] = {
                    EACH + word: Figure.of([each / MIB]),
                    "kaasd without functions": Figure.of([empty / MIB]),
                }
                share = Figure.of([(used - empty) / functions / context])
                goals = [Target("a context, for each function", share, at_most=0.01)]
                what = f"device memory, {functions} function{'s' * (functions > 1)}"
                yield Row("memory", what, "MiB", Figure.of([used / MIB]), beside, goals, x=functions)


def process_bytes(gpu: raw.Gpu, number: int) -> int:
    """Return what so many processes hold of the GPU's memory, each with the dot product loaded and run."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kaasd-bench-")))
        library = folder / "dot.ptx"
        library.write_bytes(DOT_PTX.read_bytes())
        before = gpu.used_bytes()
        processes = stack.enter_context(Crew("benchmarks.alternatives.first", number, [str(library), "", "stay"]))
        processes.wait_until_ready()
        return gpu.used_bytes() - before
