"""Tenants that share the GPU: Jacobi solves a second, each tenant on a system of its own."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from benchmarks.alternatives import mps
from benchmarks.bench import NO_GPU, TIMEOUT_S, Bench, Rival
from benchmarks.crew import Crew
from benchmarks.problems import JACOBI_LAUNCHES, JACOBI_PTX, jacobi_system
from benchmarks.report import Row, compare, targets
from benchmarks.requests import jacobi_request
from benchmarks.rows.callers import calls_per_second
from benchmarks.turns import Contender, take_turns
from kaas.v1.executor_pb2 import InvokeRequest
from kaas_client import Client

LIMIT = "one process, a stream each"
TIME_SLICED = "a process each, time-sliced"
MPS = "a process each, MPS"
MPS_LAUNCHES = "a process each, MPS, no graphs"


def tenant_rows(bench: Bench) -> Iterator[Row]:
    """Measure each number of tenants in every way in turns."""
    launches = JACOBI_LAUNCHES if bench.cuda else 20
    numbers = bench.pick((1, 4, 16, 32), (1, 16)) if bench.cuda else (1, 4)
    seconds, rounds = bench.pick((1.0, 2), (1.0, 1))
    with ExitStack() as stack:
        address = stack.enter_context(bench.daemon())
        messages = register_tenants(address, max(numbers), launches)
        server = Rival(address, "/kaas.v1.ExecutorService/Invoke", "")
        callers = stack.enter_context(Crew("benchmarks.alternatives.caller", min(4, max(1, (os.cpu_count() or 2) // 4))))
        crews, missing = start_crews(bench, stack, max(numbers))

        for number in numbers:
            calls_per_second(callers, server, messages[:number], 0.1)

            def kaasd(number: int = number) -> list[float]:
                return [calls_per_second(callers, server, messages[:number], seconds)]

            contenders: dict[str, Contender] = {"kaasd": kaasd}
            for name, crew in crews.items():
                contenders[name] = partial(solved_per_second, crew, number, seconds)
            if MPS in crews:
                contenders[MPS_LAUNCHES] = partial(solved_per_second, crews[MPS], number, seconds, graph=False)
            turns = take_turns(contenders, rounds=rounds, seconds=60, warm_up=0, least_rounds=1)
            figure, beside = compare(turns, missing=missing)
            goals = targets(turns, at_least={LIMIT: 0.9, **({MPS: 1.7} if number == 16 else {})})
            what = f"Jacobi, {launches} launches, {number} tenant{'s' * (number > 1)}"
            yield Row("tenants", what, "jobs/s", figure, beside, goals, x=number)


def register_tenants(address: str, number: int, launches: int) -> list[str]:
    """Give every tenant its system and its function; return their invocations."""
    with Client(address, timeout=TIMEOUT_S) as kaas:
        library = kaas.upload(JACOBI_PTX)
        messages = []
        for i in range(number):
            matrix, rhs = jacobi_system(i)
            kaas.put(f"A{i}", matrix)
            kaas.put(f"rhs{i}", rhs)
            kaas.register(f"jacobi{i}", jacobi_request(library, f"A{i}", f"rhs{i}", launches))
            message = InvokeRequest(function=f"jacobi{i}", return_buffers=["x"])
            messages.append(base64.b64encode(message.SerializeToString()).decode())
        return messages


def start_crews(bench: Bench, stack: ExitStack, number: int) -> tuple[dict[str, Crew], dict[str, str]]:
    """Start the processes of the alternatives; return them by name, and why others are missing."""
    if not bench.cuda:
        return {}, {LIMIT: NO_GPU, TIME_SLICED: NO_GPU, MPS: NO_GPU}
    module = "benchmarks.alternatives.tenant"
    crews = {
        LIMIT: stack.enter_context(Crew(module, 1, [str(number)])),
        TIME_SLICED: stack.enter_context(Crew(module, number, ["1"])),
    }
    if absent := mps.missing():
        return crews, {MPS: absent}
    try:
        environ = stack.enter_context(mps.mps())
        clients = stack.enter_context(Crew(module, number, ["1"], environ))
        clients.wait_until_ready()
    except RuntimeError as error:
        return crews, {MPS: str(error)}
    return {**crews, MPS: clients}, {}


def solved_per_second(crew: Crew, tenants: int, seconds: float, *, graph: bool = True) -> list[float]:
    """Return how many jobs a second all tenants together get done in the processes that there are, as a list of one."""
    share = tenants if crew.size == 1 else 1
    reports = crew.run({"streams": share, "seconds": seconds, "graph": graph} for _ in range(tenants // share))
    return [sum(float(report["jobs"]) / float(report["seconds"]) for report in reports)]
