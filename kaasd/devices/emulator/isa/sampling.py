"""What texture and surface instructions do, as functions of a kernel's module: where texels are, what they hold, and filters.

They read the descriptions that a launch has of its textures (``TEXTURE``), of any kind, so that a kernel has each function once.
Results and sources are four 32-bit words in memory, one for each channel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from kaasd.devices.emulator.codegen.kernel_image import KernelImage
from kaasd.devices.emulator.codegen.llvm_builder import I1, I8, I16, I32, I64, PTR, VOID, Builder, const, i32, i64
from kaasd.devices.emulator.codegen.structures import (
    CONTEXT,
    LAUNCH,
    OFFSET_BITS,
    TEXTURE,
    Segment,
    TextureAddress,
    TextureElement,
    TextureGeometry,
)
from kaasd.devices.emulator.isa.narrow import half_to_single

F32, F64 = ir.FloatType(), ir.DoubleType()
WORDS = ir.ArrayType(I32, 4)
DROPPED, OUTSIDE = 0, 1
"""What ``place`` returns where there is no texel: an access that has no effect, and one that is a fault."""
FRACTIONS = 256
"""Steps between two texels, where they are filtered."""


class Sampling:
    """The functions of one kernel's module, each made when it is first asked for."""

    def __init__(self, image: KernelImage) -> None:
        self._image = image

    def _function(self, name: str, result: ir.Type, arguments: Sequence[ir.Type], build: Callable[..., None]) -> ir.Function:
        kind = ir.FunctionType(result, arguments)
        return self._image.helper(f"texture.{name}", kind, lambda b, function: build(b, *function.args))

    @property
    def find(self) -> ir.Function:
        """(context, handle, geometry, whether it is a surface) to a description, or null where the handle is of no such one."""

        def build(b: Builder, context: Any, handle: Any, geometry: Any, surface: Any) -> None:
            launch = b.get(CONTEXT, context, "launch")
            number = b.sub(handle, i64(Segment.TEXTURE << OFFSET_BITS))
            with b.when(b.is_(">=", number, b.get(LAUNCH, launch, "texture_count"))):
                b.ret(ir.Constant(PTR, None))
            found = b.item(b.get(LAUNCH, launch, "textures"), TEXTURE.ir, number)
            right = b.and_(
                b.or_(b.is_("==", geometry, 0), b.is_("==", b.get(TEXTURE, found, "geometry"), geometry)),
                b.is_("==", b.get(TEXTURE, found, "is_surface"), surface),
            )
            b.ret(b.select(right, found, ir.Constant(PTR, None)))

        return self._function("find", PTR, (PTR, I64, I32, I32), build)

    @property
    def _texel(self) -> ir.Function:
        """(description, x, y, z) to where a texel is that exists; z is the layer of one that has layers."""

        def build(b: Builder, texture: Any, x: Any, y: Any, z: Any) -> None:
            def wide(name: str) -> Any:
                return b.zext(b.get(TEXTURE, texture, name), I64)

            x, y, z = (b.zext(each, I64) for each in (x, y, z))
            number = b.add(b.mul(b.add(b.mul(z, wide("height")), y), wide("width")), x)
            b.ret(b.at(b.get(TEXTURE, texture, "base"), b.mul(number, wide("texel_bytes"))))

        return self._function("texel", PTR, (PTR, I32, I32, I32), build)

    @property
    def _decode(self) -> ir.Function:
        """(description, texel, words): put what a texel holds, as it is read, into the words; channels that it lacks are 0."""

        def build(b: Builder, texture: Any, texel: Any, words: Any) -> None:
            element = b.get(TEXTURE, texture, "element")
            with b.count(i32(4)) as channel:
                word = b.item(words, I32, b.zext(channel, I64))
                b.store(i32(0), word)
                with b.when(b.is_("<", channel, b.get(TEXTURE, texture, "channels"))):
                    offset = b.mul(channel, b.get(TEXTURE, texture, "element_bytes"))
                    source = b.at(texel, b.zext(offset, I64))
                    _switch(b, element, {each: _decoder(each, source, word) for each in TextureElement})
            b.ret_void()

        return self._function("decode", VOID, (PTR, PTR, PTR), build)

    @property
    def fetch(self) -> ir.Function:
        """(description, x, y, z, words): put a texel into the words, by integer coordinates; zeros outside of the texture."""

        def build(b: Builder, texture: Any, x: Any, y: Any, z: Any, words: Any) -> None:
            b.store(ir.Constant(WORDS, None), words)
            inside = const(I1, 1)
            for number, name in ((x, "width"), (y, "height"), (z, "slices")):
                inside = b.and_(inside, b.is_("<", number, b.get(TEXTURE, texture, name)))
            with b.when(inside):
                b.call(self._decode, [texture, b.call(self._texel, [texture, x, y, z]), words])
            b.ret_void()

        return self._function("fetch", VOID, (PTR, I32, I32, I32, PTR), build)

    @property
    def _scaled(self) -> ir.Function:
        """(description, coordinate, extent) to the place in texels: within the texture, or by a few texels outside."""

        def build(b: Builder, texture: Any, coordinate: Any, extent: Any) -> None:
            number = b.fpext(coordinate, F64)
            size = b.uitofp(extent, F64)
            floor = self._image.declare("llvm.floor.f64", ir.FunctionType(F64, (F64,)))
            place = b.variable(F64)
            b.store(number, place)
            with b.when(b.is_("!=", b.get(TEXTURE, texture, "is_normalized"), 0)):
                mode = b.get(TEXTURE, texture, "address")
                with b.when(b.is_("==", mode, TextureAddress.WRAP)):
                    b.store(b.fsub(number, b.call(floor, [number])), place)
                with b.when(b.is_("==", mode, TextureAddress.MIRROR)):
                    pairs = b.call(floor, [b.fmul(number, _double(0.5))])
                    b.store(b.fsub(number, b.fmul(pairs, _double(2))), place)
                b.store(b.fmul(b.load(place, typ=F64), size), place)
            found = b.load(place, typ=F64)
            low, high = _double(-4), b.fadd(b.fmul(size, _double(2)), _double(4))
            found = b.select(b.fcmp_ordered("<", found, low), low, found)
            found = b.select(b.fcmp_ordered(">", found, high), high, found)
            b.ret(b.select(b.fcmp_unordered("uno", found, found), _double(0), found))

        return self._function("scaled", F64, (PTR, F32, I32), build)

    @property
    def _addressed(self) -> ir.Function:
        """(description, number, extent) to the number of the texel that is read for it, or all ones where that is the border."""

        def build(b: Builder, texture: Any, number: Any, extent: Any) -> None:
            mode = b.get(TEXTURE, texture, "address")
            last = b.sub(extent, i32(1))
            with b.when(b.is_("==", mode, TextureAddress.BORDER)):
                b.ret(b.select(b.is_("<", number, extent), number, i32(-1)))
            with b.when(b.is_("==", mode, TextureAddress.CLAMP)):
                low = b.select(b.icmp_signed("<", number, i32(0)), i32(0), number)
                b.ret(b.select(b.icmp_signed(">", low, last), last, low))
            round_ = b.select(b.is_("==", mode, TextureAddress.MIRROR), b.shl(extent, i32(1)), extent)
            rest = b.srem(number, round_)
            rest = b.select(b.icmp_signed("<", rest, i32(0)), b.add(rest, round_), rest)
            mirrored = b.sub(b.sub(round_, i32(1)), rest)
            b.ret(b.select(b.is_("<", rest, extent), rest, mirrored))

        return self._function("addressed", I32, (PTR, I32, I32), build)

    @property
    def sample(self) -> ir.Function:
        """(description, x, y, z, layer, words): put what is at a place into the words, filtered as the description says."""

        def build(b: Builder, texture: Any, x: Any, y: Any, z: Any, layer: Any, words: Any) -> None:
            floor = self._image.declare("llvm.floor.f64", ir.FunctionType(F64, (F64,)))
            extents = [b.get(TEXTURE, texture, name) for name in ("width", "height", "depth")]
            places = [b.call(self._scaled, [texture, each, extent]) for each, extent in zip((x, y, z), extents, strict=True)]
            dimensions = b.get(TEXTURE, texture, "dimensions")
            slice_ = b.call(self._layer, [texture, layer])

            def read(numbers: Sequence[Any], into: Any) -> None:
                wanted = [
                    b.select(b.is_(">", dimensions, axis), b.call(self._addressed, [texture, number, extent]), i32(0))
                    for axis, (number, extent) in enumerate(zip(numbers, extents, strict=True))
                ]
                b.call(self.fetch, [texture, wanted[0], wanted[1], b.select(b.is_("==", dimensions, 3), wanted[2], slice_), into])

            with b.when(b.is_("==", b.get(TEXTURE, texture, "is_linear"), 0)):
                read([b.fptosi(b.call(floor, [place]), I32) for place in places], words)
                b.ret_void()
            fixed = [self._fixed(b, place) for place in places]
            sums = [b.variable(F64) for _ in range(4)]
            for each in sums:
                b.store(_double(0), each)
            texel = b.variable(WORDS)
            with b.count(i32(8)) as corner:
                weight = _double(1)
                numbers = []
                for axis, number in enumerate(fixed):
                    second = b.and_(b.lshr(corner, i32(axis)), i32(1))
                    fraction = b.uitofp(b.and_(number, i32(FRACTIONS - 1)), F64)
                    fraction = b.fmul(fraction, _double(1 / FRACTIONS))
                    fraction = b.select(b.is_(">", dimensions, axis), fraction, _double(0))
                    part = b.select(b.is_("!=", second, 0), fraction, b.fsub(_double(1), fraction))
                    weight = b.fmul(weight, part)
                    numbers.append(b.add(b.ashr(number, i32(8)), second))
                with b.when(b.fcmp_ordered("!=", weight, _double(0))):
                    read(numbers, texel)
                    for channel, total in enumerate(sums):
                        value = b.fpext(b.load(b.item(texel, F32, channel), typ=F32), F64)
                        b.store(b.fadd(b.load(total, typ=F64), b.fmul(weight, value)), total)
            for channel, total in enumerate(sums):
                b.store(b.fptrunc(b.load(total, typ=F64), F32), b.item(words, F32, channel))
            b.ret_void()

        return self._function("sample", VOID, (PTR, F32, F32, F32, I32, PTR), build)

    @property
    def gather(self) -> ir.Function:
        """(description, x, y, layer, channel, words): put one channel of the four texels around a place into the words."""

        def build(b: Builder, texture: Any, x: Any, y: Any, layer: Any, channel: Any, words: Any) -> None:
            width, height = b.get(TEXTURE, texture, "width"), b.get(TEXTURE, texture, "height")
            places = (b.call(self._scaled, [texture, x, width]), b.call(self._scaled, [texture, y, height]))
            left, top = (b.ashr(self._fixed(b, place), i32(8)) for place in places)
            slice_ = b.call(self._layer, [texture, layer])
            texel = b.variable(WORDS)
            for index, (right, down) in enumerate(((0, 1), (1, 1), (1, 0), (0, 0))):
                column = b.call(self._addressed, [texture, b.add(left, i32(right)), width])
                row = b.call(self._addressed, [texture, b.add(top, i32(down)), height])
                b.call(self.fetch, [texture, column, row, slice_, texel])
                b.store(b.load(b.item(texel, I32, b.zext(channel, I64)), typ=I32), b.item(words, I32, index))
            b.ret_void()

        return self._function("gather", VOID, (PTR, F32, F32, I32, I32, PTR), build)

    @property
    def _layer(self) -> ir.Function:
        """(description, number) to the layer that is read: the nearest that there is."""

        def build(b: Builder, texture: Any, number: Any) -> None:
            last = b.sub(b.get(TEXTURE, texture, "slices"), i32(1))
            b.ret(b.select(b.is_("<", number, last), number, last))

        return self._function("layer", I32, (PTR, I32), build)

    def _fixed(self, b: Builder, place: Any) -> Any:
        """Return a place between the centres of texels in steps of 1/256, to the nearest."""
        floor = self._image.declare("llvm.floor.f64", ir.FunctionType(F64, (F64,)))
        steps = b.fmul(b.fsub(place, _double(0.5)), _double(FRACTIONS))
        return b.fptosi(b.call(floor, [b.fadd(steps, _double(0.5))]), I32)

    @property
    def place(self) -> ir.Function:
        """(description, x, y, z, bytes of a unit of x, bytes, mode) to where an access to a surface goes.

        x counts units: bytes, or texels. Also ``DROPPED`` or ``OUTSIDE``.
        """

        def build(b: Builder, surface: Any, x: Any, y: Any, z: Any, unit: Any, size: Any, mode: Any) -> None:
            width = b.mul(b.get(TEXTURE, surface, "width"), b.get(TEXTURE, surface, "texel_bytes"))
            room = b.sub(width, size)
            with b.when(b.icmp_signed("<", room, i32(0))):
                b.ret(i64(OUTSIDE))
            at = b.mul(b.sext(x, I64), b.zext(unit, I64))
            ends = (
                b.zext(room, I64),
                *(b.zext(b.sub(b.get(TEXTURE, surface, name), i32(1)), I64) for name in ("height", "slices")),
            )
            numbers = (at, b.sext(y, I64), b.sext(z, I64))
            outside = const(I1, 0)
            nearest = []
            for number, end in zip(numbers, ends, strict=True):
                outside = b.or_(outside, b.is_(">", number, end))
                low = b.select(b.icmp_signed("<", number, i64(0)), i64(0), number)
                nearest.append(b.select(b.icmp_signed(">", low, end), end, low))
            with b.when(outside):
                with b.when(b.is_("==", mode, 0)):
                    b.ret(i64(OUTSIDE))
                with b.when(b.is_("==", mode, 2)):
                    b.ret(i64(DROPPED))
                nearest[0] = b.and_(nearest[0], b.not_(b.sub(b.zext(size, I64), i64(1))))
                b.ret(self._host_address(b, surface, nearest, width))
            with b.when(b.bits(at, b.sub(b.zext(size, I64), i64(1)))):
                b.ret(i64(OUTSIDE))
            b.ret(self._host_address(b, surface, numbers, width))

        return self._function("place", I64, (PTR, I32, I32, I32, I32, I32, I32), build)

    @staticmethod
    def _host_address(b: Builder, surface: Any, numbers: Sequence[Any], width: Any) -> Any:
        x, y, z = numbers
        row = b.add(b.mul(z, b.zext(b.get(TEXTURE, surface, "height"), I64)), y)
        offset = b.add(b.mul(row, b.zext(width, I64)), x)
        return b.add(b.ptrtoint(b.get(TEXTURE, surface, "base"), I64), offset)

    @property
    def encode(self) -> ir.Function:
        """(description, words, texel): put words into a texel, each in the form of its elements, the nearest that there is."""

        def build(b: Builder, surface: Any, words: Any, texel: Any) -> None:
            element = b.get(TEXTURE, surface, "element")
            with b.count(b.get(TEXTURE, surface, "channels")) as channel:
                word = b.load(b.item(words, I32, b.zext(channel, I64)), typ=I32)
                target = b.at(texel, b.zext(b.mul(channel, b.get(TEXTURE, surface, "element_bytes")), I64))
                _switch(b, element, {each: _encoder(each, word, target) for each in TextureElement if each in _ENCODED})
            b.ret_void()

        return self._function("encode", VOID, (PTR, PTR, PTR), build)


def geometry_of(name: str) -> TextureGeometry:
    """Return what an instruction calls ``a2d`` and the like."""
    return TextureGeometry[f"{'LAYERED_' if name[0] == 'a' else ''}{['ONE', 'TWO', 'THREE'][int(name[-2]) - 1]}"]


def _double(value: float) -> ir.Constant:
    return ir.Constant(F64, float(value))


def _switch(b: Builder, value: Any, cases: dict[TextureElement, Callable[[Builder], None]]) -> None:
    end = b.append_basic_block("decided")
    branch = b.switch(value, end)
    for number, emit in cases.items():
        block = b.append_basic_block(number.name)
        branch.add_case(i32(number), block)
        b.position_at_end(block)
        emit(b)
        b.branch(end)
    b.position_at_end(end)


_INTEGERS = {
    TextureElement.UINT8: (I8, False),
    TextureElement.UINT16: (I16, False),
    TextureElement.UINT32: (I32, False),
    TextureElement.INT8: (I8, True),
    TextureElement.INT16: (I16, True),
    TextureElement.INT32: (I32, True),
}
_NORMALIZED = {
    TextureElement.UNORM8: (I8, False),
    TextureElement.UNORM16: (I16, False),
    TextureElement.SNORM8: (I8, True),
    TextureElement.SNORM16: (I16, True),
}
_ENCODED = {*_INTEGERS, TextureElement.FLOAT16, TextureElement.FLOAT32}


def _decoder(element: TextureElement, source: Any, word: Any) -> Callable[[Builder], None]:
    """Return what emits code that reads an element and stores it as a word."""

    def emit(b: Builder) -> None:
        if element is TextureElement.FLOAT32:
            b.store(b.load_as(I32, source, "memory", 1), word)
        elif element is TextureElement.FLOAT16:
            b.store(half_to_single(b, b.zext(b.load_as(I16, source, "memory", 1), I32)), word)
        elif element in _INTEGERS:
            kind, signed = _INTEGERS[element]
            value = b.load_as(kind, source, "memory", 1)
            b.store(value if kind is I32 else (b.sext if signed else b.zext)(value, I32), word)
        else:
            kind, signed = _NORMALIZED[element]
            value = b.load_as(kind, source, "memory", 1)
            number = b.sitofp(b.sext(value, I32), F32) if signed else b.uitofp(b.zext(value, I32), F32)
            most = ir.Constant(F32, float((1 << kind.width - signed) - 1))
            number, low = b.fdiv(number, most), ir.Constant(F32, -1.0)
            b.store(b.select(b.fcmp_ordered("<", number, low), low, number), word)

    return emit


def _encoder(element: TextureElement, word: Any, target: Any) -> Callable[[Builder], None]:
    """Return what emits code that stores a word as an element."""

    def emit(b: Builder) -> None:
        if element is TextureElement.FLOAT16:
            b.store_as(b.trunc(_single_to_half(b, word), I16), target, "memory", 1)
        elif element is TextureElement.FLOAT32:
            b.store_as(word, target, "memory", 1)
        else:
            kind, signed = _INTEGERS[element]
            value, top = word, (1 << kind.width - signed) - 1
            if kind is not I32 and signed:
                value = b.select(b.icmp_signed(">", value, i32(top)), i32(top), value)
                value = b.select(b.icmp_signed("<", value, i32(-top - 1)), i32(-top - 1), value)
            elif kind is not I32:
                value = b.select(b.is_(">", value, top), i32(top), value)
            b.store_as(b.resize(value, kind), target, "memory", 1)

    return emit


def _single_to_half(b: Builder, bits: Any) -> Any:
    """Return the 16 bits of a single-precision number, rounded to nearest even, with no instruction of half precision."""
    sign, size = b.and_(b.lshr(bits, i32(16)), i32(0x8000)), b.and_(bits, i32(0x7FFFFFFF))
    half = ir.Constant(F32, 0.5)
    subnormal = b.sub(b.bitcast(b.fadd(b.bitcast(size, F32), half), I32), i32(0x3F000000))
    odd = b.and_(b.lshr(size, i32(13)), i32(1))
    normal = b.lshr(b.add(b.add(size, i32((15 - 127 << 23) + 0xFFF)), odd), i32(13))
    number = b.select(b.is_("<", size, 0x38800000), subnormal, normal)
    number = b.select(b.is_(">=", size, 0x477FF000), i32(0x7C00), number)
    return b.or_(sign, b.select(b.is_(">", size, 0x7F800000), i32(0x7FFF), number))
