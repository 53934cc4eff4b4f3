"""The fundamental types of PTX, the LLVM types that hold their values, and how sizes are rounded to alignments."""

from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir as llvm


@dataclass(frozen=True, slots=True)
class Type:
    """A PTX type. Values of f32 and f64 are LLVM floats; of all others, half precision included, integers of their width."""

    name: str
    kind: str
    """``u``, ``s``, ``b``, ``f`` (and its packed and narrow kin), or ``p`` for predicates."""
    bits: int

    @property
    def bytes(self) -> int:
        return max(1, self.bits // 8)

    @property
    def signed(self) -> bool:
        return self.kind == "s"

    @property
    def floating(self) -> bool:
        """Whether values are LLVM floats."""
        return self.name in ("f32", "f64")

    @property
    def ir(self) -> llvm.Type:
        if self.floating:
            return llvm.FloatType() if self.bits == 32 else llvm.DoubleType()
        return llvm.IntType(self.bits)

    @property
    def raw(self) -> llvm.IntType:
        """The integer type of the same width."""
        return llvm.IntType(self.bits)

    @property
    def wide(self) -> Type:
        """The integer type of twice the width."""
        return TYPES[f"{self.kind}{self.bits * 2}"]

    def constant(self, value: int) -> llvm.Constant:
        """Return an integer constant of this type."""
        return llvm.Constant(self.raw, value & ((1 << self.bits) - 1))


def _all_types() -> dict[str, Type]:
    types = [Type(f"{kind}{bits}", kind, bits) for kind in "usb" for bits in (8, 16, 32, 64)]
    types += [Type(f"{kind}128", kind, 128) for kind in "usb"]
    types += [Type("f16", "f", 16), Type("f32", "f", 32), Type("f64", "f", 64), Type("bf16", "f", 16), Type("tf32", "f", 32)]
    types += [Type("f16x2", "f", 32), Type("bf16x2", "f", 32), Type("u16x2", "u", 32), Type("s16x2", "s", 32)]
    types += [Type("e4m3", "f", 8), Type("e5m2", "f", 8), Type("e4m3x2", "f", 16), Type("e5m2x2", "f", 16)]
    types += [Type("u4", "u", 4), Type("s4", "s", 4), Type("b1", "b", 1), Type("pred", "p", 1)]
    return {kind.name: kind for kind in types}


TYPES = _all_types()
U8, U16, U32, U64 = (TYPES[f"u{bits}"] for bits in (8, 16, 32, 64))
S32, S64, B32, B64, B128 = (TYPES[name] for name in ("s32", "s64", "b32", "b64", "b128"))
F16, F32, F64, BF16 = (TYPES[name] for name in ("f16", "f32", "f64", "bf16"))
PRED = TYPES["pred"]


def align(size: int, to: int = 16) -> int:
    """Round ``size`` up."""
    return (size + to - 1) // to * to
