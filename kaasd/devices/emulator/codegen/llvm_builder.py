"""Small helpers over llvmlite: structures shared between Python and native code, and structured control flow."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

I1, I8, I16, I32, I64, I128 = (ir.IntType(n) for n in (1, 8, 16, 32, 64, 128))
PTR = ir.PointerType()
VOID = ir.VoidType()

_FIELD_TYPES: dict[str, tuple[type, ir.Type]] = {
    "i32": (ctypes.c_uint32, I32),
    "i64": (ctypes.c_uint64, I64),
    "ptr": (ctypes.c_void_p, PTR),
}


class Struct:
    """A structure laid out alike for ctypes and for LLVM. Fields are given as ``name="i32" | "i64" | "ptr"``."""

    def __init__(self, name: str, **fields: str) -> None:
        self.names = tuple(fields)
        self.types = tuple(_FIELD_TYPES[kind][1] for kind in fields.values())
        self.ir = ir.LiteralStructType(self.types)
        self.ctype: type[Any] = type(
            name, (ctypes.Structure,), {"_fields_": [(field, _FIELD_TYPES[kind][0]) for field, kind in fields.items()]}
        )

    @property
    def size(self) -> int:
        return ctypes.sizeof(self.ctype)

    def offset(self, name: str) -> int:
        """Bytes from the start to field ``name``."""
        offset: int = getattr(self.ctype, name).offset
        return offset


def const(kind: ir.Type, value: int | float) -> ir.Constant:
    """Return a constant; an integer is wrapped to the width of its type."""
    if isinstance(kind, ir.IntType):
        return ir.Constant(kind, int(value) & ((1 << kind.width) - 1))
    return ir.Constant(kind, value)


def i32(value: int) -> ir.Constant:
    return const(I32, value)


def i64(value: int) -> ir.Constant:
    return const(I64, value)


class _Opaque:
    """A global variable seen as an opaque pointer, whatever type llvmlite gives it."""

    type = PTR

    def __init__(self, variable: ir.GlobalVariable) -> None:
        self.get_reference = variable.get_reference


class Builder(ir.IRBuilder):
    """An LLVM builder that knows structures, typed memory and loops.

    Loads and stores are tagged so that LLVM knows that a kernel's memory never overlaps the emulator's own state.
    """

    def __init__(self, block: ir.Block) -> None:
        super().__init__(block)
        module = block.module
        if not hasattr(module, "kaasd_tags"):
            root = module.add_metadata(["kaasd"])
            tags = {}
            for name in ("state", "memory"):
                kind = module.add_metadata([name, root, i64(0)])
                tags[name] = module.add_metadata([kind, kind, i64(0)])
            module.kaasd_tags = tags
        self._tags = module.kaasd_tags

    def alloca(self, kind: ir.Type, size: Any = None, name: str = "") -> ir.Value:
        """Allocate on the stack; the pointer is opaque, as all are here."""
        pointer = super().alloca(kind, size, name)
        pointer.type = PTR
        return pointer

    def at(self, pointer: ir.Value, offset: ir.Value | int) -> ir.Value:
        """Return ``pointer`` moved by ``offset`` bytes."""
        return self.gep(pointer, [i64(offset) if isinstance(offset, int) else offset], source_etype=I8)

    def item(self, pointer: ir.Value, kind: ir.Type, index: ir.Value | int) -> ir.Value:
        """Return the address of element ``index`` of an array of ``kind``."""
        pointer = self.opaque(pointer)
        return self.gep(pointer, [i64(index) if isinstance(index, int) else index], source_etype=kind)

    def opaque(self, variable: ir.Value) -> ir.Value:
        """Return the address of a global variable as an opaque pointer."""
        return self.gep(_Opaque(variable), [i64(0)], source_etype=I8) if isinstance(variable, ir.GlobalVariable) else variable

    def load_as(self, kind: ir.Type, pointer: ir.Value, tag: str = "state", align: int | None = None) -> ir.Value:
        """Load a value. ``tag`` is ``state`` for the emulator's own data and ``memory`` for the kernel's."""
        value = self.load(pointer, typ=kind, align=align)
        value.set_metadata("tbaa", self._tags[tag])
        return value

    def store_as(self, value: ir.Value, pointer: ir.Value, tag: str = "state", align: int | None = None) -> None:
        self.store(value, pointer, align=align).set_metadata("tbaa", self._tags[tag])

    def load_strong(self, kind: ir.Type, pointer: ir.Value, ordering: str, align: int) -> ir.Value:
        """Load a kernel's value that another core may be writing."""
        value = self.load_atomic(pointer, ordering, align, typ=kind)
        value.set_metadata("tbaa", self._tags["memory"])
        return value

    def store_strong(self, value: ir.Value, pointer: ir.Value, ordering: str, align: int) -> None:
        """Store a kernel's value that another core may be reading."""
        # Not ``store_atomic``: llvmlite 0.50 asks an opaque pointer what it points to.
        instruction = ir.instructions.StoreAtomicInstr(self.block, value, pointer, ordering, align)
        instruction.set_metadata("tbaa", self._tags["memory"])
        self._insert(instruction)

    def field(self, struct: Struct, pointer: ir.Value, name: str) -> ir.Value:
        """Return the address of a field."""
        return self.gep(pointer, [i32(0), i32(struct.names.index(name))], source_etype=struct.ir)

    def get(self, struct: Struct, pointer: ir.Value, name: str) -> ir.Value:
        return self.load_as(struct.types[struct.names.index(name)], self.field(struct, pointer, name))

    def get_fixed(self, struct: Struct, pointer: ir.Value, name: str) -> ir.Value:
        """Load a field that stays as it is for as long as the function at hand and those that it becomes a part of run."""
        return self.load_fixed(struct.types[struct.names.index(name)], self.field(struct, pointer, name))

    def load_fixed(self, kind: ir.Type, pointer: ir.Value, align: int | None = None) -> ir.Value:
        """Load a value that stays so: LLVM may load it once for all threads."""
        value = self.load(pointer, typ=kind, align=align)
        value.set_metadata("invariant.load", self.module.add_metadata([]))
        return value

    def put(self, struct: Struct, pointer: ir.Value, **values: ir.Value | int) -> None:
        """Store into fields."""
        for name, value in values.items():
            kind = struct.types[struct.names.index(name)]
            self.store_as(const(kind, value) if isinstance(value, int) else value, self.field(struct, pointer, name))

    def bump(self, struct: Struct, pointer: ir.Value, name: str, by: ir.Value | int) -> ir.Value:
        """Add ``by`` to an integer field and return its new value."""
        old = self.get(struct, pointer, name)
        new = self.add(old, const(old.type, by) if isinstance(by, int) else by)
        self.put(struct, pointer, **{name: new})
        return new

    def variable(self, kind: ir.Type, value: ir.Value | int | None = None) -> ir.Value:
        """Return a mutable local variable (an alloca in the entry block, so that it becomes a register)."""
        with self.goto_entry_block():
            pointer = self.alloca(kind)
        if value is not None:
            self.store(const(kind, value) if isinstance(value, int) else value, pointer)
        return pointer

    def is_(self, operator: str, a: ir.Value, b: ir.Value | int) -> ir.Value:
        """Compare as unsigned."""
        return self.icmp_unsigned(operator, a, const(a.type, b) if isinstance(b, int) else b)

    @contextmanager
    def count(self, limit: ir.Value) -> Iterator[ir.Value]:
        """Loop with an index from 0 up to ``limit``."""
        index = self.variable(limit.type, 0)
        with self.while_(lambda: self.is_("<", self.load(index, typ=limit.type), limit)):
            value = self.load(index, typ=limit.type)
            yield value
            if not self.block.is_terminated:
                self.store(self.add(value, const(limit.type, 1)), index)

    @contextmanager
    def while_(self, condition: Any) -> Iterator[None]:
        """Loop while ``condition()``, evaluated before each round, holds."""
        head, body, end = (self.append_basic_block(name) for name in ("while", "do", "done"))
        self.branch(head)
        self.position_at_end(head)
        self.cbranch(condition(), body, end)
        self.position_at_end(body)
        yield
        if not self.block.is_terminated:
            self.branch(head)
        self.position_at_end(end)

    @contextmanager
    def when(self, condition: ir.Value, likely: bool | None = None) -> Iterator[None]:
        """Run the body only if ``condition`` holds; the body may end with a return."""
        with self.if_then(condition, likely=likely):
            yield

    def resize(self, value: ir.Value, kind: ir.IntType) -> ir.Value:
        """Truncate or zero-extend an integer."""
        if value.type.width == kind.width:
            return value
        return self.trunc(value, kind) if value.type.width > kind.width else self.zext(value, kind)

    def bits(self, value: ir.Value, mask: ir.Value | int) -> ir.Value:
        """Whether ``value & mask`` is not zero."""
        mask = const(value.type, mask) if isinstance(mask, int) else mask
        return self.is_("!=", self.and_(value, mask), 0)
