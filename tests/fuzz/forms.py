"""The forms of the table of instructions as concrete mnemonics, and what may be asked of each one's result."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path

from kaasd.devices.emulator.isa import table
from kaasd.devices.emulator.ptx.forms import Flow, Form, Match

_FLOATS = r"f32|f64|f16|f16x2|bf16|bf16x2"
_EXCLUDED = re.compile(
    "|".join(
        (
            # Comparisons that PTX has for some types only, too many to list.
            r"setp?\..*\bftz\b(?!.*\.(f32|f16|f16x2)$).*",
            r"setp?\.(lt|le|gt|ge|lo|ls|hi|hs)\b.*\bb\d+",
            rf"setp?\.(lo|ls|hi|hs)\b.*\.(s\d+|{_FLOATS})",
            r"setp?\.(equ|neu|ltu|leu|gtu|geu|num|nan)\b.*\.[usb]\d+",
            # The same for atomic operations.
            r"(atom|red)\..*\b(and|or|xor|exch)\b.*\.[us]\d+",
            r"(atom|red)\..*\b(min|max)\b.*\.b\d+",
            r"(atom|red)\..*\b(inc|dec)\b.*(?<!\.u32)",
            r"(atom|red)\..*\badd\b.*\.(b\d+|s64)",
            r"atom\..*\bcas\b.*\.u\d+",
            r"red\..*\bexch\b.*",
            # Matrix products with types that do not go together.
            r"mma\..*(\.f16\.f16\.f16\.f32|\.f32\.f16\.f16\.f16)",
            r"mma\..*\.(bf16\.tf32|tf32\.bf16)\..*",
            r"mma\.sync\.aligned\.(m16n8k4\..*\bbf16\b|m16n8k16\..*\btf32\b).*",
            # Video instructions of one word whose 34 bits in between the compiler of NVIDIA's driver does not keep.
            r"v(add|sub|absdiff|min|max)\..*\.(min|max)",
            r"v(add|sub|absdiff|min|max)\.u32\..*\bsat\b.*",
            r"vshl\.(?!s32\..*\bsat\b).*\.(min|max)",
            # Where it takes the third operand for signed, against the manual.
            r"vset\.s32\..*\.(min|max)",
            r"vshr\.u32\.u32\..*\bsat\b.*\.(min|max)",
            # Where it takes whole unsigned factors for signed, which shows above the lowest 32 bits.
            r"vmad\.\w+\.(?!s32\.s32).*\.(sat|shr\d+)\b.*",
            # What the compiler of NVIDIA's driver takes for a move, against the manual.
            r"cvt(\.ftz)?\.sat\.(f32\.f32|f64\.f64)",
        )
    )
)
"""Mnemonics that the table takes, for the sake of simple entries, and PTX does not; and what no two devices agree on."""

_EXCLUDED_LINES = re.compile(
    "|".join(
        (
            # Results merged into a third operand: the upper half in h1, not the lower, and saturated to 32 bits, not to the part.
            r"v[a-z]+\.\S+ %r\d+\.h1,",
            r"v[a-z]+\.\S*\bsat\b\S* %r\d+\.[bh]\d,",
            # Constant fields that begin past the last bit: all ones where the sign is 0; and those longer than a register.
            r"bfe\.s32 .*, (3[2-9]|[4-9]\d), \d+;",
            r"bfi\.b32 .*, \d+, (3[2-9]|[4-9]\d);",
            # A constant to choose by, that as a float would be a NaN, for negative.
            r"slct\.\w+\.s32 .*, 21[34]\d{7};",
            # The same as neg, which is an end.
            r"sub\.(sat\.)?s\d+ %\w+, 0, ",
        )
    )
)
"""Instructions with operands that the compiler of NVIDIA's driver takes otherwise than the manual."""

REFUSED_FILE = Path(__file__).with_name("refused.txt")
"""Further mnemonics of the table that ptxas refuses for sm_90, one a line: ``python -m tests.fuzz refused`` makes it."""


@cache
def _refused() -> frozenset[str]:
    return frozenset(REFUSED_FILE.read_text().split())


def _opcode(form: Form) -> str:
    return re.split(r"[. {]", form.text, maxsplit=1)[0]


def _choices(form: Form) -> list[tuple[str | None, ...]]:
    """The choices for each modifier."""
    return [(None, *word.choices) if word.optional else word.choices for word in form.words]


def _match(form: Form, modifiers: Sequence[str | None]) -> Match | None:
    match = table.find(_opcode(form), tuple(word for word in modifiers if word))
    if isinstance(match, str) or match.form is not form or _EXCLUDED.fullmatch(match.mnemonic):
        return None
    return match


def is_left_out(line: str) -> bool:
    """Whether an instruction, as written, is one that programs do without."""
    text = line.partition("%")[2].partition(" ")[2] if line.startswith("@") else line
    return bool(_EXCLUDED.fullmatch(text.partition(" ")[0]) or _EXCLUDED_LINES.match(text))


def variants(form: Form) -> Iterator[Match]:
    """Every mnemonic of a form, those that ptxas refuses among them."""
    for modifiers in product(*_choices(form)):
        if match := _match(form, modifiers):
            yield match


def variant(form: Form, rng: random.Random) -> Match | None:
    """One mnemonic of a form by chance, or None where that was none."""
    return _match(form, tuple(rng.choice(choices) for choices in _choices(form)))


_HANDLED = {"cvta", "isspacep", "mbarrier", "stacksave"}
"""Opcodes that need more than random operands."""


def is_plain(form: Form) -> bool:
    """Whether random values and constants make an instruction of the form, for any thread by itself."""
    return (
        form.flow is Flow.NEXT
        and not form.suspends
        and not form.carry
        and _opcode(form) not in _HANDLED
        and any(slot.kind == "d" for slot in form.operands)
        and all(slot.kind in ("d", "value") or slot.name == "table" for slot in form.operands)
    )


def is_collective(form: Form) -> bool:
    """Whether random operands do for an operation of all threads of a warp or block, with its results in registers."""
    opcode = _opcode(form)
    return (
        form.suspends
        and opcode not in ("call", "nanosleep")
        and form.operands[0].kind == "d"
        and all(slot.kind in ("d", "value") for slot in form.operands)
    )


def _weight(form: Form) -> float:
    return 1 + math.log2(math.prod(len(choices) for choices in _choices(form)))


@cache
def weighted(collective: bool) -> tuple[tuple[Form, ...], tuple[float, ...]]:
    """The plain or collective forms and how often each is drawn: more often, the more mnemonics it has."""
    chosen = tuple(form for form in table.all_forms() if (is_collective if collective else is_plain)(form))
    return chosen, tuple(map(_weight, chosen))


def draw(rng: random.Random, collective: bool = False) -> Match:
    """Draw a mnemonic from the table."""
    while True:
        forms, weights = weighted(collective)
        match = variant(rng.choices(forms, weights)[0], rng)
        if match and match.mnemonic not in _refused():
            return match


def draw_product(rng: random.Random) -> Match:
    """Draw a product of matrices in registers."""
    named = [form for form in table.all_forms() if _opcode(form) == "mma"]
    while True:
        match = variant(rng.choice(named), rng)
        if match and match.mnemonic not in _refused():
            return match


_ORDERS = ((None, None), ("relaxed", "gpu"), ("acq_rel", "cta"), ("acquire", "sys"), ("relaxed", "cta"), ("release", "gpu"))


def atomic(rng: random.Random, space: str, opcode: str, vector: bool = False) -> Match:
    """Draw an atomic operation, ``atom`` or ``red``, for an address in ``space`` or a generic one."""
    named = [form for form in table.all_forms() if _opcode(form) == opcode and vector == any(w.name == "vec" for w in form.words)]
    while True:
        form = rng.choice(named)
        order, scope = rng.choice(_ORDERS)
        fixed = {"order": order, "scope": scope, "space": rng.choice((space, None)), "hint": None}
        choices = zip(form.words, _choices(form), strict=True)
        modifiers = [fixed[word.name] if word.name in fixed else rng.choice(each) for word, each in choices]
        if not vector and rng.random() < 0.2:  # any order will do, the type last
            modifiers = [*rng.sample(modifiers[:-1], len(modifiers) - 1), modifiers[-1]]
        match = _match(form, modifiers)
        if match and (opcode != "red" or order not in ("acq_rel", "acquire")) and _vector_bits(match) <= _MOST_BITS:
            return match


_MOST_BITS = 128
"""Of the elements of an atomic operation together."""


def _vector_bits(match: Match) -> int:
    return match.type.bits * int((match["vec"] or "v1")[1:])


def has(opcode: str, kind: str) -> bool:
    """Whether the table has a mnemonic, such as ``add.cc`` for ``u32``."""
    name, *modifiers = opcode.split(".")
    return not isinstance(table.find(name, (*modifiers, kind)), str)


@dataclass(frozen=True, slots=True)
class Bound:
    """How far a result may be from another device's: ``ulps`` of it, ``relative`` to it, or ``absolute``."""

    ulps: int = 0
    relative: float = 0.0
    absolute: float = 0.0
    largest_source: float = math.inf
    """The manual bounds the error for sources up to this size only."""


_BOUNDS: tuple[tuple[str, Bound], ...] = (
    # From the PTX manual, for two devices that may err to either side.
    (r"(sin|cos)\.approx.*", Bound(absolute=2 * 2**-20.5, largest_source=2 * math.pi)),
    (r"lg2\.approx.*", Bound(absolute=2 * 2**-22, relative=2 * 2**-22)),
    (r"ex2\.approx.*\.f32", Bound(ulps=4)),
    (r"(ex2|tanh)\.approx.*\.f16(x2)?", Bound(relative=2 * 2**-9.9, absolute=2 * 2**-10.9)),
    (r"(ex2|tanh)\.approx.*\.bf16(x2)?", Bound(relative=2 * 2**-7)),
    (r"tanh\.approx.*", Bound(relative=2 * 2**-11)),
    (r"rcp\.approx.*\.f32", Bound(ulps=2)),
    (r"(sqrt|rsqrt)\.approx.*\.f32", Bound(ulps=4)),
    (r"div\.(full|approx).*", Bound(ulps=4)),
    (r"r(cp|sqrt)\.approx.*\.f64", Bound(relative=2**-20)),
)


def bound(mnemonic: str) -> Bound | None:
    """How far a result may be off, or None where PTX defines it exactly."""
    return next((limit for pattern, limit in _BOUNDS if re.fullmatch(pattern, mnemonic)), None)


_ENDS = re.compile(
    "|".join(
        (
            # A product may be fused with the addition that reads it.
            rf"(mul|fma|mad)(\.ftz|\.sat)*\.({_FLOATS})",
            # The compiler of NVIDIA's driver takes a 1.0 made by set for a 1 where it is read as an integer,
            r"set\..*\.(f32|f16)\.\w+",
            # the abs or neg of the smallest number for positive,
            r"(abs|neg)\.s\d+",
            # of two conversions from a float by way of 64 bits makes one, of which a NaN comes out otherwise,
            r"cvt\.r\wi\S*\.[su]64\.f\d+",
            # and takes a pair of 8-bit numbers for what it was packed with.
            r"cvt\..*\.e\dm\dx2\.\w+",
        )
    )
)


def is_an_end(mnemonic: str) -> bool:
    """Whether no other instruction may read the result."""
    return bool(_ENDS.fullmatch(mnemonic))


def nan_is_open(match: Match, kind: str, same: bool = False) -> bool:
    """Whether PTX leaves the bits of a NaN result open: of double precision always, of others where only a sign changes, and of a
    minimum of a register and itself, which is no operation to a compiler."""
    opcode = match.mnemonic.partition(".")[0]
    if opcode in ("selp", "slct", "mov", "copysign", "and", "or", "xor", "not"):
        return False
    unchanged = opcode in ("abs", "neg") or (same and opcode in ("min", "max"))
    return kind == "f64" or (kind in _FLOATS.split("|") and unchanged)
