"""Properties: the forms lose nothing of a valid request, and whatever comes in, only one kind of error comes out."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kaas.v1 import types_pb2
from kaas_core.errors import InvalidRequestError
from kaas_core.json_form import request_from_json, request_to_json
from kaas_core.protobuf import request_from_proto, request_to_proto
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
from kaas_core.texture import ELEMENTS, AddressMode, FilterMode, Texture

GOLDEN = sorted((Path(__file__).parent.parent / "testdata" / "requests").glob("*.json"))

PROPERTY = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""A busy machine is no fault."""
INTEGERS = {letter: struct.calcsize(f"<{letter}") * 8 for letter in "bBhHiIqQ"}
FLOATS = {"e": 16, "f": 32, "d": 64}
READ = (Access.INPUT,)
WRITTEN = (Access.INPUT, Access.OUTPUT, Access.INOUT)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = texts.filter(bool)
libraries = st.one_of(st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True), texts.map(lambda text: "/" + text.replace("\0", "")))


def literals() -> st.SearchStrategy[Literal]:
    def of(letter: str) -> st.SearchStrategy[Literal]:
        if letter in FLOATS:
            return st.floats(width=FLOATS[letter]).map(lambda value: Literal(letter, value))  # type: ignore[arg-type]
        bits = INTEGERS[letter]
        low, high = (0, 2**bits - 1) if letter.isupper() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        return st.integers(low, high).map(lambda value: Literal(letter, value))

    return st.sampled_from([*INTEGERS, *FLOATS]).flatmap(of)


ITEM_BYTES = {"": 0, "float32": 4, "bfloat16": 2, '[["x", "<f4"], ["y", "<i2", [3]]]': 10}


@st.composite
def buffers(draw: st.DrawFn) -> tuple[BufferSpec, tuple[Access, ...]]:
    """Draw a buffer and the accesses that it allows; its key is its name."""
    role = draw(st.sampled_from(["read", "constant", "written", "ephemeral"]))
    dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = tuple(draw(st.lists(st.integers(1, 2**13), max_size=4))) if dtype else ()
    offset = 0 if role == "ephemeral" else draw(st.integers(0, 2**40))
    spec = BufferSpec(
        name=draw(names),
        size_bytes=prod(shape) * ITEM_BYTES[dtype] if dtype else draw(st.integers(1, 2**63)),
        offset_bytes=offset,
        ephemeral=role == "ephemeral",
        constant=role == "constant",
        dtype=dtype,
        shape=shape,
        fortran_order=draw(st.booleans()) if dtype else False,
    )
    allowed = {"read": READ, "constant": READ, "written": WRITTEN, "ephemeral": tuple(Access)}
    return spec, allowed[role]


@st.composite
def packed(draw: st.DrawFn, use: st.SearchStrategy[BufferArgument]) -> Packed:
    places = [] if use.is_empty else draw(st.lists(st.integers(0, 3), unique=True, max_size=3))
    size = 8 * (max(places, default=-1) + 1)
    data = draw(st.binary(min_size=max(size, 1), max_size=size + 9))
    return Packed(data, tuple(PackedBuffer(8 * place, draw(use)) for place in places))


@st.composite
def textures(draw: st.DrawFn) -> Texture:
    dtype, normalized = draw(st.sampled_from([*ELEMENTS])), draw(st.booleans())
    extent = tuple(draw(st.lists(st.integers(1, 16_384), min_size=1, max_size=3)))
    return Texture(
        dtype,
        draw(st.sampled_from([1, 2, 4])),
        extent,
        draw(st.integers(0, 2048)) if len(extent) < 3 else 0,
        draw(st.sampled_from([*AddressMode] if normalized else [AddressMode.CLAMP, AddressMode.BORDER])),
        draw(st.sampled_from([*FilterMode] if ELEMENTS[dtype].is_float else [FilterMode.POINT])),
        normalized,
    )


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Draw a valid request, of every shape that one may have but for several buffers on one key."""
    drawn = draw(
        st.lists(buffers().filter(lambda drawn: drawn[0].name != "seen"), max_size=5, unique_by=lambda drawn: drawn[0].name)
    )
    uses = [BufferArgument(spec.name, access) for spec, allowed in drawn for access in allowed]
    use = st.sampled_from(uses) if uses else st.nothing()
    texture = draw(textures())
    seen = BufferSpec("seen", texture.size_bytes)
    arguments: st.SearchStrategy[Argument] = st.one_of(
        literals(), use, packed(use), st.just(TextureArgument("seen", Access.INPUT, texture))
    )
    dim3 = st.tuples(*[st.integers(1, 2**31 - 1)] * 3)
    kernels = st.builds(
        KernelSpec,
        library=libraries,
        name=names.map(lambda name: name.replace("\0", "0")),
        grid=dim3,
        block=dim3,
        arguments=st.lists(arguments, max_size=6).map(tuple),
        shared_memory_bytes=st.integers(0, 2**32 - 1),
        cluster=st.none() | dim3,
        cooperative=st.booleans(),
        programmatic_dependent_launch=st.booleans(),
    )
    return Request(
        kernels=tuple(draw(st.lists(kernels, min_size=1, max_size=4))),
        buffers=(*(spec for spec, _ in drawn), seen),
        iterations=draw(st.integers(1, 2**32 - 1)),
    )


@PROPERTY
@given(requests())
def test_no_form_loses_anything(request: Request) -> None:
    text = json.dumps(request_to_json(request), allow_nan=False)
    from_json = request_from_json(text)
    wire = request_to_proto(from_json).SerializeToString()
    from_proto = request_from_proto(types_pb2.Request.FromString(wire))
    # By repr, so that NaN equals NaN, and 1.0 neither 1 nor True.
    assert repr(from_json) == repr(request)
    assert repr(from_proto) == repr(request)
    assert json.dumps(request_to_json(from_proto)) == text


@PROPERTY
@given(requests())
def test_ascii_escapes_make_no_difference(request: Request) -> None:
    form = request_to_json(request)
    assert repr(request_from_json(json.dumps(form, ensure_ascii=False).encode())) == repr(request)


def assert_only_refused(source: str | bytes | dict[str, object]) -> None:
    """Read ``source``, which may well be a request; if it is none, the error must be fit to be sent."""
    try:
        request = request_from_json(source)
    except InvalidRequestError as error:
        assert 1 <= len(error.violations) <= 21
        for violation in error.violations:
            assert violation.description
            assert len(str(violation).encode()) < 2000
    else:
        assert repr(request_from_json(request_to_json(request))) == repr(request)


WORDS = [
    *("kernels", "buffers", "iterations", "nIter", "library", "kernel", "name", "grid", "nGrid", "gridDim", "block", "nBlock"),
    *("cluster", "cooperative", "programmatic_dependent_launch"),
    *("blockDim", "sharedSize", "shared_memory_bytes", "literals", "arguments", "type_list", "inputs", "temps", "outputs"),
    *("packed", "texture", "dtype", "extent", "channels", "type", "val", "size", "offset", "key", "const", "ephemeral"),
]
anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.integers(-3, 3),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["i", "o", "io", "t", "l", "p", "AAAAAAAAAAAA", "x", "/k", "f", "Q", "NaN", "\ud800"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(st.sampled_from(WORDS), st.text(max_size=5)), inner, max_size=6)
    ),
    max_leaves=15,
)


@PROPERTY
@given(anything)
def test_any_json_is_read_or_refused(value: object) -> None:
    assert_only_refused(json.dumps(value))


@PROPERTY
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    assert_only_refused(data)


@PROPERTY
@given(st.sampled_from(GOLDEN), st.data())
def test_a_request_with_a_value_replaced_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    root = json.loads(path.read_bytes())
    places: list[tuple[object, object]] = []
    pending = [root]
    while pending:
        parent = pending.pop()
        members = list(parent.items()) if isinstance(parent, dict) else list(enumerate(parent))
        places += [(parent, key) for key, _ in members]
        pending += [child for _, child in members if isinstance(child, (dict, list))]
    for _ in range(data.draw(st.integers(1, 3))):
        parent, key = data.draw(st.sampled_from(places))
        parent[key] = data.draw(anything)  # type: ignore[index]
    assert_only_refused(root)


@PROPERTY
@given(st.sampled_from(GOLDEN), st.data())
def test_a_request_with_bytes_replaced_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = min(len(text), start + data.draw(st.integers(0, 8)))
        text[start:stop] = data.draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"[", b"{", b'"', b",", b":", b"9" * 30])))
    assert_only_refused(bytes(text))


@PROPERTY
@given(requests(), st.data())
def test_a_message_with_bytes_replaced_is_read_or_refused(request: Request, data: st.DataObject) -> None:
    wire = bytearray(request_to_proto(request).SerializeToString())
    position = data.draw(st.integers(0, len(wire) - 1))
    wire[position] = data.draw(st.integers(0, 255))
    message = types_pb2.Request()
    try:
        message.ParseFromString(bytes(wire))
    except Exception as error:
        assert type(error).__name__ == "DecodeError"
        return
    try:
        changed = request_from_proto(message)
    except InvalidRequestError as error:
        assert all(violation.description for violation in error.violations)
    else:
        assert repr(request_from_json(request_to_json(changed))) == repr(changed)
