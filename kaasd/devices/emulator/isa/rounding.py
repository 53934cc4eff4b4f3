"""Exact rounding of floating-point results: modes other than to nearest, flushing, saturation, NaN."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I32, VOID, Builder, const, i32
from kaasd.devices.emulator.ptx.forms import Match

MODES = {"rz": 0, "rn": 1, "rp": 2, "rm": 3}
"""PTX's rounding modes as the numbers of LLVM's ``set.rounding``."""

CANONICAL_NAN = Emitter.CANONICAL_NAN

_SUFFIX = {"float": "f32", "double": "f64"}


def suffix(kind: ir.Type) -> str:
    """How LLVM's intrinsics name a type."""
    return _SUFFIX.get(str(kind)) or str(kind)


def flush(t: Emitter, value: Any) -> Any:
    """Replace a single-precision subnormal by a zero of its sign."""
    if not isinstance(value.type, ir.FloatType):
        return value
    b = t.b
    bits = b.bitcast(value, I32)
    subnormal = b.not_(b.bits(bits, 0x7F800000))
    return b.bitcast(b.select(subnormal, b.and_(bits, i32(0x80000000)), bits), value.type)


def canonical(t: Emitter, value: Any) -> Any:
    """Replace any single-precision NaN by the canonical one."""
    return t.canonical(value) if isinstance(value.type, ir.FloatType) else value


def saturate(t: Emitter, value: Any) -> Any:
    """Clamp to [0, 1]; NaN becomes 0."""
    b = t.b
    zero, one = (ir.Constant(value.type, float(number)) for number in (0, 1))
    positive = b.select(b.fcmp_ordered(">", value, zero), value, zero)
    return b.select(b.fcmp_ordered("<", positive, one), positive, one)


def finish(t: Emitter, m: Match, value: Any) -> Any:
    """Apply ``.ftz`` and ``.sat`` to a result, and make its NaN canonical."""
    if "ftz" in m:
        value = flush(t, value)
    if "sat" in m:
        return saturate(t, value)
    return value if t.writes_late_nan else canonical(t, value)


def inputs(t: Emitter, m: Match, *values: Any) -> list[Any]:
    """Apply ``.ftz`` to sources."""
    return [flush(t, value) for value in values] if "ftz" in m else list(values)


def rounded(t: Emitter, operation: str, mode: str | None, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """Compute in a rounding mode. ``operation`` is LLVM's: fadd, fsub, fmul, fdiv, fma, sqrt, fptrunc, sitofp or uitofp."""
    if mode in (None, "rn"):
        return _to_nearest(t, operation, result, arguments)
    kinds = [argument.type for argument in arguments]
    name = f"{operation}.{mode}.{suffix(result)}.{suffix(kinds[0])}"

    def build(b: Builder, function: ir.Function) -> None:
        # A function of its own that LLVM keeps whole: nothing may move in or out while the mode is another.
        for attribute in ("noinline", "strictfp"):
            set.add(function.attributes, attribute)
        metadata = ir.MetaDataType()
        words = [ir.MetaDataString(b.module, word) for word in ("round.dynamic", "fpexcept.ignore")]
        converts = operation in ("fptrunc", "sitofp", "uitofp")
        intrinsic = f"llvm.experimental.constrained.{operation}.{suffix(result)}" + (f".{suffix(kinds[0])}" if converts else "")
        kind = ir.FunctionType(result, [*kinds, metadata, metadata])
        set_mode = t.image.declare("llvm.set.rounding", ir.FunctionType(VOID, [I32]))
        for number, call in ((MODES[mode or "rn"], True), (MODES["rn"], False)):
            b.call(set_mode, [i32(number)])
            if call:
                value = b.call(t.image.declare(intrinsic, kind), [*function.args, *words])
        b.ret(value)

    return t.b.call(t.image.helper(name, ir.FunctionType(result, kinds), build), arguments)


def _to_nearest(t: Emitter, operation: str, result: ir.Type, arguments: tuple[ir.Value, ...]) -> ir.Value:
    if operation in ("fma", "sqrt"):
        return t.call(f"llvm.{operation}.{suffix(result)}", result, *arguments)
    if operation in ("fptrunc", "sitofp", "uitofp"):
        return getattr(t.b, operation)(arguments[0], result)
    return getattr(t.b, operation)(*arguments)


def real(kind: ir.Type, value: float) -> ir.Constant:
    """Return a floating-point constant."""
    return const(kind, value)
