"""The JSON form: the original format in each of its versions, ours, and mixtures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from kaas_core.errors import InvalidRequestError
from kaas_core.json_form import request_from_json, request_to_json
from kaas_core.request import (
    Access,
    BufferArgument,
    BufferSpec,
    KernelSpec,
    Literal,
    Packed,
    PackedBuffer,
    Request,
)

GOLDEN = Path(__file__).parent.parent / "testdata" / "requests"

DOT = Request(
    kernels=(
        KernelSpec(
            library="/opt/kernels/dot.so",
            name="prodKern",
            grid=(1, 1, 1),
            block=(1024, 1, 1),
            arguments=(
                Literal("Q", 1024),
                BufferArgument("a", Access.INPUT),
                BufferArgument("b", Access.INPUT),
                BufferArgument("p", Access.TEMPORARY),
            ),
        ),
        KernelSpec(
            library="/opt/kernels/dot.so",
            name="sumKern",
            grid=(1, 1, 1),
            block=(512, 1, 1),
            arguments=(BufferArgument("p", Access.INPUT), BufferArgument("c", Access.OUTPUT)),
        ),
    ),
    buffers=(
        BufferSpec("a", 4096),
        BufferSpec("b", 4096, constant=True),
        BufferSpec("p", 4096, ephemeral=True),
        BufferSpec("c", 4),
    ),
)

EVERY_FIELD = Request(
    kernels=(
        KernelSpec(
            library="sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
            name="_Z6jacobiPfPdi",
            grid=(4, 3, 2),
            block=(32, 8, 1),
            arguments=(
                BufferArgument("A", Access.INPUT),
                Literal("b", -128),
                BufferArgument("x", Access.INOUT),
                Literal("f", 0.25),
                Literal("d", -math.inf),
                Literal("Q", 2**64 - 1),
                BufferArgument("error", Access.OUTPUT),
                Packed(
                    bytes(8) + b"\1" + bytes(7) + b"\0\0\x80\x3f",
                    (PackedBuffer(0, BufferArgument("x", Access.INPUT)), PackedBuffer(8, BufferArgument("A", Access.INPUT))),
                ),
                Packed(b"\xff"),
            ),
            shared_memory_bytes=2048,
            cluster=(2, 1, 2),
            cooperative=True,
            programmatic_dependent_launch=True,
        ),
    ),
    buffers=(
        BufferSpec("A", 1 << 20, key="matrices/A", offset_bytes=64, constant=True),
        BufferSpec("x", 4096, key="lösung", dtype="float64", shape=(32, 16), fortran_order=True),
        BufferSpec("error", 8, key="errors", offset_bytes=16, dtype="float64"),
        BufferSpec("unused", 1, ephemeral=True),
    ),
    iterations=3000,
)


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.json").read_bytes()


def one_kernel(**fields: object) -> dict[str, object]:
    """Return a request of one kernel in our form, fields replaced or, where None, left out."""
    kernel: dict[str, object] = {"library": "/k.ptx", "name": "k", "grid": 1, "block": 1, "arguments": []}
    kernel.update(fields)
    return {"kernels": [{name: value for name, value in kernel.items() if value is not None}]}


@pytest.mark.parametrize("name", ["original_pairs", "original_by_use", "ours"])
def test_golden_dot_product(name: str) -> None:
    assert request_from_json(golden(name)) == DOT


def test_golden_dot_product_as_the_original_writes_it() -> None:
    request = request_from_json(golden("original_type_list"))
    assert request.kernels == DOT.kernels
    # It writes a key for every buffer; the one of the ephemeral buffer says nothing.
    assert [(spec.name, spec.key, spec.ephemeral) for spec in request.buffers] == [
        ("a", "a", False),
        ("b", "b", False),
        ("p", "", True),
        ("c", "c", False),
    ]


def test_golden_every_field() -> None:
    assert request_from_json(golden("ours_every_field")) == EVERY_FIELD


@pytest.mark.parametrize(("name", "request_"), [("ours", DOT), ("ours_every_field", EVERY_FIELD)])
def test_our_form_is_what_is_written(name: str, request_: Request) -> None:
    assert request_to_json(request_) == json.loads(golden(name))


def test_text_bytes_and_dict_are_read_alike() -> None:
    data = golden("original_pairs")
    assert request_from_json(data.decode()) == request_from_json(json.loads(data)) == request_from_json(data)


def test_byte_order_mark_is_no_fault() -> None:
    assert request_from_json(b"\xef\xbb\xbf" + golden("ours")) == DOT


@pytest.mark.parametrize("field", ["grid", "nGrid", "gridDim"])
@pytest.mark.parametrize(
    ("value", "expected"), [(7, (7, 1, 1)), ([7], (7, 1, 1)), ([7, 5], (7, 5, 1)), ([7, 5, 3], (7, 5, 3)), ((7, 5), (7, 5, 1))]
)
def test_one_to_three_numbers_make_a_grid(field: str, value: object, expected: tuple[int, int, int]) -> None:
    assert request_from_json(one_kernel(**{"grid": None, field: value})).kernels[0].grid == expected


@pytest.mark.parametrize("field", ["block", "nBlock", "blockDim"])
def test_names_of_the_block(field: str) -> None:
    assert request_from_json(one_kernel(**{"block": None, field: [4, 2]})).kernels[0].block == (4, 2, 1)


@pytest.mark.parametrize(("written", "cluster"), [(2, (2, 1, 1)), ([2], (2, 1, 1)), ([1, 2], (1, 2, 1)), ([1, 1, 4], (1, 1, 4))])
def test_a_cluster_is_one_to_three_numbers(written: object, cluster: tuple[int, int, int]) -> None:
    assert request_from_json(one_kernel(cluster=written)).kernels[0].cluster == cluster


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("cluster", [1, 1, 1, 1], "must have one to three numbers, not 4"),
        ("cluster", "2", "must be an integer, not '2'"),
        ("cooperative", 1, "must be true or false, not 1"),
        ("programmatic_dependent_launch", "yes", "must be true or false, not 'yes'"),
    ],
)
def test_a_malformed_launch_attribute(field: str, value: object, problem: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request_from_json(one_kernel(**{field: value}))
    assert [(each.field, each.description) for each in caught.value.violations] == [(f"kernels[0].{field}", problem)]


@pytest.mark.parametrize("field", ["sharedSize", "shared_memory_bytes"])
def test_names_of_the_shared_memory(field: str) -> None:
    assert request_from_json(one_kernel(**{field: 48})).kernels[0].shared_memory_bytes == 48


@pytest.mark.parametrize("field", ["iterations", "nIter"])
def test_names_of_the_iterations(field: str) -> None:
    assert request_from_json(one_kernel() | {field: 9}).iterations == 9


def test_two_names_of_a_field_may_agree() -> None:
    assert request_from_json(one_kernel(kernel="k", gridDim=[1, 1, 1])).kernels[0].name == "k"


def test_literals_in_a_type_list() -> None:
    request = request_from_json(
        one_kernel(
            arguments=[{"name": "x", "size": 8}, {"type": "i", "val": -3}, "x"],
            type_list=["i", "l", "o"],
            literals=[{"type": "f", "val": 2}],
        )
    )
    assert request.kernels[0].arguments == (
        Literal("f", 2.0),
        BufferArgument("x", Access.INPUT),
        Literal("i", -3),
        BufferArgument("x", Access.OUTPUT),
    )


def test_original_by_use_makes_inputs_that_are_outputs_one_argument() -> None:
    x, y, t = ({"name": name, "size": 4} for name in "xyt")
    request = request_from_json(one_kernel(arguments=None, inputs=[x], temps=[t], outputs=[y, x]))
    assert request.kernels[0].arguments == (
        BufferArgument("x", Access.INOUT),
        BufferArgument("t", Access.TEMPORARY),
        BufferArgument("y", Access.OUTPUT),
    )


def test_mentions_complete_each_other() -> None:
    arguments = [[{"name": "x", "size_bytes": 8}, "i"], ["x", "io"], [{"name": "x", "key": "k", "offset_bytes": 4}, "i"]]
    assert request_from_json(one_kernel(arguments=arguments)).buffers == (BufferSpec("x", 8, key="k", offset_bytes=4),)


def test_ephemeral_once_is_ephemeral() -> None:
    arguments = [[{"name": "x", "size": 8, "ephemeral": False}, "o"], [{"name": "x", "size": 8, "ephemeral": True}, "i"]]
    assert request_from_json(one_kernel(arguments=arguments)).buffers == (BufferSpec("x", 8, ephemeral=True),)


@pytest.mark.parametrize(("accesses", "ephemeral"), [("t", True), ("ti", False), ("it", False), ("to", False)])
def test_scratch_in_the_first_launch_is_ephemeral(accesses: str, ephemeral: bool) -> None:
    arguments = [[{"name": "x", "size": 8}, letter] for letter in accesses]
    assert request_from_json(one_kernel(arguments=arguments)).buffers[0].ephemeral is ephemeral


def test_later_launches_do_not_make_a_buffer_ephemeral() -> None:
    fields = {"library": "/k.ptx", "name": "k", "grid": 1, "block": 1}
    first = fields | {"arguments": [[{"name": "x", "size": 8}, "i"]]}
    request = request_from_json({"kernels": [first, fields | {"arguments": [["x", "t"]]}]})
    assert not request.buffers[0].ephemeral


def test_zero_keeps_its_sign() -> None:
    (literal,) = request_from_json(one_kernel(literals=[{"type": "f", "val": -0.0}])).kernels[0].arguments
    assert repr(literal) == repr(Literal("f", -0.0))


@pytest.mark.parametrize(
    ("text", "value"), [("NaN", math.nan), ("Infinity", math.inf), ("-Infinity", -math.inf)], ids=["nan", "inf", "-inf"]
)
def test_numbers_that_json_lacks_are_strings(text: str, value: float) -> None:
    (literal,) = request_from_json(one_kernel(literals=[{"type": "f", "val": text}])).kernels[0].arguments
    assert repr(literal) == repr(Literal("f", value))


TEXTURE: dict[str, object] = {"texture": {"name": "x", "size": 4}, "dtype": "uint8", "extent": 4}


BAD: list[tuple[str, object, list[tuple[str, str]]]] = [
    ("empty", b"", [("", "not JSON: line 1, column 1")]),
    ("cut off", b'{"kernels": [\n  {"library": ', [("", "not JSON: line 2, column 15")]),
    ("not UTF-8", b'{"\xff": 1}', [("", "byte 2 is not UTF-8")]),
    ("UTF-16", '{"kernels": []}'.encode("utf-16"), [("", "not UTF-8")]),
    ("too deep", "[" * 100_000, [("", "nested too deeply")]),
    ("too deep below a field", '{"kernels": ' + "[" * 100_000, [("", "nested too deeply")]),
    ("endless integer", '{"iterations": ' + "9" * 5000 + "}", [("", "thousands of digits")]),
    ("not an object", "[]", [("", "must be an object, not a list")]),
    ("null", "null", [("", "must be an object, not null")]),
    ("no kernels", "{}", [("kernels", "is missing")]),
    ("empty kernels", '{"kernels": []}', [("kernels", "at least one kernel")]),
    ("kernels as object", '{"kernels": {}}', [("kernels", "must be a list, not an object")]),
    ("kernel as string", '{"kernels": ["k"]}', [("kernels[0]", "must be an object, not 'k'")]),
    ("key twice", '{"kernels": [], "kernels": []}', [("kernels", "given twice")]),
    ("unknown field", one_kernel(gird=1), [("kernels[0].gird", "did you mean grid?")]),
    ("unknown top-level field", one_kernel() | {"buffer": []}, [("buffer", "did you mean buffers?")]),
    ("unprintable field", one_kernel() | {"\ud800 x": 1}, [(r"['\ud800 x']", "no such field")]),
    ("library missing", one_kernel(library=None), [("kernels[0].library", "missing")]),
    ("name missing", one_kernel(name=None), [("kernels[0].name", "missing")]),
    ("grid missing", one_kernel(grid=None), [("kernels[0].grid", "missing")]),
    ("block missing", one_kernel(block=None), [("kernels[0].block", "missing")]),
    ("names differ", one_kernel(kernel="other"), [("kernels[0].kernel", "differs from name")]),
    ("grids differ", one_kernel(nGrid=2), [("kernels[0].nGrid", "differs from grid")]),
    ("iterations differ", one_kernel() | {"iterations": 1, "nIter": 2}, [("nIter", "differs from iterations")]),
    ("iterations as boolean", one_kernel() | {"iterations": True}, [("iterations", "an integer, not true")]),
    ("iterations zero", one_kernel() | {"iterations": 0}, [("iterations", "at least 1, not 0")]),
    ("iterations huge", one_kernel() | {"iterations": 2**32}, [("iterations", "at most 4294967295")]),
    ("iterations gigantic", one_kernel() | {"iterations": 10**6000}, [("iterations", "an integer of 19932 bits")]),
    ("library as number", one_kernel(library=1), [("kernels[0].library", "must be a string, not 1")]),
    ("grid as float", one_kernel(grid=1.0), [("kernels[0].grid", "must be an integer, not 1.0")]),
    ("grid as NaN", '{"kernels": [{"library": "/k", "name": "k", "grid": NaN, "block": 1}]}', [("kernels[0].grid", "not nan")]),
    ("grid of none", one_kernel(grid=[]), [("kernels[0].grid", "one to three numbers, not 0")]),
    ("grid of four", one_kernel(grid=[1, 1, 1, 1]), [("kernels[0].grid", "one to three numbers, not 4")]),
    ("boolean in a block", one_kernel(block=[1, True]), [("kernels[0].block[1]", "must be an integer, not true")]),
    ("grid zero", one_kernel(grid=[1, 0]), [("kernels[0].grid[1]", "at least 1, not 0")]),
    ("arguments as object", one_kernel(arguments={}), [("kernels[0].arguments", "must be a list")]),
    ("argument not a pair", one_kernel(arguments=["x"]), [("kernels[0].arguments[0]", "must be a pair")]),
    ("argument of three", one_kernel(arguments=[["x", "i", "o"]]), [("kernels[0].arguments[0]", "must be a pair")]),
    (
        "packed without data",
        one_kernel(arguments=[[{"buffers": []}, "p"]]),
        [("kernels[0].arguments[0].packed", "is missing")],
    ),
    ("packed as number", one_kernel(arguments=[[{"packed": 1}, "p"]]), [("kernels[0].arguments[0].packed", "must be a string")]),
    ("packed not base64", one_kernel(arguments=[[{"packed": "=A"}, "p"]]), [("kernels[0].arguments[0].packed", "is not base64")]),
    ("packed not ASCII", one_kernel(arguments=[[{"packed": "ö"}, "p"]]), [("kernels[0].arguments[0].packed", "is not base64")]),
    ("packed as text", one_kernel(arguments=[["x", "p"]]), [("kernels[0].arguments[0]", "a packed argument must be an object")]),
    (
        "packed pairs",
        one_kernel(arguments=[[{"packed": "AAAA", "buffers": [["x", "i"]]}, "p"]]),
        [("kernels[0].arguments[0].buffers[0]", "must be an offset in bytes, a buffer, and one of i, o, io, t")],
    ),
    (
        "packed offset as text",
        one_kernel(arguments=[[{"packed": "AAAA", "buffers": [["0", {"name": "x", "size": 1}, "i"]]}, "p"]]),
        [("kernels[0].arguments[0].buffers[0].offset_bytes", "must be an integer")],
    ),
    (
        "packed literal in it",
        one_kernel(arguments=[[{"packed": "AAAA", "buffers": [[0, {"name": "x", "size": 1}, "l"]]}, "p"]]),
        [("kernels[0].arguments[0].buffers[0]", "unknown access 'l'; expected i, o, io, t")],
    ),
    (
        "packed size differs",
        one_kernel(
            arguments=[
                [{"name": "x", "size": 2}, "i"],
                [{"packed": "AAAA", "buffers": [[0, {"name": "x", "size": 1}, "i"]]}, "p"],
            ]
        ),
        [("kernels[0].arguments[1].buffers[0].size", "buffer 'x' has size 1 here, but 2 at kernels[0].arguments[0]")],
    ),
    (
        "texture without what it needs",
        one_kernel(arguments=[[{"texture": {"name": "x", "size": 4}}, "i"]]),
        [("kernels[0].arguments[0].dtype", "is missing"), ("kernels[0].arguments[0].extent", "is missing")],
    ),
    (
        "texture of unknown modes",
        one_kernel(arguments=[[TEXTURE | {"address_mode": "edge", "filter_mode": 1, "normalized_coordinates": 1}, "i"]]),
        [
            ("kernels[0].arguments[0].address_mode", "must be one of wrap, clamp, mirror, border, not 'edge'"),
            ("kernels[0].arguments[0].filter_mode", "must be one of point, linear, not 1"),
            ("kernels[0].arguments[0].normalized_coordinates", "must be true or false"),
        ],
    ),
    (
        "texture of four dimensions",
        one_kernel(arguments=[[TEXTURE | {"extent": [1, 2, 3, 4]}, "i"]]),
        [("kernels[0].arguments[0].extent", "must have one to three numbers, not 4")],
    ),
    (
        "texture of unknown access",
        one_kernel(arguments=[[TEXTURE, "s"]]),
        [("kernels[0].arguments[0]", "unknown access 's'; expected i, o, io, t")],
    ),
    (
        "texture with more",
        one_kernel(arguments=[[TEXTURE | {"width": 4}, "i"]]),
        [("kernels[0].arguments[0].width", "no such field")],
    ),
    ("access unknown", one_kernel(arguments=[["x", "oi"]]), [("kernels[0].arguments[0]", "unknown access 'oi'")]),
    ("access as list", one_kernel(arguments=[["x", ["i"]]]), [("kernels[0].arguments[0]", "unknown access a list")]),
    (
        "buffer unknown",
        one_kernel(arguments=[["x", "i"]]),
        [("kernels[0].arguments[0]", "'x' has no size: no entry of `buffers` and no argument gives one")],
    ),
    ("buffer as number", one_kernel(arguments=[[3, "i"]]), [("kernels[0].arguments[0]", "a buffer must be an object, not 3")]),
    ("buffer without name", one_kernel(arguments=[[{"size": 1}, "i"]]), [("kernels[0].arguments[0].name", "missing")]),
    ("type_list short", one_kernel(arguments=["x"], type_list=[]), [("kernels[0].type_list", "0 entries for 1 arguments")]),
    ("type_list alone", one_kernel(arguments=None, type_list=["i"]), [("kernels[0].type_list", "without arguments")]),
    (
        "type_list beside pairs",
        one_kernel(arguments=[[{"name": "x", "size": 1}, "i"]], type_list=["i"]),
        [("kernels[0].arguments[0]", "a buffer must be an object, not a list")],
    ),
    (
        "inputs repeat others",
        one_kernel(arguments=[[{"name": "x", "size": 1}, "i"]], inputs=[]),
        [("kernels[0].inputs", "the same buffers")],
    ),
    (
        "sizes differ",
        one_kernel(arguments=[["x", "i"]]) | {"buffers": [{"name": "x", "size": 1}, {"name": "x", "size": 2}]},
        [("buffers[1].size", "buffer 'x' has size 2 here, but 1 at buffers[0]")],
    ),
    (
        "keys and const differ",
        one_kernel(
            arguments=[
                [{"name": "x", "size": 8, "key": "k", "const": True}, "i"],
                [{"name": "x", "key": "l", "const": False}, "i"],
            ]
        ),
        [
            ("kernels[0].arguments[1].key", "'l' here, but 'k' at kernels[0].arguments[0]"),
            ("kernels[0].arguments[1].const", "false here, but true at kernels[0].arguments[0]"),
        ],
    ),
    (
        "offsets differ",
        one_kernel(arguments=[[{"name": "x", "size": 8, "offset": 4}, "i"], [{"name": "x", "offset": 0}, "i"]]),
        [("kernels[0].arguments[1].offset", "0 here, but 4")],
    ),
    (
        "shapes differ",
        one_kernel(
            arguments=[
                [{"name": "x", "size": 8, "dtype": "float32", "shape": [2]}, "i"],
                [{"name": "x", "dtype": "int32", "shape": [2, 1]}, "i"],
            ]
        ),
        [
            ("kernels[0].arguments[1].dtype", "'int32' here, but 'float32' at"),
            ("kernels[0].arguments[1].shape", "[2, 1] here, but [2] at"),
        ],
    ),
    (
        "shape of words",
        one_kernel() | {"buffers": [{"name": "x", "size": 8, "dtype": "u1", "shape": ["a"]}]},
        [("buffers[0].shape[0]", "must be an integer, not 'a'")],
    ),
    (
        "shape as number",
        one_kernel() | {"buffers": [{"name": "x", "size": 8, "dtype": "u1", "shape": 8}]},
        [("buffers[0].shape", "must be a list, not 8")],
    ),
    ("key empty", one_kernel() | {"buffers": [{"name": "x", "size": 1, "key": ""}]}, [("buffers[0].key", "not be empty")]),
    ("key as number", one_kernel() | {"buffers": [{"name": "x", "size": 1, "key": 5}]}, [("buffers[0].key", "a string")]),
    ("const as number", one_kernel() | {"buffers": [{"name": "x", "size": 1, "const": 1}]}, [("buffers[0].const", "not 1")]),
    ("size null", one_kernel() | {"buffers": [{"name": "x", "size": None}]}, [("buffers[0].size", "not null")]),
    ("literal as number", one_kernel(literals=[7]), [("kernels[0].literals[0]", "a literal must be an object, not 7")]),
    ("literal without type", one_kernel(literals=[{"val": 1}]), [("kernels[0].literals[0].type", "missing")]),
    ("literal without value", one_kernel(literals=[{"type": "i"}]), [("kernels[0].literals[0].val", "missing")]),
    (
        "literal's value misnamed",
        one_kernel(literals=[{"type": "i", "value": 1}]),
        [("kernels[0].literals[0].value", "did you mean val?"), ("kernels[0].literals[0].val", "missing")],
    ),
    ("literal as boolean", one_kernel(literals=[{"type": "f", "val": True}]), [("kernels[0].literals[0].val", "not true")]),
    ("integer literal as float", one_kernel(literals=[{"type": "i", "val": 1.5}]), [("kernels[0].literals[0].val", "1.5")]),
    ("integer literal as string", one_kernel(literals=[{"type": "i", "val": "NaN"}]), [("kernels[0].literals[0].val", "'NaN'")]),
    ("literal type unknown", one_kernel(literals=[{"type": "x", "val": 1}]), [("kernels[0].arguments[0]", "type 'x'")]),
    ("literal too large", one_kernel(literals=[{"type": "B", "val": 256}]), [("kernels[0].arguments[0]", "(0 to 255)")]),
    ("double of 400 digits", one_kernel(literals=[{"type": "d", "val": 10**400}]), [("kernels[0].literals[0].val", "finite")]),
    (
        "float constants",
        '{"kernels": [{"library": "/k", "name": "k", "grid": 1, "block": 1, "literals": [{"type": "d", "val": Infinity},'
        ' {"type": "d", "val": 1e999}]}]}',
        [("kernels[0].literals[0].val", "'Infinity'"), ("kernels[0].literals[1].val", "'Infinity'")],
    ),
    ("library not UTF-8", one_kernel(library="/\udc80"), [("kernels[0].library", r"not valid UTF-8: '/\udc80'")]),
    (
        "all at once",
        one_kernel(library=3, grid=0.5, arguments=[["x", "?"]], colour="red"),
        [
            ("kernels[0].colour", "no such field"),
            ("kernels[0].arguments[0]", "unknown access '?'"),
            ("kernels[0].library", "must be a string"),
            ("kernels[0].grid", "must be an integer"),
        ],
    ),
]


@pytest.mark.parametrize(("source", "expected"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_names_every_bad_field(source: str | bytes | dict[str, object], expected: list[tuple[str, str]]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request_from_json(source)
    violations = caught.value.violations
    assert [violation.field for violation in violations] == [path for path, _ in expected]
    for violation, (_, fragment) in zip(violations, expected, strict=True):
        assert fragment in violation.description


def test_violations_are_bounded() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request_from_json(one_kernel(**{f"field{n}": n for n in range(50)}))
    assert len(caught.value.violations) == 21
    assert caught.value.violations[-1].description == "and 30 more"
