"""Two devices, and functions whose constants together fill both: whether each is served where its constants lie.

Each device has room for half of the constants, so all of them fit once, and nothing else does. Beside it are two devices with
room for one more each, and one device with room for all.
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
MORE_ROOM = ROOM + 1
PROCESSES = 4

KAASD, ONE_MORE, ONE_DEVICE = "kaasd", "with room for one more each", "one device with room for all"
LEAST_RESIDENT = 0.95


def placement_rows(bench: Bench) -> Iterator[Row]:
    """Let every function have a caller: first from empty devices on, traced, and then for speed."""
    what = f"{FUNCTIONS} functions with constants that fill two devices"
    if bench.cuda:
        from benchmarks.alternatives.raw import gpus

        if gpus() < 2:
            yield Row("sharing", what, "", "needs two CUDA GPUs")
            return
    size = bench.pick(256, 64) * MIB if bench.cuda else 64 * MIB
    second = ("--device", "cuda:1") if bench.cuda else ("--emulator-devices", "2")
    rooms = {KAASD: ROOM, ONE_MORE: MORE_ROOM}
    with ExitStack() as stack:
        options = {name: (*second, "--device-memory", str(int(room * size))) for name, room in rooms.items()}
        addresses = {name: stack.enter_context(bench.daemon(*each)) for name, each in {**options, ONE_DEVICE: ()}.items()}
        loads = register_functions(addresses, size)
        crew = LoadCrew(stack.enter_context(Crew(MODULE, PROCESSES if bench.cuda else 2)))
        seconds = bench.pick(2.0, 1.0)
        brought = {name: crew.run(addresses[name], [traced(load) for load in loads], seconds) for name in addresses}
        yield brought_row(what, brought)
        contest = Contest(crew, seconds)
        contenders = {name: contest.contender(name, address, loads) for name, address in addresses.items()}
        take_turns(contenders, rounds=bench.pick(3, 2), seconds=60, warm_up=0, least_rounds=1)
    yield from served_rows(what, contest)


def register_functions(addresses: Mapping[str, str], size: int) -> list[Load]:
    """Register functions with constants of their own at all these daemons; return a caller of each function."""
    loads = []
    with ExitStack() as stack:
        clients = [stack.enter_context(Client(address, timeout=TIMEOUT_S)) for address in addresses.values()]
        libraries = [kaas.upload(DOT_PTX) for kaas in clients]
        for number in range(FUNCTIONS):
            key, name = f"constants-{number}", f"read-{number}"
            values = np.random.default_rng(20 + number).integers(0, 2**32, size // 4, dtype=np.uint32)
            for kaas, library in zip(clients, libraries, strict=True):
                kaas.put(key, values)
                kaas.register(name, reading_request(library, size, key=key, constant=True))
            loads.append(Load(InvokeRequest(function=name, return_buffers=["p"]), {"p": squares_of(values)}))
    return loads


def traced(load: Load) -> Load:
    """Return callers of the same that ask for traces, which tell of copies."""
    message = InvokeRequest(trace=True)
    message.MergeFrom(load.message)
    return replace(load, message=message)


def brought_row(what: str, seen: Mapping[str, Sequence[Seen]]) -> Row:
    """Return how often calls brought each function's constants to a device; what registering has brought is there already."""
    times = {name: [load.brought["input"] for load in loads] for name, loads in seen.items()}
    figures = {name: Figure.of(each) for name, each in times.items()}
    goal = Target("once", Figure.of([np.mean(times[KAASD])]), at_most=1)
    calls = {name: sum(len(load.answered) for load in loads) for name, loads in seen.items()}
    notes = {"copies": ", ".join(f"{name} {sum(times[name])} in {calls[name]} calls" for name in times)}
    return Row("sharing", f"{what}: how often calls bring each", "", figures.pop(KAASD), figures, [goal], notes)


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
    ratios = (f"{name} {rates.ratio(KAASD, name).median:.3g}" for name in beside)
    notes = {"as many times as": ", ".join(ratios)}
    yield Row("sharing", f"{what}: calls a second", "/s", figure, beside, notes=notes)
