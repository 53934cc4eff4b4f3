"""Groups that share devices: a tiny request beside large ones, a group that floods, and shares.

Beside each is what first come, first served comes to: the same callers in one group, served in order of arrival. What a decision
takes is in the section ``scheduling``; inputs beyond the device memory are in ``residency``, many tenants in ``tenants``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from benchmarks.bench import NO_GPU, TIMEOUT_S, Bench
from benchmarks.crew import Crew
from benchmarks.loads import MODULE, Contest, Load, LoadCrew, calibrate, p99, part_got
from benchmarks.problems import (
    DOT_PTX,
    HOLD_PTX,
    JACOBI_LAUNCHES,
    JACOBI_PTX,
    chain_vector,
    dot_of,
    dot_vectors,
    held_by,
    jacobi_steps,
    jacobi_system,
    squares_of,
)
from benchmarks.report import Row, Target
from benchmarks.requests import dot_request, holding_request, jacobi_request, working_request
from benchmarks.rows.kernels import check
from benchmarks.turns import Contender, Figure, Turns, take_turns
from kaas.v1.executor_pb2 import InvokeRequest
from kaas_client import Client

KAASD, FIRST_COME = "kaasd", "first come, first served"
ALONE, LARGE_ALONE, EVEN = "alone", "large ones alone", "no flood"
TINY, LARGE = "tiny", "large"
"""Groups."""

LARGE_CALLERS = 4
HOLD_S = 0.02
THREADS = 1024
"""Of each block of the kernel that fills the GPU."""
MOST_BLOCKS, LEAST_LARGE = 1.2, 0.93
RESERVED = 8
"""Multiprocessors of a group's own."""
MOST_RESERVED = 1.3
"""Times a tiny request's 99th percentile alone."""
MOST_BESIDE_JACOBI_S, LEAST_JACOBI = 3e-3, 0.99

NEIGHBOURS = 3
OUTSTANDING = 4
"""Of each group that asks for no more than its share."""
FLOOD = 10
"""Times as many, of the group that floods."""
LEAST_NEIGHBOURS, MOST_NEIGHBOURS_P99 = 0.95, 1.5

SHARES = (4, 100)
"""Of one group, beside 1 of the other."""
SHARE_OUTSTANDING = (1, 8, 64)
LEAST_BUSY = 8
"""Requests that the group of the larger share keeps outstanding, at least.

With one, it would have none while its next is on its way: who keeps the device busy serves the others then.
"""
SHARE_ERROR = 0.05


def priority_rows(bench: Bench) -> Iterator[Row]:
    """Let a tiny request of a higher priority come beside kernels that fill the GPU."""
    what = f"a tiny request of a higher priority beside {LARGE_CALLERS} callers of {HOLD_S * 1e3:g} ms kernels that fill the GPU"
    if not bench.cuda:
        yield Row("sharing", what, "ms", NO_GPU)
        return
    from benchmarks.alternatives.raw import blocks_at_once

    yield from beside_held(bench, blocks_at_once(THREADS), what)


def beside_held(bench: Bench, grid: int, what: str) -> Iterator[Row]:
    """Measure a dot product of two kernels, and a request of one, beside kernels of ``grid`` blocks."""
    blocks = np.random.default_rng(8).integers(0, 2**32, grid, dtype=np.uint32)
    with ExitStack() as stack:
        address = stack.enter_context(bench.daemon())
        kaas = stack.enter_context(Client(address, timeout=TIMEOUT_S))
        kaas.set_group(TINY, priority=10)
        kaas.set_group(LARGE)
        kaas.put("blocks", blocks)
        kaas.register("large", holding_request(kaas.upload(HOLD_PTX), grid, HOLD_S))
        large = Load(invocation("large", LARGE, "held"), {"held": held_by(blocks)}, connections=LARGE_CALLERS)
        for kernels, tiny in {"2 kernels": dot_load(kaas), "1 kernel": product_load(kaas)}.items():
            contest, turns = beside_large(bench, stack, address, tiny, large, bench.pick(2.5, 1.0))
            beside = p99(contest.latencies(KAASD))
            goals = [
                Target(f"one block's {HOLD_S * 1e3:g} ms, p99", Figure.of([beside / HOLD_S]), at_most=MOST_BLOCKS),
                Target("the large ones' rate alone", rate_kept(contest), at_least=LEAST_LARGE),
            ]
            yield tiny_row(f"{what}, {kernels}", contest, turns, goals, p99(contest.latencies(ALONE)))

        def reserve(number: int) -> None:
            kaas.set_group(TINY, priority=10, reserved_multiprocessors=number)

        contest, turns = beside_large(bench, stack, address, tiny, large, bench.pick(2.5, 1.0), reserve)
        alone = p99(contest.latencies(ALONE))
        goals = [
            Target("alone, p99", Figure.of([p99(contest.latencies(KAASD)) / alone]), at_most=MOST_RESERVED),
            Target("the large ones' rate alone on all", rate_kept(contest), at_least=LEAST_LARGE),
        ]
        yield tiny_row(f"{what}, 1 kernel, {RESERVED} multiprocessors of its own", contest, turns, goals, alone)


def rate_kept(contest: Contest) -> Figure:
    """Return which part of their rate alone the large ones keep beside the tiny one."""
    rates = {KAASD: contest.rates(KAASD, slice(1, 2)), LARGE_ALONE: contest.rates(LARGE_ALONE, slice(0, 1))}
    return Turns(rates).ratio(KAASD, LARGE_ALONE)


def unused_share_rows(bench: Bench) -> Iterator[Row]:
    """Let a tiny request of a group with its share unused come beside Jacobi solves of another."""
    launches = JACOBI_LAUNCHES if bench.cuda else 20
    matrix, rhs = jacobi_system()
    with ExitStack() as stack:
        address = stack.enter_context(bench.daemon())
        kaas = stack.enter_context(Client(address, timeout=TIMEOUT_S))
        for group in (TINY, LARGE):
            kaas.set_group(group)
        kaas.put("A", matrix)
        kaas.put("rhs", rhs)
        kaas.register("large", jacobi_request(kaas.upload(JACOBI_PTX), "A", "rhs", launches))
        solved = kaas.invoke("large", returns=["x"])
        check(solved.array("x", "f8"), jacobi_steps(matrix, rhs, launches))
        large = Load(invocation("large", LARGE, "x"), {"x": solved["x"]}, connections=LARGE_CALLERS)
        tiny = replace(dot_load(kaas), pause_s=0.01)
        contest, turns = beside_large(bench, stack, address, tiny, large, bench.pick(2.5, 1.0))
    goals = []
    if bench.cuda:
        beside = Figure.of([p99(contest.latencies(KAASD)) / MOST_BESIDE_JACOBI_S])
        goals = [
            Target(f"{MOST_BESIDE_JACOBI_S * 1e3:g} ms, p99", beside, at_most=1),
            Target("Jacobi's rate alone", rate_kept(contest), at_least=LEAST_JACOBI),
        ]
    what = f"a tiny request of a group with its share unused beside {LARGE_CALLERS} callers of Jacobi, {launches} launches"
    yield tiny_row(what, contest, turns, goals, p99(contest.latencies(ALONE)))


def beside_large(
    bench: Bench,
    stack: ExitStack,
    address: str,
    tiny: Load,
    large: Load,
    seconds: float,
    reserve: Callable[[int], None] = lambda number: None,
) -> tuple[Contest, Turns]:
    """Let tiny requests come alone, beside large ones of another group, and beside large ones of the same, in turns.

    ``reserve`` gives the tiny ones so many multiprocessors of their own: ``RESERVED``, and none for the two others.
    """
    crew = LoadCrew(stack.enter_context(Crew(MODULE, 2)))
    contest = Contest(crew, seconds)
    same = replace(tiny, message=in_group(tiny.message, LARGE))

    def after_reserving(number: int, contender: Contender) -> Contender:
        def run() -> Sequence[float]:
            reserve(number)
            return contender()

        return run

    contenders = {
        KAASD: after_reserving(RESERVED, contest.contender(KAASD, address, [tiny, large])),
        FIRST_COME: after_reserving(0, contest.contender(FIRST_COME, address, [same, large])),
        ALONE: after_reserving(RESERVED, contest.contender(ALONE, address, [tiny], min(1.0, seconds))),
        LARGE_ALONE: after_reserving(0, contest.contender(LARGE_ALONE, address, [large], min(1.5, seconds))),
    }
    turns = take_turns(contenders, rounds=bench.pick(3, 2), seconds=60, warm_up=0, least_rounds=1)
    return contest, Turns({name: turns.rounds[name] for name in (KAASD, FIRST_COME, ALONE)})


def tiny_row(what: str, contest: Contest, turns: Turns, goals: Sequence[Target], alone_p99: float) -> Row:
    """Return how long tiny requests took, and how much of their rate the large ones beside them kept."""
    alone = np.median(contest.rates(LARGE_ALONE, slice(0, 1)))
    kept = {name: np.median(contest.rates(name, slice(1, 2))) / alone for name in (KAASD, FIRST_COME)}
    notes = {
        "p99": ", ".join(f"{name} {1e3 * p99(contest.latencies(name)):.3g} ms" for name in (KAASD, FIRST_COME, ALONE)),
        "p99 beside over p99 alone": f"{p99(contest.latencies(KAASD)) / alone_p99:.3g}",
        "the large ones alone": f"{alone:.3g} /s; beside, "
        + ", ".join(f"{name}: {part:.3f} of it" for name, part in kept.items()),
    }
    others = {name: turns.figure(name).scaled(1e3) for name in (ALONE, FIRST_COME)}
    return Row("sharing", what, "ms", turns.figure(KAASD).scaled(1e3), others, goals, notes)


def flood_rows(bench: Bench) -> Iterator[Row]:
    """Let one of four groups keep ten times as many requests outstanding as the others."""
    with ExitStack() as stack:
        address, work = working_daemon(bench, stack)
        with Client(address, timeout=TIMEOUT_S) as kaas:
            names = [f"group-{number}" for number in range(NEIGHBOURS + 1)]
            for name in names:
                kaas.set_group(name)
        calm = [replace(work, message=in_group(work.message, name), outstanding=OUTSTANDING) for name in names]
        flood = [*calm[:-1], replace(calm[-1], outstanding=FLOOD * OUTSTANDING)]
        # Of one group on one connection, so that nobody takes turns. What each load sees is still its own.
        as_one = [replace(load, message=in_group(load.message, names[0]), connection="all") for load in flood]
        contest = Contest(LoadCrew(stack.enter_context(Crew(MODULE, 2))), bench.pick(2.0, 1.5))
        contenders = {
            KAASD: contest.contender(KAASD, address, flood),
            EVEN: contest.contender(EVEN, address, calm),
            FIRST_COME: contest.contender(FIRST_COME, address, as_one, one_process=True),
        }
        take_turns(contenders, rounds=bench.pick(6, 2), seconds=60, warm_up=0, least_rounds=1)
    yield from neighbour_rows(contest)


def neighbour_rows(contest: Contest) -> Iterator[Row]:
    """Return what those who do not flood got, and how long they waited."""
    neighbours = slice(0, NEIGHBOURS)
    rates = Turns({name: contest.rates(name, neighbours) for name in contest.seen})
    others = {name: rates.figure(name) for name in (EVEN, FIRST_COME)}
    goal = Target(EVEN, rates.ratio(KAASD, EVEN), at_least=LEAST_NEIGHBOURS)
    what = f"{NEIGHBOURS} groups beside one that floods, {FLOOD} times its share"
    flooding = {name: np.median(contest.rates(name, slice(NEIGHBOURS, None))) for name in contest.seen}
    notes = {"the one that floods": ", ".join(f"{name} {rate:.3g} /s" for name, rate in flooding.items())}
    yield Row("sharing", f"{what}: requests a second", "/s", rates.figure(KAASD), others, [goal], notes)
    tails = {name: Figure.of([p99(contest.latencies(name, neighbours))]).scaled(1e3) for name in contest.seen}
    ratio = Figure.of([tails[KAASD].median / tails[EVEN].median])
    goal = Target(EVEN, ratio, at_most=MOST_NEIGHBOURS_P99)
    yield Row("sharing", f"{what}: p99", "ms", tails.pop(KAASD), tails, [goal])


def share_rows(bench: Bench) -> Iterator[Row]:
    """Let two groups of unequal shares be busy, with few and with many requests outstanding."""
    with ExitStack() as stack:
        address, work = working_daemon(bench, stack)
        kaas = stack.enter_context(Client(address, timeout=TIMEOUT_S))
        crew = LoadCrew(stack.enter_context(Crew(MODULE, 2)))
        for share in SHARES:
            small, large = f"share-1-of-{1 + share}", f"share-{share}-of-{1 + share}"
            kaas.set_group(small, share=1)
            kaas.set_group(large, share=share)
            for outstanding in bench.pick(SHARE_OUTSTANDING, (8,)):
                busy = {small: outstanding, large: max(outstanding, LEAST_BUSY)}
                seconds = bench.pick(2.0, 1.0) if share < 50 else bench.pick(7.0, 3.0)
                yield share_row(Contest(crew, seconds), address, work, busy, share)


def share_row(contest: Contest, address: str, work: Load, outstanding: Mapping[str, int], share: int) -> Row:
    """Measure the part of the group whose share is 1, over what it should be."""
    loads = [replace(work, message=in_group(work.message, name), outstanding=each) for name, each in outstanding.items()]
    as_one = [replace(load, message=in_group(load.message, ""), connection="all") for load in loads]
    contenders = {
        KAASD: contest.contender(KAASD, address, loads),
        FIRST_COME: contest.contender(FIRST_COME, address, as_one, 1.0, one_process=True),
    }
    take_turns(contenders, rounds=1, seconds=60, warm_up=0, least_rounds=1)
    wanted = 1 / (1 + share)
    parts = {
        name: [part_got(small.while_all_called, large.while_all_called) / wanted for small, large in seen]
        for name, seen in contest.seen.items()
    }
    figures = {name: Figure.of(part) for name, part in parts.items()}
    goal = Target("wanted", figures[KAASD], at_least=1 - SHARE_ERROR, at_most=1 + SHARE_ERROR)
    counts = " and ".join(str(each) for each in outstanding.values())
    what = f"shares 1:{share}, {counts} outstanding: the smaller one's part, got over wanted"
    got = {name: " and ".join(str(len(load.while_all_called)) for load in seen[0]) for name, seen in contest.seen.items()}
    notes = {"answers of both": ", ".join(f"{name} {each}" for name, each in got.items())}
    return Row("sharing", what, "", figures[KAASD], {FIRST_COME: figures[FIRST_COME]}, [goal], notes)


def working_daemon(bench: Bench, stack: ExitStack, *options: str) -> tuple[str, Load]:
    """Start a daemon that runs one request at a time; return its address, and callers of what takes a few milliseconds there."""
    concurrency = ("--concurrency", "1") if bench.cuda else ()
    address = stack.enter_context(bench.daemon(*concurrency, *options))
    w = chain_vector()
    with Client(address, timeout=TIMEOUT_S) as kaas:
        kaas.put("w", w)
        library = kaas.upload(DOT_PTX)
        calibrate(kaas, "work", lambda iterations: working_request(library, iterations), 2e-3 if bench.cuda else 3e-3)
    return address, Load(invocation("work", "", "p"), {"p": squares_of(w)})


def dot_load(kaas: Client) -> Load:
    """Register the dot product; return a caller of it, of the group ``TINY``."""
    a, b = dot_vectors()
    kaas.put("b", b)
    kaas.register("dot", dot_request(kaas.upload(DOT_PTX)))
    message = invocation("dot", TINY, "c")
    message.bindings["a"].value = a.tobytes()
    return Load(message, {"c": dot_of(a, b)}, pause_s=HOLD_S / 2)


def product_load(kaas: Client) -> Load:
    """Register a single small kernel; return a caller of it, of the group ``TINY``."""
    w = chain_vector()
    kaas.put("w", w)
    kaas.register("product", working_request(kaas.upload(DOT_PTX), 1))
    return Load(invocation("product", TINY, "p"), {"p": squares_of(w)}, pause_s=HOLD_S / 2)


def invocation(function: str, group: str, returns: str) -> InvokeRequest:
    """Return the message of a call that takes one buffer back."""
    return InvokeRequest(function=function, group=group, return_buffers=[returns])


def in_group(message: InvokeRequest, group: str) -> InvokeRequest:
    """Return the same call for another group."""
    result = InvokeRequest()
    result.CopyFrom(message)
    result.group = group
    return result
