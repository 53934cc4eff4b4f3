"""Every form of the table of instructions as lines of PTX, for ptxas to take or refuse."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import combinations, product
from math import prod

from kaasd.devices.emulator.isa import table
from kaasd.devices.emulator.isa.instruction_set import INSTRUCTION_SET
from kaasd.devices.emulator.ptx.forms import Form, FormOperand, Match
from kaasd.devices.emulator.ptx.types import TYPES

REGISTERS = {1: "%p", 16: "%h", 32: "%r", 64: "%d", 128: "%q"}
"""Of each width; every kernel has ten of each, those of 128 bits only where a line uses one."""
_MOST = 1500
"""Mnemonics of a form that are asked for: all, or those with few optional words and as many others by chance."""
_WIDTHS = {"f64": 64, "tf32": 32, "s4": 4, "u4": 4, "b1": 1, "e4m3": 8, "e5m2": 8}


def sample(form: Form, rng: random.Random) -> Iterator[Match]:
    """Yield mnemonics of a form."""
    choices = [((None, *word.choices) if word.optional else word.choices) for word in form.words]
    if prod(map(len, choices)) <= _MOST:
        picked = set(product(*choices))
    else:
        picked = set(_few(choices))
        while len(picked) < _MOST:
            picked.add(tuple(rng.choice(each) if rng.random() < 0.4 or each[0] else None for each in choices))
    for words in sorted(picked, key=lambda each: [word or "" for word in each]):
        match = INSTRUCTION_SET.find(opcode_of(form), tuple(word for word in words if word))
        if not isinstance(match, str) and match.form is form and _fits(match):
            yield match


def _few(choices: list[tuple[str | None, ...]]) -> Iterator[tuple[str | None, ...]]:
    """Every choice with at most two words that are not the first of their place."""
    first = [each[0] for each in choices]
    for some in combinations(range(len(choices)), 2):
        for words in product(*(choices[index] for index in some)):
            picked = list(first)
            for index, word in zip(some, words, strict=True):
                picked[index] = word
            yield tuple(picked)


_WIDE = (("f16", "bf16", "s8", "u8"), ("f16", "f32", "s32"))
_WMMA = {
    **dict.fromkeys(("m16n16k16", "m32n8k16", "m8n32k16"), _WIDE),
    "m16n16k8": (("tf32",), ("f32",)),
    "m8n8k4": (("f64",), ("f64",)),
    "m8n8k32": (("s4", "u4"), ("s32",)),
    "m8n8k128": (("b1",), ("s32",)),
}
"""Of ``wmma``, by shape: the types of the factors, and of the sums. On others ptxas 13.5.37 crashes."""


def _fits(match: Match) -> bool:
    """Whether ptxas can be asked: types must go with the shape of a ``wmma``."""
    words = match.mnemonic.split(".")
    if words[0] in ("cvta", "alloca", "stacksave", "stackrestore"):
        return words[-1] == "u64"  # ptxas refuses the whole of a module that has addresses of 32 bits
    if words[0] == "mma" and "sp" not in match:
        return not {"tf32", "m16n8k16"} <= set(words) and not {"bf16", "m16n8k4"} <= set(words)
    if words[0] != "wmma":
        return True
    factors, sums = next(_WMMA[word] for word in words if word in _WMMA)
    kinds = [word for word in words if word in TYPES]
    if len(kinds) == 1:
        return kinds[0] in (factors if words[2] in "ab" else sums)
    if len(kinds) == 2:
        return "f16" in factors and set(kinds) <= set(sums)
    return {kinds[0], kinds[3]} <= set(sums) and set(kinds[1:3]) <= set(factors)


def opcode_of(form: Form) -> str:
    return re.split(r"[. {]", form.text, maxsplit=1)[0]


def lines(match: Match) -> Iterator[str]:
    """Yield the instruction with each number and kind of operands that the form takes."""
    by_hand = _BY_HAND.get(match.mnemonic) or _BY_HAND.get(match.mnemonic.partition(".")[0])
    if by_hand is not None:
        head = "{ targets: .branchtargets E; " if match.mnemonic.startswith("brx") else ""
        yield from (f"{head}{match.mnemonic} {operands};{' }' * bool(head)}" for operands in by_hand)
        return
    if any(operand.name == "texel" for operand in match.form.operands):
        yield _texture(match)
        return
    optional = [operand for operand in match.form.operands if operand.optional]
    for count in range(len(optional) + 1):
        given = optional[:count]
        if ("policy" in {operand.name for operand in given}) == ("hint" in match):
            yield (line := _line(match, given))
            if match.mnemonic.startswith("mbarrier.arrive"):
                yield line.replace("%d0,", "_,")
            if count == 1 and match.mnemonic.startswith("cp."):
                yield line.replace("%r9;", "%p9;")
    if "hint" in match and match.mnemonic.startswith("cp."):
        yield _line(match, [operand for operand in optional if operand.name == "policy"])


def _texture(match: Match) -> str:
    """An instruction that reads or writes a texel."""
    opcode, geometry = match.mnemonic.partition(".")[0], match.text("geom")
    coordinates = int(geometry[-2]) + (geometry[0] == "a")
    place = f"[%d9, {_vector('%r', 4 if coordinates == 3 else coordinates)}]"  # a vector has two or four elements
    if opcode.startswith("su"):
        content = _vector(REGISTERS[max(16, match.type.bits)], int((match["vec"] or "v1")[1:]))
        return f"{match.mnemonic} {f'{content}, {place}' if opcode == 'suld' else f'{place}, {content}'};"
    further = ", %r9" * match.mnemonic.startswith("tex.level")
    if match.mnemonic.startswith("tex.grad"):
        further = f", {_vector('%r', (1, 2, 4)[int(geometry[-2]) - 1])}" * 2
    return f"{match.mnemonic} {_vector('%r', 4)}, {place}{further};"


def extras(line: str) -> tuple[str, ...]:
    """What an instruction has beside its mnemonic: operands, a result that is not wanted, a predicate for a number."""
    operands = re.sub(r"[{\[].*?[}\]]", "", line.rstrip(";").partition(" ")[2]).split(",")
    words = [f"#{len(operands)}"]
    if operands[0] == "_":
        words.append("_")
    if operands[-1].strip() == "%p9":
        words.append("pred")
    return tuple(words)


def _line(match: Match, given: list[FormOperand]) -> str:
    text, index = "", 0
    for operand in match.form.operands:
        if not operand.optional or operand in given:
            text += ("|" if operand.paired else ", " if text else " ") + _operand(match, operand, index)
            index += 1
    mnemonic = match.mnemonic
    if "unified" in match:  # stands behind the address
        mnemonic, text = mnemonic.replace(".unified", ""), text.replace("]", "].unified")
    return f"{'@%p9 ' * (mnemonic in _ENDS)}{mnemonic}{text};"


_ENDS = ("ret", "ret.uni", "exit", "trap")


def _operand(match: Match, operand: FormOperand, index: int) -> str:
    if operand.kind == "address":
        return "[kp]" if (match["space"] or "").startswith("param") else f"[%d{index}]"
    if operand.kind == "raw":
        return _raw(match, operand.name, index)
    kind = match.type_of(operand.type)
    name = _register(kind.bits, index)
    count = int((match["vec"] or "v1")[1:])
    return _vector(name[:2], count) if match["vec"] and operand.type == "" else name


def _register(bits: int, index: int) -> str:
    return f"{REGISTERS[max(16, bits) if bits > 1 else 1]}{index}"


def _vector(prefix: str, count: int) -> str:
    return "{" + ", ".join(f"{prefix}{index % 10}" for index in range(count)) + "}"


_RAW = {
    "table": "0x80", "size": "16", "policy": "%d9", "source_size": "%r9", "count": "64", "n": "1", "f": "0", "fraction": "0.5",
    "whole": "32", "target": "E", "stride": "%r9",
}  # fmt: skip


def _raw(match: Match, name: str, index: int) -> str:
    opcode = match.mnemonic.partition(".")[0]
    if opcode in ("mma", "wmma") and name in "abcd":
        return _matrix(match, name)
    if opcode in ("ldmatrix", "stmatrix") and name in "db":
        return _vector("%r", int(match.text("num")[1:]))
    if opcode in ("discard", "applypriority"):
        return "128" if name == "size" else _RAW[name]
    if match.mnemonic.startswith("createpolicy"):
        return {"a": "[%d1]", "size": "%d2" if "cvt" in match.mnemonic else "16"}.get(name, _RAW.get(name, ""))
    return _RAW[name]


def _matrix(match: Match, part: str) -> str:
    """A fragment: as many registers as a thread holds of the matrix."""
    shape = re.search(r"m(\d+)n(\d+)k(\d+)", match.mnemonic)
    assert shape is not None
    m, n, k = map(int, shape.groups())
    kinds = [word for word in match.mnemonic.split(".") if word in TYPES]
    if match.mnemonic.startswith("wmma.mma") and len(kinds) == 2:
        kinds = [kinds[0], "f16", "f16", kinds[1]]
    if match.mnemonic.startswith(("wmma.load", "wmma.store")):
        part, kinds = match.mnemonic.split(".")[2], kinds * 4
    kind = dict(zip("dabc", kinds, strict=True))[part]
    elements = {"a": m * k, "b": k * n}.get(part, m * n)
    if match.mnemonic.startswith("mma.m8n8k4") or (match.mnemonic.startswith("mma") and k == 4 and kinds[1] == "f16"):
        elements *= 4
    if ".sp" in match.mnemonic and part == "a":
        elements //= 2
    bits = 64 if kind == "f64" else 32
    width = _WIDTHS.get(kind) or TYPES[kind].bits
    count = max(1, elements * width // 32 // bits)
    if match.mnemonic.startswith("wmma") and kind == "f16" and part in "ab":
        count = 8
    return _vector("%d" if bits == 64 else "%r", count)


_BY_REGISTER = {"%h": "b16 u16 s16", "%r": "b32 u32 s32 f32", "%d": "b64 u64 s64 f64", "%q": "b128", "%p": "pred"}
_BY_HAND: dict[str, tuple[str, ...]] = {
    "call": ("nothing", "(%r1), something, (%r2)"),
    "brx": ("%r1, targets",),
    "bra": ("E",),
    "pmevent": ("1",),
    "nanosleep": ("32", "%r1"),
    "alloca": ("%d1, %d2, 16", "%d1, %d2"),
}
"""What stands behind the mnemonic, by opcode or by the whole mnemonic."""
for _prefix, _kinds in _BY_REGISTER.items():
    for _kind in _kinds.split():
        _BY_HAND[f"mov.{_kind}"] = (f"{_prefix}1, {_prefix}2",)
        for _count in (2, 4, 8):
            _BY_HAND[f"mov.v{_count}.{_kind}"] = (f"{_vector(_prefix, _count)}, {_vector(_prefix, _count)}",)
for _whole, _half in (("%r", "%h"), ("%d", "%r"), ("%q", "%d")):
    _kind = _BY_REGISTER[_whole].split()[0]
    _BY_HAND[f"mov.{_kind}"] += (f"{_whole}1, {_vector(_half, 2)}", f"{_vector(_half, 2)}, {_whole}1")


WHERE_EXTRAS_COUNT = ("cp", "max", "mbarrier", "min")
"""Opcodes of which the operands matter, too."""


def all_lines(seed: int = 1) -> dict[str, tuple[str, ...]]:
    """Return the words of every line asked for."""
    rng = random.Random(seed)
    found = {}
    for form in table.all_forms():
        for match in sample(form, rng):
            opcode = opcode_of(form)
            for line in lines(match):
                found[line] = (opcode, *match.words, *(extras(line) if opcode in WHERE_EXTRAS_COUNT else ()))
    return found
