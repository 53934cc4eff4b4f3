"""The forms of the table of instructions as concrete mnemonics, and what may be asked of each one's result."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product

from kaasd.devices.emulator import instructions, table
from kaasd.devices.emulator.table import Flow, Form, Match

instructions.load()

_FLOATS = r"f32|f64|f16|f16x2|bf16|bf16x2"
_REFUSED = re.compile(
    "|".join(
        (
            r"(add|sub|mul|mad|fma|div|sqrt|abs|neg|min|max)\..*\b(ftz|sat)\b.*\.f64",
            r"mad(\.ftz|\.sat)*\.f(32|64)",
            r"(mul|mad)24(\.hi\.lo)?\.[us]32",
            r"(div\.(approx|full)|sqrt\.approx|rcp\.approx)(?!.*rcp.*ftz).*\.f64",
            r"(min|max)\.(?!.*xorsign\.abs).*\b(xorsign|abs)\b.*",
            r"(min|max)\..*\b(NaN|xorsign|abs)\b.*\.f64",
            r"setp?\..*\bftz\b(?!.*\.(f32|f16|f16x2)$).*",
            r"setp?\.(lt|le|gt|ge|lo|ls|hi|hs)\b.*\bb\d+",
            rf"setp?\.(lo|ls|hi|hs)\b.*\.(s\d+|{_FLOATS})",
            r"setp?\.(equ|neu|ltu|leu|gtu|geu|num|nan)\b.*\.[usb]\d+",
            r"cvt\..*\bftz\b.*\.(f64|[us]\d+\.f64)",
            r"cvt\.\w+\.ftz\.(f32\.f16|f32\.bf16)",
            r"(shfl|vote)\.(?!sync).*",  # gone with sm_70
            r"(atom|red)\..*\b(and|or|xor|exch)\.[us]\d+",
            r"(atom|red)\..*\b(min|max)\.b\d+",
            r"(atom|red)\..*\b(inc|dec)\.(?!u32).*",
            r"(atom|red)\..*\badd\.(b\d+|s64)",
            r"atom\..*\bcas\.u\d+",
            r"slct\.ftz\.(?!.*\.f32$).*",
        )
    )
)
"""What the table takes, for the sake of simple entries, and PTX does not."""


def _narrows_nothing(match: Match) -> bool:
    """Whether ``.sat`` on a conversion between integers could never matter, which PTX refuses."""
    words = match.mnemonic.split(".")
    if words[:2] != ["cvt", "sat"] or len(words) != 4 or "f" in words[2] + words[3]:
        return False
    (to, to_bits), (of, of_bits) = ((word[0], int(word[1:])) for word in words[2:])
    return (to == of and to_bits >= of_bits) or ((to, of) == ("s", "u") and to_bits > of_bits)


def in_ptx(match: Match) -> bool:
    """Whether PTX for sm_90 has this mnemonic."""
    return not _REFUSED.fullmatch(match.mnemonic) and not _narrows_nothing(match)


@cache
def _parts(form: Form) -> tuple[str, tuple[tuple[str | None, ...], ...]]:
    """The opcode, and the choices for each modifier."""
    mnemonic = form.text.partition(" ")[0]
    opcode = re.match(r"[a-z0-9]+", mnemonic)
    assert opcode is not None
    parts: list[tuple[str | None, ...]] = []
    depth = 0
    for token in re.findall(r"\{|\}|\.[A-Za-z0-9_:]+", mnemonic[opcode.end() :]):
        if token in "{}":
            depth += 1 if token == "{" else -1
        else:
            choices = tuple(form.groups.get(token[1:], (token[1:],)))
            parts.append((None, *choices) if depth else choices)
    return opcode.group(), tuple(parts)


def _match(form: Form, modifiers: tuple[str | None, ...]) -> Match | None:
    match = table.find(_parts(form)[0], tuple(word for word in modifiers if word))
    return match if not isinstance(match, str) and match.form is form and in_ptx(match) else None


def variants(form: Form) -> Iterator[Match]:
    """Every mnemonic of a form that PTX has."""
    for modifiers in product(*_parts(form)[1]):
        if match := _match(form, modifiers):
            yield match


def variant(form: Form, rng: random.Random) -> Match | None:
    """One mnemonic of a form by chance, or None where that was none."""
    return _match(form, tuple(rng.choice(choices) for choices in _parts(form)[1]))


_HANDLED = {"cvta", "isspacep", "fence", "membar", "brkpt", "pmevent", "prefetch", "prefetchu", "applypriority", "discard"}
"""Opcodes of plain operands that need more than random ones, or have no result."""


def is_plain(form: Form) -> bool:
    """Whether random values and constants make an instruction of the form, for any thread by itself."""
    return (
        form.flow is Flow.NEXT
        and not form.suspends
        and _parts(form)[0] not in _HANDLED
        and all(slot.kind in ("d", "value") or slot.name == "table" for slot in form.slots)
    )


def is_collective(form: Form) -> bool:
    """Whether random operands do for an operation of all threads of a warp or block, with its results in registers."""
    opcode = _parts(form)[0]
    return form.suspends and opcode not in ("call", "nanosleep") and form.slots[0].kind == "d"


def _weight(form: Form) -> float:
    return 1 + math.log2(math.prod(len(choices) for choices in _parts(form)[1]))


@cache
def weighted(collective: bool) -> tuple[tuple[Form, ...], tuple[float, ...]]:
    """The plain or collective forms and how often each is drawn: more often, the more mnemonics it has."""
    chosen = tuple(form for form in table.all_forms() if (is_collective if collective else is_plain)(form))
    return chosen, tuple(map(_weight, chosen))


def draw(rng: random.Random, collective: bool = False) -> Match:
    """Draw a mnemonic from the table."""
    while True:
        forms, weights = weighted(collective)
        if match := variant(rng.choices(forms, weights)[0], rng):
            return match


_ORDERS = ((None, None), ("relaxed", "gpu"), ("acq_rel", "cta"), ("acquire", "sys"), ("relaxed", "cta"), ("release", "gpu"))


def atomic(rng: random.Random, space: str, opcode: str) -> Match:
    """Draw an atomic operation, ``atom`` or ``red``, for an address in ``space`` or a generic one."""
    named = [form for form in table.all_forms() if _parts(form)[0] == opcode]
    while True:
        form = rng.choice(named)
        order, scope = rng.choice(_ORDERS)
        fixed = {"order": order, "scope": scope, "space": rng.choice((space, None)), "hint": None}
        words = re.findall(r"\.([A-Za-z0-9_:]+)", form.text.partition(" ")[0])
        choices = zip(words, _parts(form)[1], strict=True)
        match = _match(form, tuple(fixed[word] if word in fixed else rng.choice(each) for word, each in choices))
        if match and (opcode != "red" or order not in ("acq_rel", "acquire")) and "vec" not in match:
            return match


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


def may_be_fused(mnemonic: str) -> bool:
    """Whether a compiler may make one operation of this one and an addition that reads its result."""
    return bool(re.fullmatch(rf"(mul|fma|mad)(\.ftz|\.sat)*\.({_FLOATS})", mnemonic))


def nan_is_open(match: Match, kind: str) -> bool:
    """Whether PTX leaves the bits of a NaN result open: of double precision always, of others where only a sign changes."""
    opcode = match.mnemonic.partition(".")[0]
    if opcode in ("selp", "slct", "mov", "copysign", "and", "or", "xor", "not"):
        return False
    return kind == "f64" or (kind in _FLOATS.split("|") and opcode in ("abs", "neg"))
