"""The parser: what the grammar allows parses, everything else is a clean error."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaasd.devices.emulator.ptx import ast
from kaasd.devices.emulator.ptx.lexer import PtxSyntaxError
from kaasd.devices.emulator.ptx.parser import parse

HEADER = ".version 8.8\n.target sm_90\n.address_size 64\n"
EXAMPLES = sorted((Path(__file__).parents[4] / "examples" / "kernels").glob("*.ptx"))


def parse_all(text: str) -> ast.SyntaxTree:
    """Parse a module, and what is inside its functions."""
    module = parse(text)
    for function in module.functions:
        assert (function.body is None) == (function.content is None)
    return module


def body_of(text: str) -> tuple[ast.Statement, ...]:
    module = parse(f"{HEADER}.entry k()\n{{\n{text}\n}}\n")
    body = module.functions[0].body
    assert body is not None
    return body


def instruction(text: str) -> ast.Instruction:
    (statement,) = body_of(text)
    assert isinstance(statement, ast.Instruction)
    return statement


def value(text: str) -> int | float:
    """Evaluate a constant expression, as an operand."""
    operand = instruction(f"mov.b64 %r, {text};").operands[1]
    assert isinstance(operand, ast.Integer)
    return operand.value


def test_module_directives() -> None:
    module = parse(
        '// c\n.version 7.8 /* x\n */ .target sm_80, debug\n.address_size 64\n.file 1 "a \\"b\\".cu", 1, 2\n.pragma "nounroll";'
    )
    assert (module.version, module.targets, module.address_size) == ((7, 8), ("sm_80", "debug"), 64)
    assert module.files == {1: 'a \\"b\\".cu'}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_compilers_output(path: Path) -> None:
    assert any(function.is_entry and function.body for function in parse(path.read_text()).functions)


def test_instruction_parts() -> None:
    parsed = instruction("@!%p ld.global.L1::no_allocate.v4.f32 {%a, %b, _, %c}, [%rd1+-16];")
    assert parsed.guard == ast.Negated(ast.Identifier("%p"))
    assert parsed.opcode == "ld"
    assert parsed.modifiers == ("global", "L1::no_allocate", "v4", "f32")
    assert parsed.operands[0] == ast.Vector(tuple(ast.Identifier(n) for n in ("%a", "%b", "_", "%c")))
    assert parsed.operands[1] == ast.Address("%rd1", -16)


@pytest.mark.parametrize(
    ("text", "operand"),
    [
        ("[buf]", ast.Address("buf", 0)),
        ("[buf+4*3]", ast.Address("buf", 12)),
        ("[64]", ast.Address(None, 64)),
        ("sym+8", ast.Identifier("sym", 8)),
        ("%tid.x", ast.Identifier("%tid.x")),
        ("%p|%q", ast.Pair(ast.Identifier("%p"), ast.Identifier("%q"))),
        ("!%p", ast.Negated(ast.Identifier("%p"))),
        ("0f3F800000", ast.Float(0x3F800000, 32)),
        ("0d3FF0000000000000", ast.Float(0x3FF0000000000000, 64)),
        ("1.5", ast.Float(0x3FF8000000000000, 64)),
        ("-1.5", ast.Float(0xBFF8000000000000, 64)),
        (".5", ast.Float(0x3FE0000000000000, 64)),
        (".25e1", ast.Float(0x4004000000000000, 64)),
        ("[tex, {%f1, %f2}]", ast.Address("tex", 0, (ast.Vector((ast.Identifier("%f1"), ast.Identifier("%f2"))),))),
        ("$L__BB0_1", ast.Identifier("$L__BB0_1")),
        ("_Z3fooi$bar", ast.Identifier("_Z3fooi$bar")),
    ],
)
def test_operands(text: str, operand: ast.Operand) -> None:
    assert instruction(f"op.x %d, {text};").operands[1] == operand


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("42", 42), ("0x2A", 42), ("052", 42), ("0b101010", 42), ("42U", 42), ("-42", -42), ("!5", 0), ("+7", 7),
        ("~0", 2**64 - 1), ("1+2*3", 7), ("(1+2)*3", 9), ("7/2", 3), ("-7/2", -3), ("-7 % 3", 0), ("8 % -3", 8), ("1<<4|1", 17),
        ("0xF0^0xFF", 15),
        ("3>2&&2>3", 0),
        ("1?2:3", 2), ("0?2:3", 3), ("WARP_SZ*2", 64), ("(.s64)-1", -1), ("(.u64)-1", 2**64 - 1), ("5==5", 1), ("5!=5", 0),
        ("0xFFFFFFFFFFFFFFFF", 2**64 - 1), ("2>=2", 1), ("1||0", 1),
        # What ptxas 13.0 stores for each: `~` and `%` are unsigned, as is what a U or a literal past the signed range is part of.
        ("-8U >> 1", 2**63 - 4), ("-8 >> 1", -4), ("-1 < 3U", 0), ("-1 < 3", 1), ("-1 / 2U", 2**63 - 1), ("-1U % 10", 5),
        ("~0 < 0", 0), ("~0 >> 1", 2**63 - 1), ("!1U - 2 < 0", 1), ("(1U == 1) - 2 < 0", 1), ("(1U && 1) - 2 < 0", 1),
        ("(1 ? -1 : 1U) < 0", 1), ("(1 ? 1U : -1) - 2 < 0", 0), ("(-1 & 1U) - 2 < 0", 0), ("(-1 | 0) < 0", 1),
        ("(1U << 3) - 9 < 0", 0), ("(1 << 3U) - 9 < 0", 1), ("1 << 65", 2), ("-8U >> -8U", 255), ("-1 >= 0U", 1),
        ("0x8000000000000000 < 1", 0), ("-9223372036854775808 / -1", 0), ("(.s64)-1U < 0", 1), ("(.u64)1 - 2 < 0", 0),
        ("-1 * 1U / 2", 2**63 - 1), ("(8 % 3) - 9 < 0", 0), ("-(1U) < 0", 0), ("-1 == -1U", 1), ("1.5 < 2.5", 1),
    ],
)  # fmt: skip
def test_constant_expressions(text: str, expected: int) -> None:
    assert value(text) == expected


@pytest.mark.parametrize(
    "text", ["1.5 + 2", "1.0 && 1", "1.0 || 0.0", "!0.0", "~1.0", "5.5 % 2.0", "1.5 | 2.5", "1 << 2.0", "1 ? 1.5 : 2.5", "1 / 0"]
)
def test_constants_of_types_that_do_not_go_together_are_refused(text: str) -> None:
    with pytest.raises(PtxSyntaxError, match=r"has no value|needs an integer|needs integers"):
        value(text)


def test_variables() -> None:
    module = parse(
        HEADER + ".visible .global .align 16 .v4 .f32 a[2][3] = {1.0, {2}};\n.extern .shared .b8 s[];\n"
        ".const .u64 t[] = {f, generic(a)+4, a+8, 0xFF00(a)};\n.global .attribute(.managed) .s32 x, y = -3;"
    )
    a, s, t, x, y = module.variables
    assert (a.space, a.align, a.vector, a.type, a.dimensions, a.linkage) == ("global", 16, 4, "f32", (2, 3), "visible")
    assert [element.value for element in a.initial] == [ast.Float(0x3FF0000000000000, 64), ast.Integer(2)]
    assert (s.dimensions, s.linkage) == ((None,), "extern")
    assert t.initial == (
        ast.Initial(None, "f"), ast.Initial(None, "a", 4, True), ast.Initial(None, "a", 8),
        ast.Initial(None, "a", 0, False, 8, True),
    )  # fmt: skip
    assert (x.name, y.name, y.initial) == ("x", "y", (ast.Initial(ast.Integer(-3)),))


def test_functions() -> None:
    module = parse(
        HEADER + ".extern .func (.param .b32 r) ext (.param .b64 a, .param .align 8 .b8 b[16]);\n"
        ".weak .func w .noreturn { ret; }\n.visible .entry k(.param .u64 .ptr .global .align 8 p)\n"
        ".maxntid 256, 1, 1\n.minnctapersm 2\n.reqntid 64 { ret; }"
    )
    external, weak, entry = module.functions
    assert (external.body, external.linkage, len(external.results), len(external.parameters)) == (None, "extern", 1, 2)
    assert external.parameters[1].dimensions == (16,)
    assert (weak.linkage, weak.is_entry, "noreturn" in weak.directives) == ("weak", False, True)
    assert (entry.is_entry, entry.directives) == (True, {"maxntid": (256, 1, 1), "minnctapersm": (2,), "reqntid": (64,)})


def test_bodies() -> None:
    body = body_of(
        ".reg .pred %p<3>, %q;\n.loc 1 5 2, function_name $L_info+4, inlined_at 2 7 3\nL: { .local .b8 d[4]; }\n"
        'T: .branchtargets L, M;\nP: .callprototype (.param .b32 _) _ (.param .b64 _, .reg .f32 _);\n.pragma "x";\nM: ret;'
    )
    kinds = [type(statement).__name__ for statement in body]
    assert kinds == [
        "Variable", "Variable", "Label", "ScopeBegin", "Variable", "ScopeEnd", "LabelList", "Prototype", "Label", "Instruction",
    ]  # fmt: skip
    last = body[-1]
    assert isinstance(last, ast.Instruction)
    assert last.location == ast.Location(1, 5, 2, ast.Inlined(2, 7, 3))
    assert body[0].count == 3  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("call f;", ((), "f", (), None)),
        ("call.uni (r), f, (a, b);", (("r",), "f", ("a", "b"), None)),
        ("call (r), %f, (a), P;", (("r",), "%f", ("a",), "P")),
        ("call %f, P;", ((), "%f", (), "P")),
    ],
)
def test_calls(text: str, expected: tuple[object, ...]) -> None:
    results, target, arguments, prototype = instruction(text).operands
    assert isinstance(results, ast.Group)
    assert isinstance(arguments, ast.Group)
    names = [tuple(element.name for element in group.elements) for group in (results, arguments)]  # type: ignore[union-attr]
    assert (names[0], target.name, names[1], prototype.name if isinstance(prototype, ast.Identifier) else None) == expected  # type: ignore[union-attr]


def test_sections_and_dwarf_are_passed_over() -> None:
    module = parse(
        HEADER
        + "@@DWARF .section .x\n.section .debug_str { $L: .b8 1,2 { } }\n.section .debug_info { .b32 a }\n.entry k { ret; }"
    )
    assert [function.name for function in module.functions] == ["k"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", 1), ("hello", 1), (".version 8.0", 1), (".version 8\n.target sm_90", 1), (HEADER + ".entry k {\n ret", 5),
        (HEADER + ".entry k {\n add.u32 %a %b;\n}", 5), (HEADER + "/* no end", 4), (HEADER + '.file 1 "no end', 4),
        (HEADER + ".global .b32 x = 1/0;", 4), (HEADER + ".global .b32 x[", 4), (HEADER + "\n\n§", 6), (HEADER + ".bogus", 4),
        (HEADER + ".global .b32 x = " + "(" * 500, 4), (HEADER + ".global .b32 x = " + "-" * 5000 + "1;", 4),
        (HEADER + ".entry k { op " + "{" * 500, 4), (HEADER + ".global .b32 x = " + "9" * 5000 + ";", 4),
        (HEADER + ".global .b32 x = 08;", 4), (HEADER + ".section .x { {", 4), (HEADER + ".global .align 3 .b32 x;", 4),
        (HEADER + ".entry k { .reg .b32 %r<99999999>; }", 4), (HEADER + ".global .b32 x = 1e400 << 1;", 4),
    ],
)  # fmt: skip
def test_errors_carry_their_line(text: str, line: int) -> None:
    with pytest.raises(PtxSyntaxError) as caught:
        parse_all(text)
    assert caught.value.line == line
    assert f"line {line}:" in str(caught.value)


def test_bodies_are_read_when_they_are_asked_for() -> None:
    module = parse(
        f'{HEADER}.global .b32 a = {{1}};\n.entry bad {{ " }} {{ ";\n add.u32 %a %b; }} .entry good {{ // }}\n{{ ret; }} }}'
    )
    bad, good = module.functions
    assert (bad.name, good.name, len(module.variables)) == ("bad", "good", 1)
    assert [type(statement) for statement in good.body or ()] == [ast.ScopeBegin, ast.Instruction, ast.ScopeEnd]
    for _ in range(2):
        with pytest.raises(PtxSyntaxError, match="line 5: an instruction is needed"):
            print(bad.body)


def parses_or_names_a_line(text: str) -> bool:
    """Either outcome is right; what matters is that there is no other."""
    try:
        return isinstance(parse_all(text), ast.SyntaxTree)
    except PtxSyntaxError as error:
        return 1 <= error.line <= text.count("\n") + 1


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text(text: str) -> None:
    assert parses_or_names_a_line(text)
    assert parses_or_names_a_line(HEADER + text)
    assert parses_or_names_a_line(f"{HEADER}.entry k {{ {text} }}")


PIECES = [
    ".reg", ".b32", "%r", "<", ">", "4", "{", "}", "(", ")", "[", "]", ",", ";", "@", "!", "|", "+", "-", "add.u32", "call", ":",
    ".callprototype", ".branchtargets", "L", "=", "0f3F800000", "1.5", '"s"', ".loc", ".section", ".param", ".global", ".entry",
    ".func", ".align", "generic", "?", "<<", ".version", ".file", "0xFF", "_", ".pragma", "WARP_SZ", "//", "/*", "*/", "\n",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_tokens(pieces: list[str]) -> None:
    text = " ".join(pieces)
    assert parses_or_names_a_line(HEADER + text)
    assert parses_or_names_a_line(f"{HEADER}.entry k {{ {text} }}")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(EXAMPLES), st.data())
def test_damaged_output_of_compilers(path: Path, data: st.DataObject) -> None:
    text = path.read_text()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 200)))
    assert parses_or_names_a_line(text[:start] + data.draw(st.text(max_size=5)) + text[end:])
