"""Several devices beside one: what they do together, and what callers of one notice of another's faults.

Where there are no GPUs the devices are emulated ones, which share the machine's cores: then the rows show that all of it runs.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.bench import NO_GPU, TIMEOUT_S, Bench, Rival
from benchmarks.crew import Crew
from benchmarks.loads import MODULE, Contest, Load, LoadCrew, calibrate
from benchmarks.problems import DOT_PTX, FAULTS_PTX, HOLD_PTX, JACOBI_LAUNCHES, dot_of, dot_vectors, squares_of
from benchmarks.report import Row, Target, compare, targets
from benchmarks.requests import dot_request, faulting_request, reading_and_holding_request, reading_request
from benchmarks.rows.callers import calls_per_second
from benchmarks.rows.placement import FUNCTIONS, MIB, ROOM
from benchmarks.rows.sharing import SHARE_ERROR, in_group, working_daemon
from benchmarks.rows.tenants import register_tenants
from benchmarks.turns import Figure, Turns, take_turns
from kaas.v1.executor_pb2 import InvokeRequest
from kaas_client import Client, Request
from kaas_core.errors import KaasError, KernelFaultError

ONE = "one device"
TENANTS = 32
LEAST_OF_EACH = 0.975
"""Of what one device does, what each of several is to do."""
WORK_S = 2e-3
LEAST_OF_EACH_WORKING = 0.95
QUARTER = FUNCTIONS // 4 + 0.5
"""Constants for which each of two devices has room."""
BOUND = "reload bound"
LEAST_OF_BOUND = 0.9
UNDISTURBED = "undisturbed"
LEAST_UNDISTURBED = 0.97
CALLERS = 64


def missing(bench: Bench) -> str | None:
    """Say why nothing can be measured, or None."""
    if bench.devices < 2:
        return "needs --devices 2 or more"
    if bench.cuda:
        from benchmarks.alternatives.raw import gpus

        if gpus() < bench.devices:
            return f"there are {gpus()} GPUs"
    return None


def several_rows(bench: Bench) -> Iterator[Row]:
    """Measure what several devices do beside one: many tenants, and functions whose constants fill them."""
    what = f"{bench.devices} devices"
    if absent := missing(bench):
        yield Row("sharing", what, "", absent)
        return
    yield tenants_row(bench, what)
    yield share_of_several_row(bench, what)
    yield working_row(bench, what)
    yield quarter_row(bench, what)


def tenants_row(bench: Bench, what: str) -> Row:
    """Let tenants solve systems of their own."""
    launches = JACOBI_LAUNCHES if bench.cuda else 20
    with ExitStack() as stack:
        addresses = {"kaasd": stack.enter_context(bench.daemon(*bench.all_devices)), ONE: stack.enter_context(bench.daemon())}
        crew = stack.enter_context(Crew("benchmarks.alternatives.caller", min(8, max(1, (os.cpu_count() or 2) // 4))))

        def contender(address: str) -> Callable[[], list[float]]:
            messages = register_tenants(address, TENANTS, launches)
            server = Rival(address, "/kaas.v1.ExecutorService/Invoke", "")
            calls_per_second(crew, server, messages, 0.5)
            return lambda: [calls_per_second(crew, server, messages, bench.pick(1.5, 0.7))]

        turns = take_turns({name: contender(each) for name, each in addresses.items()}, rounds=3, seconds=30, warm_up=0)
    figure, beside = compare(turns)
    goals = targets(turns, at_least={ONE: LEAST_OF_EACH * bench.devices}) if bench.cuda else []
    return Row("sharing", f"{what}, Jacobi, {launches} launches, {TENANTS} tenants", "jobs/s", figure, beside, goals)


def share_of_several_row(bench: Bench, what: str) -> Row:
    """Let two groups of shares 1 and 4 keep all devices busy."""
    with ExitStack() as stack:
        address, work = working_daemon(bench, stack, *bench.all_devices)
        outstanding = 16 * bench.devices
        with Client(address, timeout=TIMEOUT_S) as kaas:
            for name, share in (("one", 1), ("four", 4)):
                kaas.set_group(name, share=share)
        loads = [replace(work, message=in_group(work.message, name), outstanding=outstanding) for name in ("one", "four")]
        crew = LoadCrew(stack.enter_context(Crew(MODULE, 2)))
        crew.run(address, loads, 0.3)
        answers = [[len(load.while_all_called) for load in crew.run(address, loads, bench.pick(2.0, 1.0))] for _ in range(3)]
    part = Figure.of([5 * one / (one + four) for one, four in answers])
    goal = Target("wanted", part, at_least=1 - SHARE_ERROR, at_most=1 + SHARE_ERROR)
    notes = {"answers of both": ", ".join(f"{one} and {four}" for one, four in answers)}
    name = f"{what}, shares 1:4, {outstanding} outstanding each: the smaller one's part, got over wanted"
    return Row("sharing", name, "", part, {}, [goal], notes)


def working_row(bench: Bench, what: str) -> Row:
    """Let functions have constants that fill all devices, and each call work that fills one for a while."""
    size = (256 if bench.cuda else 16) * MIB
    room = str(int((-(-FUNCTIONS // bench.devices) + ROOM % 1) * size))
    with ExitStack() as stack:
        addresses = {
            "kaasd": stack.enter_context(bench.daemon(*bench.all_devices, "--device-memory", room)),
            ONE: stack.enter_context(bench.daemon()),
        }
        request = working_on_constants(bench, addresses[ONE], size)
        loads = {name: constant_loads(address, size, request) for name, address in addresses.items()}
        contest = Contest(LoadCrew(stack.enter_context(Crew(MODULE, 4 if bench.cuda else 2))), bench.pick(2.0, 1.0))
        contenders = {name: contest.contender(name, address, loads[name]) for name, address in addresses.items()}
        take_turns(contenders, rounds=bench.pick(4, 2), seconds=30, warm_up=1, least_rounds=1)
    rates = Turns({name: contest.rates(name, slice(None)) for name in contest.seen})
    figure, beside = compare(rates)
    goals = targets(rates, at_least={ONE: LEAST_OF_EACH_WORKING * bench.devices}) if bench.cuda else []
    name = f"{what}, {FUNCTIONS} functions with constants that fill them, {WORK_S * 1e3:g} ms of a device a call"
    return Row("sharing", name, "/s", figure, beside, goals)


def working_on_constants(bench: Bench, address: str, size: int) -> Callable[[str, str], Request]:
    """Return what makes the request that keeps a device busy, of a library's id and the key of its constants."""
    if bench.cuda:
        from benchmarks.alternatives.raw import blocks_at_once

        grid = blocks_at_once(1024)
        with Client(address, timeout=TIMEOUT_S) as kaas:
            hold = kaas.upload(HOLD_PTX)
        return lambda library, key: reading_and_holding_request(library, hold, size, key, grid, WORK_S)
    with Client(address, timeout=TIMEOUT_S) as kaas:
        kaas.put("any", np.ones(size // 4, np.uint32))
        library = kaas.upload(DOT_PTX)
        make = partial(reading_request, library, size, key="any", constant=True)
        iterations = calibrate(kaas, "any", lambda iterations: make(iterations=iterations), WORK_S)
    return lambda library, key: reading_request(library, size, key=key, constant=True, iterations=iterations)


def constant_loads(address: str, size: int, request: Callable[[str, str], Request]) -> list[Load]:
    """Register functions with constants of their own; return a few callers of each."""
    loads = []
    with Client(address, timeout=TIMEOUT_S) as kaas:
        library = kaas.upload(DOT_PTX)
        kaas.upload(HOLD_PTX)
        for number in range(FUNCTIONS):
            values = np.random.default_rng(40 + number).integers(0, 2**32, size // 4, dtype=np.uint32)
            kaas.put(f"constants-{number}", values)
            kaas.register(f"work-{number}", request(library, f"constants-{number}"))
            message = InvokeRequest(function=f"work-{number}", return_buffers=["p"])
            loads.append(Load(message, {"p": squares_of(values)}, outstanding=4))
    return loads


def quarter_row(bench: Bench, what: str) -> Row:
    """Let each device have room for a quarter of the constants of two: what does not fit is brought, as fast as the bus is."""
    size = (256 if bench.cuda else 16) * MIB
    with ExitStack() as stack:
        address = stack.enter_context(bench.daemon(*bench.all_devices, "--device-memory", str(int(QUARTER * size))))
        loads = [replace(load, outstanding=1) for load in constant_loads(address, size, partial(reading_constants, size))]
        contest = Contest(LoadCrew(stack.enter_context(Crew(MODULE, 2))), bench.pick(3.0, 1.0))
        contenders = {"kaasd": contest.contender("kaasd", address, loads)}
        if bench.cuda:
            from benchmarks.rows.residency import copy_contender

            copy = copy_contender(bench, stack, size)
            assert copy is not None
            contenders[BOUND] = lambda: copy()
        turns = take_turns(contenders, rounds=3, seconds=30, warm_up=1, least_rounds=1)
    rounds = {"kaasd": contest.rates("kaasd", slice(None))[-len(turns.rounds["kaasd"]) :]}
    if bench.cuda:
        # A call that finds its constants costs the bus nothing: those that go where they are cannot be told from the outside.
        brought = 1 - bench.devices * (FUNCTIONS // 4) / FUNCTIONS
        rounds[BOUND] = [[bench.devices / (brought * float(np.median(block)))] for block in turns.rounds[BOUND]]
    rates = Turns(rounds)
    figure, beside = compare(rates, missing={} if bench.cuda else {BOUND: NO_GPU})
    goals = targets(rates, at_least={BOUND: LEAST_OF_BOUND}) if bench.cuda else []
    name = f"{what}, {FUNCTIONS} functions, room for the constants of {FUNCTIONS // 4} on each"
    return Row("sharing", name, "/s", figure, beside, goals)


def reading_constants(size: int, library: str, key: str) -> Request:
    """Return a request that reads constants and does next to nothing."""
    return reading_request(library, size, key=key, constant=True)


def peer_rows(bench: Bench) -> Iterator[Row]:
    """Copy from another GPU's memory, and from the host's, on the bare driver."""
    if absent := NO_GPU if not bench.cuda else missing(bench):
        yield Row("sharing", "copies from another GPU", "GB/s", absent)
        return
    from benchmarks.alternatives import raw

    for mib in (16, 256):
        with raw.Gpu() as gpu:
            contenders = raw.copies_to(gpu, mib * MIB)
            turns = take_turns(contenders, rounds=5, seconds=10)
        rates = Turns({name: [[mib * MIB / s / 1e9 for s in block] for block in blocks] for name, blocks in turns.rounds.items()})
        figure, beside = compare(rates, name=raw.FROM_PEER)
        yield Row("sharing", f"{mib} MiB to a GPU, from another", "GB/s", figure, beside)


def scaling_rows(bench: Bench) -> Iterator[Row]:
    """Let many callers call a tiny function on one device, two, and all; say how busy the front is."""
    if absent := missing(bench):
        yield Row("sharing", "calls by devices", "/s", absent)
        return
    a, b = dot_vectors()
    message = InvokeRequest(function="dot", return_buffers=["c"])
    message.bindings["a"].value = a.tobytes()
    with ExitStack() as stack:
        crew = LoadCrew(stack.enter_context(Crew(MODULE, min(8, max(2, (os.cpu_count() or 2) // 4)))))
        contest = Contest(crew, bench.pick(2.0, 1.0))
        fronts: dict[str, list[float]] = {}
        contenders = {}
        for number in sorted({1, 2, bench.devices}):
            address = stack.enter_context(bench.daemon(*bench.first_devices(number)))
            with Client(address, timeout=TIMEOUT_S) as kaas:
                kaas.put("b", b)
                kaas.register("dot", dot_request(kaas.upload(DOT_PTX)))
            name = f"{number} device{'s' * (number > 1)}"
            load = Load(message, {"c": dot_of(a, b)}, outstanding=8)
            measure = contest.contender(name, address, [replace(load, connection=str(each)) for each in range(CALLERS // 8)])
            contenders[name] = with_cpu(measure, parent_of_worker(address), fronts.setdefault(name, []))
        take_turns(contenders, rounds=3, seconds=30, warm_up=0)
    rates = Turns({name: contest.rates(name, slice(None)) for name in contest.seen})
    figure, beside = compare(rates, name=next(iter(contenders)))
    notes = {"cores of the front": ", ".join(f"{name} {np.median(busy):.2f}" for name, busy in fronts.items())}
    yield Row("sharing", f"dot requests, {CALLERS} in flight, by devices", "/s", figure, beside, notes=notes)


def with_cpu(measure: Callable[[], Sequence[float]], pid: int, busy: list[float]) -> Callable[[], Sequence[float]]:
    """Return the contender that also notes how many cores a process uses meanwhile."""

    def run() -> Sequence[float]:
        begun, before = time.monotonic(), cpu_s(pid)
        samples = measure()
        busy.append((cpu_s(pid) - before) / (time.monotonic() - begun))
        return samples

    return run


def cpu_s(pid: int) -> float:
    """Return the processor time of a process."""
    fields = stat_fields(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def parent_of_worker(address: str) -> int:
    """Return the process of a daemon's front."""
    with Client(address, timeout=TIMEOUT_S) as kaas:
        return int(stat_fields(kaas.devices()[0].worker_pid)[1])


def stat_fields(pid: int) -> list[str]:
    """Return what the system says of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def other_fault_rows(bench: Bench) -> Iterator[Row]:
    """Kill, and stop, the worker of one device once a second; see what callers of another keep of their rate."""
    what = "callers of one device while"
    if absent := missing(bench):
        yield Row("faults", f"{what} another's worker is lost", "/s", absent)
        return
    a, b = dot_vectors()
    message = InvokeRequest(function="dot", return_buffers=["c"])
    message.bindings["a"].value = a.tobytes()
    with ExitStack() as stack:
        address = stack.enter_context(bench.daemon(*bench.all_devices))
        kaas = stack.enter_context(Client(address, timeout=TIMEOUT_S))
        kaas.put("b", b)
        kaas.register("dot", dot_request(kaas.upload(DOT_PTX)))
        disturbed, other = (device.name for device in kaas.devices()[:2])
        message.device = other
        contest = Contest(LoadCrew(stack.enter_context(Crew(MODULE, 2))), bench.pick(4.0, 2.0))
        load = Load(message, {"c": dot_of(a, b)}, connections=4)
        faults, numbers = kaas.upload(FAULTS_PTX), itertools.count()
        ways: dict[str, Callable[[], object]] = {
            "worker is killed once a second": lambda: send(kaas, disturbed, signal.SIGKILL),
            "worker is stopped": lambda: send(kaas, disturbed, signal.SIGSTOP),
            "kernels fault once a second": lambda: fault(kaas, disturbed, faults, next(numbers)),
        }
        contenders = {
            name: disturbing(contest.contender(name, address, [load]), kaas, disturb)
            for name, disturb in {UNDISTURBED: lambda: None, **ways}.items()
        }
        take_turns(contenders, rounds=bench.pick(3, 1), seconds=40, warm_up=0, least_rounds=1)
        rates = Turns({name: contest.rates(name, slice(None)) for name in contest.seen})
        for name in ways:
            figure, beside = compare(Turns({name: rates.rounds[name], UNDISTURBED: rates.rounds[UNDISTURBED]}), name=name)
            goal = Target(UNDISTURBED, rates.ratio(name, UNDISTURBED), at_least=LEAST_UNDISTURBED)
            yield Row("faults", f"{what} another's {name}", "/s", figure, beside, [goal] if bench.cuda else [])


def disturbing(
    measure: Callable[[], Sequence[float]], kaas: Client, disturb: Callable[[], object]
) -> Callable[[], Sequence[float]]:
    """Return the contender during which a device is disturbed once a second, and a caller of any device goes on."""

    def run() -> Sequence[float]:
        with repeated(disturb, 1.0), repeated(lambda: call_any(kaas), 0.0):
            return measure()

    return run


def fault(kaas: Client, device: str, library: str, number: int) -> None:
    """Have a kernel trap on a device."""
    with suppress(KernelFaultError):
        kaas.submit(faulting_request(library, "trapKern", number), device=device)


def send(kaas: Client, device: str, number: signal.Signals) -> None:
    """Send a signal to a device's worker, where it has one."""
    pid = next(each.worker_pid for each in kaas.devices() if each.name == device)
    if pid:
        os.kill(pid, number)


def call_any(kaas: Client) -> None:
    """Call on whichever device there is. Raises ``AssertionError`` for a wrong answer, ``KaasError`` where there is none."""
    a, b = dot_vectors()
    assert kaas.function("dot")(a=a)["c"] == dot_of(a, b)


@contextmanager
def repeated(act: Callable[[], object], every_s: float) -> Iterator[None]:
    """Do something again and again for the time of a ``with`` block. Raises at its end what that raised."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def go_on() -> None:
        try:
            while not stop.wait(every_s):
                act()
        except (KaasError, AssertionError, OSError) as error:
            errors.append(error)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]
