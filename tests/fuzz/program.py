"""A random program: steps over registers that are each written once, and its text as a PTX entry."""

from __future__ import annotations

import random
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kaasd.devices.emulator.ptx.forms import FormOperand, Match
from kaasd.devices.emulator.ptx.types import TYPES, Type
from tests.fuzz import forms, parts, values
from tests.fuzz.forms import Bound
from tests.fuzz.layout import Layout, Register, lay_out
from tests.fuzz.values import THREADS

HEADER = ".version 8.8\n.target sm_90\n.address_size 64\n"
PARAMETERS = ".param .u64 inputs, .param .u64 outputs, .param .u64 scratch, .param .u32 place"
"""Of every entry; ``place`` is where in the outputs this program's begin."""
CONVERGE = "bar.warp.sync 0xFFFFFFFF;"
"""What must stand before the work of a warp or block, whose threads may have parted."""

_PREFIX = {1: "%p", 16: "%h", 32: "%r", 64: "%l", 128: "%x"}
_NO_CONSTANTS = re.compile(r"v\w+[24]\.|cvt\..*[fe]\d")
"""Instructions whose sources must be registers."""
_FLOATS = {"f16", "f16x2", "bf16", "bf16x2", "f32", "tf32", "f64"}
"""Types whose results other instructions read through memory and moves only. The compiler of NVIDIA's driver converts a number
that is read as a count, or stored narrower, from the register of a floating-point result, and reckons with that result's sign."""
_AREAS = {"shared": "area", "local": "stack"}
_NAN = {16: "0x7FFF", 32: "0x7FFFFFFF", 64: "0x7FF8000000000000"}


def may_read(kind: str, written: str) -> bool:
    """Whether an instruction may read as one type what another wrote as one."""
    return kind == written or not {kind, written} & _FLOATS


@dataclass(slots=True)
class Step:
    """Lines that belong together. They read and write registers, and no memory that other steps use."""

    label: str
    """The mnemonic, or what kind of block it is."""
    lines: list[str] = field(default_factory=list)
    reads: list[Register] = field(default_factory=list)
    writes: list[Register] = field(default_factory=list)
    bound: Bound | None = None
    """How far the results may be from another device's; None where they must be the same."""
    together: bool = False
    """Threads work on each other's values."""


class Program:
    """A program in the making, and made. The same seed makes the same program as long as the table is the same."""

    def __init__(self, seed: str) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.steps: list[Step] = []
        self.inputs: dict[Register, int] = {}
        """Registers loaded at the start, and their rows in the table of inputs."""
        self.taken = dict.fromkeys(("shared", "local", "global"), 0)
        """Bytes of each kind of memory that steps have."""
        self._counts: dict[int, int] = {}
        self._pool: list[Register] = []
        self._step = Step("")
        self._labels = 0

    @cached_property
    def layout(self) -> Layout:
        """Of the registers stored at the end; to be asked for when the program is whole."""
        return lay_out(register for step in self.steps for register in step.writes)

    @property
    def is_exact(self) -> bool:
        """Whether PTX and the driver agree on every bit of what it does."""
        return not any(step.bound or any(map(forms.is_left_out, step.lines)) for step in self.steps)

    def counts(self) -> list[tuple[int, int]]:
        """How many registers there are of each width."""
        return sorted(self._counts.items())

    # Registers and operands

    def fresh(self, bits: int, kind: str) -> Register:
        """Return a new register of a width."""
        number = self._counts.get(bits, 0)
        self._counts[bits] = number + 1
        return Register(f"{_PREFIX[bits]}{number}", bits, kind)

    def take(self, space: str, size: int) -> int:
        """Return where so many bytes of a kind of memory begin that no other step uses."""
        start = self.taken[space]
        self.taken[space] += size
        return start

    def label(self) -> str:
        self._labels += 1
        return f"L{self._labels}"

    def keep(self, register: Register) -> None:
        """Let later steps read a register."""
        self._pool.append(register)

    def candidates(self, bits: int) -> list[Register]:
        """The registers of a width that may be read."""
        return [register for register in self._pool if register.bits == bits]

    def use(self, register: Register) -> str:
        """Note that the current step reads a register, and return its name."""
        if register not in self._step.reads:
            self._step.reads.append(register)
        return register.name

    def source(self, kind: Type, constants: bool = True) -> str:
        """Return an operand to be read as ``kind``: a constant, an input, or another step's result."""
        return self._source(kind, constants) if kind.bits != 8 else self._source(TYPES[f"u{self.rng.choice((16, 32))}"], False)

    def register(self, kind: Type) -> Register:
        """Return a register to be read as ``kind``; never a constant."""
        bits = 16 if kind.bits == 8 else kind.bits
        if bits == 1:
            return self._predicate()
        way = self.rng.random()
        alike = [register for register in self._pool if register.kind == kind.name and register.bits == bits]
        if way < 0.35 and alike:
            return self.rng.choice(alike)
        others = [r for r in self.candidates(bits) if may_read(kind.name, r.kind)]
        if way < 0.5 and others:
            return self.rng.choice(others)
        return self._input(kind, bits)

    def _source(self, kind: Type, constants: bool) -> str:
        if constants and self.rng.random() < 0.12 and (text := values.constant(self.rng, kind)):
            return text
        return self.use(self.register(kind))

    def _predicate(self) -> Register:
        known = self.candidates(1)
        return self.rng.choice(known) if known else self._input(TYPES["pred"], 1)

    def _input(self, kind: Type, bits: int) -> Register:
        name = kind.name if kind.name in values.KINDS else {1: "u16", 16: "u16", 32: "u32", 64: "u64", 128: "b128"}[bits]
        row = values.row_of(name, self.rng.randrange(values.COLUMNS))
        for register, known in self.inputs.items():
            if known == row and register.bits == bits:
                return register
        register = self.fresh(bits, kind.name)
        self.inputs[register] = row
        self._pool.append(register)
        return register

    # Instructions

    def instruction(self, match: Match) -> tuple[list[str], list[Register]]:
        """Return the lines of an instruction with random operands, and its results."""
        reads = list(self._step.reads)
        while True:
            operands, results = self._operands(match)
            line = f"{match.mnemonic} {', '.join(operands)};"
            if not forms.is_left_out(line):
                break
            self._step.reads = list(reads)
        same = len(operands) > 2 and operands[1] == operands[2]
        return [line, *(more for result in results for more in self.settle_nan(match, result, same))], results

    def _operands(self, match: Match) -> tuple[list[str], list[Register]]:
        """Return random operands, and the registers among them that are results."""
        operands: list[str] = []
        results: list[Register] = []
        for formal in match.form.operands:
            kind = match.type_of(formal.type)
            if formal.kind == "d":
                if formal.paired and not self._has_second(match, formal):
                    continue
                name = "tf32" if ".tf32." in match.mnemonic else kind.name  # whose register is one of plain bits to the table
                result = self.fresh(self._result_bits(match, kind), name)
                results.append(result)
                if formal.paired:
                    operands[-1] += f"|{result.name}"
                else:
                    operands.append(result.name)
            elif formal.optional:
                continue  # sources that can be left out belong to newer processors, or to barriers with counts
            else:
                operands.append(self._operand(match, formal, kind))
        if match.form.parts:
            operands = parts.choose(self.rng, match, operands, lambda: self.source(TYPES["b32"]))
        return operands, results

    def _has_second(self, match: Match, formal: FormOperand) -> bool:
        if match.mnemonic.startswith("setp.") and "f16" in match.type.name:
            return match.type.name.endswith("x2")  # a predicate for each half, and of a single one none but its own
        return not formal.optional or bool(self.rng.getrandbits(1))

    def _result_bits(self, match: Match, kind: Type) -> int:
        if match.mnemonic.startswith("cvt.") and kind.kind in "us" and "bf16" not in match.mnemonic and self.rng.random() < 0.25:
            return self.rng.choice([bits for bits in (16, 32, 64) if bits >= kind.bits])  # extended as the type says
        return 16 if kind.bits == 8 else kind.bits

    def _operand(self, match: Match, formal: FormOperand, kind: Type) -> str:
        opcode, name = match.mnemonic.partition(".")[0], formal.name
        if name == "mask":
            return "0xFFFFFFFF"
        if name == "table":
            return str(self.rng.randrange(256))
        if opcode in ("bar", "barrier") and name == "a":
            return "0"
        if opcode == "fns" and name in "bc":  # PTX says nothing of bases past the last bit
            return str(self.rng.randrange(32) if name == "b" else self.rng.randrange(-34, 35))
        if opcode in ("bfe", "bfi", "shl", "shr") and formal.type == "u32" and self.rng.random() < 0.3:
            return str(self.rng.randrange(70))
        constants = not match.form.suspends and formal.type != "u32" and not _NO_CONSTANTS.match(match.mnemonic)
        return self.source(kind, constants)

    def settle_nan(self, match: Match, result: Register, same: bool = False) -> list[str]:
        """Return lines that put a known NaN in place of one whose bits are open; ``same``: both sources are one register."""
        if result.bits not in _NAN or not forms.nan_is_open(match, result.kind, same):
            return []
        if not result.kind.endswith("x2"):
            return _settle(result.name, result.bits, result.kind)
        halves = "{%byte0, %byte1}"
        each = [line for name in ("%byte0", "%byte1") for line in _settle(name, 16, result.kind.removesuffix("x2"))]
        return [f"mov.b32 {halves}, {result.name};", *each, f"mov.b32 {result.name}, {halves};"]

    @contextmanager
    def step(self, label: str) -> Any:
        """Begin a step; at its end it is part of the program, and its results can be read by later ones."""
        self._step = step = Step(label)
        known = list(self._pool)
        yield step
        loaded = [register for register in self.inputs if register not in known]
        self._pool = [*known, *loaded]
        step.reads = [register for register in step.reads if register in self._pool]
        self.steps.append(step)
        if step.together:
            step.lines.insert(0, CONVERGE)
        if step.bound is None and not forms.is_an_end(label):
            self._pool += [register for register in step.writes if register.bits != 128]

    # Text

    def text(self, name: str) -> str:
        """Return the program as an entry."""
        return entry(name, self.inputs, self.steps, self)


def _settle(name: str, bits: int, kind: str) -> list[str]:
    return [f"setp.nan.{kind} %nan, {name}, {name};", f"selp.b{bits} {name}, {_NAN[bits]}, {name}, %nan;"]


def entry(name: str, inputs: dict[Register, int], steps: list[Step], sizes: Program, threads: int = THREADS) -> str:
    """Return an entry for a block of ``threads`` that loads ``inputs``, takes ``steps`` and stores all that they write."""
    layout = lay_out(register for step in steps for register in step.writes)
    lines = [f".visible .entry {name}({PARAMETERS})\n{{", ".reg .pred %nan, %q;", ".reg .b64 %in, %out, %scratch, %at;"]
    lines += [".reg .b32 %thread, %place;", ".reg .b16 %byte<4>;"]
    lines += [f".reg .{'pred' if bits == 1 else f'b{bits}'} {_PREFIX[bits]}<{count}>;" for bits, count in sizes.counts()]
    lines += [f".{space} .align 16 .b8 {name}[{sizes.taken[space]}];" for space, name in _AREAS.items() if sizes.taken[space]]
    lines += ["mov.u32 %thread, %tid.x;", "ld.param.u64 %in, [inputs];", "mad.wide.u32 %in, %thread, 8, %in;"]
    lines += ["ld.param.u64 %out, [outputs];", "ld.param.u32 %place, [place];", "cvt.u64.u32 %at, %place;"]
    lines += ["add.u64 %out, %out, %at;", "ld.param.u64 %scratch, [scratch];"]
    lines += [line for register, row in inputs.items() for line in _load(register, row * threads * 8)]
    lines += [line for step in steps for line in step.lines]
    lines += [f"mad.wide.u32 %out, %thread, {layout.stride}, %out;", *layout.stores("%out")]
    return "\n".join([*lines, "ret;\n}\n"])


def _load(register: Register, offset: int) -> list[str]:
    place = f"[%in+{offset}]"
    if register.bits == 1:
        return [f"ld.global.u16 %byte0, {place};", "and.b16 %byte0, %byte0, 1;", f"setp.ne.s16 {register.name}, %byte0, 0;"]
    if register.bits == 128:
        return [f"ld.global.b64 %at, {place};", f"mov.b128 {register.name}, {{%at, %at}};"]
    return [f"ld.global.b{register.bits} {register.name}, {place};"]
