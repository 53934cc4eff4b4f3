"""Requests as tasks of Ray, beside a plain actor that does the same work: with NumPy, or on a GPU with CuPy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from benchmarks.alternatives.ray_tasks import COPIED_BYTES, GROUPS, missing
from benchmarks.bench import Bench
from benchmarks.crew import Crew
from benchmarks.problems import JACOBI_LAUNCHES
from benchmarks.report import Row, compare, targets
from benchmarks.turns import Turns, take_turns

ACTOR = "plain actor"
ACTORS = "an actor a group, each with a context"
IN_FLIGHT = 32
INVOKER, POOL = "by invokerActor", "by Pool"
_WHO = {"kaasd": "kaasd", ACTOR: "actor"}


def ray_rows(bench: Bench) -> Iterator[Row]:
    """Measure both in turns, on one cluster."""
    if absent := missing():
        yield Row("ray", "dot request as a task", "µs", absent)
        return
    calls, rounds = bench.pick((200, 20), (50, 4))
    with Crew("benchmarks.alternatives.ray_tasks", 1, [bench.device]) as crew:
        crew.wait_until_ready()

        def contest(rounds: int, who: Mapping[str, str] = _WHO, **order: Any) -> Turns:
            contenders = {name: partial(ask, crew, who=each, **order) for name, each in who.items()}
            return take_turns(contenders, rounds=rounds, seconds=20)

        yield time_row("dot request, one at a time", contest(rounds, work="dot", calls=calls), 1.2)
        turns = contest(rounds, work="dot", calls=calls * 2, in_flight=IN_FLIGHT)
        rates = Turns({name: [[1 / x for x in block] for block in blocks] for name, blocks in turns.rounds.items()})
        figure, beside = compare(rates)
        goals = targets(rates, at_least={ACTOR: 2.0 if bench.cuda else 1.2})
        yield Row("ray", f"dot request, {IN_FLIGHT} in flight", "/s", figure, beside, goals)
        turns = contest(rounds, {"kaasd": "kaasd", INVOKER: "invoker", POOL: "pool"}, work="dot", calls=calls)
        figure, beside = compare(turns, scale=1e6)
        yield Row("ray", "dot request by the original's interface", "µs", figure, beside)
        what = f"{COPIED_BYTES >> 20} MiB in and out"
        yield time_row(what, contest(rounds, work="touch", calls=max(calls // 20, 3)), 1.1)
        if bench.cuda:
            what = f"Jacobi, {JACOBI_LAUNCHES} launches, beside the raw graph in an actor"
            yield time_row(what, contest(rounds // 2, work="solve", calls=5), 1.05)
            seconds = bench.pick(2.0, 0.5)
            contenders = {"kaasd": partial(ask, crew, who="kaasd", work="groups", seconds=seconds)}
            contenders[ACTORS] = partial(ask, crew, who="actor", work="groups", seconds=seconds)
            turns = take_turns(contenders, rounds=4, seconds=30)
            figure, beside = compare(turns)
            goals = targets(turns, at_least={ACTORS: 10.0})
            yield Row("ray", f"dot requests of {GROUPS} groups, one each in flight", "/s", figure, beside, goals)


def ask(crew: Crew, **order: Any) -> list[float]:
    """Have the cluster's process measure once."""
    (answer,) = crew.run([order])
    samples: list[float] = answer["samples"]
    return samples


def time_row(what: str, turns: Turns, at_most: float) -> Row:
    """Return a row in microseconds that is held to so many times the plain actor's."""
    figure, beside = compare(turns, scale=1e6)
    return Row("ray", what, "µs", figure, beside, targets(turns, at_most={ACTOR: at_most}))
