"""Requests a second: many callers at once, in as many processes as keep the clients from being what is measured."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

from benchmarks.alternatives import ray_dot
from benchmarks.bench import NO_GPU, TIMEOUT_S, Bench, Rival, start_rivals
from benchmarks.crew import Crew
from benchmarks.problems import DOT_PTX, dot_vectors
from benchmarks.report import Row, compare, targets
from benchmarks.requests import dot_request
from benchmarks.rows.dot import ECHO, HAND_WRITTEN, RAY, invocation
from benchmarks.turns import Contender, take_turns
from kaas_client import Client

PROCESSES = max(1, (os.cpu_count() or 2) // 2)
"""At most: half of the cores are for the server."""


def caller_rows(bench: Bench) -> Iterator[Row]:
    """Measure each number of callers on every server in turns."""
    a, b = dot_vectors()
    seconds, rounds = bench.pick((0.7, 3), (0.3, 2))
    message = base64.b64encode(invocation("dot", a).SerializeToString()).decode()
    with ExitStack() as stack:
        rivals = start_rivals(bench, stack)
        with Client(rivals.servers["kaasd"].address, timeout=TIMEOUT_S) as kaas:
            kaas.put("b", b)
            kaas.register("dot", dot_request(kaas.upload(DOT_PTX)))
        crew = stack.enter_context(Crew("benchmarks.alternatives.caller", min(64, PROCESSES)))
        missing = dict(rivals.missing)
        ray = None
        if absent := ray_dot.missing() if bench.cuda else NO_GPU:
            missing[RAY] = absent
        else:
            ray = stack.enter_context(ray_dot.RayClient())

        def answered(server: Rival, callers: int, for_seconds: float) -> float:
            return calls_per_second(crew, server, [message] * callers, for_seconds)

        def contender(server: Rival, callers: int) -> Contender:
            answered(server, callers, 0.1)
            return lambda: [answered(server, callers, seconds)]

        for callers in (1, 4, 16, 64):
            contenders = {name: contender(server, callers) for name, server in rivals.servers.items()}
            if ray is not None:
                contenders[RAY] = partial(ray.calls_per_second, callers, seconds)
            turns = take_turns(contenders, rounds=rounds, seconds=60, warm_up=0)
            figure, beside = compare(turns, missing=missing)
            goals = targets(turns, at_least={ECHO: 0.7, HAND_WRITTEN: 1.0, RAY: 1.0}) if bench.cuda else []
            what = f"dot requests, {callers} caller{'s' * (callers > 1)}"
            yield Row("callers", what, "/s", figure, beside, goals, x=callers)


def calls_per_second(crew: Crew, server: Rival, messages: list[str], seconds: float) -> float:
    """Return how many calls a second are answered when every message has a caller of its own."""
    order = {"address": server.address, "method": server.unary, "seconds": seconds}
    shares = [share for i in range(crew.size) if (share := messages[i :: crew.size])]
    reports = crew.run({**order, "messages": share} for share in shares)
    return sum(float(report["calls"]) / float(report["seconds"]) for report in reports)
