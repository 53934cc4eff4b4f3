"""Textures and surfaces by handle: reads, filtered or not, writes, and questions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen.emitter import Emitter
from kaasd.devices.emulator.codegen.llvm_builder import I1, I32, I64, PTR, VOID, Builder, const, i32
from kaasd.devices.emulator.codegen.structures import CONTEXT, TEXTURE, Fault, TextureElement
from kaasd.devices.emulator.isa.sampling import DROPPED, OUTSIDE, WORDS, Sampling, geometry_of
from kaasd.devices.emulator.isa.table import instruction
from kaasd.devices.emulator.ptx.forms import Match
from kaasd.devices.emulator.ptx.routine import Elements, Memory
from kaasd.devices.emulator.ptx.types import B32, F32, S32

GEOMETRIES = "1d 2d 3d a1d a2d"
_ZERO = ir.Constant(F32.ir, 0.0)


def _description(t: Emitter, memory: Memory, geometry: str, *, is_surface: bool) -> Any:
    """Return the description of what a handle stands for; a fault where it is of nothing like that."""
    kind = geometry_of(geometry) if geometry else 0
    _, handle = t.address("", memory)
    found = t.b.call(Sampling(t.image).find, [t.context, handle, i32(kind), i32(is_surface)])
    t.fault_if(t.b.is_("==", t.b.ptrtoint(found, I64), 0), Fault.TEXTURE, handle)
    return found


def _coordinates(t: Emitter, memory: Memory, geometry: str, kind: Any) -> tuple[list[Any], Any]:
    """Return three coordinates, those that there are not as zeros, and the layer."""
    (vector,) = memory.rest
    items = list(vector.items) if isinstance(vector, Elements) else [vector]
    layer = t.read(items.pop(0), B32) if geometry[0] == "a" else i32(0)
    dimensions = int(geometry[-2])
    if len(items) < dimensions:
        raise t.error(f"has too few coordinates for .{geometry}")
    given = [t.read(item, kind) for item in items[:dimensions]]
    return given + [_ZERO if kind is F32 else i32(0)] * (3 - dimensions), layer


def _results(t: Emitter, m: Match, words: Any) -> list[Any]:
    return [t.cast(t.b.load(t.b.item(words, I32, index), typ=I32), m.type) for index in range(4)]


@instruction("tex.geom.v4.type.ctype d, [texel]", geom=GEOMETRIES, type="u32 s32 f32", ctype="s32 f32")
@instruction("tex.base.geom.v4.type.ctype d, [texel]", geom=GEOMETRIES, type="u32 s32 f32", ctype="s32 f32")
@instruction("tex.level.geom.v4.type.ctype d, [texel], *level", geom=GEOMETRIES, type="u32 s32 f32", ctype="s32 f32")
@instruction("tex.grad.geom.v4.type.ctype d, [texel], *right, *down", geom=GEOMETRIES, type="u32 s32 f32", ctype="f32")
def tex(t: Emitter, m: Match, a: Memory, *level: Any) -> Any:
    """Read a texture; it has one level only, which every level and gradient comes to."""
    geometry, sampling = m.text("geom"), Sampling(t.image)
    texture, words = _description(t, a, geometry, is_surface=False), t.b.variable(WORDS)
    kind = F32 if m["ctype"] == "f32" else S32
    places, layer = _coordinates(t, a, geometry, kind)
    if kind is F32:
        t.b.call(sampling.sample, [texture, *places, layer, words])
    else:
        t.b.call(sampling.fetch, [texture, *places[:2], layer if geometry[0] == "a" else places[2], words])
    return _results(t, m, words)


@instruction("tld4.comp.geom.v4.type.f32 d, [texel]", comp="r g b a", geom="2d a2d", type="u32 s32 f32")
def tld4(t: Emitter, m: Match, a: Memory) -> Any:
    geometry = m.text("geom")
    texture, words = _description(t, a, geometry, is_surface=False), t.b.variable(WORDS)
    places, layer = _coordinates(t, a, geometry, F32)
    channel = i32("rgba".index(m.text("comp")))
    t.b.call(Sampling(t.image).gather, [texture, *places[:2], layer, channel, words])
    return _results(t, m, words)


MODES = ("trap", "clamp", "zero")
SURFACE_TYPES = "b8 b16 b32 b64"


def _place(t: Emitter, m: Match, a: Memory, surface: Any, unit: Any, size: Any) -> Any:
    """Return where in the host's memory an access to a surface goes, as a number; a fault where it may go nowhere."""
    geometry = m.text("geom")
    places, layer = _coordinates(t, a, geometry, S32)
    z = layer if geometry[0] == "a" else places[2]
    mode = i32(MODES.index(m["mode"] or "trap"))
    place = t.b.call(Sampling(t.image).place, [surface, *places[:2], z, unit, size, mode])
    t.fault_if(t.b.is_("==", place, OUTSIDE), Fault.SURFACE, t.address("", a)[1])
    return place


@instruction(
    "suld.b{.cop}.geom{.vec}.type{.mode} d, [texel]",
    cop="ca cg cs cv",
    geom=GEOMETRIES,
    vec="v2 v4",
    type=SURFACE_TYPES,
    mode=MODES,
)
def suld(t: Emitter, m: Match, a: Memory) -> Any:
    b, count = t.b, int((m["vec"] or "v1")[1:])
    if count * m.type.bits > 128:
        raise t.error("reads 16 bytes at most")
    surface = _description(t, a, m.text("geom"), is_surface=True)
    whole = ir.IntType(count * m.type.bits)
    place = _place(t, m, a, surface, i32(1), i32(whole.width // 8))

    def build(b: Builder, function: ir.Function) -> None:
        (address,) = function.args
        with b.when(b.is_("==", address, DROPPED)):
            b.ret(const(whole, 0))
        b.ret(b.load_as(whole, b.inttoptr(address, PTR), "memory", 1))

    read = t.image.helper(f"surface.read{whole.width}", ir.FunctionType(whole, (I64,)), build)
    bits = b.call(read, [place])
    elements = [b.resize(b.lshr(bits, const(whole, index * m.type.bits)), m.type.raw) for index in range(count)]
    return elements if m["vec"] else elements[0]


@instruction(
    "sust.b{.cop}.geom{.vec}.type{.mode} [texel], b",
    cop="wb cg cs wt",
    geom=GEOMETRIES,
    vec="v2 v4",
    type=SURFACE_TYPES,
    mode=MODES,
)
def sust(t: Emitter, m: Match, a: Memory, value: Any) -> None:
    b, values = t.b, value if isinstance(value, list) else [value]
    if len(values) != int((m["vec"] or "v1")[1:]):
        raise t.error("has not as many elements as it says")
    if len(values) * m.type.bits > 128:
        raise t.error("writes 16 bytes at most")
    surface = _description(t, a, m.text("geom"), is_surface=True)
    whole = ir.IntType(len(values) * m.type.bits)
    place = _place(t, m, a, surface, i32(1), i32(whole.width // 8))
    bits = const(whole, 0)
    for index, each in enumerate(values):
        bits = b.or_(bits, b.shl(b.resize(each, whole), const(whole, index * m.type.bits)))

    def build(b: Builder, function: ir.Function) -> None:
        context, address, bits = function.args
        with b.when(b.is_("!=", address, DROPPED)):
            pointer = b.inttoptr(address, PTR)
            changed = b.is_("!=", b.load_as(whole, pointer, "memory", 1), bits)
            b.bump(CONTEXT, context, "changes", b.zext(changed, I32))
            b.store_as(bits, pointer, "memory", 1)
        b.ret_void()

    write = t.image.helper(f"surface.write{whole.width}", ir.FunctionType(VOID, (PTR, I64, whole)), build)
    b.call(write, [t.context, place, bits])


@instruction("sust.p.geom{.vec}.type{.mode} [texel], b", geom=GEOMETRIES, vec="v2 v4", type="b32", mode=MODES)
def sust_formatted(t: Emitter, m: Match, a: Memory, value: Any) -> None:
    """Write a texel: floats or integers as its elements are, these no larger than they can be."""
    b, values = t.b, value if isinstance(value, list) else [value]
    if len(values) != int((m["vec"] or "v1")[1:]):
        raise t.error("has not as many elements as it says")
    surface = _description(t, a, m.text("geom"), is_surface=True)
    texel_bytes = b.get(TEXTURE, surface, "texel_bytes")
    place = _place(t, m, a, surface, texel_bytes, texel_bytes)
    words = b.variable(WORDS)
    for index in range(4):
        b.store(values[index] if index < len(values) else i32(0), b.item(words, I32, index))

    def build(b: Builder, function: ir.Function) -> None:
        context, surface, address, words = function.args
        with b.when(b.is_("!=", address, DROPPED)):
            b.call(Sampling(t.image).encode, [surface, words, b.inttoptr(address, PTR)])
            b.bump(CONTEXT, context, "changes", 1)
        b.ret_void()

    put = t.image.helper("surface.put", ir.FunctionType(VOID, (PTR, PTR, I64, PTR)), build)
    b.call(put, [t.context, surface, place, words])


SIZES = {"width": "width", "height": "height", "depth": "depth", "array_size": "layers"}
"""Questions that a description answers as it stands."""
SAMPLER = {
    "normalized_coords": "is_normalized",
    "filter_mode": "is_linear",
    **{f"addr_mode_{axis}": "address" for axis in range(3)},
}
_ORDERS = {1: 0x10B0, 2: 0x10B2, 4: 0x10B5}
"""OpenCL's CL_R, CL_RG, CL_RGBA, by the number of channels."""
_DATA_TYPES = {
    TextureElement.SNORM8: 0x10D0,
    TextureElement.SNORM16: 0x10D1,
    TextureElement.UNORM8: 0x10D2,
    TextureElement.UNORM16: 0x10D3,
    TextureElement.INT8: 0x10D7,
    TextureElement.INT16: 0x10D8,
    TextureElement.INT32: 0x10D9,
    TextureElement.UINT8: 0x10DA,
    TextureElement.UINT16: 0x10DB,
    TextureElement.UINT32: 0x10DC,
    TextureElement.FLOAT16: 0x10DD,
    TextureElement.FLOAT32: 0x10DE,
}
"""OpenCL's CL_SNORM_INT8 and so on."""


@instruction("txq.query.b32 d, [t]", query=[*SIZES, *SAMPLER, "channel_data_type", "channel_order", "num_mipmap_levels"])
@instruction("suq.query.b32 d, [t]", query=[*SIZES, "channel_data_type", "channel_order"])
def query(t: Emitter, m: Match, a: Memory) -> Any:
    name = m.text("query")
    found = _description(t, a, "", is_surface=m.mnemonic.startswith("suq"))
    if name in SIZES or name in SAMPLER:
        return t.b.get(TEXTURE, found, SIZES.get(name) or SAMPLER[name])
    if name == "num_mipmap_levels":
        return i32(1)
    field, answers = ("channels", _ORDERS) if name == "channel_order" else ("element", _DATA_TYPES)
    given = t.b.get(TEXTURE, found, field)
    answer = i32(0)
    for number, value in answers.items():
        answer = t.b.select(t.b.is_("==", given, number), i32(value), answer)
    return answer


@instruction("istypep.kind d:pred, a:u64", kind="texref samplerref surfref")
def istypep(t: Emitter, m: Match, a: Any) -> Any:
    if m["kind"] == "samplerref":
        return const(I1, 0)
    found = t.b.call(Sampling(t.image).find, [t.context, a, i32(0), i32(m["kind"] == "surfref")])
    return t.b.is_("!=", t.b.ptrtoint(found, I64), 0)
