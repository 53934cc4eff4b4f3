"""PTX text to its syntax tree: declarations of variables, wherever they stand."""

from __future__ import annotations

from dataclasses import replace

from kaasd.devices.emulator.ptx.ast import Float, Initial, Integer, Variable
from kaasd.devices.emulator.ptx.expression import parse_addend, parse_constant, parse_integer
from kaasd.devices.emulator.ptx.lexer import Cursor, Kind, PtxSyntaxError

SPACES = ("reg", "sreg", "const", "global", "local", "param", "shared", "tex")


def skip_pragma(cursor: Cursor) -> None:
    """Pass the strings of a ``.pragma`` and its end."""
    cursor.take(Kind.STRING, "a pragma's text")
    while cursor.accept(","):
        cursor.take(Kind.STRING, "a pragma's text")
    cursor.expect(";")


def skip_parentheses(cursor: Cursor) -> None:
    """Pass a parenthesised list, whatever is in it."""
    cursor.expect("(")
    depth = 1
    while depth:
        if cursor.peek().kind is Kind.END:
            raise PtxSyntaxError(cursor.line, "expected ')'")
        depth += {"(": 1, ")": -1}.get(cursor.advance().text, 0)


def skip_bank(cursor: Cursor) -> None:
    """Pass the number of a bank of constants, as in ``.const[2]`` of PTX before 2.2."""
    if cursor.accept("["):
        parse_integer(cursor)
        cursor.expect("]")


def parse_parameters(cursor: Cursor) -> tuple[Variable, ...]:
    """Parse ``(.param .b32 a, .reg .f32 b, …)``."""
    cursor.expect("(")
    parameters: list[Variable] = []
    while not cursor.accept(")"):
        if parameters:
            cursor.expect(",")
        parameters.append(_declarator(cursor, _declaration_head(cursor, "")))
    return tuple(parameters)


def parse_variables(cursor: Cursor, linkage: str) -> list[Variable]:
    """Parse a declaration of one or several variables of a space, up to its ``;``."""
    head = _declaration_head(cursor, linkage)
    variables = [_declarator(cursor, head)]
    while cursor.accept(","):
        variables.append(_declarator(cursor, head))
    cursor.expect(";")
    return variables


def _declaration_head(cursor: Cursor, linkage: str) -> Variable:
    """Parse space, alignment, vector and type: what the declarators of one declaration share."""
    line = cursor.line
    space = cursor.accept_dot(*SPACES)
    if space is None:
        raise PtxSyntaxError(line, f"a state space is needed, not {cursor.peek().text!r}")
    if space.text == "const":
        skip_bank(cursor)
    align, vector, kind = None, 1, ""
    while token := cursor.accept_dot():
        if token.text == "align":
            align = parse_integer(cursor)
            if align < 1 or align & (align - 1) or align > 2**20:
                raise PtxSyntaxError(token.line, f"{align} is not a valid alignment")
        elif token.text in ("v2", "v4", "v8"):
            vector = int(token.text[1:])
        elif token.text == "attribute":
            skip_parentheses(cursor)
        elif token.text == "ptr":
            cursor.accept_dot("global", "const", "shared", "local", "generic")
            if cursor.accept_dot("align"):  # of what it points to
                parse_integer(cursor)
        else:
            kind = token.text
    if not kind:
        raise PtxSyntaxError(line, "the declaration has no type")
    return Variable(line, space.text.split("::")[0], kind, "", align, vector, linkage=linkage)


def _declarator(cursor: Cursor, head: Variable) -> Variable:
    line = cursor.line
    name = cursor.take(Kind.IDENTIFIER, "a name")
    count = parse_count(cursor)
    dimensions: list[int | None] = []
    while cursor.accept("["):
        dimensions.append(None if cursor.at("]") else parse_integer(cursor))
        cursor.expect("]")
    initial = tuple(_initialiser(cursor)) if cursor.accept("=") else ()
    return replace(head, line=line, name=name, count=count, dimensions=tuple(dimensions), initial=initial)


def parse_count(cursor: Cursor) -> int | None:
    """Parse the count of a parameterised name, ``<5>``, if there is one: a plain integer, since ``>`` follows."""
    if not cursor.accept("<"):
        return None
    line = cursor.line
    text = cursor.take(Kind.INTEGER, "a count")
    if not text.isdigit() or len(text) > 7:
        raise PtxSyntaxError(line, f"{text} is not a valid number of names")
    cursor.expect(">")
    return int(text)


def _initialiser(cursor: Cursor) -> list[Initial]:
    """Parse an initialiser, flattened: nested braces only group what is laid out in order anyway."""
    if not cursor.at("{"):
        return [_initial_element(cursor)]
    elements: list[Initial] = []
    depth = 0
    while True:
        if cursor.accept("{"):
            depth += 1
        elif cursor.accept("}"):
            depth -= 1
            if depth == 0:
                return elements
        elif not cursor.accept(","):
            elements.append(_initial_element(cursor))


def _initial_element(cursor: Cursor) -> Initial:
    token = cursor.peek()
    if token.kind is Kind.INTEGER and cursor.peek(1).text == "(":  # 0xFF00(symbol): one byte of an address
        cursor.advance()
        mask = int(token.text.removesuffix("U"), 0) if len(token.text) < 20 else 0
        shift = (mask & -mask).bit_length() - 1
        if mask <= 0 or mask != 0xFF << shift or shift % 8:
            raise PtxSyntaxError(token.line, f"{token.text} is not a mask of one byte")
        cursor.expect("(")
        element = _initial_element(cursor)
        cursor.expect(")")
        return replace(element, shift=shift, is_masked=True)
    if token.kind is Kind.IDENTIFIER and token.text != "WARP_SZ":
        name = cursor.advance().text
        if cursor.accept("="):  # a property of a sampler, such as addr_mode_0 = wrap
            return _initial_element(cursor)
        generic = name == "generic" and cursor.accept("(")
        if generic:
            name = cursor.take(Kind.IDENTIFIER, "a symbol")
            cursor.expect(")")
        return Initial(None, name, parse_addend(cursor), generic)
    value: Integer | Float = parse_constant(cursor)
    return Initial(value)
