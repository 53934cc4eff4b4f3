"""Steps of programs with asynchronous copies and barrier objects in shared memory."""

from __future__ import annotations

import random

from kaasd.devices.emulator.ptx.types import TYPES
from tests.fuzz.memory import SLOT, area, point
from tests.fuzz.program import CONVERGE, Program
from tests.fuzz.values import THREADS


def copy(program: Program) -> None:
    """An asynchronous copy from global to shared memory."""
    rng = program.rng
    with program.step("cp.async") as step:
        _, source = area(program, step, "global", generic=False)
        _, target = area(program, step, "shared", generic=False)
        size = rng.choice((4, 8, 16))
        cache = rng.choice(("ca", "cg")) if size == 16 else "ca"
        condition = program.use(program.register(TYPES["pred"]))
        shorter = rng.choice((f", {rng.randrange(size + 1)}", f", {condition}", "", "", ""))
        values = [program.source(TYPES["u64"], False) for _ in range(2)]
        step.lines += [
            f"st.global.v2.b64 [{source}], {{{', '.join(values)}}};",
            f"st.shared.v2.b64 [{target}], {{{', '.join(values[::-1])}}};",
        ]
        step.lines.append(f"cp.async.{cache}.shared.global [{target}], [{source}], {size}{shorter};")
        step.lines += rng.choice((["cp.async.wait_all;"], ["cp.async.commit_group;", "cp.async.wait_group 0;"]))
        results = [program.fresh(64, "u64") for _ in range(2)]
        step.lines.append(f"ld.shared.v2.b64 {{{', '.join(result.name for result in results)}}}, [{target}];")
        step.writes += results


def await_all(program: Program) -> None:
    """Values that pass between threads, with a barrier object in shared memory between."""
    rng = program.rng
    with program.step("mbarrier") as step:
        step.together = True
        start = program.taken["shared"]
        _, pointer = area(program, step, "shared", generic=False)
        barrier = program.take("shared", SLOT)
        first, done, place, state, lane = (program.fresh(bits, f"u{bits}").name for bits in (1, 1, 64, 64, 32))
        count, result = program.fresh(32, "u32"), program.fresh(64, "u64")
        arrival, has_state, more = rng.choice(_arrivals(rng, state, f"[{place}]", first, count.name))
        step.lines += [f"mov.u64 {place}, area;", f"add.u64 {place}, {place}, {barrier};", f"mov.u32 {count.name}, 0;"]
        step.lines += [f"setp.eq.u32 {first}, %thread, 0;", f"@{first} mbarrier.init.shared.b64 [{place}], {THREADS + more};"]
        step.lines += [CONVERGE, "bar.sync 0;", f"st.shared.b64 [{pointer}], {program.source(TYPES['u64'], False)};"]
        again, by_state = program.label(), has_state and bool(rng.getrandbits(1))
        wait = (
            f"mbarrier.{rng.choice(('test_wait', 'try_wait'))}{'' if by_state else '.parity'}{rng.choice(('', '.acquire.cta'))}"
        )
        step.lines += [*arrival, f"{again}:", f"{wait}.shared::cta.b64 {done}, [{place}], {state if by_state else '0'};"]
        step.lines += [f"@!{done} bra {again};", f"xor.b32 {lane}, %thread, 37;", *point(lane, "area", start)]
        step.lines.append(f"ld.shared.b64 {result.name}, [%at];")
        step.writes += [count, result]


def _arrivals(rng: random.Random, state: str, place: str, first: str, count: str) -> list[tuple[list[str], bool, int]]:
    """Ways of each thread to arrive at a barrier object.

    Each is its lines, whether they leave a state to wait for, and how many arrivals beside one a thread the object expects.
    """
    opcode, end = rng.choice(("mbarrier.arrive", "mbarrier.arrive_drop")), f"{rng.choice(('', '.release.cta'))}.shared::cta.b64"
    plain = f"{opcode}{end} {state}, {place}"
    complete = f"mbarrier.complete_tx.relaxed.cta.shared::cta.b64 {place}, 24;"
    some = f"@{first} {opcode}.noComplete{end} {state}, {place}, 5;"
    return [
        ([f"{plain};"], True, 0),
        ([f"{plain}, 1;"], True, 0),
        ([f"{opcode}.expect_tx{end} {state}, {place}, 24;", complete], True, 0),
        ([f"mbarrier.expect_tx.relaxed.cta.shared::cta.b64 {place}, 24;", f"{plain};", complete], True, 0),
        ([f"cp.async.mbarrier.arrive.noinc.shared::cta.b64 {place};"], False, 0),
        ([f"cp.async.mbarrier.arrive.shared::cta.b64 {place};", f"{plain};"], True, 0),
        ([some, f"@{first} mbarrier.pending_count.b64 {count}, {state};", CONVERGE, "bar.sync 0;", f"{plain};"], True, 5),
    ]
