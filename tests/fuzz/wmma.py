"""Products of matrices that a warp loads from memory and stores there: which thread has which element is open meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from kaasd.devices.emulator.ptx.types import TYPES
from tests.fuzz.elements import NUMBERS, width_of
from tests.fuzz.memory import BASES, point
from tests.fuzz.program import CONVERGE, Program, Step
from tests.fuzz.values import THREADS

_PART = 32
"""Bytes of each matrix that a thread fills; the largest matrix has 1 KiB."""
_WARP = 32

_WIDE = ("m16n16k16", "m32n8k16", "m8n32k16")
_SHAPES = {"f16": _WIDE, "bf16": _WIDE, "s8": _WIDE, "u8": _WIDE, "tf32": ("m16n16k8",), "f64": ("m8n8k4",)}
_SHAPES |= {"s4": ("m8n8k32",), "u4": ("m8n8k32",), "b1": ("m8n8k128",)}
_SUMS = {"f16": ("f16", "f32"), "bf16": ("f32",), "tf32": ("f32",), "f64": ("f64",)}
"""What products of a type are added to; integers otherwise."""


@dataclass(frozen=True)
class _Product:
    """What is multiplied: types and layouts of the matrices, and the shape."""

    shape: str
    factor: str
    addend: str
    result: str
    layouts: tuple[str, str]

    def size(self, part: str) -> int:
        """How many elements a matrix has."""
        m, n, k = map(int, self.shape[1:].replace("n", " ").replace("k", " ").split())
        return {"a": m * k, "b": k * n}.get(part, m * n)

    def registers(self, part: str) -> int:
        """How many registers of a thread hold its part of a matrix."""
        kind = {"a": self.factor, "b": self.factor, "c": self.addend}.get(part, self.result)
        if kind == "f16" and part in "ab":
            return 8
        return max(1, self.size(part) * width_of(kind) // _WARP // (64 if kind == "f64" else 32))

    def mnemonic(self, satfinite: bool) -> str:
        """Of the product itself."""
        head = f"sync.aligned.{'.'.join(self.layouts)}.{self.shape}"
        match self.factor:
            case "b1":
                return f"wmma.mma.xor.popc.{head}.s32.b1.b1.s32"
            case "f16":
                return f"wmma.mma.{head}.{self.result}.{self.addend}"
            case "f64":
                return f"wmma.mma.{head}.f64.f64.f64.f64.rn"
        saturates = satfinite and self.result == "s32"
        return f"wmma.mma.{head}.{self.result}.{self.factor}.{self.factor}.{self.addend}{'.satfinite' * saturates}"


def _draw(program: Program) -> _Product:
    rng = program.rng
    factor = rng.choice(list(_SHAPES))
    addend, result = (rng.choice(_SUMS.get(factor, ("s32",))) for _ in range(2))
    narrow = width_of(factor) < 8
    layouts = ("row", "col") if narrow else (rng.choice(("row", "col")), rng.choice(("row", "col")))
    return _Product(rng.choice(_SHAPES[factor]), factor, addend, result, layouts)


def multiply_in_memory(program: Program) -> None:
    """A product of matrices loaded from memory; the result is stored over the matrix added to it."""
    rng = program.rng
    product = _draw(program)
    with program.step(mnemonic := product.mnemonic(bool(rng.getrandbits(1)))) as step:
        step.together = True
        where = rng.choice(("shared", "global"))
        fills = {part: _fill(program, step, where, kind) for part, kind in _kinds(product)}
        step.lines.append(CONVERGE)
        space = rng.choice((f".{where}", "")) if where == "global" else ".shared"
        fragments = {part: _fragment(program, product, part) for part in "abcd"}
        layouts = dict(zip("abc", (*product.layouts, rng.choice(("row", "col"))), strict=True))
        for part, kind in _kinds(product):
            form = f"wmma.load.{part}.sync.aligned.{layouts[part]}.{product.shape}{space}.{kind}"
            step.lines.append(f"{form} {fragments[part]}, [{fills[part][1]}];")
        step.lines.append(f"{mnemonic} {', '.join(fragments[part] for part in 'dabc')};")
        layout = rng.choice(("row", "col"))
        step.lines.append(
            f"wmma.store.d.sync.aligned.{layout}.{product.shape}{space}.{product.result} [{fills['c'][1]}], {fragments['d']};"
        )
        step.lines.append(CONVERGE)
        for offset in range(0, _PART, 8):
            result = program.fresh(64, "u64")
            step.lines.append(f"ld.{where}.b64 {result.name}, [{fills['c'][0]}+{offset}];")
            step.writes.append(result)


def _kinds(product: _Product) -> list[tuple[str, str]]:
    return [("a", product.factor), ("b", product.factor), ("c", product.addend)]


def _fill(program: Program, step: Step, where: str, kind: str) -> tuple[str, str]:
    """Have each thread fill its part of a matrix of its warp; return registers that point to the part and to the matrix."""
    start = program.take(where, _PART * THREADS)
    part, matrix, number = (program.fresh(bits, f"u{bits}").name for bits in (64, 64, 32))
    step.lines += point("%thread", BASES[where], start, _PART, part)
    step.lines += [f"shr.u32 {number}, %thread, 5;", *point(number, BASES[where], start, _PART * _WARP, matrix)]
    for offset in range(0, _PART, 8):
        value = program.fresh(64, "u64").name
        keep, add = NUMBERS.get(kind, ((1 << 64) - 1, 0))
        step.lines += [f"and.b64 {value}, {program.source(TYPES['u64'], False)}, {keep:#x};"]
        step.lines += [f"or.b64 {value}, {value}, {add:#x};", f"st.{where}.b64 [{part}+{offset}], {value};"]
    return part, matrix


def _fragment(program: Program, product: _Product, part: str) -> str:
    bits = 64 if product.factor == "f64" else 32
    return f"{{{', '.join(program.fresh(bits, f'u{bits}').name for _ in range(product.registers(part)))}}}"
