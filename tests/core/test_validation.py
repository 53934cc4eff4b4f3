"""Static checks of a request, by the path and the words of what they find."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from kaas_core import validation
from kaas_core.errors import InvalidRequestError
from kaas_core.request import (
    Access,
    Argument,
    BufferArgument,
    BufferSpec,
    KernelSpec,
    Literal,
    Packed,
    PackedBuffer,
    Request,
    TextureArgument,
)
from kaas_core.texture import AddressMode, FilterMode, Texture
from kaas_core.validation import validate

I, O, IO, T = Access.INPUT, Access.OUTPUT, Access.INOUT, Access.TEMPORARY  # noqa: E741


def kernel(
    arguments: Sequence[Argument] = (),
    library: str = "/k.ptx",
    name: str = "k",
    grid: tuple[int, int, int] = (1, 1, 1),
    block: tuple[int, int, int] = (1, 1, 1),
    shared: int = 0,
) -> KernelSpec:
    return KernelSpec(library, name, grid, block, tuple(arguments), shared)


def uses(*buffers: tuple[BufferSpec, str]) -> Request:
    """Return a request that uses each buffer once in one launch, by the letter of its access."""
    arguments = [BufferArgument(spec.name, Access(letter)) for spec, letter in buffers]
    return Request((kernel(arguments),), tuple(spec for spec, _ in buffers))


def packs(*places: int, name: str = "x", access: Access = I, size: int = 24, **fields: object) -> Request:
    """Return a request of one packed argument with the address of a buffer in each of some places."""
    packed = Packed(bytes(size), tuple(PackedBuffer(place, BufferArgument(name, access)) for place in places))
    return Request((kernel([packed]),), (x(**fields),))


def sees(access: Access = I, size: int = 64, further: Sequence[Argument] = (), **fields: object) -> Request:
    """Return a request of a texture, or surface, of 8 x 4 texels of 2 bytes unless ``fields`` say otherwise."""
    texture = Texture(**{"dtype": "uint8", "channels": 2, "extent": (8, 4), **fields})  # type: ignore[arg-type]
    return Request((kernel([TextureArgument("x", access, texture), *further]),), (x(size_bytes=size),))


def problems(request: Request) -> list[tuple[str, str]]:
    try:
        validate(request)
    except InvalidRequestError as error:
        return [(violation.field, violation.description) for violation in error.violations]
    return []


def x(**fields: object) -> BufferSpec:
    return BufferSpec(**{"name": "x", "size_bytes": 8, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "request_",
    [
        Request((kernel(),)),
        Request((kernel(library="sha256:" + "09af" * 16),)),
        Request((kernel(library="/" + "x" * 4095),)),
        Request((kernel(name="_Z" + "N" * 5000),)),
        Request((kernel(grid=(2**31 - 1, 1, 1)),), iterations=2**32 - 1),
        Request((kernel(shared=2**32 - 1),)),
        Request((kernel(),), (x(),)),
        uses((x(name="ö" * 200), "i")),
        uses((x(key="k" * 400), "io")),
        uses((x(size_bytes=2**64 - 2, offset_bytes=1), "i")),
        uses((x(constant=True), "i")),
        uses((x(ephemeral=True), "t")),
        uses((x(), "i"), (x(name="y", key="x"), "o")),
        uses((x(ephemeral=True), "o"), (x(name="y", ephemeral=True), "o")),
        uses((x(key="k", offset_bytes=8), "o"), (x(name="y", key="k"), "io")),
        Request((kernel([BufferArgument("x", I)]), kernel([BufferArgument("x", T)])), (x(),)),
        Request(tuple(kernel([Literal("i", n)]) for n in range(validation.MAX_KERNELS))),
        Request((kernel([Literal("i", 0)] * validation.MAX_ARGUMENTS),)),
        packs(),
        packs(0, 16, 8),
        packs(16, access=O),
        packs(0, access=T, ephemeral=True),
        packs(32_752, size=32_764),
        Request((kernel([Packed(b"1"), Packed(b"2", ())]),)),
        sees(),
        sees(O),
        sees(IO, layers=3, size=192),
        sees(extent=(131_072, 1), size=1 << 18),
        sees(dtype="unorm16", channels=4, extent=(8,), filter_mode=FilterMode.LINEAR),
        sees(address_mode=AddressMode.WRAP, normalized_coordinates=True),
        sees(address_mode=AddressMode.BORDER),
        sees(further=[BufferArgument("x", I), TextureArgument("x", I, Texture("float32", 1, (16,)))]),
    ],
    ids=lambda request: "",
)
def test_good_requests(request_: Request) -> None:
    assert problems(request_) == []


TEXTURE = "kernels[0].arguments[0]"
BAD: list[tuple[str, Request, list[tuple[str, str]]]] = [
    ("no kernel", Request(()), [("kernels", "at least one")]),
    ("too many kernels", Request((kernel(),) * 10_001), [("kernels", "at most 10000 are allowed, not 10001")]),
    ("too many buffers", Request((kernel(),), (x(),) * 10_001), [("buffers", "at most 10000")]),
    ("too many arguments", Request((kernel([Literal("i", 0)] * 4097),)), [("kernels[0].arguments", "at most 4096")]),
    ("no iterations", Request((kernel(),), iterations=0), [("iterations", "at least 1, not 0")]),
    ("too many iterations", Request((kernel(),), iterations=2**32), [("iterations", "at most 4294967295")]),
    ("relative library", Request((kernel(library="k.ptx"),)), [("kernels[0].library", "absolute path")]),
    ("empty library", Request((kernel(library=""),)), [("kernels[0].library", "absolute path")]),
    ("NUL in library", Request((kernel(library="/k\0.ptx"),)), [("kernels[0].library", "NUL")]),
    ("long library", Request((kernel(library="/" + "x" * 4096),)), [("kernels[0].library", "at most 4096 bytes")]),
    ("short id", Request((kernel(library="sha256:" + "0" * 63),)), [("kernels[0].library", "64 lower-case hex")]),
    ("upper-case id", Request((kernel(library="sha256:" + "A" * 64),)), [("kernels[0].library", "64 lower-case hex")]),
    ("id and newline", Request((kernel(library="sha256:" + "0" * 64 + "\n"),)), [("kernels[0].library", "64 lower-case")]),
    ("no name", Request((kernel(), kernel(name=""))), [("kernels[1].name", "must not be empty")]),
    ("NUL in name", Request((kernel(name="k\0"),)), [("kernels[0].name", "NUL")]),
    ("surrogate in name", Request((kernel(name="\ud800"),)), [("kernels[0].name", r"not valid UTF-8: '\ud800'")]),
    ("grid zero", Request((kernel(grid=(1, 0, 1)),)), [("kernels[0].grid[1]", "at least 1, not 0")]),
    ("grid negative", Request((kernel(grid=(-1, 1, 1)),)), [("kernels[0].grid[0]", "at least 1, not -1")]),
    ("grid huge", Request((kernel(grid=(2**31, 1, 1)),)), [("kernels[0].grid[0]", "at most 2147483647")]),
    ("block zero", Request((kernel(block=(1, 1, 0)),)), [("kernels[0].block[2]", "at least 1")]),
    ("block as float", Request((kernel(block=(1.5, 1, 1)),)), [("kernels[0].block[0]", "an integer, not 1.5")]),  # type: ignore[arg-type]
    ("block as boolean", Request((kernel(block=(True, 1, 1)),)), [("kernels[0].block[0]", "an integer, not true")]),
    ("no cluster at all", Request((replace(kernel(), cluster=(0, 1, 1)),)), [("kernels[0].cluster[0]", "at least 1")]),
    ("shared negative", Request((kernel(shared=-1),)), [("kernels[0].shared_memory_bytes", "at least 0")]),
    ("shared huge", Request((kernel(shared=2**32),)), [("kernels[0].shared_memory_bytes", "at most 4294967295")]),
    ("unknown buffer", Request((kernel([BufferArgument("y", I)]),), (x(),)), [("kernels[0].arguments[0]", "no buffer 'y'")]),
    ("buffer twice", Request((kernel(),), (x(), x())), [("buffers[1].name", "'x' is already the name of buffers[0]")]),
    ("no buffer name", Request((kernel(),), (x(name=""),)), [("buffers[0].name", "must not be empty")]),
    ("long buffer name", Request((kernel(),), (x(name="ö" * 201),)), [("buffers[0].name", "at most 400 bytes")]),
    ("surrogate in buffer name", Request((kernel(),), (x(name="\udcff"),)), [("buffers[0].name", "not valid UTF-8")]),
    ("size zero", Request((kernel(),), (x(size_bytes=0),)), [("buffers[0].size", "buffer 'x': must be at least 1, not 0")]),
    ("size huge", Request((kernel(),), (x(size_bytes=2**64),)), [("buffers[0].size", "at most 18446744073709551615")]),
    ("offset negative", Request((kernel(),), (x(offset_bytes=-1),)), [("buffers[0].offset", "at least 0")]),
    ("end beyond 64 bits", Request((kernel(),), (x(offset_bytes=2**64 - 8),)), [("buffers[0].offset", "less than 2^64")]),
    ("long key", Request((kernel(),), (x(key="k" * 401),)), [("buffers[0].key", "at most 400 bytes of UTF-8")]),
    ("surrogate in key", Request((kernel(),), (x(key="a\ud800"),)), [("buffers[0].key", "not valid UTF-8")]),
    ("key of an ephemeral", Request((kernel(),), (x(key="k", ephemeral=True),)), [("buffers[0].key", "never touches")]),
    ("long dtype", Request((kernel(),), (x(dtype="f" * 4097),)), [("buffers[0].dtype", "'x': at most 4096 bytes")]),
    ("surrogate in dtype", Request((kernel(),), (x(dtype="\ud800"),)), [("buffers[0].dtype", "not valid UTF-8")]),
    ("shape alone", Request((kernel(),), (x(shape=(8,)),)), [("buffers[0].shape", "'x': is given without dtype")]),
    ("order alone", Request((kernel(),), (x(fortran_order=True),)), [("buffers[0].fortran_order", "given without dtype")]),
    ("many dimensions", Request((kernel(),), (x(dtype="u1", shape=(1,) * 65),)), [("buffers[0].shape", "at most 64")]),
    ("negative dimension", Request((kernel(),), (x(dtype="u1", shape=(2, -1)),)), [("buffers[0].shape[1]", "at least 0")]),
    ("huge dimension", Request((kernel(),), (x(dtype="u1", shape=(2**64,)),)), [("buffers[0].shape[0]", "at most")]),
    ("unknown dtype", Request((kernel(),), (x(dtype="nonsense"),)), [("buffers[0].dtype", "'x': 'nonsense' is no dtype")]),
    ("other size", Request((kernel(),), (x(dtype="f4", shape=(3,)),)), [("buffers[0].shape", "has 12 bytes, and here are 8")]),
    ("overflow", Request((kernel(),), (x(dtype="f4", shape=(2**63, 2**63)),)), [("buffers[0].shape", "has at most 9")]),
    ("scratch not ephemeral", uses((x(), "t")), [("buffers[0]", "must be ephemeral")]),
    (
        "constant written",
        Request((kernel([BufferArgument("x", I)]), kernel([Literal("i", 1), BufferArgument("x", O)])), (x(constant=True),)),
        [("kernels[1].arguments[1]", "'x' is constant")],
    ),
    ("two outputs to a key", uses((x(key="k"), "o"), (x(name="y", key="k"), "o")), [("buffers[1].key", "same bytes of key 'k'")]),
    ("a key by name", uses((x(), "o"), (x(name="y", key="x"), "o")), [("buffers[1].key", "same bytes of key 'x'")]),
    (
        "value and range of a key",
        uses((x(key="k", offset_bytes=100), "o"), (x(name="y", key="k"), "o")),
        [("buffers[0].key", "'y' and 'x' write the same bytes")],
    ),
    (
        "ranges meet",
        uses((x(key="k", offset_bytes=7), "o"), (x(name="y", key="k"), "io")),
        [("buffers[0].key", "'y' and 'x' write the same bytes")],
    ),
    (
        "range inside another",
        uses(
            (x(name="whole", key="k", size_bytes=100, offset_bytes=10), "o"),
            (x(name="one", key="k", offset_bytes=20), "o"),
            (x(name="two", key="k", offset_bytes=90), "o"),
        ),
        [("buffers[1].key", "'whole' and 'one'"), ("buffers[2].key", "'whole' and 'two'")],
    ),
    ("nothing packed", packs(size=0), [("kernels[0].arguments[0].packed", "must not be empty")]),
    ("packed too much", packs(size=32_765), [("kernels[0].arguments", "at most 32764 bytes, not 32765")]),
    (
        "packed too much together",
        Request((kernel([Packed(bytes(30_000)), Packed(bytes(3_000))]),)),
        [("kernels[0].arguments", "at most 32764 bytes, not 33000")],
    ),
    ("packed unknown", packs(0, 8, name="y"), [(f"kernels[0].arguments[0].buffers[{i}]", "no buffer 'y'") for i in (0, 1)]),
    (
        "packed past the end",
        packs(0, 24),
        [("kernels[0].arguments[0].buffers[1].offset_bytes", "8 bytes at 24 ends behind the 24")],
    ),
    ("packed half past the end", packs(16, size=20), [("kernels[0].arguments[0].buffers[0].offset_bytes", "ends behind the 20")]),
    ("packed askew", packs(4), [("kernels[0].arguments[0].buffers[0].offset_bytes", "aligned to 8 bytes, which 4 is not")]),
    ("packed before the start", packs(-8), [("kernels[0].arguments[0].buffers[0].offset_bytes", "at least 0, not -8")]),
    ("packed twice", packs(8, 0, 8), [("kernels[0].arguments[0].buffers[2].offset_bytes", "buffers[0] has its address there")]),
    ("packed and constant", packs(0, access=O, constant=True), [("kernels[0].arguments[0]", "'x' is constant")]),
    ("packed scratch not ephemeral", packs(0, access=T), [("buffers[0]", "must be ephemeral")]),
    (
        "packed and not, to a key",
        Request(
            (kernel([Packed(bytes(8), (PackedBuffer(0, BufferArgument("x", O)),)), BufferArgument("y", O)]),),
            (x(key="k"), x(name="y", key="k")),
        ),
        [("buffers[1].key", "same bytes of key 'k'")],
    ),
    ("texture of another size", sees(size=65), [(f"{TEXTURE}.extent", "8 x 4 x 2 x 1 bytes are 64, but the buffer has 65")]),
    ("layers of another size", sees(layers=2), [(f"{TEXTURE}.extent", "8 x 4 x 2 layers x 2 x 1 bytes are 128, but")]),
    ("unknown dtype", sees(dtype="float64"), [(f"{TEXTURE}.dtype", "is none of uint8, uint16")]),
    ("three channels", sees(channels=3, size=96), [(f"{TEXTURE}.channels", "must be 1, 2 or 4, not 3")]),
    ("no extent", sees(extent=()), [(f"{TEXTURE}.extent", "must have one to three numbers, not 0")]),
    ("zero extent", sees(extent=(8, 0)), [(f"{TEXTURE}.extent[1]", "must be at least 1, not 0")]),
    ("wide texture", sees(extent=(131_073, 1)), [(f"{TEXTURE}.extent[0]", "must be 1 to 131072, not 131073")]),
    ("deep texture", sees(extent=(8, 4, 16_385)), [(f"{TEXTURE}.extent[2]", "must be 1 to 16384, not 16385")]),
    ("wide layers", sees(extent=(32_769,), layers=2), [(f"{TEXTURE}.extent[0]", "must be 1 to 32768, not 32769")]),
    ("long surface", sees(O, extent=(32_769,)), [(f"{TEXTURE}.extent[0]", "must be 1 to 32768, not 32769")]),
    ("many layers", sees(layers=2049), [(f"{TEXTURE}.layers", "must be 0 to 2048, not 2049")]),
    ("layers in depth", sees(extent=(8, 2, 2), layers=2), [(f"{TEXTURE}.layers", "of three dimensions has none")]),
    ("layers as text", sees(layers="2"), [(f"{TEXTURE}.layers", "must be an integer")]),
    ("wrap in texels", sees(address_mode=AddressMode.WRAP), [(f"{TEXTURE}.address_mode", "wrap needs normalized_coordinates")]),
    (
        "linear integers",
        sees(filter_mode=FilterMode.LINEAR),
        [(f"{TEXTURE}.filter_mode", "linear needs elements that are read as")],
    ),
    (
        "filtered line with a border",
        sees(dtype="unorm8", extent=(32,), filter_mode=FilterMode.LINEAR, address_mode=AddressMode.BORDER),
        [(f"{TEXTURE}.address_mode", "GPUs filter no line with a border: give it two dimensions")],
    ),
    ("normalised surface", sees(O, dtype="snorm8"), [(f"{TEXTURE}.dtype", "a surface has integers as they are: int8")]),
    ("surface with a filter", sees(O, address_mode=AddressMode.BORDER), [(TEXTURE, "is written, so it is a surface")]),
    ("surface and buffer", sees(O, further=[BufferArgument("x", I)]), [(TEXTURE, "'x' is a surface here, and no other")]),
    (
        "surface and packed",
        sees(O, further=[Packed(bytes(8), (PackedBuffer(0, BufferArgument("x", I)),))]),
        [(TEXTURE, "'x' is a surface here, and no other")],
    ),
    (
        "texture of nothing",
        Request((kernel([TextureArgument("y", I, Texture("uint8", 1, (8,)))]),), (x(),)),
        [(TEXTURE, "the request has no buffer 'y'")],
    ),
    (
        "several at once",
        Request((kernel(library="k", name="", grid=(0, 1, 1)),), (x(size_bytes=0),), iterations=0),
        [
            ("iterations", ""),
            ("buffers[0].size", ""),
            ("kernels[0].library", ""),
            ("kernels[0].name", ""),
            ("kernels[0].grid[0]", ""),
        ],
    ),
]


@pytest.mark.parametrize(("request_", "expected"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_requests(request_: Request, expected: list[tuple[str, str]]) -> None:
    found = problems(request_)
    assert [path for path, _ in found] == [path for path, _ in expected]
    for (_, description), (_, fragment) in zip(found, expected, strict=True):
        assert fragment in description


@pytest.mark.parametrize(
    ("letter", "low", "high"),
    [
        ("b", -128, 127),
        ("B", 0, 255),
        ("h", -32768, 32767),
        ("H", 0, 65535),
        ("i", -(2**31), 2**31 - 1),
        ("I", 0, 2**32 - 1),
        ("q", -(2**63), 2**63 - 1),
        ("Q", 0, 2**64 - 1),
    ],
)
def test_range_of_integer_literals(letter: str, low: int, high: int) -> None:
    assert problems(Request((kernel([Literal(letter, low), Literal(letter, high)]),))) == []
    found = problems(Request((kernel([Literal(letter, low - 1), Literal(letter, high + 1)]),)))
    assert [path for path, _ in found] == ["kernels[0].arguments[0]", "kernels[0].arguments[1]"]
    assert all(f"out of range for type '{letter}' ({low} to {high})" in description for _, description in found)


@pytest.mark.parametrize(
    ("letter", "largest", "overflow"),
    [
        ("e", 65504.0, 65520.0),  # 65520 is half way to 2**16 and rounds to it
        ("f", float(2**128 - 2**104), float(2**128 - 2**103)),
        ("d", 1.7976931348623157e308, 2**1024),
    ],
)
def test_range_of_floating_point_literals(letter: str, largest: float, overflow: float) -> None:
    right = [largest, -largest, 0, 7, math.inf, -math.inf, math.nan]
    assert problems(Request((kernel([Literal(letter, value) for value in right]),))) == []
    ((path, description),) = problems(Request((kernel([Literal(letter, overflow)]),)))
    assert path == "kernels[0].arguments[0]"
    assert f"out of range for type '{letter}'" in description


@pytest.mark.parametrize(
    ("literal", "fragment"),
    [
        (Literal("l", 1), "unknown literal type 'l'"),
        (Literal("", 1), "unknown literal type ''"),
        (Literal("?", True), "unknown literal type '?'"),
        (Literal("i", True), "must be a number, not bool"),
        (Literal("i", 1.0), "must be an integer, not 1.0"),
        (Literal("f", "1"), "must be a number, not str"),  # type: ignore[arg-type]
    ],
)
def test_bad_literals(literal: Literal, fragment: str) -> None:
    ((path, description),) = problems(Request((kernel([literal]),)))
    assert path == "kernels[0].arguments[0]"
    assert fragment in description
