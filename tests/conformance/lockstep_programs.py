"""Random programs for one warp whose answer depends on its threads advancing together, as PTX and as NumPy computes it.

A program changes four registers of each thread and 64 words of memory, which all see. What is in memory is read at any place, and
written by each thread at another. Threads take branches and leave loops by what is in their registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TypeAlias

import numpy as np

from kaasd.devices.base import Device
from tests.conformance.launching import Call, execute, inout

LANES, WORDS, REGISTERS = 32, 64, 4
Words: TypeAlias = np.ndarray


@dataclass(frozen=True)
class Compute:
    """``target = source * factor + other + lane``."""

    target: int
    source: int
    factor: int
    other: int


@dataclass(frozen=True)
class Load:
    """``target = memory[source % WORDS]``."""

    target: int
    source: int


@dataclass(frozen=True)
class LoadOwn:
    """``target = memory[lane + shift]``."""

    target: int
    shift: int


@dataclass(frozen=True)
class Store:
    """``memory[(lane ^ flip) + shift] = source``."""

    source: int
    flip: int
    shift: int


@dataclass(frozen=True)
class Vote:
    """``target =`` the lanes that are here and have a bit of ``source`` set; all are here unless it is within something."""

    target: int
    source: int
    bit: int
    within: bool


@dataclass(frozen=True)
class If:
    """The body, where a bit of a register is set."""

    register: int
    bit: int
    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Loop:
    """The body, as many times as the low bits of a register say when it begins."""

    register: int
    body: tuple[Statement, ...]


Statement: TypeAlias = "Compute | Load | LoadOwn | Store | Vote | If | Loop"
Body: TypeAlias = tuple[Statement, ...]


def random_body(random: Random, length: int, most_depth: int, depth: int = 0) -> Body:
    """Return a program; votes are nowhere deeper than ``most_depth``."""
    return tuple(_random_statement(random, most_depth, depth) for _ in range(length))


def _random_statement(random: Random, most_depth: int, depth: int) -> Statement:
    register = random.randrange(REGISTERS)
    kind = random.randrange(11 if depth < 3 else 9)
    if kind == 8 and depth <= most_depth:
        return Vote(register, random.randrange(REGISTERS), random.randrange(4), depth > 0)
    if kind < 2:
        return Compute(register, random.randrange(REGISTERS), random.choice((1, 3, 5, 2654435761)), random.randrange(1 << 16))
    if kind < 4:
        return Load(register, random.randrange(REGISTERS))
    if kind < 5:
        return LoadOwn(register, random.randrange(LANES))
    if kind < 9:
        return Store(register, random.randrange(LANES), random.choice((0, 0, LANES, random.randrange(LANES))))
    body = random_body(random, random.randrange(1, 5), most_depth, depth + 1)
    return If(register, random.randrange(4), body) if kind == 9 else Loop(register, body)


def simulate(body: Body, registers: Words, memory: Words) -> None:
    """Run a program on the registers, by register and lane, and on memory."""
    _run(body, registers, memory, np.ones(LANES, bool))


def _run(body: Body, registers: Words, memory: Words, active: Words) -> None:
    lanes = np.arange(LANES, dtype="u4")
    for each in body:
        match each:
            case Compute(target, source, factor, other):
                value = registers[source] * np.uint32(factor) + np.uint32(other) + lanes
                registers[target] = np.where(active, value, registers[target])
            case Load(target, source):
                registers[target] = np.where(active, memory[registers[source] % WORDS], registers[target])
            case LoadOwn(target, shift):
                registers[target] = np.where(active, memory[lanes + shift], registers[target])
            case Store(source, flip, shift):
                memory[((lanes ^ flip) + shift)[active]] = registers[source][active]
            case Vote(target, source, bit, _):
                votes = np.uint32(((registers[source] >> bit & 1).astype("u8") << lanes)[active].sum())
                registers[target] = np.where(active, votes, registers[target])
            case If(register, bit, inner):
                _run(inner, registers, memory, active & (registers[register] >> bit & 1 == 1))
            case Loop(register, inner):
                rounds = registers[register] & 3
                for number in range(3):
                    _run(inner, registers, memory, active & (rounds > number))


def ptx(body: Body, space: str) -> str:
    """Return a program as the kernel ``k``, whose parameters are the registers and the memory; ``space`` is where that lies."""
    lines = [".version 7.0", ".target sm_70", ".address_size 64", ".visible .entry k(.param .u64 r, .param .u64 m) {"]
    lines += [f".shared .align 4 .b8 s[{4 * WORDS}];" if space == "shared" else "", ".reg .b64 %r, %m, %base, %at, %own;"]
    lines += [f".reg .b32 %v<{REGISTERS}>, %lane, %x, %k<1000>;", ".reg .pred %p;"]
    lines += ["ld.param.u64 %r, [r]; ld.param.u64 %m, [m]; mov.u32 %lane, %tid.x;"]
    lines += ["mul.wide.u32 %own, %lane, 4; add.u64 %r, %r, %own; add.u64 %m, %m, %own;"]
    lines += [f"ld.global.u32 %v{n}, [%r+{4 * LANES * n}];" for n in range(REGISTERS)]
    if space == "shared":
        lines += ["mov.u64 %base, s; add.u64 %own, %own, %base;"]
        lines += [f"ld.global.u32 %x, [%m+{n}]; st.shared.u32 [%own+{n}], %x;" for n in (0, 4 * LANES)]
        lines += ["bar.sync 0;"]
    else:
        lines += ["sub.u64 %base, %m, %own; mov.u64 %own, %m;"]
    labels = [0]
    lines += _emit(body, space, labels)
    if space == "shared":
        lines += ["bar.sync 0;", *(f"ld.shared.u32 %x, [%own+{n}]; st.global.u32 [%m+{n}], %x;" for n in (0, 4 * LANES))]
    lines += [f"st.global.u32 [%r+{4 * LANES * n}], %v{n};" for n in range(REGISTERS)]
    return "\n".join([*lines, "ret;", "}", ""])


def _emit(body: Body, space: str, labels: list[int]) -> list[str]:
    lines: list[str] = []
    for each in body:
        labels[0] += 1
        label = labels[0]
        match each:
            case Compute(target, source, factor, other):
                lines += [f"mad.lo.u32 %x, %v{source}, {factor}, {other}; add.u32 %v{target}, %x, %lane;"]
            case Load(target, source):
                lines += [f"and.b32 %x, %v{source}, {WORDS - 1}; mul.wide.u32 %at, %x, 4; add.u64 %at, %at, %base;"]
                lines += [f"ld.volatile.{space}.u32 %v{target}, [%at];"]
            case LoadOwn(target, shift):
                lines += [f"ld.volatile.{space}.u32 %v{target}, [%own+{4 * shift}];"]
            case Store(source, 0, shift):
                lines += [f"st.volatile.{space}.u32 [%own+{4 * shift}], %v{source};"]
            case Store(source, flip, shift):
                lines += [f"xor.b32 %x, %lane, {flip}; mad.wide.u32 %at, %x, 4, %base;"]
                lines += [f"st.volatile.{space}.u32 [%at+{4 * shift}], %v{source};"]
            case Vote(target, source, bit, within):
                lines += [f"and.b32 %x, %v{source}, {1 << bit}; setp.ne.u32 %p, %x, 0;"]
                lines += ["activemask.b32 %x;" if within else "mov.u32 %x, -1;", f"vote.sync.ballot.b32 %v{target}, %p, %x;"]
            case If(register, bit, inner):
                lines += [f"and.b32 %x, %v{register}, {1 << bit}; setp.eq.u32 %p, %x, 0; @%p bra END{label};"]
                lines += [*_emit(inner, space, labels), f"END{label}:"]
            case Loop(register, inner):
                lines += [
                    f"and.b32 %k{label}, %v{register}, 3;",
                    f"HEAD{label}: setp.eq.u32 %p, %k{label}, 0; @%p bra END{label};",
                ]
                lines += [*_emit(inner, space, labels), f"sub.u32 %k{label}, %k{label}, 1; bra HEAD{label};", f"END{label}:"]
    return lines


def check(device: Device, seed: int, space: str, most_depth: int) -> None:
    """Run a program, with votes at most so deep, and compare."""
    random = Random(seed)
    body = random_body(random, 14, most_depth)
    rng = np.random.default_rng(seed)
    registers = rng.integers(0, 1 << 32, (REGISTERS, LANES), np.uint32)
    memory = rng.integers(0, 1 << 32, WORDS, np.uint32)
    buffers = {"registers": registers.copy(), "memory": memory.copy()}
    call = Call("k", 1, LANES, [inout("registers"), inout("memory")])
    result = execute(device, ptx(body, space).encode(), [call], buffers)
    simulate(body, registers, memory)
    np.testing.assert_array_equal(result["memory"], memory)
    np.testing.assert_array_equal(result["registers"], registers)
