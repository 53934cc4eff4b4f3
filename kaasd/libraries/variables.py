"""Which variables of a library's code its kernels may write: they start each request anew. All others stay as they were loaded.

Pure: bytes in, names out. In PTX a variable is read-only where nothing but loads can reach it, as far as is seen by following its
address through the registers of each function, whatever the order of instructions. Where in doubt, it may be written. A cubin is
not read so far: there every variable counts but constants, and what compilers name for the texts of ``printf`` and ``assert``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from kaas_core import ptx_text
from kaasd.libraries import elf, fatbin


def writable_variables(unit: bytes) -> frozenset[str]:
    """Return the names of one unit of an ``Image``. Raises ``UnsupportedLibrary`` where it is not whole."""
    if unit.startswith(elf.MAGIC):
        return _writable_in_cubin(unit)
    if not unit.startswith(fatbin.MAGIC):
        return writable_in_ptx(unit.rstrip(b"\0").decode())
    names: frozenset[str] = frozenset()
    for bundle in fatbin.read_fatbins(unit):
        texts = [entry for entry in bundle.entries if entry.kind == fatbin.KIND_PTX]
        for entry in texts:
            names |= writable_in_ptx(entry.content.rstrip(b"\0").decode())
        known = {entry.sm for entry in texts}  # a cubin of the same architecture was made from the same text
        for entry in bundle.entries:
            if entry.kind == fatbin.KIND_CUBIN and entry.sm not in known:
                names |= _writable_in_cubin(entry.content)
    return names


_COMPILERS_TEXT = re.compile(r"\$str(\$\d+)?|__unnamed_\d+")


def _writable_in_cubin(data: bytes) -> frozenset[str]:
    return frozenset(name for name in elf.read_elf(data).variables if not _COMPILERS_TEXT.fullmatch(name))


_DECLARATION = re.compile(r"(?<![\w$%.:])\.global(?![\w:])([^;]*)")
_HANDLE = re.compile(r"\.(?:tex|sampler|surf)ref\b")
"""What is bound by the host; it has no bytes that a kernel could write."""
_DECLARED = re.compile(r"(?<![\w$%])([\w$%]++)\s*+(?:<\s*+(\d+)\s*+>\s*+)?(?:\[[^\]]*\]\s*+)*+$")


def writable_in_ptx(text: str) -> frozenset[str]:
    """Return the names of the variables in global memory that a kernel may write. Constant memory is never written."""
    if not _DECLARATION.search(text):
        return frozenset()
    text, is_plain = ptx_text.code_of(text)
    names = frozenset(_declared_names(text))
    if not is_plain or not names:
        return names
    written: set[str] = set()
    reading = dict(_READING_CALLS)
    functions: dict[int, list[ptx_text.Statement]] = {}
    for statement in ptx_text.statements(text):
        if statement.opcode == ".reg" and not statement.function:
            return names  # it would be the same register in all functions
        if not statement.function and ".func" in statement.text and ".extern" not in statement.text:
            for name in ptx_text.NAME.findall(statement.text):
                reading.pop(name, None)  # it is the module's own
        if statement.opcode.startswith("."):
            _, initialised, value = statement.text.partition("=")
            if initialised:
                written |= names.intersection(ptx_text.NAME.findall(value))
        if statement.function:
            functions.setdefault(statement.function, []).append(statement)
    for statements in functions.values():
        used = names.intersection(name for statement in statements for name in ptx_text.NAME.findall(statement.text))
        if used - written:
            written |= _Flow(used, statements, reading).written
    return frozenset(written)


def _declared_names(text: str) -> Iterator[str]:
    for match in _DECLARATION.finditer(text):
        if _HANDLE.search(match[1]) or text[max(0, match.start() - 80) : match.start()].rstrip().endswith(".ptr"):
            continue  # a parameter, which points there
        yield from _names_in(match[1])


def _names_in(declaration: str) -> Iterator[str]:
    for declarator in ptx_text.split(declaration):
        found = _DECLARED.search(declarator.partition("=")[0])
        if found and found[2]:
            yield from (f"{found[1]}{index}" for index in range(min(int(found[2]), 1 << 16)))
        elif found:
            yield found[1]


_MAX_ROUNDS = 64
"""Where a chain of registers is longer against the order of the text, or ``ptx_text.code_of`` gives up, every variable counts:
nobody can keep a worker busy with a text."""

_READS = frozenset({"ld", "ldu", "prefetch", "prefetchu", "setp", "set", "isspacep"})
_COMPUTES = frozenset(
    {
        *(
            "mov",
            "cvta",
            "cvt",
            "add",
            "addc",
            "sub",
            "subc",
            "mad",
            "madc",
            "mul",
            "mul24",
            "mad24",
            "sad",
            "selp",
            "slct",
            "shl",
        ),
        *("shr", "shf", "and", "or", "xor", "not", "neg", "abs", "min", "max", "lop3", "prmt", "bfe", "bfi"),
    }
)
"""The result, the first operand, comes from the other operands alone."""
_PLACE = re.compile(r"\s*\[\s*([\w$%]+)\s*(?:\+\s*\d+\s*)?\]\s*")
_READING_CALLS = {"vprintf": 1, "__assertfail": 5}
"""Functions of every device, and how many of their first arguments point to what they only read."""


class _Flow:
    """Where the addresses of variables come to within one function."""

    def __init__(self, names: Collection[str], statements: list[ptx_text.Statement], calls: dict[str, int]) -> None:
        """``calls`` are the functions that only read, as ``_READING_CALLS`` has them."""
        self._calls = calls
        self._holds: dict[str | tuple[int, str], set[str]] = {name: {name} for name in names}
        """By register, or by block and parameter of a call: the variables whose addresses may be in it."""
        for statement in statements:
            if statement.opcode == ".param":
                self._holds |= {(statement.block, name): set() for name in ptx_text.NAME.findall(statement.text)}
        self.written: set[str] = set()
        """Those that may be written, or whose addresses go where they are not followed."""
        instructions = [statement for statement in statements if not statement.opcode.startswith(".")]
        known = 0
        for _ in range(_MAX_ROUNDS):
            for statement in instructions:
                self._follow(statement)
            if known == (known := sum(map(len, self._holds.values()))):
                return
        self.written |= set(names)

    def _variables(self, text: str, block: int) -> set[str]:
        """Return the variables whose addresses may be in operands."""
        found: set[str] = set()
        for name in ptx_text.NAME.findall(text):
            found |= self._holds.get(name, set()) | self._holds.get((block, name), set())
        return found

    def _follow(self, statement: ptx_text.Statement) -> None:
        _, block, opcode, modifiers, text = statement
        variables = self._variables(text, block)
        if not variables:
            return
        result, *operands = ptx_text.split(text)
        if opcode in _READS:
            if ".param" in modifiers:
                self.written |= self._variables(",".join(operands), block)
        elif opcode in _COMPUTES:
            variables = self._variables(",".join(operands), block)
            for name in ptx_text.NAME.findall(result):
                self._holds[name] = self._holds.get(name, set()) | variables
        elif opcode == "st" and (place := _PLACE.fullmatch(result)) and (block, place[1]) in self._holds:
            self._holds[block, place[1]] |= self._variables(",".join(operands), block)
        elif opcode == "call":
            self.written |= self._given_away(text, block)
        else:
            self.written |= variables

    def _given_away(self, text: str, block: int) -> set[str]:
        """Return the variables whose addresses a call gives to what may write there."""
        parts = [part.strip() for part in ptx_text.split(text)]
        at = next((index for index, part in enumerate(parts) if not part.startswith("(")), len(parts))
        reading = self._calls.get(parts[at], 0) if at < len(parts) else 0
        if at + 1 < len(parts) and parts[at + 1].startswith("("):
            arguments = ptx_text.split(parts[at + 1].strip("()"))
            parts[at + 1] = ",".join(arguments[reading:])
        return self._variables(",".join(parts), block)


class Form(NamedTuple):
    """A unit of an ``Image`` in a form that the driver loads."""

    code: bytes
    variables: frozenset[str]
    """The names of those that its kernels may write."""


def forms(unit: bytes, sm: int) -> list[Form]:
    """Return the forms of a unit for a GPU of this compute capability, times ten: the first one is best.

    Where its kernels write variables, the driver has to tell where these are. It surely does for those of PTX that are made
    visible here; of machine code it may not know all names. Raises ``UnsupportedLibrary`` where the unit is not whole.
    """
    names = writable_variables(unit)
    if not names or unit.startswith(elf.MAGIC):
        return [Form(unit, names)]
    if not unit.startswith(fatbin.MAGIC):
        return [_visible(unit.rstrip(b"\0").decode())]
    entries = [entry for bundle in fatbin.read_fatbins(unit) for entry in bundle.entries if entry.kind == fatbin.KIND_PTX]
    fitting = [entry for entry in entries if entry.sm <= sm]
    newest = max(fitting, key=lambda entry: entry.sm, default=None)
    return [Form(unit, names), *([_visible(newest.content.rstrip(b"\0").decode())] if newest else [])]


_AT_MODULE_SCOPE = re.compile(
    rf"{ptx_text.OUTSIDE_CODE.pattern}|\.(?:visible|weak|extern|common)\s+\.global(?![\w:])|(?<![\w$%.:])\.global(?![\w:])|[(){{}}]",
    re.DOTALL | re.MULTILINE,
)


def _visible(text: str) -> Form:
    """Return PTX whose variables at module scope can be found by name, those that kernels may write."""
    names = writable_in_ptx(text)
    parts, start, depth = [], 0, 0
    for match in _AT_MODULE_SCOPE.finditer(text):
        token = match[0]
        if token in "({":
            depth += 1
        elif token in ")}":
            depth -= 1
        elif (
            token == ".global" and not depth and not names.isdisjoint(_names_in(text[match.end() : text.find(";", match.end())]))
        ):
            parts += [text[start : match.start()], ".visible "]
            start = match.start()
    return Form("".join([*parts, text[start:]]).encode() + b"\0", names)
