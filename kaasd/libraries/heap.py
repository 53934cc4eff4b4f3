"""Which kernels of a library use the heap of device code: ``malloc`` and ``free``, ``new`` and ``delete``.

Pure: bytes in, names out. In PTX, calls are followed from statement to statement; in a cubin, along the call graph that ptxas
leaves in it. Who calls through a pointer may come to any function whose address is taken. Where in doubt, a kernel counts.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from kaas_core import ptx_text
from kaasd.libraries import elf, fatbin

HEAP_FUNCTIONS = ("malloc", "__cuda_syscall_aligned_malloc", "free")
"""Of every device; ``new`` and ``delete`` call them, and so does ``cudaMalloc`` of device code."""


def heap_users(units: Iterable[bytes]) -> Mapping[str, str]:
    """Return the kernels of the units of an ``Image`` that use the heap, each with the function that it comes to.

    Raises ``UnsupportedLibrary`` where a unit is not whole.
    """
    users: dict[str, str] = {}
    for unit in units:
        for graph in _graphs(unit):
            users |= graph.users()
    return users


def _graphs(unit: bytes) -> Iterator[_Calls]:
    if unit.startswith(elf.MAGIC):
        yield _of_cubin(elf.read_elf(unit))
    elif not unit.startswith(fatbin.MAGIC):
        yield _of_ptx(unit.rstrip(b"\0").decode())
    else:
        for bundle in fatbin.read_fatbins(unit):
            for entry in bundle.entries:
                if entry.kind == fatbin.KIND_PTX:
                    yield _of_ptx(entry.content.rstrip(b"\0").decode())
                elif entry.kind == fatbin.KIND_CUBIN:
                    yield _of_cubin(elf.read_elf(entry.content))


@dataclass(slots=True)
class _Calls:
    """Who calls whom in one unit."""

    kernels: set[str] = field(default_factory=set)
    callers: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Of each function."""
    indirect: set[str] = field(default_factory=set)
    """Functions that call through a pointer."""
    pointed_at: set[str] = field(default_factory=set)
    """Functions whose address is taken."""
    heap: tuple[str, ...] = ()
    """Those of ``HEAP_FUNCTIONS`` that are not the unit's own."""
    is_unknown: bool = False
    """Who calls is not told."""

    def users(self) -> dict[str, str]:
        """Return the kernels that come to the heap, with the function."""
        found: dict[str, str] = {}
        for function in reversed(self.heap):
            users = self.kernels if self.is_unknown else self._coming_to(function) & self.kernels
            found |= dict.fromkeys(users, function)
        return found

    def _coming_to(self, function: str) -> set[str]:
        found, waiting = {function}, [function]
        while waiting:
            name = waiting.pop()
            more = self.callers[name] | (self.indirect if name in self.pointed_at else set())
            waiting += more - found
            found |= more
        return found


_MENTIONED = re.compile(rf"(?<![\w$%])(?:{'|'.join(HEAP_FUNCTIONS)})(?![\w$%])")
_ATTRIBUTE = re.compile(r"\.attribute\s*\((?:[^()]|\([^()]*\))*\)")
_HEADING = re.compile(r"\.(entry|func)(?![\w:])\s*(?:\([^()]*\)\s*)?([\w$%]+)")
_KERNEL = re.compile(r"\.entry\s+([\w$%]+)")


def _of_ptx(text: str) -> _Calls:
    calls = _Calls()
    if not _MENTIONED.search(text):
        return calls
    text, is_plain = ptx_text.code_of(text)
    calls.kernels.update(_KERNEL.findall(text))
    if not is_plain:
        calls.heap, calls.is_unknown = HEAP_FUNCTIONS, True
        return calls
    statements = [statement._replace(text=_ATTRIBUTE.sub(" ", statement.text)) for statement in ptx_text.statements(text)]
    functions = {name for each in statements if not each.function for _, name in _HEADING.findall(each.text)}
    defined: set[str] = set()
    owner, number = "", 0
    for statement in statements:
        if not statement.function:
            for _, name in _HEADING.findall(statement.text):
                owner = name
            if statement.opcode == ".alias":
                alias, *others = ptx_text.NAME.findall(statement.text)[1:]
                for other in others:
                    calls.callers[other].add(alias)
            calls.pointed_at |= functions.intersection(ptx_text.NAME.findall(statement.text.partition("=")[2]))
            continue
        if statement.function != number:
            number = statement.function
            defined.add(owner)
        named = functions.intersection(ptx_text.NAME.findall(statement.text))
        if statement.opcode == "call":
            target = next((part.strip() for part in ptx_text.split(statement.text) if not part.strip().startswith("(")), "")
            if target in functions:
                calls.callers[target].add(owner)
                named.discard(target)
            else:
                calls.indirect.add(owner)
        calls.pointed_at |= named
    calls.heap = tuple(name for name in HEAP_FUNCTIONS if name in functions - defined)
    return calls


_PAIR = struct.Struct("<II")
_DIRECT, _TAKEN, _THROUGH_POINTER = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD
"""In a call graph: what the pairs that follow say. A direct call has caller and callee; the others a function, whose address is
taken or which calls through a pointer, and a number for the type of function. Seen in cubins of ptxas 12.4 and 13.0."""
_CALL_GRAPH = b".nv.callgraph"


def _of_cubin(file: elf.Elf) -> _Calls:
    functions = {symbol.name for symbol in file.symbols if symbol.is_function}
    calls = _Calls({symbol.name for symbol in file.symbols if symbol.is_kernel})
    calls.heap = tuple(name for name in HEAP_FUNCTIONS if name in functions)
    if not calls.heap:
        return calls
    section = file.section(_CALL_GRAPH)
    table, kind = section or memoryview(b""), _DIRECT
    for first, second in _PAIR.iter_unpack(table[: len(table) // _PAIR.size * _PAIR.size]):
        if not first:
            kind = second
        elif first >= len(file.symbols) or (kind == _DIRECT and second >= len(file.symbols)):
            calls.is_unknown = True
        elif kind == _DIRECT:
            calls.callers[file.symbols[second].name].add(file.symbols[first].name)
        elif kind == _TAKEN:
            calls.pointed_at.add(file.symbols[first].name)
        elif kind == _THROUGH_POINTER:
            calls.indirect.add(file.symbols[first].name)
    if any(name not in calls.callers for name in calls.heap):
        calls.is_unknown = True  # it is there, and nobody calls it
    return calls
