"""Two devices, and functions whose constants together fill both: whether each is served where its constants lie.

Each device has room for half of the constants, so all of them fit once. Beside it is one device with room for all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from benchmarks.bench import TIMEOUT_S, Bench
from benchmarks.crew import Crew
from benchmarks.loads import MODULE, Contest, Load, LoadCrew, Seen
from benchmarks.problems import DOT_PTX, squares_of
from benchmarks.report import Row, Target, compare
from benchmarks.requests import reading_request
from benchmarks.turns import Figure, Turns, take_turns
from kaas.v1.executor_pb2 import InvokeRequest
from kaas_client import Client

MIB = 1 << 20
FUNCTIONS = 8
ROOM = FUNCTIONS // 2 + 0.5
"""Constants for which each of two devices has room: half of them and, beside those, code and results."""
PROCESSES = 4

KAASD, ONE_DEVICE = "kaasd", "one device with room for all"
LEAST_RESIDENT = 0.95


def placement_rows(bench: Bench) -> Iterator[Row]:
    """Let every function have a caller: first from empty devices on, traced, and then for speed."""
    what = f"{FUNCTIONS} functions with constants that fill two devices"
    if bench.cuda:
        from benchmarks.alternatives.raw import gpus

        if gpus() < 2:
            yield Row("sharing", what, "", "needs two CUDA GPUs")
            return
    size = bench.pick(256, 64) * MIB if bench.cuda else 32 * MIB
    second = ("--device", "cuda:1") if bench.cuda else ("--emulator-devices", "2")
    with ExitStack() as stack:
        one = stack.enter_context(bench.daemon())
        two = stack.enter_context(bench.daemon(*second, "--device-memory", str(int(ROOM * size))))
        loads = [register_functions(address, size) for address in (two, one)]
        crew = LoadCrew(stack.enter_context(Crew(MODULE, PROCESSES if bench.cuda else 2)))
        brought = {
            name: crew.run(address, [traced(load) for load in each], bench.pick(2.0, 1.0))
            for (name, address), each in zip({KAASD: two, ONE_DEVICE: one}.items(), loads, strict=True)
        }
        yield brought_row(what, brought)
        contest = Contest(crew, bench.pick(2.0, 1.0))
        contenders = {
            KAASD: contest.contender(KAASD, two, loads[0]),
            ONE_DEVICE: contest.contender(ONE_DEVICE, one, loads[1]),
        }
        take_turns(contenders, rounds=bench.pick(3, 2), seconds=60, warm_up=0, least_rounds=1)
    yield from served_rows(what, contest)


def register_functions(address: str, size: int) -> list[Load]:
    """Register functions with constants of their own; return a caller of each."""
    loads = []
    with Client(address, timeout=TIMEOUT_S) as kaas:
        library = kaas.upload(DOT_PTX)
        for number in range(FUNCTIONS):
            values = np.random.default_rng(20 + number).integers(0, 2**32, size // 4, dtype=np.uint32)
            kaas.put(f"constants-{number}", values)
            name = f"read-{number}"
            kaas.register(name, reading_request(library, size, key=f"constants-{number}", constant=True))
            loads.append(Load(InvokeRequest(function=name, return_buffers=["p"]), {"p": squares_of(values)}))
    return loads


def traced(load: Load) -> Load:
    """Return callers of the same that ask for traces, which tell of copies."""
    message = InvokeRequest(trace=True)
    message.MergeFrom(load.message)
    return replace(load, message=message)


def brought_row(what: str, seen: Mapping[str, Sequence[Seen]]) -> Row:
    """Return how often each function's constants came to a device."""
    times = {name: [load.brought["input"] for load in loads] for name, loads in seen.items()}
    figures = {name: Figure.of(each) for name, each in times.items()}
    goal = Target("once", Figure.of([np.mean(times[KAASD])]), at_least=1, at_most=1)
    calls = {name: sum(len(load.answered) for load in loads) for name, loads in seen.items()}
    notes = {"copies": ", ".join(f"{name} {sum(times[name])} in {calls[name]} calls" for name in times)}
    return Row("sharing", f"{what}: how often each is brought", "", figures.pop(KAASD), figures, [goal], notes)


def served_rows(what: str, contest: Contest) -> Iterator[Row]:
    """Return which part of the calls was served where the constants lay, and how many a second."""
    placed = {
        name: sum((load.placements for seen in rounds for load in seen), Counter()) for name, rounds in contest.seen.items()
    }
    parts = {name: Figure.of([counts["resident"] / counts.total()]) for name, counts in placed.items()}
    devices = sum((load.devices for seen in contest.seen[KAASD] for load in seen), Counter[str]())
    goal = Target("all calls", parts[KAASD], at_least=LEAST_RESIDENT)
    notes = {
        "placements": ", ".join(f"{name} {number}" for name, number in sorted(placed[KAASD].items())),
        "devices": ", ".join(f"{name} {number}" for name, number in sorted(devices.items())),
    }
    part = parts.pop(KAASD)
    yield Row("sharing", f"{what}: part of the calls served where they lie", "", part, parts, [goal], notes)
    rates = Turns({name: contest.rates(name, slice(None)) for name in contest.seen})
    figure, beside = compare(rates)
    notes = {"beside one device": f"{rates.ratio(KAASD, ONE_DEVICE).median:.3g} times"}
    yield Row("sharing", f"{what}: calls a second", "/s", figure, beside, notes=notes)
