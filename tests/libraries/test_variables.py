"""Which module variables kernels may write: those that start each request anew."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from kaasd.libraries import fatbin
from kaasd.libraries.elf import read_elf
from kaasd.libraries.image import read_image
from kaasd.libraries.variables import forms, writable_in_ptx, writable_variables

TESTS = Path(__file__).parents[1]
VARIABLES = TESTS / "conformance/data"
CALLS = "_ZZN42_INTERNAL_aacdf2e3_12_variables_cu_counter5timesEvE5calls"
WRITTEN_BY_MODULE = {
    "corpus/cuda/language.ptx": {"_ZTV8Triangle", "_ZTV9Rectangle"},  # tables of virtual functions, whose addresses are stored
    "corpus/cuda/memory.ptx": {"counter", "shorts", *(f"$str{n}" for n in ("", "$1", "$2", "$3", "$4"))},
    "corpus/cuda/text.ptx": {"pattern", "pattern_length"},
    "conformance/data/variables.ptx": {"counter", "kept", "arrived", CALLS},
}


def module(body: str, declarations: str = ".global .u32 x;\n.global .u64 y;", functions: str = "") -> str:
    return (
        f".version 8.0\n.target sm_75\n.address_size 64\n{declarations}\n{functions}\n"
        f".visible .entry k(.param .u64 .ptr .global .align 4 p)\n{{\n"
        f"\t.reg .b64 %rd<9>;\n\t.reg .b32 %r<9>;\n\t.reg .pred %p<3>;\n{body}\n\tret;\n}}\n"
    )


VPRINTF = ".extern .func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b);"


def call(name: str, *arguments: str) -> str:
    """Return a call as nvcc writes it."""
    stores = "".join(f".param .b64 param{i};\nst.param.b64 [param{i}+0], {each};\n" for i, each in enumerate(arguments))
    names = ", ".join(f"param{i}" for i in range(len(arguments)))
    return f"{{ // callseq 0, 0\n{stores}.param .b32 retval0;\ncall.uni (retval0), \n{name}, \n(\n{names}\n);\n}}\n"


READ_ONLY = {
    "nothing": "",
    "a load": "ld.global.u32 %r1, [x];",
    "a load with an offset": "ld.global.nc.u32 %r1, [x+4];",
    "a vector": "mov.u64 %rd1, x;\nld.global.v2.u32 {%r1, %r2}, [%rd1];",
    "arithmetic": (
        "mov.u64 %rd1, x;\ncvta.global.u64 %rd2, %rd1;\nmad.lo.s64 %rd3, %rd7, 4, %rd2;\nadd.s64 %rd4, %rd3, 8;\n"
        "selp.b64 %rd5, %rd4, %rd2, %p1;\ncvta.to.global.u64 %rd6, %rd5;\n@%p1 ld.global.u32 %r1, [%rd6+16];"
    ),
    "a comparison": "mov.u64 %rd1, x;\nsetp.eq.s64 %p1, %rd1, 0;",
    "what is loaded is stored": "ld.global.u32 %r1, [x];\nld.param.u64 %rd1, [p];\nst.global.u32 [%rd1], %r1;",
    "a label and a place before it": "$L__1:\n\t.loc 1 2 3, function_name $L__info0, inlined_at 1 5 2\n\tld.global.u32 %r1, [x];",
    "comments": "// st.global.u32 [x], 1;\n/* st.global.u32 [x], 1; */",
    "a format": f"mov.u64 %rd1, x;\ncvta.global.u64 %rd2, %rd1;\n{call('vprintf', '%rd2', '0')}{call('f', '%rd3')}",
    "a text of an assertion": call("__assertfail", "x", "x", "%rd2", "x", "1"),
}
WRITABLE = {
    "a store": "st.global.u32 [x], 1;",
    "a guarded store": "@!%p1 st.global.u32 [x+4], %r1;",
    "an element": "st.global.u32 x[1], 1;",
    "a store behind a label": "$L__1: st.global.u32 [x], 1;",
    "a store behind a place": ".loc 1 2 3\nst.global.u32 [x], 1;",
    "a vector store": "st.global.v2.u32 [x], {%r1, %r2};",
    "an atomic": "atom.global.add.u32 %r1, [x], 1;",
    "a reduction": "red.global.add.u32 [x], 1;",
    "a copy": "cp.async.bulk.global.shared::cta.bulk_group [x], [%r1], 16;",
    "a register": "mov.u64 %rd1, x;\nst.u32 [%rd1], 1;",
    "an instruction of tomorrow": "mov.u64 %rd1, x;\nwipe.global.u32 [%rd1];",
    "a loop": "$L:\nst.global.u32 [%rd2], 1;\nadd.s64 %rd2, %rd1, 4;\nmov.u64 %rd1, x;\n@%p1 bra $L;",
    "halves": "mov.u64 %rd1, x;\nmov.b64 {%r1, %r2}, %rd1;\nmov.b64 %rd2, {%r1, %r2};\nst.global.u32 [%rd2], 1;",
    "a choice": "mov.u64 %rd1, x;\nselp.b64 %rd2, %rd1, %rd3, %p1;\nst.global.u32 [%rd2], 1;",
    "the address is stored": "mov.u64 %rd1, x;\nst.global.u64 [%rd2], %rd1;",
    "the address is on the stack": "mov.u64 %rd1, x;\nst.local.u64 [%rd2], %rd1;",
    "the address is exchanged": "mov.u64 %rd1, x;\natom.global.exch.b64 %rd3, [%rd2], %rd1;",
    "the address goes to another lane": "shfl.sync.idx.b32 %r1, %r2, 0, 31, -1;\ncvt.u64.u32 %rd1, %r1;\nmov.u64 %rd2, x;\n"
    "cvt.u32.u64 %r2, %rd2;",
    "an argument": f"mov.u64 %rd1, x;\n{call('f', '%rd1')}",
    "a second argument": f"mov.u64 %rd1, x;\n{call('vprintf', '%rd2', '%rd1')}",
    "a register as an argument": "mov.u64 %rd1, x;\ncall (%r1), f, (%rd1);",
    "an unknown function": "mov.u64 %rd1, x;\ncall %rd5, (%rd1), prototype;",
}


@pytest.mark.parametrize("case", READ_ONLY)
def test_read_only(case: str) -> None:
    assert writable_in_ptx(module(READ_ONLY[case], functions=VPRINTF)) == set()


@pytest.mark.parametrize("case", WRITABLE)
def test_writable(case: str) -> None:
    assert writable_in_ptx(module(WRITABLE[case], functions=VPRINTF)) == {"x"}


def test_a_result_of_a_function_is_not_followed() -> None:
    function = ".func (.param .b64 ret) f () {\nst.param.b64 [ret+0], x;\nret;\n}"
    assert writable_in_ptx(module("", functions=function)) == {"x"}


def test_a_function_of_the_name_of_printf_is_none_of_the_devices() -> None:
    function = ".func (.param .b32 r) vprintf (.param .b64 a, .param .b64 b) {\nst.param.b32 [r], 0;\nret;\n}"
    assert writable_in_ptx(module(call("vprintf", "x", "0"), functions=function)) == {"x"}


def test_registers_belong_to_their_function() -> None:
    function = ".func f (.param .b64 a) {\n.reg .b64 %rd<3>;\nld.param.u64 %rd1, [a];\nst.global.u32 [%rd1], 1;\nret;\n}"
    assert writable_in_ptx(module("mov.u64 %rd1, x;\nld.global.u32 %r1, [%rd1];", functions=function)) == set()


@pytest.mark.parametrize(
    "declarations",
    [
        ".global .u32 x;\n.global .u64 y = x;",
        ".global .u32 x;\n.global .u64 y = generic(x);",
        ".global .u32 x;\n.const .u64 y[2] = {0, x+4};",
        ".visible .global .align 8 .u64 y[2][1] = {{1}, {generic(x)}}, x[4];",
        ".global .u32 x;\n.global .b8 y[8] = {0xFF(x), 0xFF00(x)};",
    ],
)
def test_what_another_variable_points_to(declarations: str) -> None:
    assert writable_in_ptx(module("", declarations)) == {"x"}


def test_declarations() -> None:
    declarations = (
        ".visible .global .attribute(.managed) .align 4 .b8 a[8] = {1, 2}, b;\n.weak .global .v2 .f32 c;\n.global .u32 d<3>;\n"
        ".global .texref t;\n.const .u32 e = 5;\n.shared .u32 f; .global.u32 g;"
    )
    stores = "\n".join(f"st.u32 [{name}], 1;" for name in ("a", "b", "c", "d0", "d2", "e", "f", "g", "h"))
    assert writable_in_ptx(module(f".global .u32 h;\n{stores}", declarations)) == {"a", "b", "c", "d0", "d2", "g", "h"}


@pytest.mark.parametrize("path", [str(path.relative_to(TESTS)) for path in sorted(TESTS.rglob("*.ptx"))])
def test_modules_of_compilers(path: str) -> None:
    assert writable_in_ptx((TESTS / path).read_text()) == WRITTEN_BY_MODULE.get(path, set())


def test_every_order_of_a_chain_is_followed() -> None:
    chain = ["mov.u64 %rd1, x;", "add.s64 %rd2, %rd1, 4;", "cvta.to.global.u64 %rd3, %rd2;", "st.global.u32 [%rd3], 1;"]
    for order in itertools.permutations(chain):
        assert writable_in_ptx(module("\n".join(order))) == {"x"}


@pytest.mark.parametrize(
    "text",
    [
        module(".reg .b64 %q<9999>;\nmov.u64 %q0, x;\n" + "\n".join(f"mov.u64 %q{i}, %q{i - 1};" for i in range(9000, 0, -1))),
        module("{" * 100_000 + "}" * 100_000),
        module("", ".global .u32 x;\n.global .u64 y[1] = " + "{" * 100_000 + "x" + "}" * 100_000 + ";"),
        module("", ".global .u32 x" + " " * 300_000 + "!, " + "a" * 300_000 + "!;"),
        module(".func " * 100_000),
        module("a " * 100_000 + ": " * 100_000),
        module("", "".join(f".param .u64 .ptr .global p{i}\n" for i in range(20_000))),
    ],
    ids=["chain", "blocks", "initialiser", "declaration", "functions", "labels", "parameters"],
)
def test_any_text_has_its_answer_soon(text: str) -> None:
    assert writable_in_ptx(text) <= {"x", "y", "a"}


def test_a_cubin_names_its_variables() -> None:
    data = (VARIABLES / "variables.sm_90.cubin").read_bytes()
    assert set(read_elf(data).variables) == {"$str", "arrived", "counter", "kept", "place", CALLS}
    assert writable_variables(data) == {"arrived", "counter", "kept", "place", CALLS}
    assert [form.code for form in forms(data, 90)] == [data]


def test_libraries_without_variables_have_one_form_as_it_is() -> None:
    for name in ("dot.fatbin", "dot.sm_90.cubin", "two_units.so"):
        for unit in read_image((TESTS / "libraries/data" / name).read_bytes()).units:
            assert forms(unit, 90) == [(unit, frozenset())]


def test_ptx_is_loaded_with_names_that_can_be_found() -> None:
    text = (VARIABLES / "variables.ptx").read_text()
    ((code, names),) = forms(text.encode() + b"\0", 90)
    assert names == WRITTEN_BY_MODULE["conformance/data/variables.ptx"]
    changed = [line for line in code.decode().rstrip("\0").splitlines() if line not in text.splitlines()]
    assert [line.split()[:2] for line in changed] == [[".visible", ".global"]] * 4
    assert code.decode().replace(".visible .global", ".global") == text + "\0"


def test_what_is_visible_or_inside_a_function_is_left_as_it_is() -> None:
    declarations = ".visible .global .u32 x;\n.weak\n.global .u32 y; /* .global .u32 x; */"
    text = module(".global .u32 z;\nst.u32 [x], 1;\nst.u32 [y], 1;\nst.u32 [z], 1;", declarations)
    assert forms(text.encode() + b"\0", 90) == [(text.encode() + b"\0", {"x", "y", "z"})]


def test_a_fatbin_comes_before_its_ptx() -> None:
    data = (VARIABLES / "variables.fatbin").read_bytes()
    (unit,) = read_image(data).units
    first, second = forms(unit, 90)
    assert first.code == unit
    assert second.code.split()[0] == b".version"
    assert first.variables >= second.variables == WRITTEN_BY_MODULE["conformance/data/variables.ptx"]
    assert {entry.sm for bundle in fatbin.read_fatbins(unit) for entry in bundle.entries} == {75, 90}
    assert forms(unit, 70) == [first]
