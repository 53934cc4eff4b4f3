"""The first request of a new function, from naming it to its result, beside a new process that does the same."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from benchmarks.alternatives import ray_dot
from benchmarks.bench import NO_GPU, TIMEOUT_S, Bench
from benchmarks.problems import DOT_PTX, dot_of, dot_vectors, unseen_dot_ptx
from benchmarks.report import Row, Target, compare, targets
from benchmarks.requests import dot_request
from benchmarks.turns import Contender, Figure, take_turns, timed
from kaas_client import Client

PROCESS_CUBIN = "new process, cubin"
PROCESS_PTX = "new process, new PTX"
ACTOR = "new Ray actor + CuPy"
FIFTIETH = 0.02

Compile = Callable[[bytes], bytes]


def first_rows(bench: Bench) -> Iterator[Row]:
    """Measure a known library, a new one as a cubin and as PTX, and a known function after a restart."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kaasd-bench-")))
        rivals, missing = start_rivals(bench, stack, folder)
        cases = KaasdCases(stack.enter_context(Client(stack.enter_context(bench.daemon()), timeout=TIMEOUT_S)))
        ours: dict[str, Contender] = {
            "known library": timed(cases.known_library, 5),
            "new PTX": timed(cases.new_ptx),
        }
        if bench.cuda:
            ours["new cubin"] = new_cubin_contender(stack, cases)
        turns = take_turns({**ours, **rivals}, rounds=bench.pick(8, 3), seconds=bench.pick(15, 6))
        for name in ours:
            bound = {} if name == "new PTX" else {PROCESS_CUBIN: FIFTIETH}
            figure, beside = compare(turns, scale=1e3, missing=missing, name=name)
            beside = {other: beside[other] for other in (PROCESS_CUBIN, PROCESS_PTX, ACTOR) if other in beside}
            what = f"first request of a function, {name}"
            yield Row("first", what, "ms", figure, beside, targets(turns, at_most=bound, name=name))
        process = turns.figure(PROCESS_CUBIN) if PROCESS_CUBIN in turns else None
    yield restart_row(bench, process)


class KaasdCases:
    """First requests to a daemon, each checked."""

    def __init__(self, kaas: Client) -> None:
        self._kaas = kaas
        self._a, b = dot_vectors()
        self._expected = dot_of(self._a, b)
        self._numbers = itertools.count()
        kaas.put("b", b)
        self._library = kaas.upload(DOT_PTX)
        self.known_library()

    def known_library(self) -> None:
        """Register a function of kernels that the daemon has seen, and invoke it."""
        self.request(self._library, "")

    def new_ptx(self) -> None:
        """Upload PTX that nobody has seen, register it, and invoke it."""
        ptx, suffix = unseen_dot_ptx()
        self.request(self._kaas.upload(ptx, file_name="dot.ptx"), suffix)

    def new_cubin(self, cubin: bytes, suffix: str) -> None:
        """The same with a cubin, which needs no compiler."""
        self.request(self._kaas.upload(cubin, file_name="dot.cubin"), suffix)

    def request(self, library: str, suffix: str) -> None:
        """Register and invoke."""
        function = self._kaas.register(f"dot-{next(self._numbers)}", dot_request(library, suffix=suffix))
        assert function(a=self._a)["c"] == self._expected


def new_cubin_contender(stack: ExitStack, cases: KaasdCases) -> Contender:
    """Return what measures a cubin; making it is not counted."""
    from benchmarks.alternatives import raw

    stack.enter_context(raw.Gpu())

    def measure() -> list[float]:
        ptx, suffix = unseen_dot_ptx()
        cubin = raw.compile_ptx(ptx)
        return list(timed(lambda: cases.new_cubin(cubin, suffix))())

    return measure


def start_rivals(bench: Bench, stack: ExitStack, folder: Path) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return the alternatives, and why others are missing."""
    if not bench.cuda:
        return {}, {PROCESS_CUBIN: NO_GPU, PROCESS_PTX: NO_GPU, ACTOR: NO_GPU}
    from benchmarks.alternatives import raw

    with raw.Gpu():
        cubin, suffix = folder / "dot.cubin", unseen_dot_ptx()[1]
        ptx, suffix = unseen_dot_ptx()
        cubin.write_bytes(raw.compile_ptx(ptx))

    def new_ptx() -> None:
        content, its_suffix = unseen_dot_ptx()
        path = folder / "dot.ptx"
        path.write_bytes(content)
        new_process(path, its_suffix)

    rivals: dict[str, Contender] = {
        PROCESS_CUBIN: timed(lambda: new_process(cubin, suffix)),
        PROCESS_PTX: timed(new_ptx),
    }
    if absent := ray_dot.missing():
        return rivals, {ACTOR: absent}
    rivals[ACTOR] = stack.enter_context(ray_dot.RayClient()).first_call
    return rivals, {}


def new_process(library: Path, suffix: str) -> None:
    """Run a dot product in a process of its own, and check that it says that the result was right."""
    command = [sys.executable, "-m", "benchmarks.alternatives.first", str(library), suffix]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    assert json.loads(done.stdout)["equal"], "the process computed something else"


def restart_row(bench: Bench, process: Figure | None) -> Row:
    """Measure the first request after the daemon was started anew on its store."""
    a, b = dot_vectors()
    times, starts = [], []
    with tempfile.TemporaryDirectory(prefix="kaasd-bench-") as store:
        with bench.daemon("--store", store) as address, Client(address, timeout=TIMEOUT_S) as kaas:
            kaas.put("b", b)
            kaas.register("dot", dot_request(kaas.upload(DOT_PTX)))(a=a)
        for _ in range(bench.pick(4, 2)):
            start = time.perf_counter()
            with bench.daemon("--store", store) as address, Client(address, timeout=TIMEOUT_S) as kaas:
                starts.append(time.perf_counter() - start)
                dot = kaas.function("dot")
                start = time.perf_counter()
                result = dot(a=a)
                times.append(time.perf_counter() - start)
                assert result["c"] == dot_of(a, b)
    figure = Figure.of(times)
    goals = [] if process is None else [Target(PROCESS_CUBIN, Figure.of([x / process.median for x in times]), at_most=FIFTIETH)]
    beside: dict[str, Figure | str] = {PROCESS_CUBIN: NO_GPU if process is None else process.scaled(1e3)}
    note = {"start to listening": f"{sorted(starts)[len(starts) // 2]:.2g} s"}
    return Row("first", "first request after a restart", "ms", figure.scaled(1e3), beside, goals, note)
