"""Matrix operations of a warp: layouts as the manual draws them, products against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from kaasd.devices.emulator import EmulatedDevice
from tests.devices.emulator.runner import Array, array_of, buffer_of, evaluate, kernel, launch, read_write

RNG = np.random.default_rng(12)
LANES = np.arange(32)


def warp(code: str, results: int, inputs: list[Array], wide: bool = False) -> Array:
    """Run code in one warp; inputs are arrays of (lane, register). Returns an array of (lane, register)."""
    kinds, width = ("u8", "b64") if wide else ("u4", "b32")
    rows = np.concatenate([x.reshape(32, -1).view(kinds) for x in inputs], axis=1)
    size = rows.dtype.itemsize
    body = f".reg .{width} %x<{rows.shape[1]}>, %y<{results}>; .reg .b64 %out; ld.param.u64 %out, [p1];\n"
    body += f"mad.wide.u32 %at, %i, {rows.shape[1] * size}, %p0;\n"
    body += "\n".join(f"ld.global.{width} %x{i}, [%at+{i * size}];" for i in range(rows.shape[1])) + "\n" + code
    body += f"\nmad.wide.u32 %at, %i, {results * size}, %out;\n"
    body += "\n".join(f"st.global.{width} [%at+{i * size}], %y{i};" for i in range(results))
    device = EmulatedDevice()
    module = device.load(kernel(body, ".param .u64 p0, .param .u64 p1"))
    data, out = buffer_of(device, np.ascontiguousarray(rows)), buffer_of(device, np.zeros((32, results), kinds))
    device.run([launch(module, "k", (1, 1, 1), (32, 1, 1), read_write("in", data), read_write("out", out))], 1)
    result = array_of(out, kinds).reshape(32, results)
    device.close()
    return result


def registers(name: str, start: int, count: int) -> str:
    return "{" + ", ".join(f"%{name}{start + i}" for i in range(count)) + "}"


def pack(elements: Array, bits: int) -> Array:
    """Pack arrays of (lane, element) into words, lowest first. Elements are patterns."""
    per_word = 32 // bits
    grouped = elements.reshape(32, -1, per_word).astype("u8")
    shifts = np.arange(per_word, dtype="u8") * np.uint64(bits)
    return (grouped << shifts).sum(axis=2).astype("u4")


def a_places(rows: int, depth: int, per_register: int) -> tuple[Array, Array]:
    """Row and column of each element of A, as arrays of (lane, element): the manual's figures for m16 and m8 shapes."""
    count = rows * depth // 32
    i = np.arange(count)[None, :]
    lane = LANES[:, None]
    register, inside = i // per_register, i % per_register
    if rows == 16:
        row = lane // 4 + 8 * (register % 2)
        column = (lane % 4) * per_register + inside + 4 * per_register * (register // 2)
    else:
        row, column = lane // 4 + 0 * i, (lane % 4) * per_register + inside + 4 * per_register * register
    return row, column


def b_places(depth: int, per_register: int) -> tuple[Array, Array]:
    i = np.arange(depth * 8 // 32)[None, :]
    lane = LANES[:, None]
    row = (lane % 4) * per_register + i % per_register + 4 * per_register * (i // per_register)
    return row, lane // 4 + 0 * i


def c_places(rows: int) -> tuple[Array, Array]:
    i = np.arange(rows * 8 // 32)[None, :]
    lane = LANES[:, None]
    return lane // 4 + 8 * (i // 2), (lane % 4) * 2 + i % 2


def bf16_of(values: Array) -> Array:
    return (values.astype("f4").view("u4") >> np.uint32(16)).astype("u2")


FLOATS = [  # shape, PTX type of A and B, bits
    ("m16n8k8", "f16", 16), ("m16n8k16", "f16", 16), ("m16n8k8", "bf16", 16), ("m16n8k16", "bf16", 16),
    ("m16n8k4", "tf32", 32), ("m16n8k8", "tf32", 32),
]  # fmt: skip


def sizes(shape: str) -> tuple[int, int, int]:
    m, n, k = (int(v) for v in shape[1:].replace("n", " ").replace("k", " ").split())
    return m, n, k


@pytest.mark.parametrize(("shape", "ptx", "bits"), FLOATS)
def test_mma_floats(shape: str, ptx: str, bits: int) -> None:
    m, n, k = sizes(shape)
    a, b, c = RNG.integers(-8, 9, (m, k)) / 4, RNG.integers(-8, 9, (k, n)) / 4, RNG.standard_normal((m, n)).astype("f4")
    encode = {"f16": lambda v: v.astype("f2").view("u2"), "bf16": bf16_of, "tf32": lambda v: v.astype("f4").view("u4")}[ptx]
    inputs = [
        pack(encode(a[a_places(m, k, 32 // bits)]), bits),
        pack(encode(b[b_places(k, 32 // bits)]), bits),
        np.ascontiguousarray(c[c_places(m)]),
    ]
    counts = [x.reshape(32, -1).shape[1] for x in inputs]
    names = [registers("x", sum(counts[:i]), count) for i, count in enumerate(counts)]
    code = f"mma.sync.aligned.{shape}.row.col.f32.{ptx}.{ptx}.f32 {registers('y', 0, 4)}, {', '.join(names)};"
    actual = warp(code, 4, inputs).view("f4")
    np.testing.assert_array_equal(actual, (a @ b + c)[c_places(m)].astype("f4"))  # those products are exact


def test_mma_half_results() -> None:
    a, b, c = RNG.integers(-8, 9, (16, 16)) / 4, RNG.integers(-8, 9, (16, 8)) / 4, RNG.integers(-8, 9, (16, 8)) / 4
    halves = [pack(v.astype("f2").view("u2"), 16) for v in (a[a_places(16, 16, 2)], b[b_places(16, 2)], c[c_places(16)])]
    code = "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%y0, %y1}, {%x0, %x1, %x2, %x3}, {%x4, %x5}, {%x6, %x7};"
    expected = pack((a @ b + c)[c_places(16)].astype("f2").view("u2"), 16)
    np.testing.assert_array_equal(warp(code, 2, halves), expected)


@pytest.mark.parametrize("shape", ["m8n8k4", "m16n8k4", "m16n8k8", "m16n8k16"])
def test_mma_doubles(shape: str) -> None:
    m, n, k = sizes(shape)
    a, b, c = (RNG.integers(-99, 100, s).astype("f8") for s in ((m, k), (k, n), (m, n)))
    inputs = [np.ascontiguousarray(v) for v in (a[a_places(m, k, 1)], b[b_places(k, 1)], c[c_places(m)])]
    counts = [x.shape[1] for x in inputs]
    names = [registers("x", sum(counts[:i]), count) for i, count in enumerate(counts)]
    code = f"mma.sync.aligned.{shape}.row.col.f64.f64.f64.f64 {registers('y', 0, counts[2])}, {', '.join(names)};"
    np.testing.assert_array_equal(warp(code, counts[2], inputs, wide=True).view("f8"), (a @ b + c)[c_places(m)])


INTEGERS = [
    (shape, a, b)
    for shapes, kinds in (("m8n8k16 m16n8k16 m16n8k32", ("u8", "s8")), ("m8n8k32 m16n8k32 m16n8k64", ("u4", "s4")))
    for shape in shapes.split()
    for a in kinds
    for b in kinds
]


@pytest.mark.parametrize(("shape", "a_type", "b_type"), INTEGERS)
def test_mma_integers(shape: str, a_type: str, b_type: str) -> None:
    m, n, k = sizes(shape)
    bits = int(a_type[1:])

    def matrix(kind: str, size: tuple[int, int]) -> Array:
        return RNG.integers(-(2 ** (bits - 1)) if kind[0] == "s" else 0, 2 ** (bits - (kind[0] == "s")), size)

    a, b, c = matrix(a_type, (m, k)), matrix(b_type, (k, n)), RNG.integers(-(2**31), 2**31, (m, n))
    inputs = [
        pack(a[a_places(m, k, 32 // bits)] & (2**bits - 1), bits),
        pack(b[b_places(k, 32 // bits)] & (2**bits - 1), bits),
        np.ascontiguousarray(c[c_places(m)].astype("i4").view("u4")),
    ]
    counts = [x.shape[1] for x in inputs]
    names = [registers("x", sum(counts[:i]), count) for i, count in enumerate(counts)]
    for modifier in ("", ".satfinite"):
        types = f"s32.{a_type}.{b_type}.s32"
        code = f"mma.sync.aligned.{shape}.row.col{modifier}.{types} {registers('y', 0, counts[2])}, {', '.join(names)};"
        total = a @ b + c
        expected = np.clip(total, -(2**31), 2**31 - 1) if modifier else total
        actual = warp(code, counts[2], inputs)
        np.testing.assert_array_equal(actual, expected[c_places(m)].astype("u8").astype("u4"))


@pytest.mark.parametrize("combine", ["xor", "and"])
@pytest.mark.parametrize("shape", ["m8n8k128", "m16n8k128", "m16n8k256"])
def test_mma_bits(shape: str, combine: str) -> None:
    m, n, k = sizes(shape)
    a, b, c = RNG.integers(0, 2, (m, k)), RNG.integers(0, 2, (k, n)), RNG.integers(0, 100, (m, n))
    inputs = [pack(a[a_places(m, k, 32)], 1), pack(b[b_places(k, 32)], 1), np.ascontiguousarray(c[c_places(m)].astype("u4"))]
    counts = [x.shape[1] for x in inputs]
    names = [registers("x", sum(counts[:i]), count) for i, count in enumerate(counts)]
    code = f"mma.sync.aligned.{shape}.row.col.s32.b1.b1.s32.{combine}.popc {registers('y', 0, counts[2])}, {', '.join(names)};"
    pairs = a[:, :, None] & b[None] if combine == "and" else a[:, :, None] ^ b[None]
    np.testing.assert_array_equal(warp(code, counts[2], inputs), (pairs.sum(axis=1) + c)[c_places(m)])


@pytest.mark.parametrize("ptx", ["e4m3", "e5m2"])
def test_mma_fp8(ptx: str) -> None:
    one = {"e4m3": 0x38, "e5m2": 0x3C}[ptx]
    step = {"e4m3": 8, "e5m2": 4}[ptx]  # patterns this far apart differ by a factor of two
    powers_a, powers_b = RNG.integers(-3, 4, (16, 32)), RNG.integers(-3, 4, (32, 8))
    a, b = pack((one + step * powers_a)[a_places(16, 32, 4)], 8), pack((one + step * powers_b)[b_places(32, 4)], 8)
    inputs = [a, b, np.zeros((32, 4), "f4")]
    code = f"mma.sync.aligned.m16n8k32.row.col.f32.{ptx}.{ptx}.f32 {registers('y', 0, 4)}, "
    code += f"{registers('x', 0, 4)}, {registers('x', 4, 2)}, {registers('x', 6, 4)};"
    expected = (2.0**powers_a @ 2.0**powers_b)[c_places(16)].astype("f4")
    np.testing.assert_array_equal(warp(code, 4, inputs).view("f4"), expected)


FILL = """
.shared .align 16 .b8 tile[512]; .reg .b32 %s, %v, %r;
mov.u32 %s, tile; mad.lo.u32 %r, %i, 16, %s; mul.lo.u32 %v, %i, 0x00080008; add.u32 %v, %v, 0x00010000;
st.shared.u32 [%r], %v; add.u32 %v, %v, 0x00020002; st.shared.u32 [%r+4], %v; add.u32 %v, %v, 0x00020002;
st.shared.u32 [%r+8], %v; add.u32 %v, %v, 0x00020002; st.shared.u32 [%r+12], %v; bar.sync 0;
"""
TILE = np.arange(256).reshape(4, 8, 8)
"""What FILL leaves: four matrices of 8x8, whose elements count up."""


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, transposed: bool) -> None:
    names = registers("d", 0, count)
    # Only the first lanes' addresses count; the others may be anything.
    stray = f"setp.ge.u32 %q, %i, {8 * count}; @%q mov.u32 %r, 0xFFFFFFF0;" if count < 4 else ""
    trans = ".trans" if transposed else ""
    code = f"{FILL} {stray} ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {names}, [%r];"
    results = evaluate(code, ["u4"] * count, np.zeros(32, "u4"), block=32)
    for matrix, result in zip(TILE, results, strict=False):
        source = matrix.T if transposed else matrix
        pairs = source.reshape(32, 2)
        np.testing.assert_array_equal(result, pairs[:, 0] | pairs[:, 1] << 16)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(count: int, transposed: bool) -> None:
    values = [TILE[i].reshape(32, 2) for i in range(count)]
    inputs = [np.array(v[:, 0] | v[:, 1] << 16, "u4") for v in values]
    trans = ".trans" if transposed else ""
    regs = "{" + ", ".join(f"%{letter}" for letter in "abce"[:count]) + "}"
    code = f"""
    .shared .align 16 .b8 tile[512]; .reg .b32 %s, %r; mov.u32 %s, tile; mad.lo.u32 %r, %i, 16, %s;
    stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r], {regs}; bar.sync 0;
    ld.shared.v4.u32 {registers("d", 0, 4)}, [%r];"""
    results = np.stack(evaluate(code, ["u4"] * 4, *inputs, block=32), axis=1)
    stored = np.ascontiguousarray(results).view("u2").reshape(4, 8, 8)
    for index in range(count):
        np.testing.assert_array_equal(stored[index], TILE[index].T if transposed else TILE[index])


def test_movmatrix() -> None:
    pairs = TILE[0].reshape(32, 2)
    a = np.array(pairs[:, 0] | pairs[:, 1] << 16, "u4")
    expected = TILE[0].T.reshape(32, 2)
    result = evaluate("movmatrix.sync.aligned.m8n8.trans.b16 %d, %a;", "u4", a, block=32)
    np.testing.assert_array_equal(result, expected[:, 0] | expected[:, 1] << 16)


WMMA = [  # shape, PTX types of A and B and of C, registers of A, B, C, NumPy types
    ("m16n16k16", "f16", "f32", 8, 8, 8, "f2", "f4"), ("m32n8k16", "f16", "f32", 8, 8, 8, "f2", "f4"),
    ("m8n32k16", "f16", "f32", 8, 8, 8, "f2", "f4"), ("m16n16k16", "f16", "f16", 8, 8, 4, "f2", "f2"),
    ("m16n16k8", "tf32", "f32", 4, 4, 8, "f4", "f4"), ("m16n16k16", "s8", "s32", 2, 2, 8, "i1", "i4"),
    ("m32n8k16", "u8", "s32", 4, 1, 8, "u1", "i4"), ("m8n32k16", "s8", "s32", 1, 4, 8, "i1", "i4"),
    ("m8n8k4", "f64", "f64", 1, 1, 2, "f8", "f8"),
]  # fmt: skip


@pytest.mark.parametrize("layouts", ["row col row", "col row col"])
@pytest.mark.parametrize(("shape", "ptx", "ctype", "na", "nb", "nc", "kind", "ckind"), WMMA)
def test_wmma(shape: str, ptx: str, ctype: str, na: int, nb: int, nc: int, kind: str, ckind: str, layouts: str) -> None:
    m, n, k = sizes(shape)
    la, lb, lc = layouts.split()
    low = 0 if kind == "u1" else -5
    a, b, c = RNG.integers(low, 6, (m, k)), RNG.integers(low, 6, (k, n)), RNG.integers(-5, 6, (m, n))
    pad = 8  # rows (or columns) are further apart than they are long

    def stored(matrix: Array, layout: str, dtype: str) -> tuple[Array, int]:
        lines = matrix if layout == "row" else matrix.T
        out = np.zeros((lines.shape[0], lines.shape[1] + pad), dtype)
        out[:, : lines.shape[1]] = lines
        return out, lines.shape[1] + pad

    (ma, sa), (mb, sb), (mc, sc) = stored(a, la, kind), stored(b, lb, kind), stored(c, lc, ckind)
    width = "b64" if ptx == "f64" else "b32"
    names = {"a": registers("ra", 0, na), "b": registers("rb", 0, nb), "c": registers("rc", 0, nc)}
    types = f"{ctype}.{ctype}" if ptx == "f16" else f"{ctype}.{ptx}.{ptx}.{ctype}"
    if ptx == "f64" and lc == "row":
        types += ".rn"  # nvcc writes the rounding last
    body = f"""
    .reg .{width} %ra<{na}>, %rb<{nb}>, %rc<{nc}>; .reg .b64 %pa, %pb, %pc;
    ld.param.u64 %pa, [p0]; ld.param.u64 %pb, [p1]; ld.param.u64 %pc, [p2];
    wmma.load.a.sync.aligned.{la}.{shape}.global.{ptx} {names["a"]}, [%pa], {sa};
    wmma.load.b.sync.aligned.{lb}.{shape}.global.{ptx} {names["b"]}, [%pb], {sb};
    wmma.load.c.sync.aligned.{lc}.{shape}.global.{ctype} {names["c"]}, [%pc], {sc};
    wmma.mma.sync.aligned.{la}.{lb}.{shape}.{types} {names["c"]}, {names["a"]}, {names["b"]}, {names["c"]};
    wmma.store.d.sync.aligned.{lc}.{shape}.global.{ctype} [%pc], {names["c"]}, {sc};"""
    device = EmulatedDevice()
    module = device.load(kernel(body, ".param .u64 p0, .param .u64 p1, .param .u64 p2"))
    buffers = [buffer_of(device, v) for v in (ma, mb, mc)]
    device.run([launch(module, "k", (1, 1, 1), (32, 1, 1), *(read_write(str(i), v) for i, v in enumerate(buffers)))], 1)
    result = array_of(buffers[2], ckind).reshape(mc.shape)
    expected, _ = stored(a @ b + c, lc, ckind)
    np.testing.assert_array_equal(result, expected)
    device.close()
