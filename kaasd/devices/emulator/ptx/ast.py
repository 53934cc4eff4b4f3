"""The syntax tree of a PTX module. Not to be changed; names are as written, unresolved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, TypeAlias


@dataclass(frozen=True, slots=True)
class Identifier:
    """A register, special register (``%tid.x``), variable, function or label, possibly with a constant added."""

    name: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Integer:
    """An integer constant; ``unsigned`` when written with ``U`` or past the range of a signed 64-bit integer."""

    value: int


@dataclass(frozen=True, slots=True)
class Float:
    """A floating-point constant: ``0f…`` and ``0d…`` give bits of that width, a decimal one the 64-bit value."""

    bits: int
    width: int


@dataclass(frozen=True, slots=True)
class Negated:
    """``!p``: a predicate operand, negated."""

    operand: Identifier


@dataclass(frozen=True, slots=True)
class Minus:
    """``-a``: a register, negated."""

    operand: Identifier


@dataclass(frozen=True, slots=True)
class Indexed:
    """``array[index+offset]``; ``index`` is a register, or None for a constant."""

    array: str
    index: str | None
    offset: int


@dataclass(frozen=True, slots=True)
class Vector:
    """``{a, b, …}``."""

    elements: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """``d|p``: two destinations."""

    first: Operand
    second: Operand


@dataclass(frozen=True, slots=True)
class Address:
    """``[base+offset]``; ``base`` is None for an absolute address. ``rest`` holds what follows a comma inside the brackets."""

    base: str | None
    offset: int
    rest: tuple[Operand, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """``(a, b, …)``: the results or arguments of a call."""

    elements: tuple[Operand, ...]


Operand: TypeAlias = Identifier | Integer | Float | Negated | Minus | Indexed | Vector | Pair | Address | Group


@dataclass(frozen=True, slots=True)
class Inlined:
    """Where the code of a line was inlined: ``inlined_at``."""

    file: int
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Location:
    """A ``.loc``: a place in the source that the following instructions come from."""

    file: int
    line: int
    column: int
    inlined_at: Inlined | None = None


@dataclass(slots=True)
class Instruction:
    line: int
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Identifier | Negated | None = None
    """The predicate of ``@p`` or ``@!p``."""
    location: Location | None = None

    @property
    def mnemonic(self) -> str:
        return ".".join((self.opcode, *self.modifiers))


@dataclass(frozen=True, slots=True)
class Label:
    line: int
    name: str


@dataclass(frozen=True, slots=True)
class Initial:
    """One element of an initialiser: a constant, or the address of ``symbol`` plus ``offset``, ``shift`` bits to the right."""

    value: Integer | Float | None
    symbol: str = ""
    offset: int = 0
    generic: bool = False
    shift: int = 0
    is_masked: bool = False
    """It is one byte of the address."""


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable in some state space, ``reg`` and ``param`` included."""

    line: int
    space: str
    type: str
    name: str
    align: int | None = None
    vector: int = 1
    dimensions: tuple[int | None, ...] = ()
    """Of an array; None where the size is left open."""
    count: int | None = None
    """``name<count>``: that many variables, ``name0`` and so on."""
    initial: tuple[Initial, ...] = ()
    linkage: str = ""

    @property
    def names(self) -> list[str]:
        """The names declared: several with a ``count``."""
        return [self.name] if self.count is None else [f"{self.name}{index}" for index in range(self.count)]


@dataclass(frozen=True, slots=True)
class ScopeBegin:
    line: int


@dataclass(frozen=True, slots=True)
class ScopeEnd:
    line: int


@dataclass(frozen=True, slots=True)
class LabelList:
    """``name: .branchtargets a, b;`` or ``.calltargets``."""

    line: int
    name: str
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prototype:
    """``name: .callprototype (results) _ (parameters);``."""

    line: int
    name: str
    results: tuple[Variable, ...]
    parameters: tuple[Variable, ...]


Statement: TypeAlias = Instruction | Label | Variable | ScopeBegin | ScopeEnd | LabelList | Prototype


class Content(Protocol):
    """What is inside a function."""

    @property
    def text(self) -> str:
        """As it is written."""

    @property
    def line(self) -> int:
        """Where it begins."""

    @property
    def statements(self) -> tuple[Statement, ...]:
        """Read when it is first asked for. Raises ``PtxSyntaxError``."""


@dataclass(frozen=True, slots=True)
class FunctionDeclaration:
    """A function or kernel, with its body or without."""

    line: int
    name: str
    is_entry: bool
    results: tuple[Variable, ...]
    parameters: tuple[Variable, ...]
    content: Content | None
    """None for a declaration."""
    linkage: str = ""
    directives: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Such as ``{"reqntid": (256, 1, 1)}``."""

    @property
    def body(self) -> tuple[Statement, ...] | None:
        """What is inside; None for a declaration. Raises ``PtxSyntaxError``."""
        return None if self.content is None else self.content.statements


@dataclass(frozen=True, slots=True)
class SyntaxTree:
    """What one PTX text says."""

    version: tuple[int, int]
    targets: tuple[str, ...]
    address_size: int
    files: dict[int, str]
    variables: tuple[Variable, ...]
    functions: tuple[FunctionDeclaration, ...]
    aliases: dict[str, str] = field(default_factory=dict)
