"""What an instruction does to memory that other threads of its warp may see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kaasd.devices.emulator.codegen.emitter import SPACES
from kaasd.devices.emulator.isa.load_store import space_of
from kaasd.devices.emulator.ptx.routine import LabelName, Memory, Operation, Storage

_READS = ("ld", "ldu", "ldmatrix")
_ATOMIC = ("atom", "red")
_SURFACE = ("suld", "sust")
"""A launch has no buffer both as a surface and otherwise, so that they meet each other only."""
_NONE = ("prefetch", "prefetchu", "applypriority", "discard", "createpolicy", "cvta", "isspacep", "tex", "tld4", "txq", "suq")
_COMMUTING = ("add", "min", "max", "and", "or", "xor")
_LIBRARY = {"vprintf": "printed", "malloc": "heap", "__cuda_syscall_aligned_malloc": "heap", "free": "heap"}
"""What functions of the device library change besides, as a space of its own."""
VECTORS = {"v2": 2, "v4": 4, "v8": 8}


@dataclass(frozen=True, slots=True)
class Access:
    """An access to memory that is not the thread's own."""

    space: str
    """``shared``, ``global``, or empty where the address says it; or something that only functions of the library change."""
    writes: bool
    memory: Memory | None = None
    """Where, if that can be told."""
    size: int = 0
    """Of all of it, in bytes."""
    commutes: str = ""
    """What it does, if others that do the same may come before or after it."""


def accesses(operation: Operation) -> Iterator[Access]:
    """Yield the accesses of an operation."""
    opcode, match = operation.source.opcode, operation.match
    memories = [operand for operand in operation.operands if isinstance(operand, Memory)]
    if opcode == "call":
        target = operation.operands[1]
        if isinstance(target, LabelName) and target.name in _LIBRARY:
            yield Access(_LIBRARY[target.name], True)
    elif opcode in _NONE or not memories:
        return
    elif opcode in _SURFACE:
        yield Access("surface", opcode == "sust")
    elif "bulk" in match.mnemonic or (opcode in ("st", "red") and "async" in match.mnemonic):
        yield Access("", True)
    elif opcode in (*_READS, "st", *_ATOMIC):
        space = _space(space_of(match).removesuffix("::cluster"), memories[0])
        if space is None:
            return
        if opcode == "ldmatrix":
            yield Access(space, False)
            return
        size = match.type.bytes * VECTORS.get(match["vec"] or "", 1)
        operator = match["op"] if opcode == "red" and match["op"] in _COMMUTING else None
        yield Access(space, opcode not in _READS, memories[0], size, f"{operator}.{match.type.name}" if operator else "")
    elif match.mnemonic.startswith("cp.async"):
        yield Access("shared", True)
        if len(memories) > 1:
            yield Access("global", False)
    elif opcode == "mbarrier":
        yield Access("shared", "wait" not in match.mnemonic)
    elif opcode == "wmma":
        yield Access(space_of(match), "store" in match.mnemonic)
    else:
        yield Access("", True)


def _space(named: str, memory: Memory) -> str | None:
    """Return the space of an access, or None if what is there is the thread's own or never changes."""
    if isinstance(memory.base, Storage) and memory.base.space in SPACES:
        named = memory.base.space
    return None if named in ("param", "local", "const") else named
